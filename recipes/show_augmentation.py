r"""Draws what RandAugment and the recipes of the AugReg study do to a photo.

    python recipes/show_augmentation.py --output=docs/images

Hardware: any CPU. Duration: about a minute. Writes two pictures:

- `operations.png`: each of the 16 operations at the study's magnitudes
  (`keras_augreg.visualize.plot_operations`);
- `recipes.png`: eight draws of each of the seven levels, with Mixup
  (`keras_augreg.visualize.plot_recipes`).

Ends with one line of JSON on stdout, which names the files.
Needs scikit-image for the photo (NASA's portrait of Eileen Collins, public
domain), matplotlib and Pillow. No number to reproduce: the operations are the
original's to the byte, which `tests/augment` shows.
"""

import io
import json
import pathlib

import keras
import numpy as np
from absl import app, flags
from PIL import Image

from keras_augreg import visualize

_OUTPUT = flags.DEFINE_string("output", ".", "Folder to write to.")
_PHOTO = flags.DEFINE_string("photo", None, "Another photo, an image file.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the photo, in pixels.")
_DPI = flags.DEFINE_integer("dpi", 80, "Dots an inch; a tile has 1.5 inches.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the recipes' draws.")


def load_photo() -> Image.Image:
    """The photo, cropped to a square of `--size` pixels."""
    if _PHOTO.value:
        photo = Image.open(_PHOTO.value).convert("RGB")
    else:
        from skimage import data

        photo = Image.fromarray(data.astronaut())
    side = min(photo.size)
    left, top = (photo.width - side) // 2, (photo.height - side) // 2
    box = (left, top, left + side, top + side)
    size = (_SIZE.value, _SIZE.value)
    return photo.resize(size, Image.Resampling.BICUBIC, box=box)


def main(_: list[str]) -> None:
    """Writes the pictures."""
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    photo = np.asarray(load_photo())
    figures = {
        "operations.png": visualize.plot_operations(photo),
        "recipes.png": visualize.plot_recipes(photo, seed=_SEED.value),
    }
    files = []
    for name, figure in figures.items():
        drawn = io.BytesIO()
        figure.savefig(drawn, dpi=_DPI.value)
        # 256 colours are enough for a page, at a third of the bytes.
        picture = Image.open(drawn).convert("RGB").quantize(256)
        picture.save(folder / name, optimize=True)
        files.append(str(folder / name))
    print(json.dumps({"files": files, "backend": keras.backend.backend()}))


if __name__ == "__main__":
    app.run(main)
