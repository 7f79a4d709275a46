"""Checks of labels."""

from __future__ import annotations

import numpy as np
import pytest

from keras_augreg.checks import check_labels

pytestmark = pytest.mark.once


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


def test_the_message_names_the_example():
    with pytest.raises(ValueError, match=r"The label of 'cup/1\.jpg' is 7"):
        check_labels([0, 7], 5, names=["cup/0.jpg", "cup/1.jpg"])


def test_no_label_may_be_allowed():
    check_labels([0, -1], 5, unlabelled=True)
    with pytest.raises(ValueError, match="is -2"):
        check_labels([0, -2], 5, unlabelled=True)
