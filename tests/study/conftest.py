"""A results table for the tests of tables and figures."""

from __future__ import annotations

import pytest

from keras_augreg.recipe import AugReg
from keras_augreg.study import table
from keras_augreg.study.grid import Grid, Source, Transfer
from keras_augreg.variants import VARIANTS


@pytest.fixture(scope="session")
def ours():
    """The table of a small study with made-up accuracies."""
    grid = Grid(
        datasets=(Source("digits"), Source("photos")),
        models=(VARIANTS["ViT_S32"], VARIANTS["ViT_Ti16"]),
        recipes=(AugReg("none"), AugReg("medium1"), AugReg("none", 0.1, 0.1)),
        fractions=(0.1, 1.0),
        epochs=(10.0, 40.0),
        seeds=(0, 1),
        transfers=(Transfer(Source("photos"), (10,), (0.01, 0.03)),),
    )
    rows = []
    for cell in grid.cells():
        row = cell.row()
        good = 0.5 + 0.2 * (row["aug"] == "none") - row["do"]
        row |= {
            "final_val": good,
            "final_test": good + 0.01 * row["seed"],
            "infer_samples_per_sec": 400.0 if row["name"] == "S/32" else 100.0,
            "num_examples": round(1000 * row["fraction"]),
            "train_seconds": row["epochs"],
            "status": "done",
        }
        if "adapt_ds" in row:
            # The best fine-tuned is not the best upstream.
            row["adapt_final_val"] = 1 - good + row["adapt_lr"]
            row["adapt_final_test"] = 0.9 - 0.1 * good
            row["adapt_seconds"] = 0.5
        rows.append(row)
    return table.read_text(table.to_csv(rows).decode())
