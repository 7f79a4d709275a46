r"""Makes the class folders of docs/study.md from images that ship in packages.

    python tests/benchmarks/study_data.py runs/study_data

writes PNG files, some seconds, no network:

- `digits_0_4`, `digits_5_9`: scikit-learn's 1,797 handwritten digits, 8 x 8
  pixels, by class: half of the classes to pre-train on, half to transfer to;
- `photos`: crops of eight photographs of scikit-image and scikit-learn; the
  class is the photograph. Crops to train on are from its left 60%, crops to
  test with from its right 40%, so that none shares a pixel.

Needs scikit-image, scikit-learn and Pillow.
"""

from __future__ import annotations

import pathlib
import sys

import numpy as np
import PIL.Image
import skimage.data
import sklearn.datasets

PHOTOS = (
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "retina",
    "immunohistochemistry",
)
CROPS = {"train": 60, "test": 30}
SIDES = (64, 160)  # pixels of the photograph
SIZE = 48  # pixels of a file


def photographs() -> dict[str, np.ndarray]:
    """Name -> uint8 pixels."""
    found = {name: getattr(skimage.data, name)() for name in PHOTOS}
    samples = sklearn.datasets.load_sample_images()
    for path, image in zip(samples.filenames, samples.images, strict=True):
        found[pathlib.Path(path).stem] = image
    return found


def main(folder: str) -> None:
    """Writes the three folders."""
    root = pathlib.Path(folder)
    bunch = sklearn.datasets.load_digits()
    for i, (image, label) in enumerate(
        zip(bunch.images, bunch.target, strict=True)
    ):
        name = "digits_0_4" if label < 5 else "digits_5_9"
        place = root / name / str(label)
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.round(image * (255 / 16)).astype(np.uint8)
        PIL.Image.fromarray(pixels).save(place / f"{i:04d}.png")
    rng = np.random.RandomState(0)
    for name, photo in photographs().items():
        border = int(0.6 * photo.shape[1])
        parts = {"train": photo[:, :border], "test": photo[:, border:]}
        for split, count in CROPS.items():
            part, place = parts[split], root / "photos" / split / name
            place.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                side = rng.randint(SIDES[0], SIDES[1] + 1)
                top, left = (rng.randint(n - side + 1) for n in part.shape[:2])
                crop = part[top : top + side, left : left + side]
                picture = PIL.Image.fromarray(crop).resize((SIZE, SIZE))
                picture.save(place / f"{i:03d}.png")


if __name__ == "__main__":
    main(sys.argv[1])
