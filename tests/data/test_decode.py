"""Crops, resizing and kinds of files, against TensorFlow's operations."""

from __future__ import annotations

import contextlib
import io
import random
import zlib

import cv2
import keras
import numpy as np
import PIL.Image
import pytest
from _photos import encode, largest_difference, photo
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_augreg.data import decode
from keras_augreg.data.decode import ArrayPicture, ImageError, Picture

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)

tf = pytest.importorskip("tensorflow")

WHOLE = (0, 0, 72, 96)


def noise(height, width, seed=0):
    rng = np.random.RandomState(seed)
    return rng.randint(0, 256, (height, width, 3)).astype(np.uint8)


def upright(data):
    picture = Picture(data, "x")
    box = (0, 0, picture.height, picture.width)
    return picture.pixels(box)


sides = st.integers(1, 90)


@pytest.mark.parametrize("method", ["bilinear", "area"])
@settings(max_examples=60, deadline=None)
@given(size=st.tuples(sides, sides), to=st.tuples(sides, sides))
def test_resize_is_tensorflows(method, size, to):
    pixels = noise(*size)
    resize = decode.resize_area if method == "area" else decode.resize_bilinear
    expected = tf.cast(tf.image.resize(pixels, to, method), tf.uint8)
    assert largest_difference(resize(pixels, to), expected) <= 1


@pytest.mark.parametrize("method", ["bilinear", "area"])
def test_resize_of_a_photo_is_rarely_a_level_off(method):
    pixels = np.asarray(photo("coffee"))
    resize = decode.resize_area if method == "area" else decode.resize_bilinear
    # Where "area" enlarges, TensorFlow's sums of equal pixels end up a little
    # below an integer, and the fraction is cut off.
    for to in ((224, 224), (133, 310), (33, 47)):
        ours = resize(pixels, to).astype(int)
        expected = tf.image.resize(pixels, to, method)
        difference = np.abs(ours - tf.cast(expected, tf.int32).numpy())
        assert difference.max() <= 1
        assert difference.mean() < 2e-3


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("method", ["bilinear", "area"])
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (8, 8), (375, 500)])
def test_resize_keeps_constants(size, method, vectorized):
    resize = decode.resize_area if method == "area" else decode.resize_bilinear
    before = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(vectorized)  # Not every machine has Intel's kernels.
    try:
        for value in (1, 100, 255):
            pixels = np.full((*size, 3), value, np.uint8)
            for to in (7, 224, 384):
                assert set(resize(pixels, (to, to)).ravel()) == {value}
    finally:
        cv2.ipp.setUseIPP(before)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.tuples(sides, sides), st.tuples(sides, sides))
def test_a_crop_of_an_area_resize_is_that_crop(data, size, to):
    crop = [data.draw(st.integers(1, side)) for side in to]
    y, x = (
        data.draw(st.integers(0, side - part))
        for side, part in zip(to, crop, strict=True)
    )
    pixels = noise(*size)
    whole = decode.resize_area(pixels, to)
    part = decode.resize_area(pixels, to, (y, x), crop)
    np.testing.assert_array_equal(part, whole[y : y + crop[0], x : x + crop[1]])


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 700),
    width=st.integers(1, 700),
    side=st.integers(8, 400),
)
def test_resize_small_is_big_visions(height, width, side):
    smaller = round(side * 256 / 224)
    cropping = decode.Cropping(
        (side, side), "resize_small", False, False, smaller
    )
    window = cropping.window(height, width, random.Random(0))
    factor = tf.cast(smaller, tf.float32) / tf.cast(
        tf.minimum(height, width), tf.float32
    )
    expected = [
        int(tf.round(tf.cast(s, tf.float32) * factor)) for s in (height, width)
    ]
    assert window.size == tuple(expected)
    assert window.corner == tuple((e - side) // 2 for e in expected)
    assert window.box == (0, 0, height, width)
    assert not window.flip


def test_resize_small_covers_what_is_not_square():
    cropping = decode.Cropping((224, 448), "resize_small", False, False, 256)
    assert cropping.window(300, 300, random.Random(0)).size == (512, 512)
    assert cropping.window(300, 900, random.Random(0)).size == (256, 768)


@pytest.mark.parametrize("size", [(375, 500), (500, 200), (32, 32)])
def test_inception_boxes_are_distributed_as_tensorflows(size):
    scipy_stats = pytest.importorskip("scipy.stats")
    rng = random.Random(1)
    ours = np.array([decode.inception_box(*size, rng) for _ in range(3000)])

    @tf.function
    def draw(seed):
        begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
            [*size, 3],
            tf.zeros([0, 0, 4]),
            seed=[1, seed],
            area_range=(0.05, 1.0),
            aspect_ratio_range=(0.75, 1.33),
            min_object_covered=0.0,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([begin[:2], extent[:2]], axis=0)

    theirs = tf.map_fn(draw, tf.range(3000), fn_output_signature=tf.int32)
    theirs = theirs.numpy()
    for boxes in (ours, theirs):
        area = boxes[:, 2] * boxes[:, 3] / np.prod(size)
        assert 0.05 <= area.min() < 0.08 < 0.9 * area.max()
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] <= size).all()
    features = [
        lambda b: b[:, 0], lambda b: b[:, 1], lambda b: b[:, 2],
        lambda b: b[:, 3], lambda b: b[:, 3] / b[:, 2],
    ]  # fmt: skip
    for feature in features:
        test = scipy_stats.ks_2samp(feature(ours), feature(theirs))
        assert test.pvalue > 1e-4


def test_inception_box_of_one_pixel_is_that_pixel():
    box = decode.inception_box(1, 1, random.Random(0))
    assert box == (0, 0, 1, 1)


def test_half_of_the_training_images_are_flipped_and_none_in_evaluation():
    train = decode.Cropping((8, 8), "inception", True, True, 9)
    rng = random.Random(0)
    flips = [train.window(20, 20, rng).flip for _ in range(1000)]
    assert 440 < sum(flips) < 560
    assert not any(
        decode.Cropping((8, 8), "resize", training, flip, 9)
        .window(20, 20, rng)
        .flip
        for training, flip in [(False, True), (True, False)]
        for _ in range(20)
    )


def test_crop_and_resize_flips():
    image = noise(20, 30)
    cropping = decode.Cropping((20, 30), "resize", True, True, 20)
    out = np.zeros((20, 30, 3), np.uint8)
    window = decode.Window((0, 0, 20, 30), (20, 30), (0, 0), True)
    decode.crop_and_resize(image, window, cropping, out)
    np.testing.assert_array_equal(out, image[:, ::-1])


# --- kinds of files: the picture that a person sees

PHOTO = photo("chelsea", (96, 72))
LIGHTLY = {"quality": 98, "subsampling": 0}


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_formats(kind):
    options = {"JPEG": LIGHTLY, "WEBP": {"lossless": True}}.get(kind, {})
    # GIF has 256 colours, the others compress or are exact.
    tolerance = {"JPEG": 12, "GIF": 60}.get(kind, 0)
    image = upright(encode(PHOTO, kind, **options))
    assert image.shape == (72, 96, 3)
    assert largest_difference(image, PHOTO) <= tolerance


def test_the_first_frame_of_a_gif():
    frames = [PIL.Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (upright(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_files(mode):
    image = PHOTO.convert(mode)
    assert largest_difference(
        upright(encode(image, "PNG")), image.convert("RGB")
    ) == 0  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey(kind):
    ramp = np.linspace(0, 65535, 72 * 96).astype(np.uint16).reshape(72, 96)
    image = upright(encode(PIL.Image.fromarray(ramp), kind))
    assert largest_difference(image, (ramp >> 8)[..., None]) == 0


def test_16_bit_colour():
    image = (np.asarray(PHOTO).astype(np.uint16) << 8) | 77
    data = tf.io.encode_png(image).numpy()
    assert largest_difference(upright(data), PHOTO) == 0


def test_16_bit_grey_with_a_transparent_shade():
    # 256 and 257 are one shade in 8 bits; only 257 is transparent.
    shades = np.repeat(np.uint16([[256, 257, 40000]]), 4, axis=0)
    grey = PIL.Image.fromarray(shades)
    image = upright(encode(grey, "PNG", transparency=257))
    assert image[0, :, 0].tolist() == [1, 255, 40000 >> 8]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_files_are_on_white(mode):
    image = PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 4, 8))
    options = {}
    if mode == "P":
        image = PIL.Image.new("P", (8, 8), 1)
        image.paste(0, (0, 0, 4, 8))
        image.putpalette([0, 0, 0, 255, 0, 0])
        options = {"transparency": 0}
    image = upright(encode(image.convert(mode), "PNG", **options))
    assert (image[:, :4] == 255).all()
    assert image[0, 7, 0] > 50
    assert (image[:, 4:, 1] < 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_picture_with_garbage_for_metadata_is_shown(kind):
    options = {"WEBP": {"lossless": True}, "JPEG": LIGHTLY}.get(kind, {})
    data = encode(PHOTO, kind, exif=b"Exif\0\0no TIFF at all", **options)
    assert b"no TIFF at all" in data
    assert largest_difference(upright(data), PHOTO) <= 12


def test_a_png_file_is_decoded_once(monkeypatch):
    loads = []
    load = PIL.PngImagePlugin.PngImageFile.load_prepare
    monkeypatch.setattr(
        PIL.PngImagePlugin.PngImageFile,
        "load_prepare",
        lambda self: loads.append(self) or load(self),
    )
    picture = Picture(encode(PHOTO, "PNG"), "x")
    for _ in range(2):
        assert largest_difference(picture.pixels(WHOLE), PHOTO) == 0
    # Again only for who asks again.
    assert len(loads) == 2


def test_cmyk():
    solid = PIL.Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = upright(encode(solid, "JPEG"))
    assert largest_difference(image, np.full((16, 16, 3), (255, 0, 0))) <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_by_exif(orientation):
    # The pixels that the camera stored; undoing the rotation gives the photo.
    stored = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }
    image = PHOTO
    if orientation in stored:
        image = image.transpose(stored[orientation])
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    for kind, options, tolerance in (
        ("PNG", {}, 0),
        ("TIFF", {}, 0),
        ("JPEG", LIGHTLY, 12),
    ):
        data = encode(image, kind, exif=exif, **options)
        picture = Picture(data, "x")
        assert (picture.height, picture.width) == (72, 96)
        assert picture.plain_jpeg == (kind == "JPEG" and orientation == 1)
        assert largest_difference(upright(data), PHOTO) <= tolerance


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"subsampling": 0},
        {"quality": 20, "optimize": True},
        {"icc_profile": b"x" * 3000},
        {"comment": b"hello"},
        {"dpi": (72, 72)},
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpeg_files_are_recognised(options, mode):
    data = encode(PHOTO.convert(mode), "JPEG", **options)
    assert decode._plain_jpeg_size(data) == (72, 96)
    # TensorFlow's decoder gives the same pixels.
    picture = Picture(data, "x")
    assert picture.plain_jpeg
    decoded = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    assert largest_difference(upright(data), decoded) == 0


def test_other_files_are_not():
    exif = PIL.Image.Exif()
    exif[0x0112] = 3
    whole = encode(PHOTO)
    for data in (
        encode(PHOTO.convert("CMYK")),
        encode(PHOTO, exif=exif),
        encode(PHOTO, "PNG"),
        whole[:-2],
        whole + b"\0",
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8\xff\xe0\x00\x04ab\xff\xd9",
        b"\xff\xd8" + b"\xff" * 40 + b"\xff\xd9",
    ):
        assert decode._plain_jpeg_size(data) is None


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_header_is_an_image_error_or_an_image(data):
    whole = bytearray(encode(PHOTO, "JPEG", quality=50))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, 700))
        whole[place] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ImageError):
        picture = Picture(bytes(whole), "x")
        assert picture.pixels((0, 0, 1, 1)).shape == (1, 1, 3)


@pytest.mark.parametrize(
    "options",
    [
        {"quality": 90},
        {"quality": 95, "subsampling": 0},
        {"quality": 60, "subsampling": 1},
        {"progressive": True},
        {"restart_marker_rows": 2},
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_files_have_pillows_pixels(mode, options):
    data = encode(PHOTO.convert(mode), "JPEG", **options)
    picture = Picture(data, "x")
    box = (3, 5, PHOTO.height - 10, PHOTO.width - 7)
    assert picture.plain_jpeg
    wanted = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    np.testing.assert_array_equal(
        picture.pixels(box),
        wanted[3 : PHOTO.height - 7, 5 : PHOTO.width - 2],
    )


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_jpeg_files_are_what_they_are_to_pillow(data):
    whole = bytearray(encode(PHOTO, "JPEG", quality=80))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(2, len(whole) - 3))
        if data.draw(st.booleans()):
            whole[place : place + 2] = data.draw(st.binary(max_size=4))
        else:
            del whole[place : min(place + 300, len(whole) - 2)]
    try:
        picture = Picture(bytes(whole), "x")
    except ImageError:
        return
    try:
        wanted = PIL.Image.open(io.BytesIO(whole)).convert("RGB")
    except Exception:
        wanted = None
    box = (0, 0, picture.height, picture.width)
    if wanted is None:
        with pytest.raises(ImageError):
            picture.pixels(box)
    elif picture.plain_jpeg:
        np.testing.assert_array_equal(picture.pixels(box), wanted)


def test_opencv_would_accept_what_others_refuse():
    # The reason why OpenCV gets only files of one whole scan. If this fails,
    # OpenCV has improved and `_one_whole_scan` may go.
    data = bytearray(encode(PHOTO, "JPEG", quality=80))
    data[-200:-196] = b"\xff\xda\x00\x00"
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1) is not None
    picture = Picture(bytes(data), "x")
    assert picture.plain_jpeg
    with pytest.raises(ImageError, match="broken data stream"):
        picture.pixels((0, 0, 1, 1))


def test_a_header_with_fill_bytes_does_not_hide_what_follows():
    # Read as a length, what follows the fill byte leaps into the scan.
    image = PIL.Image.fromarray(noise(300, 300))
    data = bytearray(encode(image, quality=95))
    data.insert(data.index(b"\xff\xdb"), 0xFF)
    assert len(data) > 0xDB00 + 6000
    sound = Picture(bytes(data), "x").pixels((0, 0, 300, 300))
    np.testing.assert_array_equal(sound, PIL.Image.open(io.BytesIO(data)))
    data[5000:5004] = b"\xff\xda\x00\x00"
    assert Picture(bytes(data), "x").plain_jpeg
    with pytest.raises(ImageError, match="broken data stream"):
        Picture(bytes(data), "x").pixels((0, 0, 300, 300))


@pytest.mark.parametrize("result", [None, np.zeros((9, 9, 3)), cv2.error()])
def test_what_opencv_does_not_decode_is_pillows(monkeypatch, result):
    # Its environment may limit sizes (OPENCV_IO_MAX_IMAGE_WIDTH).
    def imdecode(data, flags):
        if isinstance(result, Exception):
            raise result
        return result

    picture = Picture(encode(PHOTO), "x")
    expected = picture.pixels(WHOLE)
    monkeypatch.setattr(cv2, "imdecode", imdecode)
    np.testing.assert_array_equal(picture.pixels(WHOLE), expected)


# --- broken files

BROKEN = {
    "empty": b"",
    "text": b"This is not a picture.\n",
    "jpeg cut short": encode(PHOTO)[:2000],
    "png cut short": encode(PHOTO, "PNG")[:2000],
    "webp cut short": encode(PHOTO, "WEBP")[:500],
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_errors_that_name_them(what):
    with pytest.raises(ImageError, match=r"'dir/name 1\.jpg'.*on_error"):
        Picture(BROKEN[what], "dir/name 1.jpg").pixels((0, 0, 1, 1))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            np.full((4, 4), 0.5, np.float32),
            "pixels are floats of unknown range",
        ),
        (np.full((4, 4), 70_000, np.int32), "grey values are 70000 to 70000"),
        (np.full((4, 4), -1, np.int32), "grey values are -1 to -1"),
    ],
)
def test_grey_values_of_unknown_range_are_refused(pixels, message):
    picture = Picture(encode(PIL.Image.fromarray(pixels), "TIFF"), "x.tif")
    with pytest.raises(
        ImageError, match=rf"x\.tif.*{message}.*one of JPEG, PNG"
    ):
        picture.pixels((0, 0, 4, 4))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_absurd_size_is_refused_before_decoding(kind, monkeypatch):
    data = bytearray(encode(PHOTO, kind))
    if kind == "PNG":
        data[16:24] = (30_000).to_bytes(4) * 2
        data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = (30_000).to_bytes(2) * 2
    monkeypatch.setattr(
        decode, "upright_rgb", lambda image: pytest.fail("decoded")
    )
    with pytest.raises(ImageError, match=r"Refused to decode 'big'.*pixels"):
        Picture(bytes(data), "big")


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pillows_limit_holds_for_every_kind(kind, monkeypatch):
    content = encode(PHOTO, kind)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ImageError, match=r"Refused to decode 'big'.*pixels"):
        Picture(content, "big")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", None)
    assert Picture(content, "big").width == 96


def test_arrays_are_pictures():
    array = np.asarray(PHOTO)
    picture = ArrayPicture(array)
    assert (picture.height, picture.width) == (72, 96)
    np.testing.assert_array_equal(picture.pixels(WHOLE), array)
    np.testing.assert_array_equal(
        picture.pixels((5, 7, 20, 30)), array[5:25, 7:37]
    )


def test_brightness():
    image = PIL.Image.fromarray(np.eye(8, dtype=np.uint8))
    data = encode(image, "PNG")
    pixels = Picture(data, "x", brightness=255).pixels((0, 0, 8, 8))
    np.testing.assert_array_equal(
        pixels, np.eye(8)[..., None].repeat(3, -1) * 255
    )
    assert not Picture(encode(PHOTO), "x", brightness=255).plain_jpeg
