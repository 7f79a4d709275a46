r"""Makes the class folders of the study of docs/study.md from Fashion-MNIST.

    apt-get download dataset-fashion-mnist
    dpkg-deb -x dataset-fashion-mnist_*.deb runs/fashion_deb
    python tests/benchmarks/study_fashion.py runs/fashion_deb runs/fashion

Debian's package (30 MB, MIT licence) holds 70,000 photographs of clothes, 28 x
28 pixels, in ten classes. Writes the first 1,000 training images of each class
and all 10,000 test images as PNG files, some seconds.
"""

from __future__ import annotations

import gzip
import pathlib
import sys

import numpy as np
import PIL.Image

CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal",
           "shirt", "sneaker", "bag", "boot")  # fmt: skip
SPLITS = {"train": ("train", 1000), "test": ("t10k", 1000)}


def read(root: pathlib.Path, name: str, header: int) -> np.ndarray:
    """The bytes of an IDX file after its header."""
    found = next(root.rglob(f"{name}*"), None)
    if found is None:
        sys.exit(f"{root} has no {name}: see the first lines of this script.")
    opened = gzip.open if found.suffix == ".gz" else open
    with opened(found, "rb") as file:
        return np.frombuffer(file.read(), np.uint8, offset=header)


def main(package: str, folder: str) -> None:
    """Writes FOLDER/SPLIT/CLASS/NUMBER.png."""
    for split, (prefix, count) in SPLITS.items():
        root = pathlib.Path(package)
        labels = read(root, f"{prefix}-labels-idx1-ubyte", 8)
        images = read(root, f"{prefix}-images-idx3-ubyte", 16)
        images = images.reshape(len(labels), 28, 28)
        for label, name in enumerate(CLASSES):
            place = pathlib.Path(folder) / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in np.flatnonzero(labels == label)[:count]:
                image = PIL.Image.fromarray(images[i]).convert("RGB")
                image.save(place / f"{i:05}.png")
        print(f"{split}: {len(CLASSES) * count:,} images")


if __name__ == "__main__":
    main(*sys.argv[1:])
