"""Checks of labels."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_augreg
from keras_augreg.checks import check_labels


@pytest.mark.once
@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 4],
        np.array([0, 4], np.uint8),
        np.array([1.0, 2.0]),
        np.array([[0], [4]]),
        np.full((2, 5), 0.2),  # soft labels
        [],
    ],
)
def test_labels_within_the_classes_pass(labels):
    check_labels(labels, 5)


@pytest.mark.once
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 7, 9], r"label of example 1 is 7\. .* from 0 to 4, .* 5 classes"),
        ([1, 2, 3, 4, 5], "example 4 is 5.*seem to count from 1: subtract 1"),
        ([0, -1], "example 1 is -1.*-1 means that an example has no label"),
        ([0.5], r"example 0 is 0\.5\. Expected an integer"),
        ([0, np.nan], "example 1 is nan"),
        ([[3], [5]], "example 1 is 5"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 5)


@pytest.mark.once
def test_the_message_names_the_example():
    with pytest.raises(ValueError, match=r"The label of 'cup/1\.jpg' is 7"):
        check_labels([0, 7], 5, names=["cup/0.jpg", "cup/1.jpg"])


@pytest.mark.once
def test_no_label_may_be_allowed():
    check_labels([0, -1], 5, unlabelled=True)
    with pytest.raises(ValueError, match="is -2"):
        check_labels([0, -2], 5, unlabelled=True)


def test_fit_refuses_labels_beyond_the_classes():
    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32,
        input_shape=(16, 16, 3), classes=5,
    )  # fmt: skip
    keras_augreg.compile_finetuning(
        model, total_steps=4, learning_rate=0.01, warmup_steps=1
    )
    x, y = np.zeros((4, 16, 16, 3), "uint8"), np.array([0, 1, 7, 2])
    tensor = keras.ops.convert_to_tensor(y)
    for call in (
        lambda: model.fit(x, y),
        lambda: model.fit(x=x, y=y[:, None]),
        lambda: model.fit(x, tensor),
        lambda: model.train_on_batch(x, y),
    ):
        with pytest.raises(ValueError, match="label of example 2 is 7"):
            call()
    assert model.optimizer.iterations == 0
    model.fit(x, y % 5, verbose=0)
