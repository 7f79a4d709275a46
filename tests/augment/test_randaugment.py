"""RandAugment as a layer: draws, dtypes, errors and repetition."""

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_augreg.augment import (
    OPERATIONS,
    RandAugment,
    apply_op,
    draws,
    randaugment,
)

BACKEND = keras.backend.backend()
# The draws of seed 0, step 0 for 8 images of 224 x 160: operation, sign, row,
# column.
PINNED = [
    [6, 5, 6, 11, 10, 5, 10, 2],
    [1, 1, 1, 0, 1, 0, 1, 0],
    [48, 129, 78, 101, 161, 77, 6, 37],
    [128, 34, 29, 58, 74, 152, 83, 17],
]
# Few sizes, because each is compiled, with the difficult ones among them.
SIZES = [(1, 1), (2, 5), (24, 20)]


def photo(n=1, height=24, width=24, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, height, width, 3), dtype="uint8")


def numpy(x):
    return keras.ops.convert_to_numpy(x)


@pytest.mark.parametrize(
    ("key", "counter", "expected"),
    [
        # kat_vectors of Random123, the authors' library.
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((-1, -1), (-1, -1), (0x1CB996FC, 0xBB002BE7)),
        (
            (0x13198A2E, 0x03707344),
            (0x243F6A88, 0x85A308D3),
            (0xC4923A9C, 0x483DF7A0),
        ),
    ],
)
def test_threefry_known_answers_on_this_backend(key, counter, expected):
    def word(x):
        bits = np.array([x & 0xFFFFFFFF], "uint32").view("int32")
        return keras.ops.convert_to_tensor(bits)

    words = draws.threefry(tuple(map(word, key)), tuple(map(word, counter)))
    words = [numpy(x).view("uint32")[0] for x in words]
    assert words == list(expected)


@pytest.mark.parametrize("limit", [1, 3, 224, 32767])
def test_below_is_the_high_half_of_the_product(limit):
    bits = np.random.default_rng(limit).integers(0, 2**32, 9999, dtype="uint32")
    expected = bits.astype("uint64") * limit >> 32
    result = draws.below(keras.ops.convert_to_tensor(bits.view("int32")), limit)
    np.testing.assert_array_equal(numpy(result), expected)


def draw(n, height, width, key=(1, 2), layer=0):
    key = [keras.ops.convert_to_tensor(np.array(x, "int32")) for x in key]
    choice = randaugment.draw(keras.ops, key, n, height, width, layer)
    return [numpy(x) for x in choice]


def chi_squared(values, kinds):
    counts = np.bincount(values, minlength=kinds)
    assert len(counts) == kinds
    expected = len(values) / kinds
    return ((counts - expected) ** 2 / expected).sum()


def test_frequencies_over_100_000_draws():
    """Each bound is the chi-squared distribution's 99.9% point."""
    operation, negative, row, column = draw(100_000, 5, 7)
    assert chi_squared(operation, 16) < 37.7
    assert chi_squared(negative, 2) < 10.8
    assert chi_squared(row, 5) < 18.5
    assert chi_squared(column, 7) < 22.5
    # And independently of each other, of the layer and of the step.
    assert chi_squared(operation * 2 + negative, 32) < 61.1
    assert chi_squared(row * 7 + column, 35) < 65.2
    for other in (draw(100_000, 5, 7, layer=1), draw(100_000, 5, 7, (1, 3))):
        assert chi_squared(operation * 16 + other[0], 256) < 330.5


def test_the_draws_are_pinned():
    """Equal on all backends, and from release to release."""
    operation, negative, row, column = draw(8, 224, 160, key=(0, 0))
    assert operation.tolist() == PINNED[0]
    assert negative.tolist() == PINNED[1]
    assert row.tolist() == PINNED[2]
    assert column.tolist() == PINNED[3]


def test_the_layer_applies_what_is_drawn():
    images = photo(32, 24, 20)
    result = numpy(RandAugment(2, 15, seed=3)(images, step=7))
    first, second = (draw(32, 24, 20, (3, 7), layer) for layer in (0, 1))
    assert len({*first[0], *second[0]}) == 16
    for i, image in enumerate(images):
        for operation, negative, row, column in (first, second):
            image = apply_op(
                image[None],
                OPERATIONS[operation[i]],
                15,
                -1 if negative[i] else 1,
                (int(row[i]), int(column[i])),
            )
            image = numpy(image)[0]
        np.testing.assert_array_equal(result[i], image)


@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(
    size=st.sampled_from(SIZES),
    n=st.sampled_from([1, 3]),
    dtype=st.sampled_from(["uint8", "float32"]),
    kind=st.sampled_from(["noise", "constant", "grey"]),
    step=st.integers(0, 2**31 - 1),
)
def test_properties(size, n, dtype, kind, step):
    images = photo(n, *size, seed=step)
    if kind == "constant":
        images[:] = step % 256
    elif kind == "grey":
        images[:] = images[..., :1]
    images = images.astype(dtype)
    layer = RandAugment(1, 15, seed=5)
    result = numpy(layer(images, step=step))
    assert result.dtype == images.dtype
    assert result.shape == images.shape
    assert result.min() >= 0
    assert result.max() <= 255
    # The same seed gives the same batch.
    again = RandAugment(1, 15, seed=5)(images, step=step)
    np.testing.assert_array_equal(result, numpy(again))
    # Neighbours do not matter: with others, the first image's result stays.
    others = images.copy()
    others[1:] = 255 - others[1:]
    other = numpy(layer(others, step=step))
    np.testing.assert_array_equal(result[0], other[0])


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("size", SIZES[:2])
def test_every_operation_on_tiny_constant_images(op, size):
    for value in (0, 128, 255):
        images = np.full((2, *size, 3), value, "uint8")
        result = numpy(apply_op(images, op, 15, center=(0, 0)))
        assert result.shape == images.shape
        if op in ("AutoContrast", "Equalize"):  # They have no range to widen.
            np.testing.assert_array_equal(result, images)


def test_float_images_are_rounded_first():
    images = photo()
    for fraction in (-0.25, 0.25):
        floats = np.clip(images + np.float32(fraction), 0, 255)
        result = numpy(apply_op(floats, "Invert", 15))
        assert result.dtype == "float32"
        np.testing.assert_array_equal(result, 255 - images)
        np.testing.assert_array_equal(
            numpy(RandAugment(2, 15, seed=0)(floats, step=1)),
            numpy(RandAugment(2, 15, seed=0)(images, step=1)),
        )


def test_white_in_bfloat16_stays_white():
    """255.5 rounds to 256 in bfloat16, and 256 wraps to 0 in uint8."""
    white = keras.ops.full((1, 4, 4, 3), 255, "bfloat16")
    result = RandAugment(0, 15, seed=0)(white)
    assert float(keras.ops.min(result)) == 255


def test_batch_order_is_irrelevant():
    """Permuted images with permuted draws give permuted results."""
    images = photo(16)
    choice = draw(16, 24, 24)
    order = np.random.default_rng(0).permutation(16)
    lookups = randaugment.ops.lookups(15, 24, 24)

    def apply(images, choice):
        convert = keras.ops.convert_to_tensor
        choice = randaugment.ops.Choice(*map(convert, choice))
        images = convert(images)
        xp = randaugment.arrays.namespace(images)
        return numpy(randaugment.ops.apply_all(xp, images, choice, lookups))

    result = apply(images, choice)
    permuted = apply(images[order], [x[order] for x in choice])
    np.testing.assert_array_equal(permuted, result[order])


def test_chunks_change_nothing(monkeypatch):
    """Neither whole ones nor a rest: 13 images in chunks of at most 4."""
    images = photo(13)
    whole = numpy(RandAugment(2, 15, seed=0)(images))
    monkeypatch.setattr(randaugment, "_CHUNK_PIXELS", 4 * 24 * 24)
    randaugment._compiled.cache_clear()
    parts = numpy(RandAugment(2, 15, seed=0)(images))
    randaugment._compiled.cache_clear()
    np.testing.assert_array_equal(parts, whole)


def test_calls_count_as_steps():
    images = photo(4)
    counted, numbered = RandAugment(2, 15, seed=0), RandAugment(2, 15, seed=0)
    results = [numpy(counted(images)) for _ in range(3)]
    for step, result in enumerate(results):
        np.testing.assert_array_equal(
            result, numpy(numbered(images, step=step))
        )
    assert not np.array_equal(results[0], results[1])
    assert not np.array_equal(
        results[0], numpy(RandAugment(2, 15, seed=1)(images))
    )


def test_tf_data_gives_the_same_bytes():
    tf = pytest.importorskip("tensorflow")
    images = photo(8)
    layer = RandAugment(2, 15, seed=0)
    expected = [numpy(layer(images, step=step)) for step in range(5)]
    data = tf.data.Dataset.from_tensors(images).repeat(5)
    plain = data.map(RandAugment(2, 15, seed=0))
    np.testing.assert_array_equal(np.stack(list(plain)), expected)
    # Numbered, also in parallel, and from the middle.
    resumed = data.take(3).enumerate(2)
    resumed = resumed.map(lambda i, x: layer(x, step=i), tf.data.AUTOTUNE)
    np.testing.assert_array_equal(np.stack(list(resumed)), expected[2:])
    # Unnumbered in parallel: in any order, but each number once.
    parallel = data.map(RandAugment(2, 15, seed=0), tf.data.AUTOTUNE)
    seen = sorted(x.numpy().tobytes() for x in parallel)
    assert seen == sorted(x.tobytes() for x in expected)


def test_a_pass_over_the_data_set_draws_anew():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensors(photo(8)).map(RandAugment(2, 15, 0))
    first, second = (next(iter(data)).numpy() for _ in range(2))
    assert not np.array_equal(first, second)


def test_a_batch_of_unknown_size_in_tf_data():
    tf = pytest.importorskip("tensorflow")
    images = photo(5)
    data = tf.data.Dataset.from_tensor_slices(images).batch(3)
    data = data.map(RandAugment(2, 15, seed=0))
    assert [len(x) for x in data] == [3, 2]


def test_inactive_outside_training():
    images = photo(2)
    result = RandAugment(2, 15, seed=0)(images, training=False)
    np.testing.assert_array_equal(numpy(result), images)
    np.testing.assert_array_equal(numpy(RandAugment(0, 15)(images)), images)


def test_symbolic_call_and_config_round_trip():
    layer = RandAugment(3, 10, seed=4, name="augment")
    output = layer(keras.Input((24, 24, 3), dtype="uint8"))
    assert (output.shape, output.dtype) == ((None, 24, 24, 3), "uint8")
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    images = photo(4)
    np.testing.assert_array_equal(
        numpy(layer(images, step=1)), numpy(again(images, step=1))
    )


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (photo()[0], ValueError, r"Add an axis to a single image"),
        (photo()[..., :1], ValueError, r"width, 3\).*Convert images to RGB"),
        (np.zeros((1, 4, 4, 4), "uint8"), ValueError, "Convert images to RGB"),
        (np.zeros((1, 4, 4, 3), "int32"), TypeError, "must be uint8 or float"),
        (
            np.full((1, 4, 4, 3), -0.5, "float32"),
            ValueError,
            r"values in \[0, 255\].*before scaling to \[-1, 1\]",
        ),
        (np.full((1, 4, 4, 3), 256.0), ValueError, r"values in \[256.0, 256"),
        (np.full((1, 4, 4, 3), np.nan), ValueError, r"values in \[nan, nan\]"),
    ],
)
def test_images_it_refuses(images, error, message):
    with pytest.raises(error, match=message):
        RandAugment(2, 15, seed=0)(images)
    with pytest.raises(error, match=message):
        apply_op(images, "Invert", 15)


def test_sizes_unknown_in_tf_data_are_refused():
    tf = pytest.importorskip("tensorflow")
    signature = tf.TensorSpec((None, None, None, 3), "uint8")
    data = tf.data.Dataset.from_generator(list, output_signature=signature)
    with pytest.raises(ValueError, match="call `set_shape` before batching"):
        data.map(RandAugment(2, 15, seed=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandAugment(-1, 15), "`num_layers` must be at least 0"),
        (lambda: RandAugment(2, 21), r"`magnitude` must be in \[0, 20\]"),
        (lambda: RandAugment(2, 15, seed=-1), r"`seed` must be in \[0, 2\^31"),
        (lambda: apply_op(photo(), "Blur", 1), "Unknown operation 'Blur'"),
        (lambda: apply_op(photo(), "Invert", -1), r"must be in \[0, 20\]"),
        (lambda: apply_op(photo(), "Rotate", 5, 0), "`sign` must be 1 or -1"),
        (lambda: apply_op(photo(), "Cutout", 5), r"`center=\(row, column\)`"),
    ],
)
def test_arguments_it_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()
