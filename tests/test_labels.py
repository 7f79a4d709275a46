"""Class names and pixel scaling."""

from __future__ import annotations

import doctest
import itertools
import re

import keras
import numpy as np
import pytest

from keras_augreg import labels, preprocessing
from keras_augreg.labels import decode_predictions
from keras_augreg.preprocessing import preprocess_input

TENCH = ("n01440764", "tench, Tinca tinca")


def kinds():
    """(name, function from an array to a tensor) for what is installed."""
    yield "numpy", np.asarray
    yield "keras", keras.ops.convert_to_tensor
    for package, function in (
        ("torch", "as_tensor"),
        ("tensorflow", "constant"),
        ("jax.numpy", "asarray"),
    ):
        module = pytest.importorskip(package)
        yield package, getattr(module, function)


@pytest.mark.once
@pytest.mark.parametrize("num_classes", [1000, 21843])
def test_every_class_has_one_synset_and_a_name(num_classes):
    classes = labels.class_labels(num_classes)
    assert len(classes) == num_classes
    synsets = [synset for synset, _ in classes]
    # Sorted and distinct.
    assert all(a < b for a, b in itertools.pairwise(synsets))
    for synset, label in classes:
        assert re.fullmatch(r"n\d{8}", synset)
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9 ,.'()/-]*", label)


@pytest.mark.once
def test_imagenet_1k_is_a_part_of_21k_but_for_the_teddy_bear():
    small, large = labels.class_labels(1000), labels.class_labels(21843)
    assert set(small) - set(large) == {("n04399382", "teddy, teddy bear")}


@pytest.mark.once
def test_1k_is_in_the_order_of_tensorflow_datasets():
    tfds = pytest.importorskip("tensorflow_datasets")
    file = tfds.core.tfds_path() / "datasets/imagenet2012/labels.txt"
    assert [s for s, _ in labels.class_labels(1000)] == file.read_text().split()


@pytest.mark.once
@pytest.mark.parametrize(
    ("num_classes", "index", "expected"),
    [
        (1000, 0, TENCH),
        (1000, 281, ("n02123045", "tabby, tabby cat")),
        (1000, 900, ("n04562935", "water tower")),
        (21843, 0, ("n00004475", "organism, being")),
        (21843, 21842, ("n15102894", "knothole")),
    ],
)
def test_known_classes(num_classes, index, expected):
    preds = np.zeros((1, num_classes), "float32")
    preds[0, index] = 0.75
    assert decode_predictions(preds, top=1) == [[(*expected, 0.75)]]


def test_scores_fall_and_ties_keep_the_order_of_classes():
    preds = np.full((2, 1000), -3.0, "float32")
    preds[0, [281, 0, 7]] = 2.5, 1.5, 9.0
    first, second = decode_predictions(preds)
    assert [score for *_, score in first] == [9.0, 2.5, 1.5, -3.0, -3.0]
    assert first[2] == (*TENCH, 1.5)
    assert [c[:2] for c in second] == list(labels.class_labels(1000)[:5])
    assert decode_predictions(preds[:0]) == []


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_decode_takes_every_kind_of_tensor(dtype):
    preds = np.zeros((1, 1000), dtype)
    preds[0, 0] = 1
    for name, make in kinds():
        decoded = decode_predictions(make(preds), top=2)
        assert decoded[0][0] == (*TENCH, 1.0), name
        assert decoded[0][1][0] == "n01443537", name


def test_decode_takes_bfloat16():
    preds = keras.ops.cast(np.eye(1, 1000), "bfloat16")
    assert decode_predictions(preds, top=1) == [[(*TENCH, 1.0)]]


@pytest.mark.parametrize("shape", [(1000,), (2, 37), (2, 21841), (1, 2, 1000)])
def test_decode_refuses_other_shapes(shape):
    expected = rf"\(batch, 1000\) or \(batch, 21843\).*{re.escape(str(shape))}"
    with pytest.raises(ValueError, match=expected):
        decode_predictions(np.zeros(shape))


@pytest.mark.parametrize("top", [0, -1, 1001, 2.5, None])
def test_decode_refuses_other_tops(top):
    with pytest.raises(ValueError, match=f"at most 1000.*top={top}"):
        decode_predictions(np.zeros((1, 1000)), top=top)


def test_decode_of_fewer_classes_than_the_default_top():
    scores, names = np.array([[0.2, 0.8]]), ["cat", "dog"]
    (found,) = decode_predictions(scores, class_names=names)
    assert found == [("dog", "dog", 0.8), ("cat", "cat", 0.2)]
    for top in (0, 2.5, None):
        with pytest.raises(ValueError, match=f"at most 2.*top={top}"):
            decode_predictions(scores, top=top, class_names=names)


PIXELS = np.arange(256, dtype="uint8").reshape(4, 8, 8)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_preprocess_maps_bytes_to_minus_one_to_one(dtype):
    expected = np.linspace(-1, 1, 256).reshape(4, 8, 8)
    for name, make in kinds():
        x = make(PIXELS.astype(dtype))
        y = preprocess_input(x)
        assert type(y) is type(x) or name != "numpy"
        assert keras.backend.standardize_dtype(y.dtype) == "float32", name
        np.testing.assert_allclose(
            np.asarray(y), expected, atol=1e-7, err_msg=name
        )


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_preprocess_keeps_a_floating_dtype(dtype):
    y = preprocess_input(np.array([0, 255], dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, [-1, 1], atol=1e-3)


def test_preprocess_takes_lists_and_symbolic_tensors():
    assert preprocess_input([0, 255]).tolist() == [-1, 1]
    y = preprocess_input(keras.KerasTensor((None, 8, 8, 3), "uint8"))
    assert (y.shape, y.dtype) == ((None, 8, 8, 3), "float32")


def test_preprocess_works_in_tf_data_on_every_backend():
    tf = pytest.importorskip("tensorflow")
    data = tf.data.Dataset.from_tensor_slices(PIXELS).map(preprocess_input)
    assert data.element_spec == tf.TensorSpec((8, 8), tf.float32)
    expected = preprocess_input(PIXELS)
    np.testing.assert_allclose(list(data.as_numpy_iterator()), expected)


def test_preprocess_leaves_its_input_alone():
    x = np.array([0.0, 255.0], "float32")
    preprocess_input(x)
    assert x.tolist() == [0, 255]


@pytest.mark.parametrize("dtype", ["bool", "complex64", "<U3", "object"])
def test_preprocess_refuses_other_dtypes(dtype):
    with pytest.raises(ValueError, match=r"integer or floating .*received"):
        preprocess_input(np.array([1, 0]).astype(dtype))


@pytest.mark.once
def test_names_of_other_classes():
    scores = np.array([[0.1, 0.7, 0.2]])
    assert decode_predictions(scores, 2, ["a", "b", "c"]) == [
        [("b", "b", 0.7), ("c", "c", 0.2)]
    ]
    for preds, names in ((scores, None), (scores, ["a", "b"])):
        with pytest.raises(ValueError, match=r"class_names=model.class_names"):
            decode_predictions(preds, class_names=names)


@pytest.mark.parametrize("module", [labels, preprocessing])
def test_examples_run(module):
    failed, attempted = doctest.testmod(module)
    assert (failed, attempted > 2) == (0, True)
