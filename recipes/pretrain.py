r"""Trains a Vision Transformer from scratch, the AugReg way.

    python recipes/pretrain.py

trains ViT-Ti/16 on scikit-learn's real handwritten digits, upscaled: 2 CPU
cores, some minutes, at least 96% of the test digits (the README has the
figures). The settings are the study's (arXiv 2106.10270, section 3), but for
the length of the run, its peak learning rate and the loss: Adam, warm-up and
cosine, clipping at 1, decoupled decay of kernels. The study's own kind of run:

    python recipes/pretrain.py --dataset=imagenet2012 --model=ViT_S16 \
        --recipe=medium1 --image_size=224 --batch_size=4096 --epochs=300 \
        --learning_rate=1e-3 --loss=sigmoid --save_every=1000

on a TPU pod; it was not run here. Stopped or killed, the same command goes on
where it was (docs/training.md). --workdir gets checkpoints, `settings.json`,
`metrics.jsonl`, the model (`model.keras`) and a picture of predictions; the
last line on stdout is JSON.
"""

from __future__ import annotations

import functools
import json
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np
from absl import app, flags

import keras_augreg
from keras_augreg import data, visualize
from keras_augreg.workdir import Workdir

_DATASET = flags.DEFINE_string("dataset", "digits", "See `data.load`.")
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "Name of a builder.")
_RECIPE = flags.DEFINE_string("recipe", "none", "none, light1, ... heavy2.")
_DROPOUT = flags.DEFINE_float("dropout", 0.0, "And stochastic depth.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 48, "Pixels of a side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images of a step.")
_EPOCHS = flags.DEFINE_float("epochs", 20, "Passes over the training set.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-4, "Its peak.")
_LOSS = flags.DEFINE_enum("loss", "softmax", ["softmax", "sigmoid"], "Loss.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps, see Workdir.fit.")
_DISTRIBUTE = flags.DEFINE_string("distribute", "auto", "See `distribute`.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/pretrain", "Output folder.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Needs TensorFlow.")

WARMUP_SHARE = 0.1  # of the run; the study's 10,000 steps are 3% to 10%
SEED = 0
ELSEWHERE = ("workdir", "tensorboard")  # flags that change no result


def main(argv: list[str]) -> None:
    """Trains, evaluates, saves, reports."""
    del argv
    keras.utils.set_random_seed(SEED)
    with keras_augreg.distribute(_DISTRIBUTE.value) as devices:
        settings = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
        run = Workdir(
            _WORKDIR.value,
            {f.name: f.value for f in settings if f.name not in ELSEWHERE},
        )
        sizes = {
            "image_size": _IMAGE_SIZE.value,
            "batch_size": _BATCH_SIZE.value,
            "host": devices.host,
        }
        train = functools.partial(
            data.load,
            _DATASET.value,
            "train",
            training=True,
            seed=SEED,
            **sizes,
        )
        info = train()[1]
        test, _ = data.load(_DATASET.value, "test", training=False, **sizes)
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
            base_lr=_LEARNING_RATE.value,
            warmup_steps=int(WARMUP_SHARE * total_steps),
            loss=_LOSS.value,
            seed=SEED,
        )
        run.fit(
            model,
            lambda first, steps: train(start_step=first, steps=steps)[0],
            total_steps=total_steps,
            interval=_SAVE_EVERY.value,
            validation_data=test,
            callbacks=[keras.callbacks.TensorBoard(run.path / "tensorboard")]
            * _TENSORBOARD.value,  # none without
        )
        scores = model.evaluate(test, return_dict=True)
    if devices.host[0] == 0:
        model.save(run.path / "model.keras")
        images, labels = map(np.asarray, next(iter(test))[:2])
        visualize.predictions(
            images[:32],
            labels[:32],
            model.predict(images[:32], verbose=0),
            info.class_names,
        ).savefig(run.path / "predictions.png", dpi=100)
        result = {
            "model": _MODEL.value,
            "recipe": str(recipe),
            "dataset": _DATASET.value,
            **{f"test_{name}": value for name, value in scores.items()},
            "steps": total_steps,
            "backend": keras.config.backend(),
            "workdir": str(run.path),
        }
        print(json.dumps(result))


if __name__ == "__main__":
    app.run(main)
