r"""Trains a Vision Transformer from scratch, the AugReg way.

    python recipes/pretrain.py

trains ViT-Ti/16 on scikit-learn's real handwritten digits, upscaled: 2 CPU
cores, a minute or two, at least 96% of the test digits (docs/results.md). The
settings are the study's (arXiv 2106.10270, section 3) except for the length
of the run, its peak learning rate and the loss: Adam, warm-up and cosine,
clipping at 1, decoupled decay of kernels. The study's own kind of run:

    python recipes/pretrain.py --study=i21k-300ep --model=ViT_S16 \
        --data_dir=FOLDER --save_every=1000 --fewshot=10

on a TPU pod; it was not run here. --study sets the paper's constants and the
recipe that was picked for the model, unless other flags set them; nobody
published picks for i21k-30ep, nor for hybrids on i1k: add --recipe. If it is
stopped or killed, the same command resumes the run (docs/training.md).
--workdir gets checkpoints, `settings.json`, `metrics.jsonl`, the model
(`model.keras`) and a picture of predictions; the last line on stdout is JSON.
Further flags: --helpfull.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import arguments
import building
import common
import running
from absl import app, flags

import keras_augreg
from keras_augreg.recipe import (
    PRETRAINING_RUNS,
    pretraining_settings,
    pretraining_warmup,
)
from keras_augreg.training.fewshot import FewShot

_STUDY = flags.DEFINE_enum(
    "study", None, PRETRAINING_RUNS, "One of the paper's runs."
)
_DATASET = flags.DEFINE_string("dataset", "digits", "See `data.load`.")
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "As 'B/16' or 'ViT_B16'.")
_RECIPE = flags.DEFINE_string("recipe", "none", "none, light1, ... heavy2.")
_DROPOUT = flags.DEFINE_float(
    "dropout", 0.0, "Rate of dropout and stochastic depth."
)
_WEIGHT_DECAY = flags.DEFINE_float("weight_decay", 0.1, "As in the paper.")
_AUGMENT_ON = flags.DEFINE_enum(
    "augment_on", "auto", ["auto", "device", "host"], "Where a recipe runs."
)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Side in pixels.")
_PATCH_SIZE = flags.DEFINE_integer(
    "patch_size", 0, "Side in pixels; 0: the model's."
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per step.")
_EPOCHS = flags.DEFINE_float("epochs", 10, "Passes over the training set.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-4, "Peak.")
_LOSS = flags.DEFINE_enum("loss", "softmax", ["softmax", "sigmoid"], "Loss.")
_FEWSHOT = flags.DEFINE_integer(
    "fewshot", 0, "Log few-shot accuracy with so many images per class."
)


def main(argv: list[str]) -> None:
    """Trains, evaluates, saves, reports."""
    del argv
    if _STUDY.value:
        model_name = None if flags.FLAGS["recipe"].present else _MODEL.value
        common.apply(pretraining_settings(_STUDY.value, model_name))
    recipe = keras_augreg.AugReg(
        _RECIPE.value, _DROPOUT.value, _DROPOUT.value, _WEIGHT_DECAY.value
    )
    size = {"image_size": _IMAGE_SIZE.value, "batch_size": _BATCH_SIZE.value}
    with keras_augreg.distribute(flags.FLAGS.distribute) as devices:
        common.start()
        train, test, info = common.load(_DATASET.value, devices.shard, **size)
        batches = int(_EPOCHS.value * info.steps_per_epoch)
        total_steps = batches // flags.FLAGS.accumulation
        model = building.new(
            _MODEL.value,
            _IMAGE_SIZE.value,
            _PATCH_SIZE.value,
            classes=info.num_classes,
            recipe=recipe,
        )
        keras_augreg.compile_pretraining(
            model,
            recipe,
            total_steps=total_steps,
            learning_rate=_LEARNING_RATE.value,
            loss=_LOSS.value,
            augment_on=_AUGMENT_ON.value,
            seed=flags.FLAGS.seed,
            **common.compile_options(pretraining_warmup(total_steps)),
        )
        callbacks = []
        if _FEWSHOT.value:
            if devices.replicas > 1:
                raise app.UsageError("--fewshot runs on one device only.")
            few = common.unaugmented(_DATASET.value, **size)
            callbacks = [FewShot(few, test, _FEWSHOT.value)]
        run = running.open_run(devices)
        callbacks += running.tensorboard(run, train, recipe, info, devices)
        scores = running.fit(run, model, train, test, total_steps, callbacks)
    running.finish(
        run,
        model,
        test,
        info,
        devices,
        scores,
        model=_MODEL.value,
        patch_size=model.sizes.patch_size,
        recipe=str(recipe),
        dtype=flags.FLAGS.dtype,
        dataset=_DATASET.value,
        steps=total_steps,
    )


if __name__ == "__main__":
    arguments.run(main)
