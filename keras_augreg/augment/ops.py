"""The 16 operations of RandAugment as the AugReg study used them.

The reference is `pp/archive/autoaugment.py` of google-research/big_vision at
0127fb6, run with TensorFlow 2.21; `tests/golden/ops_*.npz` holds its results.
The quirks of that code are part of the recipe and are kept.

Most of what an operation does to a pixel does not depend on the image. It is
computed once, in NumPy (`Lookups`), and the backends only look it up:

| operations | what is looked up |
| --- | --- |
| Rotate, Shear*, Translate* | for each pixel, the pixel that it shows |
| Posterize, Solarize*, Invert, Brightness, Contrast | for each value, a value |
| AutoContrast, Equalize | the same, from each channel's range or histogram |
| Color, Sharpness | (a blend in float32 with the grey or smoothed image) |
| Cutout | (a box) |

Float32 arithmetic is arranged so that no compiler can change a bit of it by
fusing a multiplication into an addition: see `_product`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_augreg.augment import arrays

# In the original's order, into which a random draw indexes.
OPERATIONS = (
    "AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize",
    "Color", "Contrast", "Brightness", "Sharpness", "ShearX", "ShearY",
    "TranslateX", "TranslateY", "Cutout", "SolarizeAdd",
)  # fmt: skip
# The operations that draw a sign.
GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY")
# Value of pixels that have no source.
FILL = 128

_INDEX = {name: i for i, name in enumerate(OPERATIONS)}
_VALUES = np.arange(256)


def _high_and_low(x: Any) -> tuple[Any, Any]:
    """float32 `x` as high + low, each of at most 12 significant bits."""
    x = np.float32(x)
    high = (x.view(np.int32) & ~0xFFF).view(np.float32)
    return high, x - high


def _product(integers: Any, factor: tuple[Any, ...]) -> Any:
    """float32 integers below 4,096 times a `_high_and_low` factor, rounded.

    Both partial products are exact, so the result does not depend on whether
    the compiler fuses one of them with the sum; and a later addition comes
    after the rounding, as in the original.
    """
    return integers * factor[0] + integers * factor[1]


@dataclasses.dataclass(frozen=True, eq=False)
class Lookups:
    """What RandAugment at one magnitude does to images of one size."""

    magnitude: float
    height: int
    width: int

    @functools.cached_property
    def factor(self) -> float:
        """The image's share in Color, Contrast, Brightness, Sharpness."""
        return self.magnitude / 10 * 1.8 + 0.1

    @functools.cached_property
    def cutout(self) -> int:
        """Half the side of Cutout's box, in pixels."""
        return int(self.magnitude / 10 * 40)

    def _transform(self, operation: str, sign: int) -> np.ndarray:
        """a, ..., f: (x, y) shows column ax + by + c of row dx + ey + f."""
        level = self.magnitude / 10
        shear, shift = sign * level * 0.3, sign * level * 100.0
        if operation == "Rotate":
            degrees = np.float32(sign * level * 30.0)
            angle = float(degrees * np.float32(math.pi / 180.0))
            cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
            right, bottom = np.array([self.width - 1, self.height - 1], "f")
            x = (right - (cos * right - sin * bottom)) / np.float32(2)
            y = (bottom - (sin * right + cos * bottom)) / np.float32(2)
            return np.array((cos, -sin, x, sin, cos, y))
        rows = {
            "ShearX": (1, shear, 0, 0, 1, 0),
            "ShearY": (1, 0, 0, shear, 1, 0),
            "TranslateX": (1, 0, shift, 0, 1, 0),
            "TranslateY": (1, 0, 0, 0, 1, shift),
        }[operation]
        return np.array(rows, "float32")

    @functools.cached_property
    def sources(self) -> np.ndarray:
        """The pixel that each pixel shows; `_SOURCE_ROWS` indexes the rows.

        int32 (11, height * width): a position in the flattened image, or -1
        for `FILL`. The first row is the identity.
        """
        x = np.arange(self.width, dtype="float32")[None, :]
        y = np.arange(self.height, dtype="float32")[:, None]
        position = np.arange(self.height * self.width, dtype="int32")
        rows = [position]
        for operation in GEOMETRIC:
            for sign in (1, -1):
                a, b, c, d, e, f = self._transform(operation, sign)
                column = _round(a * x + b * y + c)
                row = _round(d * x + e * y + f)
                inside = (column >= 0) & (column < self.width)
                inside &= (row >= 0) & (row < self.height)
                source = np.where(inside, row * self.width + column, -1)
                rows.append(source.astype("int32").ravel())
        return np.stack(rows)

    @functools.cached_property
    def maps(self) -> np.ndarray:
        """`sources` as OpenCV takes them: int16 (11, height, width, 2), (x, y).

        (-1, -1) lies outside the image.
        """
        maps = np.stack(np.divmod(self.sources, self.width)[::-1], axis=-1)
        maps[self.sources < 0] = -1
        return maps.astype(np.int16).reshape(-1, self.height, self.width, 2)

    @functools.cached_property
    def tables(self) -> np.ndarray:
        """What each operation makes of each value: float32 (16, 3, 256).

        Where that depends on the image, the value itself; for Color, the
        channel's share of the grey level.
        """
        level, v = self.magnitude / 10, _VALUES
        # Shifting by 8 is undefined, and TensorFlow shifts by 7.
        shift = min(8 - int(level * 4), 7)
        # The threshold is compared as a uint8, and 256 wraps to 0.
        threshold = int(level * 256) % 256
        added = np.minimum(v + int(level * 110), 255)
        # Meant as the mean grey level, but the original divides the number
        # of pixels by 256.
        grey = int(min(self.height * self.width / 256.0, 255.0))
        named = {
            "Invert": 255 - v,
            "Posterize": v >> shift << shift,
            "Solarize": np.where(v < threshold, v, 255 - v),
            "SolarizeAdd": np.where(v < 128, added, v),
            "Brightness": _blend(np.float32(0), v, self.factor),
            "Contrast": _blend(np.float32(grey), v, self.factor),
        }
        # `tf.image.rgb_to_grayscale`: to [0, 1], the weighted sum, and back.
        scaled = v.astype("float32") * np.float32(1 / 255)
        weights = np.array([0.2989, 0.5870, 0.1140], "float32")
        tables = np.tile(v.astype("float32"), (len(OPERATIONS), 3, 1))
        for name, table in named.items():
            tables[_INDEX[name]] = table
        tables[_INDEX["Color"]] = weights[:, None] * scaled
        return tables


@functools.lru_cache(maxsize=8)
def lookups(magnitude: float, height: int, width: int) -> Lookups:
    """The `Lookups` of a magnitude and an image size, computed once."""
    return Lookups(magnitude, height, width)


# Row of `Lookups.sources` for operation i: [2i] with sign +1, [2i + 1] with -1.
_SOURCE_ROWS = np.zeros(2 * len(OPERATIONS), "int32")
_SOURCE_ROWS.reshape(-1, 2)[[_INDEX[name] for name in GEOMETRIC]] = np.arange(
    1, 11
).reshape(5, 2)


def _round(x: np.ndarray) -> np.ndarray:
    """To the nearest integer, halves away from zero (C's `roundf`)."""
    whole = np.trunc(x)
    return (whole + np.sign(x) * (np.abs(x - whole) >= 0.5)).astype("int64")


def _blend(low: Any, high: Any, factor: float) -> Any:
    """The original's `blend` of float32 integers, truncated, as NumPy."""
    difference = np.float32(factor) * (high - low).astype("float32")
    return np.floor(np.clip(low + difference, 0, 255))


class Choice(NamedTuple):
    """What RandAugment drew for each image, in int32 arrays of shape (n,)."""

    operation: Any  # index into `OPERATIONS`
    negative: Any  # 1 for sign -1, which only `GEOMETRIC` operations read
    row: Any  # the centre of Cutout's box
    column: Any


# What the operations compute. `xp` is an array namespace
# (`arrays.namespace`); `images` are uint8 (n, height, width, 3).


def _show(xp: Any, images: Any, sources: Any) -> Any:
    """The pixels at `sources`, int32 (n, height * width); any pixel at -1."""
    n, h, w, c = xp.shape(images)
    pixels = xp.reshape(images, (n, h * w, c))
    at = xp.maximum(sources, 0)[..., None]
    return xp.reshape(xp.take_along_axis(pixels, at, axis=1), (n, h, w, c))


def _fill(xp: Any, images: Any, kept: Any) -> Any:
    """`FILL` where `kept`, bool (n, height * width), is false."""
    n, h, w, _ = xp.shape(images)
    kept = xp.reshape(kept, (n, h, w, 1))
    return xp.where(kept, images, xp.cast(FILL, images.dtype))


def _sources(xp: Any, choice: Choice, lookups: Lookups) -> Any:
    row = xp.take(_SOURCE_ROWS, 2 * choice.operation + choice.negative, axis=0)
    return xp.take(lookups.sources, row, axis=0)


def _outside_box(xp: Any, choice: Choice, half: Any, lookups: Lookups) -> Any:
    """False in Cutout's box of half side `half` (n,)."""
    y = xp.arange(lookups.height)[None] - choice.row[:, None]
    x = xp.arange(lookups.width)[None] - choice.column[:, None]
    half = half[:, None]
    rows, columns = (y < -half) | (y >= half), (x < -half) | (x >= half)
    outside = rows[:, :, None] | columns[:, None, :]
    return xp.reshape(outside, (-1, lookups.height * lookups.width))


def _look_up(xp: Any, images: Any, tables: Any) -> Any:
    """`tables`, float32 (n, 3, 256), at each value: float32, image-shaped."""
    n, h, w, c = xp.shape(images)
    index = xp.cast(images, "int32") + 256 * xp.arange(3)
    looked = xp.take_along_axis(
        xp.reshape(tables, (n, 768)), xp.reshape(index, (n, h * w * c)), axis=1
    )
    return xp.reshape(looked, (n, h, w, c))


# 255 / range for each range, by which AutoContrast multiplies.
_SCALES = _high_and_low(
    np.divide(255, _VALUES, where=_VALUES > 0, out=np.zeros(256), dtype="f")
)


def _autocontrast_tables(xp: Any, images: Any) -> Any:
    """Stretches each channel's range to 0, ..., 255: float32 (n, 3, 256)."""
    low = xp.cast(xp.min(images, axis=(1, 2)), "int32")[..., None]
    high = xp.cast(xp.max(images, axis=(1, 2)), "int32")[..., None]
    scale = tuple(xp.take(part, high - low, axis=0) for part in _SCALES)
    values = xp.arange(256, dtype="float32")
    offset = _product(xp.cast(-low, "float32"), scale)
    stretched = xp.floor(xp.clip(_product(values, scale) + offset, 0.0, 255.0))
    return xp.where(high > low, stretched, values)


def _equalize_tables(xp: Any, images: Any, wanted: Any = None) -> Any:
    """Equalizes each channel's histogram: float32 (n, 3, 256).

    Only for `wanted` images, bool (n,); the others' tables are meaningless,
    and their pixels are not counted. `None` means all images.
    """
    n, h, w, c = xp.shape(images)
    bins = xp.arange(n * c) * 256
    index = xp.cast(images, "int32") + xp.reshape(bins, (n, 1, 1, c))
    if wanted is not None:
        # Out of range, so not counted.
        index = xp.where(wanted[:, None, None, None], index, n * c * 256)
    index = xp.reshape(index, (-1,))
    count = xp.segment_sum(xp.ones_like(index), index, n * c * 256)
    count = xp.reshape(xp.cast(count, "int32"), (n, c, 256))
    high = xp.cast(xp.max(images, axis=(1, 2)), "int32")[..., None]
    return _tables_of_counts(xp, count, high, h * w)


def _tables_of_counts(xp: Any, count: Any, high: Any, pixels: Any) -> Any:
    """Equalizes histograms, int32 (n, 3, 256), of the largest value `high`."""
    values = xp.arange(256)
    last = xp.sum(xp.where(high == values, count, 0), axis=-1)[..., None]
    step = (pixels - last) // 255
    darker = xp.cumsum(count, axis=-1) - count
    table = (darker + step // 2) // xp.maximum(step, 1)
    table = xp.where(step > 0, xp.clip(table, 0, 255), values)
    return xp.cast(table, "float32")


def _grey(xp: Any, shares: Any) -> Any:
    """The grey level, from `Lookups.tables`' shares: (n, height, width, 1)."""
    grey = shares[..., :1] + shares[..., 1:2] + shares[..., 2:]
    return xp.floor(grey * 255.5)


# The smoothing kernel of PIL, [[1, 1, 1], [1, 5, 1], [1, 1, 1]] / 13.
_EDGE, _CENTER = (
    _high_and_low(1 / np.float32(13)),
    _high_and_low(5 / np.float32(13)),
)


def _smooth(xp: Any, images: Any) -> Any:
    """Smoothed float32 images; border pixels are kept.

    TensorFlow's convolution adds the nine products row by row with fused
    multiply-adds; where the exact sum is an integer, the rounding of each
    addition decides between two results. This rounds the same way: the
    product's two parts and the rounding error of the addition (Dekker's
    Fast2Sum) are summed exactly, then added once.
    """
    n, h, w, c = xp.shape(images)
    if h < 3 or w < 3:
        return images
    # As one long row, which compilers vectorise. Border pixels get wrong
    # neighbours there, but their sums are not used.
    pixels = xp.reshape(images, (n, h * w * c))
    margin = w * c + c
    size = h * w * c - 2 * margin
    total: Any = None
    for i in range(3):
        for j in range(3):
            weight = _CENTER if i == j == 1 else _EDGE
            start = i * w * c + j * c
            tap = pixels[:, start : start + size]
            if total is None:
                total = _product(tap, weight)
                continue
            large, small = tap * weight[0], tap * weight[1]
            rounded = total + large
            added = rounded - xp.maximum(total, large)
            error = xp.minimum(total, large) - added
            total = rounded + (error + small)
    ends = pixels[:, :margin], pixels[:, -margin:]
    smoothed = xp.concatenate((ends[0], xp.floor(total), ends[1]), axis=1)
    border = np.ones((1, h, w, 1), "bool")
    border[:, 1:-1, 1:-1] = False
    return xp.where(border, images, xp.reshape(smoothed, (n, h, w, c)))


def _blend_images(xp: Any, low: Any, images: Any, lookups: Lookups) -> Any:
    """`low` + factor * (`images` - `low`), truncated: float32."""
    difference = _product(images - low, _high_and_low(lookups.factor))
    return xp.floor(xp.clip(low + difference, 0.0, 255.0))


def _move(xp: Any, images: Any, choice: Choice, lookups: Lookups) -> Any:
    sources = _sources(xp, choice, lookups)
    return _fill(xp, _show(xp, images, sources), sources >= 0)


def _cut_out(xp: Any, images: Any, choice: Choice, lookups: Lookups) -> Any:
    half = xp.ones_like(choice.row) * lookups.cutout
    return _fill(xp, images, _outside_box(xp, choice, half, lookups))


def _map_values(xp: Any, images: Any, choice: Choice, lookups: Lookups) -> Any:
    tables = xp.take(lookups.tables, choice.operation, axis=0)
    return _look_up(xp, images, tables)


def _stretch(xp: Any, images: Any, *_: Any) -> Any:
    return _look_up(xp, images, _autocontrast_tables(xp, images))


def _equalize(xp: Any, images: Any, *_: Any) -> Any:
    return _look_up(xp, images, _equalize_tables(xp, images))


def _color(xp: Any, images: Any, choice: Choice, lookups: Lookups) -> Any:
    grey = _grey(xp, _map_values(xp, images, choice, lookups))
    return _blend_images(xp, grey, xp.cast(images, "float32"), lookups)


def _sharpen(xp: Any, images: Any, choice: Choice, lookups: Lookups) -> Any:
    images = xp.cast(images, "float32")
    return _blend_images(xp, _smooth(xp, images), images, lookups)


_FAMILY_OF: dict[str, Callable] = {
    **dict.fromkeys(OPERATIONS, _map_values),
    **dict.fromkeys(GEOMETRIC, _move),
    "AutoContrast": _stretch,
    "Color": _color,
    "Cutout": _cut_out,
    "Equalize": _equalize,
    "Sharpness": _sharpen,
}


def apply_all(xp: Any, images: Any, choice: Choice, lookups: Lookups) -> Any:
    """Applies each image's operation to a whole batch, without branches.

    For accelerators: a fixed number of passes over the batch, each shared by
    the operations that need it. Images are uint8 (n, height, width, 3).
    """

    def chosen(name: str) -> Any:
        return choice.operation == _INDEX[name]

    def pick(name: str, yes: Any, no: Any) -> Any:
        mask = xp.reshape(chosen(name), (-1,) + (1,) * (len(yes.shape) - 1))
        return xp.where(mask, yes, no)

    # On PyTorch, `segment_sum` cannot leave values out.
    leave_out = keras.backend.backend() != "torch"
    wanted = chosen("Equalize") if leave_out else None
    tables = xp.take(lookups.tables, choice.operation, axis=0)
    tables = pick("AutoContrast", _autocontrast_tables(xp, images), tables)
    equalized = _equalize_tables(xp, images, wanted)
    tables = pick("Equalize", equalized, tables)

    sources = _sources(xp, choice, lookups)
    half = xp.cast(chosen("Cutout"), "int32") * lookups.cutout
    kept = (sources >= 0) & _outside_box(xp, choice, half, lookups)

    shown = _show(xp, images, sources)
    mapped = _look_up(xp, shown, tables)
    shown = xp.cast(shown, "float32")
    low = pick("Sharpness", _smooth(xp, shown), _grey(xp, mapped))
    blended = _blend_images(xp, low, shown, lookups)
    mapped = pick("Color", blended, pick("Sharpness", blended, mapped))
    return xp.cast(_fill(xp, mapped, kept), "uint8")


def apply_each(images: Any, choices: list[Choice], lookups: Lookups) -> Any:
    """Applies each image's operations, one image at a time, with branches.

    For CPUs in `tf.data`, where only the drawn operations cost time. Images
    are a TensorFlow tensor, uint8 (n, height, width, 3).
    """
    import tensorflow as tf

    xp = arrays.namespace(images)
    families = list(dict.fromkeys(_FAMILY_OF.values()))
    family_of = [families.index(_FAMILY_OF[x]) for x in OPERATIONS]

    def apply(family: Callable, image: Any, choice: Choice) -> Any:
        return xp.cast(family(xp, image, choice, lookups), "uint8")

    def transform(arguments: tuple[Any, list[Choice]]) -> Any:
        image, choices = arguments
        image = image[None]
        for choice in choices:
            one = Choice(*(x[None] for x in choice))
            family = tf.gather(family_of, choice.operation)
            branches = [
                functools.partial(apply, f, image, one) for f in families
            ]
            image = tf.switch_case(family, branches)
        return image[0]

    spec = tf.TensorSpec(images.shape[1:], "uint8")
    return tf.map_fn(transform, (images, choices), fn_output_signature=spec)


def apply_numpy(
    image: np.ndarray, choice: tuple[int, ...], lookups: Lookups
) -> np.ndarray:
    """Applies one operation to one image, uint8 (height, width, 3), on a CPU.

    The look-ups are OpenCV's, which takes no lock of the interpreter, so that
    threads share the work; the rest is the families' own arithmetic.
    """
    import cv2

    operation, negative, row, column = choice
    family, xp = _FAMILY_OF[OPERATIONS[operation]], arrays.numpy_ops()
    if family is _move:
        at = lookups.maps[_SOURCE_ROWS[2 * operation + negative]]
        return np.asarray(
            cv2.remap(
                image, at, np.empty(0, np.uint16), cv2.INTER_NEAREST,
                borderMode=cv2.BORDER_CONSTANT, borderValue=(FILL,) * 3,
            )
        )  # fmt: skip
    if family is _cut_out:
        half, image = lookups.cutout, image.copy()
        box = [slice(max(x - half, 0), max(x + half, 0)) for x in (row, column)]
        image[tuple(box)] = FILL
        return image
    if family in (_map_values, _stretch, _equalize):
        tables = lookups.tables[operation]
        if family is not _map_values:
            channels = range(3)
            count = np.stack(
                [cv2.calcHist([image], [c], None, [256], [0, 256]).ravel()
                 for c in channels]
            ).astype(np.int32)  # fmt: skip
            found = count > 0
            low, high = found.argmax(1), 255 - found[:, ::-1].argmax(1)
            if family is _stretch:  # The extremes are all that counts.
                extremes = np.stack([low, high])[None, :, None]
                tables = _autocontrast_tables(xp, extremes)[0]
            else:
                tables = _tables_of_counts(
                    xp, count[None], high[None, :, None], image[..., 0].size
                )[0]
        table = tables.T.astype(np.uint8)[:, None]
        return np.asarray(cv2.LUT(image, table))
    each = Choice(*(np.full(1, x, np.int32) for x in choice))
    return family(xp, image[None], each, lookups)[0].astype(np.uint8)


def apply_op(
    images: Any,
    op: str,
    magnitude: float,
    sign: int = 1,
    center: tuple[int, int] | None = None,
) -> Any:
    """Applies one named operation of RandAugment to a batch.

    Computes the same bytes as the AugReg study's input pipeline (source:
    `pp/archive/autoaugment.py` of google-research/big_vision at 0127fb6),
    eagerly or compiled, and in `tf.data.Dataset.map` on any backend. With
    magnitude m:

    | `op` | what it does |
    | --- | --- |
    | AutoContrast | stretches each channel to 0, ..., 255 |
    | Equalize | equalizes each channel's histogram |
    | Invert | 255 - value |
    | Rotate | turns by 3m degrees |
    | Posterize | keeps the highest int(0.4m) bits; at 0, one bit |
    | Solarize | inverts values from int(25.6m) modulo 256 on |
    | SolarizeAdd | adds int(11m) to values below 128 |
    | Color | blends with the grey image by 0.18m + 0.1 |
    | Contrast | blends with grey of value height * width / 256, as Color |
    | Brightness | blends with black, as Color |
    | Sharpness | blends with the smoothed image, as Color |
    | ShearX, ShearY | shears by 0.03m |
    | TranslateX, TranslateY | shifts by 10m pixels |
    | Cutout | covers a box with sides of 8m pixels |

    Pixels without a source are 128.

    Args:
        images: uint8 or float (batch, height, width, 3), values in
            [0, 255]. Floats are rounded to integers first.
        op: A name from the table.
        magnitude: Number in [0, 20]. The study used 0, 10, 15 and 20.
        sign: 1 or -1: the direction of Rotate, Shear* and Translate*; other
            operations ignore it.
        center: For Cutout, (row, column) of the box's centre in pixels.

    Returns:
        The images, with their shape and dtype unchanged.

    Raises:
        ValueError: `op`, `magnitude`, `sign`, `center` or the images' shape
            or values are not as above.
        TypeError: The images' dtype is neither uint8 nor float.

    Example:
    >>> images = np.zeros((1, 224, 224, 3), "uint8")
    >>> inverted = keras_augreg.augment.apply_op(images, "Invert", 10)
    """
    if op not in _FAMILY_OF:
        names = ", ".join(OPERATIONS)
        raise ValueError(f"Unknown operation {op!r}. Expected one of: {names}.")
    check_magnitude(magnitude)
    if sign not in (1, -1):
        raise ValueError(f"`sign` must be 1 or -1. Received: sign={sign}.")
    if op == "Cutout" and center is None:
        raise ValueError("Cutout needs the pixel `center=(row, column)`.")
    check_images(images)
    negative, (row, column) = int(sign == -1), center or (0, 0)

    def apply(images: Any) -> Any:
        xp = arrays.namespace(images)
        n, height, width, _ = xp.shape(images)
        each = (_INDEX[op], negative, row, column)
        choice = Choice(*(xp.arange(n) * 0 + x for x in each))
        this = lookups(magnitude, height, width)
        result = _FAMILY_OF[op](xp, to_uint8(xp, images), choice, this)
        return xp.cast(result, images.dtype)

    if arrays.in_tensorflow_graph(images):
        # TensorFlow's own graph optimiser would reorder additions.
        apply = arrays.compiled(apply, "tensorflow")
    return apply(arrays.namespace(images).convert_to_tensor(images))


def to_uint8(xp: Any, images: Any) -> Any:
    """Images (uint8 or float, in [0, 255]) as uint8, floats rounded."""
    if keras.backend.standardize_dtype(images.dtype) == "uint8":
        return images
    # In float32: bfloat16 would round 255.5 to 256, which wraps to 0.
    return xp.cast(xp.floor(xp.cast(images, "float32") + 0.5), "uint8")


def check_magnitude(magnitude: float) -> None:
    """Raises ValueError unless `magnitude` is within [0, 20]."""
    # At 22.5 the original's Posterize would keep more bits than there are.
    if not 0 <= magnitude <= 20:
        raise ValueError(
            f"`magnitude` must be in [0, 20]. Received: magnitude={magnitude}."
        )


def check_images(images: Any) -> None:
    """Raises an error unless `images` is a batch of RGB images in [0, 255].

    The range is only checked on NumPy arrays: a tensor's values may not exist
    yet (in a compiled function), or reading them would wait for a device.
    """
    shape, hint = tuple(getattr(images, "shape", ())), ""
    if len(shape) != 4:
        hint = "Add an axis to a single image: `images[None]`."
    elif shape[-1] != 3:
        hint = "Convert images to RGB, with the channels in the last axis."
    elif None in shape[1:]:
        hint = "In `tf.data`, call `set_shape` before batching."
    if hint:
        raise ValueError(
            "`images` must be a batch of shape (batch, height, width, 3) with "
            f"known height and width. Received: shape={shape}. {hint}"
        )
    dtype = keras.backend.standardize_dtype(images.dtype)
    if dtype != "uint8" and "float" not in dtype:
        raise TypeError(
            "`images` must be uint8 or float, with values in [0, 255]. "
            f"Received: dtype={dtype}. Cast them: `images.astype('uint8')`."
        )
    if "float" in dtype and isinstance(images, np.ndarray) and images.size:
        low, high = float(images.min()), float(images.max())
        if not (low >= 0 and high <= 255):
            raise ValueError(
                "Float images must have values in [0, 255]. Received: values "
                f"in [{low}, {high}]. Augment before scaling to [-1, 1]."
            )
