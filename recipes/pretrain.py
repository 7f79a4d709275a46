r"""Trains a Vision Transformer from scratch, the AugReg way.

    python recipes/pretrain.py

trains ViT-Ti/16 on scikit-learn's real handwritten digits, upscaled: 2 CPU
cores, some minutes, at least 96% of the test digits (the README has the
figures). The settings are the study's (arXiv 2106.10270, section 3), but for
the length of the run, its peak learning rate and the loss: Adam, warm-up and
cosine, clipping at 1, decoupled decay of kernels. The study's own kind of run:

    python recipes/pretrain.py --dataset=imagenet2012 --model=ViT_S16 \
        --recipe=medium1 --image_size=224 --batch_size=4096 --epochs=300 \
        --learning_rate=1e-3 --loss=sigmoid

on a TPU pod; it was not run here. The script writes the model (`model.keras`)
and a picture of predictions on test images (`predictions.png`) to --workdir,
and ends with one line of JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from absl import app, flags

import keras_augreg
from keras_augreg import data, visualize

_DATASET = flags.DEFINE_string("dataset", "digits", "See `data.load`.")
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "Name of a builder.")
_RECIPE = flags.DEFINE_string("recipe", "none", "none, light1, ... heavy2.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 48, "Pixels of a side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images of a step.")
_EPOCHS = flags.DEFINE_float("epochs", 15, "Passes over the training set.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 5e-4, "Its peak.")
_LOSS = flags.DEFINE_enum("loss", "softmax", ["softmax", "sigmoid"], "Loss.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/pretrain", "Output folder.")

WARMUP_SHARE = 0.1  # of the run; the study's 10,000 steps are 3% to 10%
SEED = 0


def main(argv: list[str]) -> None:
    """Trains, evaluates, saves, reports."""
    del argv
    start = time.monotonic()
    keras.utils.set_random_seed(SEED)
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)

    size, batch_size = _IMAGE_SIZE.value, _BATCH_SIZE.value
    train, info = data.load(
        _DATASET.value,
        "train",
        image_size=size,
        batch_size=batch_size,
        training=True,
        seed=SEED,
    )
    test, test_info = data.load(
        _DATASET.value,
        "test",
        image_size=size,
        batch_size=batch_size,
        training=False,
    )
    total_steps = int(_EPOCHS.value * info.steps_per_epoch)
    recipe = keras_augreg.AugReg(_RECIPE.value)
    model = getattr(keras_augreg, _MODEL.value)(
        weights=None,
        input_shape=(size, size, 3),
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
    model.fit(train, epochs=round(total_steps / info.steps_per_epoch))
    scores = model.evaluate(test, return_dict=True)
    model.save(workdir / "model.keras")

    images, labels = next(iter(test))[:2]
    images = keras.ops.convert_to_numpy(images)[:32]
    visualize.predictions(
        images,
        keras.ops.convert_to_numpy(labels)[:32],
        model.predict(images, verbose=0),
        info.class_names,
    ).savefig(workdir / "predictions.png", dpi=100)
    print(
        json.dumps(
            {
                "model": _MODEL.value,
                "recipe": str(recipe),
                "dataset": _DATASET.value,
                "test_examples": test_info.num_examples,
                **{f"test_{name}": value for name, value in scores.items()},
                "steps": total_steps,
                "minutes": round((time.monotonic() - start) / 60, 2),
                "backend": keras.config.backend(),
                "workdir": str(workdir),
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
