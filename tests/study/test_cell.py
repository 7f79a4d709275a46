"""How a cell divides a data set."""

from __future__ import annotations

import types

import numpy as np
import pytest

from keras_augreg.data import Preprocess, find
from keras_augreg.study.cell import _arguments, _correct, hold_out

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
    names = [f"a.tfrecord__{i}" for i in range(60)]
    names += [f"b.tfrecord__{i}" for i in range(5, 45)]
    found = types.SimpleNamespace(names=names, labels=None)
    train, val, rest = hold_out(found, 0.5, 0.1)
    assert (len(train), len(val), len(rest)) == (45, 10, 45)
    assert {*train, *val, *rest} == set(names)


def test_options_are_those_of_load_of_preprocess_and_of_options():
    arguments, options = _arguments(
        {"crop": "resize", "flip": False, "engine": "python", "data_dir": "x"}
    )
    preprocess = Preprocess("resize", flip=False)
    assert arguments == {"data_dir": "x", "preprocess": preprocess}
    assert options == {"engine": "python"}
    assert _arguments({}) == ({}, {})


def test_correct_examples_of_every_kind_of_label_without_padding():
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]])
    model = types.SimpleNamespace(predict_on_batch=lambda images: scores)
    images, labels = np.zeros((3, 2, 2, 3)), np.array([1, 1, 0])
    several = np.array([[1, 1], [0.0, 1.0], [0.3, 0.7]])
    kept = np.array([1.0, 1.0, 0.0])
    batches = [(images, labels), (images, labels, kept), (images, several)]
    assert _correct(model, batches).tolist() == [
        *(True, False, True), *(True, False), *(True, False, True),
    ]  # fmt: skip
