"""Random search pays for runs until the budget is spent."""

from __future__ import annotations

import numpy as np
import pytest

from keras_augreg.study import table
from keras_augreg.study.search import random_search
from keras_augreg.study.select import NotInTableError

pytestmark = pytest.mark.once

# Validation accuracy says the opposite of the test in the last two.
SCRATCH = [(0.5, 0.5), (0.6, 0.6), (0.9, 0.7), (0.8, 0.8)]


def rows(**more):
    """Four runs from scratch of an hour each and one transfer of a minute."""
    base = {"name": "S/32", "aug": "none", "do": 0.0, "fraction": 1.0}
    lines = [
        base | {
            "ds": "photos", "epochs": 10, "filename": f"s{i}", "seed": i,
            "final_val": val, "final_test": test, "train_seconds": 3600,
            "num_examples": 1000,
        }
        for i, (val, test) in enumerate(SCRATCH)
    ]  # fmt: skip
    lines.append(
        base | {
            "ds": "digits", "epochs": 10, "filename": "t", "final_val": 0.9,
            "adapt_ds": "photos", "adapt_final_val": 0.9, "adapt_steps": 10,
            "adapt_final_test": 0.95, "adapt_seconds": 60,
        }
    )  # fmt: skip
    lines = [line | more for line in lines]
    return table.read_text(table.to_csv(lines).decode())


def test_a_draw_spends_the_budget_and_chooses_by_validation():
    found = random_search(rows(), hours=(0.5, 1, 2, 4)).set_index(
        ["how", "hours"]
    )
    assert ("scratch", 0.5) not in found.index
    one = found.loc["scratch", 1]
    assert (one["runs"], one["tried"]) == (4, 1)
    assert (one["low"], one["high"]) == pytest.approx((50, 80))
    assert 60 <= one["median"] <= 70
    # Of two, the better by validation: 0.5 is never the better one.
    two = found.loc["scratch", 2]
    assert two["tried"] == 2
    assert two["low"] == pytest.approx(60)
    all_four = found.loc["scratch", 4]
    assert all_four[["low", "median", "high"]].tolist() == pytest.approx(
        [70] * 3
    )
    assert found.loc["transfer", 0.5]["median"] == pytest.approx(95)


def test_band_and_seed():
    first, again, other = (
        random_search(rows(), (1,), draws=50, seed=seed) for seed in (0, 0, 1)
    )
    assert first.equals(again)
    assert not first.equals(other)
    many = random_search(rows(), (2,), draws=4000)
    scratch = many[many["how"] == "scratch"].iloc[0]
    # The best of two by validation: 60 in 1 of 6 draws, 80 in 2, 70 in 3.
    assert scratch[["low", "median", "high"]].tolist() == pytest.approx(
        [60, 70, 80]
    )


def test_default_budgets_reach_from_one_run_to_all():
    found = random_search(rows())
    assert found["hours"].min() == pytest.approx(60 / 3600)
    assert found["hours"].max() == pytest.approx(4)
    assert found.groupby("how")["tried"].max().to_dict() == {
        "scratch": 4, "transfer": 1
    }  # fmt: skip


def test_the_indexs_cost_is_its_forward_passes():
    index = rows(train_seconds="", adapt_seconds="", infer_samples_per_sec=100)
    found = random_search(index, hours=(0.01, 1))
    # 10 epochs of 1,000 images; 10 steps of 512.
    scratch, transfer = 10_000 / 100 / 3600, 10 * 512 / 100 / 3600
    assert scratch < 1
    assert np.isclose(found["hours"].min(), 1)  # 51 s are more than 36.
    assert transfer > 0.01
    fine = random_search(index, hours=(scratch * 0.99, scratch))
    assert fine["how"].tolist() == ["scratch", "transfer", "transfer"]


def test_messages():
    with pytest.raises(ValueError, match="`draws` must be at least 1"):
        random_search(rows(), draws=0)
    with pytest.raises(ValueError, match="`hours` must be above 0"):
        random_search(rows(), hours=(0,))
    with pytest.raises(NotInTableError, match="no run has a cost"):
        random_search(rows(train_seconds="", adapt_seconds=""))


@pytest.mark.parametrize("order", [(224, 384), (384, 224)])
def test_cost_of_the_index_is_at_the_resolution_of_the_pretraining(order):
    base = {
        "name": "B/16", "ds": "photos", "epochs": 10, "filename": "b",
        "final_val": 0.8, "final_test": 0.8, "num_examples": 3600,
        "adapt_ds": "digits", "adapt_steps": 10, "adapt_final_val": 0.9,
        "adapt_final_test": 0.9,
    }  # fmt: skip
    lines = [
        base | {
            "adapt_resolution": side, "adapt_filename": f"b--{side}",
            "infer_samples_per_sec": 10 if side == 224 else 1,
        }
        for side in order
    ]  # fmt: skip
    lines.append(
        {**base, "ds": "digits", "filename": "d", "adapt_ds": "photos",
         "adapt_filename": "d--224", "adapt_resolution": 224,
         "infer_samples_per_sec": 10}
    )  # fmt: skip
    text = table.to_csv(lines).decode()
    found = random_search(table.read_text(text), hours=(0.9, 1, 100))
    scratch = found[(found["how"] == "scratch") & (found["target"] == "photos")]
    assert scratch["hours"].tolist() == [1, 100]  # 36,000 images at 10/s
