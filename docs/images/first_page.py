r"""Draws the first page's pictures with models that were trained here.

    python recipes/pretrain.py
    python docs/images/first_page.py

`predictions.png`: what the model of the first command predicts for digits of
the test set. `attention.png`: the attention rollout of a smaller model with
patches of 4 pixels, which the second command trains (some minutes on one CPU
core; 97% of the test digits on 2026-11-25).
"""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import keras_augreg
from keras_augreg import data, visualize

FOLDER = pathlib.Path(__file__).parent
EPOCHS = 30


def load(split: str):
    """Batches of digits, and what is known of them."""
    return data.load(
        "digits",
        split,
        image_size=32,
        batch_size=64,
        training=split == "train",
    )


def train() -> keras.Model:
    """A small model: 64 patches of a digit, four blocks."""
    keras.utils.set_random_seed(0)
    train, info = load("train")
    model = keras_augreg.VisionTransformer(
        patch_size=4,
        width=96,
        depth=4,
        num_heads=3,
        mlp_dim=384,
        input_shape=(32, 32, 3),
        classes=info.num_classes,
    )
    keras_augreg.compile_pretraining(
        model,
        keras_augreg.AugReg("none"),
        total_steps=EPOCHS * info.steps_per_epoch,
        learning_rate=1e-3,
        warmup_steps=60,
        loss="softmax",
    )
    model.fit(train, epochs=EPOCHS, verbose=2)
    return model


test, info = load("test")
images, labels = map(np.asarray, next(iter(test))[:2])
pretrained = keras.saving.load_model("runs/pretrain/model.keras")
visualize.plot_predictions(
    images[:12],
    labels[:12],
    pretrained.predict(images[:12]),
    info.class_names,
    columns=6,
).savefig(FOLDER / "predictions.png", dpi=80)
one_of_each = [np.flatnonzero(labels == digit)[0] for digit in range(10)]
visualize.plot_rollout(train(), images[one_of_each]).savefig(
    FOLDER / "attention.png", dpi=80
)
