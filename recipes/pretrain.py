r"""Trains a Vision Transformer from scratch, the AugReg way.

    python recipes/pretrain.py

trains ViT-Ti/16 on scikit-learn's real handwritten digits, upscaled: 2 CPU
cores, some minutes, at least 96% of the test digits (docs/results.md). The
settings are the study's (arXiv 2106.10270, section 3), but for the length of
the run, its peak learning rate and the loss: Adam, warm-up and cosine,
clipping at 1, decoupled decay of kernels. The study's own kind of run:

    python recipes/pretrain.py --dataset=imagenet2012 --model=ViT_S16 \
        --recipe=medium1 --image_size=224 --batch_size=4096 --epochs=300 \
        --learning_rate=1e-3 --loss=sigmoid --save_every=1000

on a TPU pod; it was not run here. Stopped or killed, the same command goes on
where it was (docs/training.md). --workdir gets checkpoints, `settings.json`,
`metrics.jsonl`, the model (`model.keras`) and a picture of predictions; the
last line on stdout is JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import common
import keras
from absl import app, flags

import keras_augreg
from keras_augreg.recipe import pretraining_warmup

_DATASET = flags.DEFINE_string("dataset", "digits", "See `data.load`.")
_TRAIN_SPLIT = flags.DEFINE_string("train_split", "train", "Or train[:10%].")
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "Name of a builder.")
_RECIPE = flags.DEFINE_string("recipe", "none", "none, light1, ... heavy2.")
_DROPOUT = flags.DEFINE_float("dropout", 0.0, "And stochastic depth.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 32, "Pixels of a side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images of a step.")
_EPOCHS = flags.DEFINE_float("epochs", 20, "Passes over the training set.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-4, "Its peak.")
_LOSS = flags.DEFINE_enum("loss", "softmax", ["softmax", "sigmoid"], "Loss.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps, see Workdir.fit.")
_DISTRIBUTE = flags.DEFINE_string("distribute", "auto", "See `distribute`.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/pretrain", "Output folder.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Needs TensorFlow.")

ELSEWHERE = ("workdir", "tensorboard")  # flags that change no result


def main(argv: list[str]) -> None:
    """Trains, evaluates, saves, reports."""
    del argv
    keras.utils.set_random_seed(common.SEED)
    with keras_augreg.distribute(_DISTRIBUTE.value) as devices:
        train, test, info = common.load(
            _DATASET.value,
            _TRAIN_SPLIT.value,
            image_size=_IMAGE_SIZE.value,
            batch_size=_BATCH_SIZE.value,
            shard=devices.shard,
        )
        total_steps = int(_EPOCHS.value * info.steps_per_epoch)
        recipe = keras_augreg.AugReg(
            _RECIPE.value, _DROPOUT.value, _DROPOUT.value
        )
        model = getattr(keras_augreg, _MODEL.value)(
            weights=None,
            input_shape=(_IMAGE_SIZE.value, _IMAGE_SIZE.value, 3),
            classes=info.num_classes,
            dropout=recipe.dropout,
            stochastic_depth=recipe.stochastic_depth,
        )
        keras_augreg.compile_pretraining(
            model,
            recipe,
            total_steps=total_steps,
            learning_rate=_LEARNING_RATE.value,
            warmup_steps=pretraining_warmup(total_steps),
            loss=_LOSS.value,
            seed=common.SEED,
        )
        # Only now: a command that failed before leaves no directory behind.
        run = common.open_run(_WORKDIR.value, ELSEWHERE, devices)
        callbacks = []
        if _TENSORBOARD.value and devices.shard[0] == 0:
            callbacks = common.tensorboard(run, train.at(0, 1), recipe, info)
        run.fit(
            model,
            train,
            total_steps=total_steps,
            interval=_SAVE_EVERY.value,
            validation_data=test,
            callbacks=callbacks,
        )
        scores = model.evaluate(test, return_dict=True)
    result = {
        "model": _MODEL.value,
        "recipe": str(recipe),
        "dataset": _DATASET.value,
        **{f"test_{name}": value for name, value in scores.items()},
        "steps": total_steps,
    }
    common.finish(run, model, test, info, devices, result)


if __name__ == "__main__":
    app.run(main)
