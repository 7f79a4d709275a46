r"""Draws what RandAugment and the recipes of the AugReg study do to a photo.

    python recipes/show_augmentation.py --output=docs/images

Hardware: any CPU. Duration: about a minute. Writes two pictures:

- `operations.png`: each of the 16 operations at the study's magnitudes;
- `recipes.png`: eight draws of each of the seven levels, with Mixup.

Ends with one line of JSON on stdout, which names the files.
Needs scikit-image for the photo (NASA's portrait of Eileen Collins, public
domain) and Pillow. No number to reproduce: the operations are the original's
to the byte, which `tests/augment` shows.
"""

import json
import pathlib

import keras
import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw, ImageFont

from keras_augreg.augment import OPERATIONS, AugRegAugment, apply_op
from keras_augreg.recipe import LEVELS, AugReg

_OUTPUT = flags.DEFINE_string("output", ".", "Folder to write to.")
_PHOTO = flags.DEFINE_string("photo", None, "Another photo, an image file.")
_SIZE = flags.DEFINE_integer("size", 224, "Side of the photo, in pixels.")
_TILE = flags.DEFINE_integer("tile", 112, "Side of a tile, in pixels.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the recipes' draws.")

_MAGNITUDES = (0, 10, 15, 20)
_DRAWS = 8
_LABEL = 118


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


def gallery(rows: dict[str, list[np.ndarray]], columns: list[str]) -> Image:
    """A labelled table of images."""
    gap, head, tile = 4, 26, _TILE.value
    width = _LABEL + len(columns) * (tile + gap)
    height = head + len(rows) * (tile + gap)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    for j, name in enumerate(columns):
        x = _LABEL + j * (tile + gap) + tile // 2
        draw.text((x, head // 2), name, "black", font, anchor="mm")
    for i, (name, images) in enumerate(rows.items()):
        y = head + i * (tile + gap)
        middle = (_LABEL // 2, y + tile // 2)
        draw.multiline_text(
            middle, name, "black", font, anchor="mm", align="center"
        )
        for j, image in enumerate(images):
            small = Image.fromarray(image).resize((tile, tile))
            picture.paste(small, (_LABEL + j * (tile + gap), y))
    return picture


def show_operations(photo: np.ndarray) -> Image:
    """Each operation at each of the study's magnitudes."""
    # One centre for Cutout: on her face.
    center = (photo.shape[0] // 4, photo.shape[1] * 3 // 7)

    def row(op: str) -> list[np.ndarray]:
        results = [
            apply_op(photo[None], op, m, center=center) for m in _MAGNITUDES
        ]
        return [photo, *(keras.ops.convert_to_numpy(x)[0] for x in results)]

    # In two halves beside each other, to fit a page.
    columns = ["original", *(f"m = {m}" for m in _MAGNITUDES)]
    half = len(OPERATIONS) // 2
    left, right = (
        gallery({op: row(op) for op in part}, columns)
        for part in (OPERATIONS[:half], OPERATIONS[half:])
    )
    picture = Image.new("RGB", (left.width + right.width, left.height))
    picture.paste(left)
    picture.paste(right, (left.width, 0))
    return picture


def show_recipes(photo: np.ndarray) -> Image:
    """Some draws of each level; Mixup mixes with the mirrored photo."""
    batch = np.stack([photo, photo[:, ::-1]] * (_DRAWS // 2))
    labels = np.arange(_DRAWS) % 2
    rows = {}
    for level, (randaugment, p, _) in LEVELS.items():
        augment = AugRegAugment(AugReg(level), 2, seed=_SEED.value)
        images, _ = augment(batch, labels, step=0)
        images = (keras.ops.convert_to_numpy(images) + 1) * 127.5
        layers = "({}, {})".format(*randaugment) if randaugment else "no"
        name = f"{level}\n\nRandAugment\n{layers}\nMixup {p:g}"
        rows[name] = list(images.round().astype("uint8"))
    return gallery(rows, [f"draw {i + 1}" for i in range(_DRAWS)])


def main(_: list[str]) -> None:
    """Writes the pictures."""
    folder = pathlib.Path(_OUTPUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    photo = np.asarray(load_photo())
    pictures = {
        "operations.png": show_operations(photo),
        "recipes.png": show_recipes(photo),
    }
    files = []
    for name, picture in pictures.items():
        # 256 colours are enough for a page, at a third of the bytes.
        picture.quantize(256).save(folder / name, optimize=True)
        files.append(str(folder / name))
    print(json.dumps({"files": files, "backend": keras.backend.backend()}))


if __name__ == "__main__":
    app.run(main)
