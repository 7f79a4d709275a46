r"""Compares crops or patches of small images after short training runs.

    python tests/benchmarks/small_images.py SOURCE crops|patches [--seeds=1]
        [--epochs=8]

SOURCE is "digits", or a folder that holds `train/` and `test/` of class folders
with small images, such as 4,000 and 1,000 of Fashion-MNIST. The same small ViT
is trained. Crops: images of 28 pixels, each crop evaluated with two.
Patches: images of 32 pixels, never cropped, with patches of 4, 8 and 16; and
the seconds of CPU time. Log: `logs/small_images.txt`.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

import keras_augreg
from keras_augreg import data
from keras_augreg.data import decode

BATCH = 64
CROPS = (
    ("inception", 0.05),
    ("inception", 0.25),
    ("inception", 0.5),
    ("inception", 0.7),
    ("resize_small", 1.0),
    ("resize", 1.0),
)
EVALUATION = ("resize_small", "resize")
PATCHES = (4, 8, 16)


def load(source: str, split: str, size: int, crop: str, seed: int = 0):
    """Batches of a split, kept in memory."""
    return data.load(
        source,
        split,
        image_size=size,
        batch_size=BATCH,
        training=split == "train",
        preprocess=crop,
        seed=seed,
        options=data.Options(engine="python", cache=True),
    )


def train(
    source: str, size: int, patch: int, crop: str, seed: int, epochs: int
):
    """Trains the model once."""
    keras.utils.set_random_seed(seed)
    images, info = load(source, "train", size, crop, seed)
    model = keras_augreg.VisionTransformer(
        patch_size=patch,
        width=64,
        depth=3,
        num_heads=4,
        mlp_dim=128,
        input_shape=(size, size, 3),
        classes=info.num_classes,
        seed=seed,
    )
    total = epochs * info.steps_per_epoch
    keras_augreg.compile_pretraining(
        model,
        keras_augreg.AugReg("none"),
        total_steps=total,
        warmup_steps=total // 10,
        loss="softmax",
        seed=seed,
    )
    model.fit(images, epochs=epochs, verbose=0)
    return model


def accuracy(model, source: str, size: int, crop: str) -> float:
    """The accuracy on the test images."""
    test, _ = load(source, "test", size, crop)
    result = model.evaluate(test, verbose=0, return_dict=True)
    return round(float(np.asarray(result["accuracy"])), 4)


def crops(source: str, seed: int, epochs: int):
    """A line for each crop."""
    for crop, area in CROPS:
        decode.CROP_AREA = (area, 1.0)
        model = train(source, 28, 4, crop, seed, epochs)
        scores = {e: accuracy(model, source, 28, e) for e in EVALUATION}
        yield {"crop": crop, "area": area, **scores}


def patches(source: str, seed: int, epochs: int):
    """A line for each patch size."""
    for patch in PATCHES:
        start = time.process_time()
        model = train(source, 32, patch, "resize", seed, epochs)
        line = {
            "patch": patch,
            "accuracy": accuracy(model, source, 32, "resize"),
        }
        yield {**line, "cpu_s": round(time.process_time() - start)}


def main() -> None:
    """Measures and prints a line of JSON for each variant and seed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source")
    parser.add_argument("what", choices=("crops", "patches"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--epochs", type=int, default=8)
    given = parser.parse_args()
    lines = {"crops": crops, "patches": patches}[given.what]
    for seed in range(given.seeds):
        for line in lines(given.source, seed, given.epochs):
            name = os.path.basename(given.source)
            about = {"name": name, "epochs": given.epochs, "seed": seed}
            print(json.dumps({**about, **line}), flush=True)


if __name__ == "__main__":
    main()
