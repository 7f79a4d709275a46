"""Figures' axes and Markdown tables."""

from __future__ import annotations

import sys

import pytest

from keras_augreg.output import markdown_table, subplots

pytestmark = pytest.mark.once


def test_subplots_are_as_large_as_asked():
    figure, axes = subplots(2, 3, width=1.5, height=2.0)
    assert axes.shape == (2, 3)
    assert figure.get_size_inches().tolist() == [4.5, 4.0]


def test_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(
        ImportError, match=r"pip install 'keras_augreg\[study\]"
    ):
        subplots(1, 1, 1.0, 1.0)


def test_markdown_table():
    rows = [["S/16", 1234.56, 16], ["B/16", float("nan"), None]]
    assert markdown_table(["model", "images/s", "batch"], rows) == (
        "| model | images/s | batch |\n"
        "| --- | --- | --- |\n"
        "| S/16 | 1,235 | 16 |\n"
        "| B/16 |  |  |\n"
    )
