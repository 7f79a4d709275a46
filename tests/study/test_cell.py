"""What a cell trains on: how a data set is divided."""

from __future__ import annotations

import types

import numpy as np
import pytest

from keras_augreg.data.loading import find
from keras_augreg.study.cell import hold_out

pytestmark = pytest.mark.once


def test_fractions_are_nested_stratified_and_apart_from_validation():
    found = find("digits", "train")
    labels = dict(zip(found.names, found.labels, strict=True))
    before: set[str] = set()
    for fraction in (0.1, 0.5, 1.0):
        train, val, rest = hold_out(found, fraction, 0.1)
        assert sorted([*train, *val, *rest]) == sorted(found.names)
        assert before <= set(train)
        assert abs(len(val) - 144) <= 5
        share = len(train) / (len(found.names) - len(val))
        assert share == pytest.approx(fraction, abs=0.01)
        counts = np.bincount([labels[name] for name in train])
        assert counts.min() > 0.8 * counts.max()
        before = set(train)
    assert hold_out(found, 1.0, 0.0)[1:] == ([], [])


def test_records_are_divided_by_their_places_in_the_files():
    found = types.SimpleNamespace(
        parts=[("/data/a.tfrecord", 0, 60), ("/data/b.tfrecord", 5, 40)]
    )
    train, val, rest = hold_out(found, 0.5, 0.1)
    assert (len(train), len(val), len(rest)) == (45, 10, 45)
    names = {*train, *val, *rest}
    assert len(names) == 100
    assert {"a.tfrecord__59", "b.tfrecord__5", "b.tfrecord__44"} <= names
