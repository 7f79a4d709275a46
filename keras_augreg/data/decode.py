"""From the bytes of an image file to a uint8 crop of the model's size.

Both engines share the random draws: `Cropping.window` draws an image's crop
and flip from its size, before anything is decoded. `engine_tensorflow.py`
then crops with TensorFlow, and `crop_and_resize` in this module with OpenCV
and NumPy; the results agree to within one grey level.

The crops, the resizing without smoothing and the truncation follow
google-research/big_vision at 0127fb6 (`pp/ops_image.py`), with two exceptions
that make both engines agree: JPEG files are decoded with the accurate inverse
DCT instead of TensorFlow's fast one (up to 7 grey levels apart on a photo of
quality 90), and a crop that is cut while decoding has exact edges.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import random
from typing import Any, NamedTuple

import numpy as np

CROPS = ("inception", "resize_small", "resize")

# Share of the area, width / height and number of attempts of an inception
# crop: big_vision's `decode_jpeg_and_inception_crop`, and the default of
# `tf.image.sample_distorted_bounding_box`.
CROP_AREA = (0.05, 1.0)
CROP_ASPECT = (0.75, 1.33)
CROP_ATTEMPTS = 100

# `resize_small` before the crop: 256 for 224 (big_vision's `vit_i1k.py`).
SMALLER_SIDE = 256 / 224

# Enlarged images of more than this many times the result's pixels are computed
# only in part.
STRETCH = 4

# Values this close below an integer are that integer.
ROUNDING = np.float32(1e-4)

# Formats that Pillow may open -> the extensions of their files.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",),
    "WEBP": (".webp",), "GIF": (".gif",), "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"), "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",), "JPEG2000": (".jp2", ".j2k"),
}  # fmt: skip
EXIF_ORIENTATION = 0x0112
# Orientation -> the `PIL.Image.Transpose` that undoes it (Exif 2.32, table 5).
UPRIGHT = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM",
           5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE",
           8: "ROTATE_90"}  # fmt: skip
JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
# Second bytes of markers that a length follows (ITU-T T.81, table B.1).
SEGMENTS = frozenset(range(0xC0, 0xFF)) - frozenset(range(0xD0, 0xDA))


SKIP = 'Replace or remove it, or pass on_error="skip" to leave out such files.'


class ImageError(ValueError):
    """An image that cannot be read; the message names the file."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the members of `FORMATS` that the installed Pillow can open."""
    import PIL.features
    import PIL.Image

    PIL.Image.init()
    optional = {"AVIF": "avif", "JPEG2000": "jpg_2000", "WEBP": "webp"}
    missing = {n for n, f in optional.items() if not PIL.features.check(f)}
    return tuple(n for n in FORMATS if n in PIL.Image.OPEN and n not in missing)


@functools.cache
def extensions() -> tuple[str, ...]:
    """Returns the extensions of image files that can be read, in lower case."""
    return tuple(end for name in formats() for end in FORMATS[name])


class Window(NamedTuple):
    """The part of one image that is used, in order of application."""

    box: tuple[int, int, int, int]  # (top, left, height, width) to cut out
    size: tuple[int, int]  # (height, width) to resize that to
    corner: tuple[int, int]  # (top, left) of the crop in the resized image
    flip: bool  # whether to mirror left and right


@dataclasses.dataclass(frozen=True)
class Cropping:
    """How every image of a data set is cropped and resized."""

    image_size: tuple[int, int]  # (height, width)
    crop: str  # one of `CROPS`
    training: bool  # whether crops and flips are drawn or central
    flip: bool  # whether to mirror half of the training images
    # Before the crop of "resize_small", on the smaller side of `image_size`.
    smaller_side: int

    @property
    def method(self) -> str:
        return "area" if self.crop == "resize_small" else "bilinear"

    def window(self, height: int, width: int, rng: random.Random) -> Window:
        """Draws the window of one upright image."""
        box = (0, 0, height, width)
        size = self.image_size
        corner = (0, 0)
        if self.crop == "inception":
            box = inception_box(height, width, rng)
        elif self.crop == "resize_small":
            size = self._small_size(height, width)
            spare = [a - b for a, b in zip(size, self.image_size, strict=True)]
            if self.training:
                y, x = (int(rng.random() * (s + 1)) for s in spare)
            else:
                y, x = (s // 2 for s in spare)
            corner = (y, x)
        flip = self.training and self.flip and rng.random() < 0.5
        return Window(box, size, corner, flip)

    def stretches(self, window: Window) -> bool:
        """Whether most of an enlarged image would lie outside the crop.

        An image of 1 x 10,000 pixels would be enlarged to 100 million pixels;
        `resize_area` computes only the crop.
        """
        pixels = math.prod(window.size)
        most = STRETCH * math.prod(self.image_size)
        return pixels > max(math.prod(window.box[2:]), most)

    def _small_size(self, height: int, width: int) -> tuple[int, int]:
        # In float32, rounding halves to even, as TensorFlow does.
        h, w = (
            np.float32(round(s * self.smaller_side / min(self.image_size)))
            for s in self.image_size
        )
        factor = max(h / np.float32(height), w / np.float32(width))
        small_h, small_w = (
            int(np.round(np.float32(s) * factor)) for s in (height, width)
        )
        least_h, least_w = self.image_size
        return max(small_h, least_h), max(small_w, least_w)


def inception_box(
    height: int, width: int, rng: random.Random
) -> tuple[int, int, int, int]:
    """Draws a crop as `tf.image.sample_distorted_bounding_box` does.

    Draws width / height uniformly from `CROP_ASPECT`, then the height
    uniformly from those that keep the area in `CROP_AREA` and the crop in the
    image, then the corner uniformly; like TensorFlow, never the last corner
    (kernels/image/sample_distorted_bounding_box_op.cc). Only `rng.random()`
    is used, whose stream Python guarantees. Returns (top, left, height,
    width): the whole image if no attempt fits.
    """
    least, most = (share * height * width for share in CROP_AREA)
    low, high = CROP_ASPECT
    for _ in range(CROP_ATTEMPTS):
        aspect = low + (high - low) * rng.random()
        h_max = min(
            round(math.sqrt(most / aspect)), int((width + 0.5) / aspect), height
        )
        if round(h_max * aspect) > width:
            h_max -= 1
        h_min = min(round(math.sqrt(least / aspect)), h_max)
        h = h_min + int(rng.random() * (h_max - h_min + 1))
        # Rounding may be off by a row.
        if h * round(h * aspect) < least:
            h += 1
        if h * round(h * aspect) > most:
            h -= 1
        w = round(h * aspect)
        if 0 < h <= height and 0 < w <= width and least <= h * w <= most:
            y = int(rng.random() * (height - h))
            x = int(rng.random() * (width - w))
            return y, x, h, w
    return 0, 0, height, width


class Picture:
    """An image file whose header has been read and whose pixels have not.

    `height` and `width` are those of the upright image. `plain_jpeg` says that
    TensorFlow's decoder gives the same pixels: it ignores rotations and does
    not name a truncated file. `advice` is what to do about one.
    """

    def __init__(
        self, data: bytes, name: str, brightness: int = 1, advice: str = SKIP
    ) -> None:
        self.data = data
        self.name = name
        self._advice = advice
        self._brightness = brightness
        # Kept, because some files' pixels have been decoded by then.
        self._opened: Any = None
        size, plain = _plain_jpeg_size(data), True
        if size is None:
            self._opened = image = self._open()
            # Orientations 5 to 8 swap the sides.
            orientation = _orientation(image)
            size = image.size if 5 <= orientation <= 8 else image.size[::-1]
            usual = image.format == "JPEG" and image.mode in ("L", "RGB")
            plain = usual and orientation == 1 and data.endswith(JPEG_END)
        self.height: int = size[0]
        self.width: int = size[1]
        self.plain_jpeg = plain and brightness == 1

    def _open(self) -> Any:
        import PIL.Image

        try:
            image = PIL.Image.open(io.BytesIO(self.data), formats=formats())
            if image.format in ("PNG", "TIFF"):
                # PNG's orientation may come after the pixels; Pillow undoes
                # TIFF's when it loads them.
                image.load()
            return image
        except PIL.Image.DecompressionBombError as error:
            raise ImageError(
                f"Refused to decode {self.name!r}: {error} Raise "
                "`PIL.Image.MAX_IMAGE_PIXELS` if you trust the file."
            ) from error
        except Exception as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> ImageError:
        what = f"{len(self.data)} bytes" if self.data else "it is empty"
        return ImageError(
            f"Cannot read the image {self.name!r} ({what}): {error}. Expected "
            f"a complete file of one of {', '.join(formats())}. {self._advice}"
        )

    def pixels(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """Decodes a box, (top, left, height, width), as uint8 (..., 3)."""
        top, left, height, width = box
        if self.plain_jpeg and _one_whole_scan(self.data):
            decoded, shape = _decode_jpeg(self.data), (self.height, self.width)
            if decoded is not None and decoded.shape[:2] == shape:
                return decoded[top : top + height, left : left + width]
        image, self._opened = self._opened or self._open(), None
        try:
            image = upright_rgb(image)
        except Exception as error:
            raise self._unreadable(error) from error
        pixels = np.asarray(image.crop((left, top, left + width, top + height)))
        if self._brightness == 1:
            return pixels
        return pixels * np.uint8(self._brightness)


class ArrayPicture:
    """An array, uint8 (h, w, 3), with the interface of `Picture`."""

    plain_jpeg, name, data = False, "", b""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.height, self.width = array.shape[:2]

    def pixels(self, box: tuple[int, int, int, int]) -> np.ndarray:
        top, left, height, width = box
        return self._array[top : top + height, left : left + width]


def _plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Reads (height, width) of a usual JPEG file faster than Pillow.

    `None` leaves the file to Pillow: other formats, more than one picture,
    metadata that may hold a rotation, CMYK, an absurd size, a truncated file.
    """
    import PIL.Image

    if not data.startswith(JPEG_START) or not data.endswith(JPEG_END):
        return None
    # Pillow decides whether a larger image is a decompression bomb.
    most = PIL.Image.MAX_IMAGE_PIXELS or math.inf
    at = 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in (0xC0, 0xC1, 0xC2):  # baseline, extended, progressive
            height = int.from_bytes(data[at + 5 : at + 7])
            width = int.from_bytes(data[at + 7 : at + 9])
            usual = data[at + 4] == 8 and data[at + 9] in (1, 3)
            if usual and 0 < height * width <= most:
                return height, width
            return None
        # Tables, comments, JFIF and ICC do not change the picture, nor does
        # Adobe's marker with three colours.
        if marker not in (0xC4, 0xDB, 0xDD, 0xFE, 0xE0, 0xEE) and (
            marker != 0xE2 or data[at + 4 : at + 8] != b"ICC_"
        ):
            return None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def _one_whole_scan(data: bytes) -> bool:
    """Whether a JPEG file has one scan, without markers, up to its end.

    OpenCV ignores everything after the last row, even markers that make
    Pillow and TensorFlow refuse a damaged file. Intact files with markers
    (restarts, more scans) are left to Pillow as well.
    """
    at = 2
    while data[at : at + 2] != b"\xff\xda":
        if data[at : at + 1] != b"\xff" or data[at + 1] not in SEGMENTS:
            return False
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    # Within a scan, 0 follows each 0xFF; only JPEG_END remains.
    scan = np.frombuffer(data, np.uint8)[at + 2 :]
    return np.count_nonzero((scan[:-1] == 0xFF) & (scan[1:] != 0)) == 1


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """Decodes an intact JPEG file to Pillow's pixels, or returns `None`.

    Two threads decode 1.5 times as many files as with Pillow, because OpenCV
    takes the interpreter's lock only once per file.
    """
    import cv2

    try:
        as_rgb = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
        return cv2.imdecode(np.frombuffer(data, np.uint8), as_rgb)
    except cv2.error:  # Larger than OpenCV's environment variables allow.
        return None


def _orientation(image: Any) -> int:
    """Exif's orientation, 1 to 8; 1 if the file has none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # Viewers show pictures with broken metadata, too.
        return 1
    return orientation if orientation in range(1, 9) else 1


def upright_rgb(image: Any) -> Any:
    """Converts any image to the RGB picture that a person sees."""
    import PIL.Image

    image.load()
    orientation = _orientation(image)
    if image.mode == "F":
        raise ValueError(
            "its pixels are floats of unknown range; store 8 or 16 bits"
        )
    if image.mode.startswith("I"):  # 16-bit grey, perhaps in 32 bits
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() >= 1 << 16:
            raise ValueError(
                f"its grey values are {grey.min()} to {grey.max()}; store 8 "
                "or 16 bits"
            )
        transparent = image.info.get("transparency")
        image = PIL.Image.fromarray((grey >> 8).astype(np.uint8))
        if transparent is not None:
            opaque = np.where(grey == transparent, 0, 255).astype(np.uint8)
            image.putalpha(PIL.Image.fromarray(opaque))
    if orientation != 1:
        method = PIL.Image.Transpose[UPRIGHT[orientation]]
        image = image.transpose(method)
    if image.has_transparency_data:
        # On white, as on a page.
        image = image.convert("RGBA")
        page = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(page, image)
    return image if image.mode == "RGB" else image.convert("RGB")


def crop_and_resize(
    pixels: np.ndarray, window: Window, cropping: Cropping, out: np.ndarray
) -> None:
    """Resizes, crops and flips the pixels of a window's box into `out`."""
    import cv2

    if cropping.method == "area":
        image = resize_area(pixels, window.size, window.corner, out.shape[:2])
    else:
        image = resize_bilinear(pixels, window.size)
    if window.flip:
        image = cv2.flip(image, 1)
    out[:] = image


def resize_bilinear(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Computes `tf.image.resize(pixels, size)`, truncated to uint8."""
    import cv2

    if len(pixels) <= 2 * size[0]:
        image = _resize(pixels, size, cv2.INTER_LINEAR)
    else:
        # Only the two rows that each row of the result lies between.
        at = (np.arange(size[0]) + 0.5) * (len(pixels) / size[0]) - 0.5
        low = at.astype(np.int64)
        image = _resize(pixels[low], size, cv2.INTER_LINEAR)
        below = _resize(pixels[low + 1], size, cv2.INTER_LINEAR)
        below -= image
        below *= (at - low).astype(np.float32)[:, None, None]
        image += below
    return _cut(image)


def resize_area(
    pixels: np.ndarray,
    size: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
    crop: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Computes `tf.image.resize(pixels, size, "area")`, cropped, as uint8.

    The results are truncated means over rectangles, in which pixels on the
    edge count by the share inside. `corner` and `crop` are the (top, left) and
    (height, width) of the crop in the resized image, by default all of it.
    """
    crop = crop or size
    if len(pixels) >= size[0] and pixels.shape[1] >= size[1]:
        import cv2

        (y, x), (h, w) = corner, crop
        image = _resize(pixels, size, cv2.INTER_AREA)
        return _cut(image[y : y + h, x : x + w])
    # OpenCV would interpolate, because a side grows.
    means = pixels
    # The axis that leaves fewer numbers comes first.
    for axis in sorted((0, 1), key=lambda i: crop[i] / pixels.shape[i]):
        # A mean is a difference of the integral, which is linear between
        # pixels; float64 is exact enough for truncation.
        n, m = means.shape[axis], size[axis]
        integral = np.zeros(
            [s + (i == axis) for i, s in enumerate(means.shape)]
        )
        np.cumsum(means, axis, out=integral[(slice(None),) * axis + np.s_[1:,]])
        at = (corner[axis] + np.arange(crop[axis] + 1)) * (n / m)
        low = np.minimum(at.astype(np.int64), n - 1)
        share = (at - low).reshape([-1 if i == axis else 1 for i in range(3)])
        start = np.take(integral, low, axis)
        stop = np.take(integral, low + 1, axis)
        stop -= start
        stop *= share
        start += stop
        means = np.diff(start, axis=axis) * (m / n)
    return _cut(means)


def _resize(
    pixels: np.ndarray, size: tuple[int, int], interpolation: int
) -> np.ndarray:
    """Resizes in float32, because OpenCV rounds where TensorFlow truncates."""
    import cv2

    floats = pixels.astype(np.float32)
    return cv2.resize(floats, size[::-1], interpolation=interpolation)


def _cut(image: np.ndarray) -> np.ndarray:
    """Truncates, in place; weights may add up to slightly less than 1."""
    image += ROUNDING
    return image.astype(np.uint8)
