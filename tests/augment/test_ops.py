"""Every byte that the original computed, by every way through the code.

`tests/golden/ops_*.npz` (see `shared/reference/README.md` of the project)
hold each operation's result at magnitudes 0, 10, 15 and 20 and both signs.
"""

import pathlib

import keras
import numpy as np
import pytest

from keras_augreg.augment import OPERATIONS, apply_op, arrays, ops

FOLDER = pathlib.Path(__file__).parents[1] / "golden"
MAGNITUDES = (0, 10, 15, 20)
BACKEND = keras.backend.backend()


def load(photo):
    """The photo, and [(operation, magnitude, sign, center, result)]."""
    data = np.load(FOLDER / f"ops_{photo}.npz")
    cases = []
    for key in data.files:
        if key != "image":
            op, magnitude, sign, *center = key.split("|")
            center = tuple(map(int, center[0].split(","))) if center else None
            cases.append((op, int(magnitude), int(sign), center, data[key]))
    return data["image"], cases


GOLDEN = {photo: load(photo) for photo in ("astronaut", "lowcontrast")}


def test_the_files_hold_every_operation_and_magnitude():
    for _, cases in GOLDEN.values():
        seen = {(op, magnitude) for op, magnitude, *_ in cases}
        assert seen == {(op, m) for op in OPERATIONS for m in MAGNITUDES}
    assert [len(cases) for _, cases in GOLDEN.values()] == [88, 84]


@pytest.mark.parametrize("photo", GOLDEN)
@pytest.mark.parametrize("op", OPERATIONS)
def test_apply_op_eagerly(photo, op):
    image, cases = GOLDEN[photo]
    for name, magnitude, sign, center, expected in cases:
        if name == op:
            result = apply_op(image[None], op, magnitude, sign, center)
            result = keras.ops.convert_to_numpy(result)
            np.testing.assert_array_equal(result, expected[None])


@pytest.mark.once
@pytest.mark.parametrize("photo", GOLDEN)
def test_apply_numpy(photo):
    image, cases = GOLDEN[photo]
    for op, magnitude, sign, center, expected in cases:
        choice = (OPERATIONS.index(op), int(sign < 0), *(center or (0, 0)))
        lookups = ops.lookups(magnitude, *image.shape[:2])
        result = ops.apply_numpy(image, choice, lookups)
        np.testing.assert_array_equal(result, expected)


@pytest.mark.once
def test_apply_numpy_of_small_and_flat_images():
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 3), (2, 5, 3), (9, 3, 3)):
        for image in (np.full(shape, 7), rng.integers(30, 200, shape)):
            image = image.astype(np.uint8)
            for i, op in enumerate(OPERATIONS):
                expected = apply_op(image[None], op, 20, -1, (1, 2))
                expected = keras.ops.convert_to_numpy(expected)[0]
                lookups = ops.lookups(20, *shape[:2])
                result = ops.apply_numpy(image, (i, 1, 1, 2), lookups)
                np.testing.assert_array_equal(result, expected, err_msg=op)


@pytest.mark.parametrize("photo", GOLDEN)
def test_apply_op_in_tf_data(photo):
    """One map that applies all operations, on any backend.

    At one magnitude: each call is compiled, which takes long.
    """
    tf = pytest.importorskip("tensorflow")
    image, cases = GOLDEN[photo]
    cases = [case for case in cases if case[1] == 15]

    def apply(images):
        return tf.stack([apply_op(images, *case[:4])[0] for case in cases])

    data = tf.data.Dataset.from_tensors(image[None]).map(apply)
    expected = np.stack([case[-1] for case in cases])
    np.testing.assert_array_equal(next(iter(data)).numpy(), expected)


def choice_of(cases):
    """The cases as a draw, one image each."""
    columns = zip(
        *(
            (OPERATIONS.index(op), sign < 0, *(center or (0, 0)))
            for op, _, sign, center, _ in cases
        ),
        strict=True,
    )
    return [np.array(column, "int32") for column in columns]


def batches():
    for photo, (image, cases) in GOLDEN.items():
        for magnitude in MAGNITUDES:
            yield pytest.param(
                image,
                magnitude,
                [case for case in cases if case[1] == magnitude],
                id=f"{photo}-{magnitude}",
            )


@pytest.mark.parametrize(("image", "magnitude", "cases"), batches())
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_a_batch_where_every_image_has_another_operation(
    image, magnitude, cases, compiled
):
    """The way of the compiled training step."""
    if compiled and BACKEND == "torch":
        pytest.skip("test_torch_compile does one magnitude: it takes long")
    lookups = ops.lookups(magnitude, *image.shape[:2])

    def apply(images, *choice):
        xp = arrays.namespace(images)
        return ops.apply_all(xp, images, ops.Choice(*choice), lookups)

    if compiled:
        apply = arrays.compiled(apply, BACKEND)
    images = np.repeat(image[None], len(cases), axis=0)
    arguments = map(keras.ops.convert_to_tensor, (images, *choice_of(cases)))
    result = keras.ops.convert_to_numpy(apply(*arguments))
    np.testing.assert_array_equal(result, [case[-1] for case in cases])


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's compiler")
def test_torch_compile():
    import torch

    image, cases = GOLDEN["astronaut"]
    cases = [case for case in cases if case[1] == 15]
    lookups = ops.lookups(15, *image.shape[:2])

    def apply(images, *choice):
        return ops.apply_all(keras.ops, images, ops.Choice(*choice), lookups)

    images = np.repeat(image[None], len(cases), axis=0)
    arguments = map(torch.tensor, (images, *choice_of(cases)))
    result = torch.compile(apply)(*arguments)
    np.testing.assert_array_equal(result, [case[-1] for case in cases])


@pytest.mark.parametrize(("image", "magnitude", "cases"), batches())
def test_one_image_after_the_other_in_tf_data(image, magnitude, cases):
    """The way of a `tf.data` pipeline, compiled as `RandAugment` does."""
    tf = pytest.importorskip("tensorflow")
    lookups = ops.lookups(magnitude, *image.shape[:2])

    def apply(images, *choice):
        return ops.apply_each(images, [ops.Choice(*choice)], lookups)

    images = np.repeat(image[None], len(cases), axis=0)
    data = tf.data.Dataset.from_tensors((images, *choice_of(cases)))
    data = data.map(arrays.compiled(apply, "tensorflow"))
    result = next(iter(data)).numpy()
    np.testing.assert_array_equal(result, [case[-1] for case in cases])


@pytest.mark.parametrize("op", ops.GEOMETRIC)
def test_sources_are_those_of_tensorflows_kernel(op):
    """At every whole magnitude, at the study's image size.

    `ImageProjectiveTransformV3` is the kernel that the original called (as
    `tf.contrib.image.transform`), with these coefficients.
    """
    tf = pytest.importorskip("tensorflow")
    side = 224
    position = np.arange(side * side, dtype="int32").reshape(side, side)
    row = 1 + 2 * ops.GEOMETRIC.index(op)
    for magnitude in range(21):
        lookups = ops.lookups(magnitude, side, side)
        level = magnitude / 10
        for flip, sign in enumerate((1.0, -1.0)):
            shear, shift = sign * level * 0.3, sign * level * 100
            angle = tf.constant(sign * level * 30) * (np.pi / 180)
            cos, sin = tf.cos(angle), tf.sin(angle)
            last = side - 1.0
            coefficients = {
                "Rotate": [
                    cos,
                    -sin,
                    (last - (cos * last - sin * last)) / 2.0,
                    sin,
                    cos,
                    (last - (sin * last + cos * last)) / 2.0,
                ],
                "ShearX": [1.0, shear, 0.0, 0.0, 1.0, 0.0],
                "ShearY": [1.0, 0.0, 0.0, shear, 1.0, 0.0],
                "TranslateX": [1.0, 0.0, shift, 0.0, 1.0, 0.0],
                "TranslateY": [1.0, 0.0, 0.0, 0.0, 1.0, shift],
            }[op]
            expected = tf.raw_ops.ImageProjectiveTransformV3(
                images=position[None, :, :, None],
                transforms=tf.stack([*coefficients, 0.0, 0.0])[None],
                output_shape=(side, side),
                interpolation="NEAREST",
                fill_mode="CONSTANT",
                fill_value=-1.0,
            )
            np.testing.assert_array_equal(
                lookups.sources[row + flip], np.ravel(expected)
            )


def test_the_grey_level_of_every_colour():
    """All 16.7 million, against the function that the original called."""
    tf = pytest.importorskip("tensorflow")
    shares = ops.lookups(10, 1, 1).tables[OPERATIONS.index("Color")]
    green, blue = np.meshgrid(*[np.arange(256)] * 2, indexing="ij")
    for red in range(256):
        image = np.stack([np.full_like(green, red), green, blue], axis=-1)
        expected = tf.image.rgb_to_grayscale(image.astype("uint8"))
        looked = np.stack([shares[c][image[..., c]] for c in range(3)], -1)
        grey = ops._grey(np, looked.astype("float32"))
        np.testing.assert_array_equal(grey, expected)
