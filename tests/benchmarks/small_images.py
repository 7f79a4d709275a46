r"""Compares crops of small images: accuracy after a short training run.

    python tests/benchmarks/small_images.py FOLDER [SEEDS]

FOLDER holds `train/` and `test/` of class folders with 28-pixel images, such
as 4,000 and 1,000 of Fashion-MNIST. The same small ViT is trained 8 epochs with
each crop and evaluated with two. Log: `logs/small_images.txt`.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import keras_augreg
from keras_augreg import data
from keras_augreg.data import decode

SIZE, BATCH, EPOCHS = 28, 64, 8
CROPS = (
    ("inception", 0.05),
    ("inception", 0.25),
    ("inception", 0.5),
    ("inception", 0.7),
    ("resize_small", 1.0),
    ("resize", 1.0),
)
EVALUATION = ("resize_small", "resize")


def load(folder: str, split: str, crop: str, seed: int = 0):
    """Batches of a split, kept in memory."""
    return data.load(
        folder,
        split,
        image_size=SIZE,
        batch_size=BATCH,
        training=split == "train",
        preprocess=crop,
        seed=seed,
        options=data.Options(engine="python", cache=True),
    )


def measure(folder: str, crop: str, area: float, seed: int) -> dict:
    """Trains once; returns the accuracy by evaluation crop."""
    decode.CROP_AREA = (area, 1.0)
    keras.utils.set_random_seed(seed)
    train, info = load(folder, "train", crop, seed)
    model = keras_augreg.VisionTransformer(
        patch_size=4,
        width=64,
        depth=3,
        num_heads=4,
        mlp_dim=128,
        input_shape=(SIZE, SIZE, 3),
        classes=info.num_classes,
        seed=seed,
    )
    total = EPOCHS * info.steps_per_epoch
    keras_augreg.compile_pretraining(
        model,
        keras_augreg.AugReg("none"),
        total_steps=total,
        warmup_steps=total // 10,
        loss="softmax",
        seed=seed,
    )
    model.fit(train, epochs=EPOCHS, verbose=0)
    scores = {}
    for name in EVALUATION:
        test, _ = load(folder, "test", name)
        result = model.evaluate(test, verbose=0, return_dict=True)
        scores[name] = round(float(np.asarray(result["accuracy"])), 4)
    return scores


def main() -> None:
    """Measures and prints a line for each crop and seed."""
    folder = sys.argv[1]
    for seed in range(int(sys.argv[2]) if len(sys.argv) > 2 else 1):
        for crop, area in CROPS:
            scores = measure(folder, crop, area, seed)
            line = {"crop": crop, "area": area, "seed": seed, **scores}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
