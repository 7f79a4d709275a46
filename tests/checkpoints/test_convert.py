"""The table of names, and what `inspect` finds in a file."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from _checkpoints import CLASSES, HYBRID, TINY, hybrid, release, tiny

from keras_augreg.checkpoints import convert
from keras_augreg.variants import Sizes

pytestmark = pytest.mark.once


def test_docstrings():
    assert doctest.testmod(convert).failed == 0
    assert doctest.testmod(convert).attempted > 0


@pytest.mark.parametrize("make", [tiny, hybrid])
@pytest.mark.parametrize("class_token", [True, False])
def test_the_table_has_every_weight_once(make, class_token):
    model = make(class_token=class_token)
    found = [variable.path for _, variable in convert.variables(model, True)]
    assert sorted(found) == sorted(w.path for w in model.trainable_weights)
    body = [row[0] for row, _ in convert.variables(model, False)]
    assert len(body) == len(found) - 2
    assert not any(key.startswith("head/") for key in body)


@pytest.mark.parametrize("arguments", [TINY, HYBRID])
def test_inspect_finds_the_architecture(tmp_path, arguments):
    path = tmp_path / "a.npz"
    np.savez(path, **release(arguments.get("stages")))
    contents = convert.inspect(path)
    assert contents.sizes == Sizes(
        *(
            arguments[key]
            for key in ("patch_size", "width", "depth", "num_heads", "mlp_dim")
        ),
        arguments.get("stages"),
    )
    assert contents.class_token
    assert contents.classes == CLASSES
    assert contents.patch_grid == (4, 4)
    assert contents.class_names is None
    assert not contents.hidden_head


def test_an_error_names_five_arrays(tmp_path):
    arrays = release()
    lost = [name for name in arrays if "encoderblock_1/Mul" in name][:7]
    for name in lost:
        del arrays[name]
    np.savez(tmp_path / "a.npz", **arrays)
    contents = convert.inspect(tmp_path / "a.npz")
    with pytest.raises(ValueError, match="and 2 more; expected exactly") as e:
        convert.match(contents, {}, keep_head=True)
    assert sum(name in str(e.value) for name in lost) == 5
