r"""Plots what RandAugment and the recipes of the AugReg study do to a photo.

    python recipes/show_augmentation.py --output=docs/images

writes two pictures:

- `operations.png`: each of the 16 operations at the study's magnitudes
  (`keras_augreg.visualize.plot_operations`);
- `recipes.png`: eight samples of each of the seven levels, with Mixup
  (`keras_augreg.visualize.plot_recipes`).

Hardware: any CPU. Duration: about a minute. Needs matplotlib, and scikit-image
for the photo (NASA's portrait of Eileen Collins, public domain). There are no
numbers to reproduce: `tests/augment` shows that the operations equal the
original's byte for byte. The last line on stdout is JSON and names the files.
"""

import io
import json
import pathlib

import arguments
import keras
import numpy as np
from absl import flags
from PIL import Image

from keras_augreg import visualize
from keras_augreg.atomic import replacing
from keras_augreg.recipe import PRETRAINING_RESOLUTION as RESOLUTION

_OUTPUT = flags.DEFINE_string("output", ".", "Folder to write to.")
_PHOTO = flags.DEFINE_string("photo", None, "Another photo, an image file.")
_SIZE = flags.DEFINE_integer(
    "size", RESOLUTION, "Side of the photo, in pixels."
)
_DPI = flags.DEFINE_integer("dpi", 80, "Dots per inch; a tile has 1.5 inches.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the samples.")


def load_photo() -> Image.Image:
    """Loads the photo, cropped to a square of `--size` pixels."""
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
        # 256 colours suffice for a page, at a third of the size.
        picture = Image.open(drawn).convert("RGB").quantize(256)
        with replacing(folder / name) as file:
            picture.save(file, format="PNG", optimize=True)
        files.append(str(folder / name))
    print(json.dumps({"files": files, "backend": keras.backend.backend()}))


if __name__ == "__main__":
    arguments.run(main)
