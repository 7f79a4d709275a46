"""Every number that the paper printed, with its table or figure and page.

`assets/paper.csv` has the tables and figures of arXiv 2106.10270v2 row by row
as they are printed; here they become rows of a results table.
"""

from __future__ import annotations

import csv
import functools
import importlib.resources
from typing import TYPE_CHECKING, Any

from keras_augreg.dataset_names import canonical
from keras_augreg.recipe import LEVELS, AugReg
from keras_augreg.study.table import COLUMNS, as_table

if TYPE_CHECKING:
    import pandas

PRINTED: dict[str, type] = {
    "where": str,  # "table 3"
    "page": int,
    "column": str,  # as printed: "384 i21k300"
    "value": float,  # as printed: 85.59
}
"""Columns that `published` adds to those of a results table."""

_EPOCHS = {"i1k": 300.0, "i21k_30": 30.0, "i21k": 300.0}
# Table 3's columns of fine-tuned models of a recommended recipe -> `ds`.
_TABLE_3 = {"i1k300": "i1k", "i21k30": "i21k_30", "i21k300": "i21k"}
# Table 5's tasks whose names are others here, in lower case.
_TASKS = {
    "flowers102": "flowers",
    "clevr-dist": "clevr-distance",
    "dspr-loc": "dsprites-x",
    "dspr-ori": "dsprites-orientation",
    "kitti-dist": "kitti-distance",
    "snorb-azim": "norb-azimuth",
    "snorb-elev": "norb-elevation",
}


def published() -> pandas.DataFrame:
    """Returns every number that the paper printed, a row for each.

    Tables 1 and 2 (parameters), 3, 5 and 6, Figures 4, 5 and 7 of arXiv
    2106.10270v2. What can be compared with a study of one's own is in the
    columns of a results table, too: `final_val` holds Figure 4's upstream
    accuracies (the paper does not say how it merges the weight decays),
    `adapt_final_test` Table 3's accuracies on ImageNet-1k (`adapt_ds`
    "imagenet2012") and Table 5's on VTAB's tasks, each for the best recipe
    upstream (`aug` is empty); `infer_samples_per_sec` is Table 3's. The
    columns of Figure 5 are named as drawn; they look shifted by one: what is
    drawn as Kitti equals, in all nine rows, Table 3's difference on ImageNet.

    Returns:
        A data frame as from `read` with four more columns: `where` ("table
        3"), `page`, `column` and `value`, the last two as printed.

    Raises:
        ImportError: If pandas (extra `study`) is not installed.

    Example:
    >>> paper = published()
    >>> paper[(paper["where"] == "table 3") & (paper["name"] == "B/16")]
    """
    return as_table(published_rows(), [*COLUMNS, *PRINTED])


@functools.cache
def published_rows() -> tuple[dict[str, Any], ...]:
    """As `published`, without pandas; a row has only its own columns."""
    asset = importlib.resources.files("keras_augreg") / "assets/paper.csv"
    rows = []
    columns: list[str] = []
    speeds: dict[tuple[str, str], float] = {}
    for line in csv.DictReader(asset.read_text("utf-8").splitlines()):
        numbers = line["numbers"].split("|")
        if not line["model"]:  # The head of a table.
            columns = numbers
            continue
        for column, number in zip(columns, numbers, strict=True):
            if number == "-":
                continue
            row: dict[str, Any] = {
                "name": line["model"],
                "where": line["where"],
                "page": int(line["page"]),
                "column": column,
                "value": float(number),
            }
            if dataset := line["pretraining"]:
                row |= {"ds": dataset, "epochs": _EPOCHS[dataset]}
            rows.append(row | _result(row, speeds))
    for row in rows:
        if "adapt_final_test" in row:
            pixels = row.get("adapt_resolution", 224)
            speed = speeds[row["name"], str(pixels)]
            row["infer_samples_per_sec"] = speed
    return tuple(rows)


def _result(
    row: dict[str, Any], speeds: dict[tuple[str, str], float]
) -> dict[str, Any]:
    """A number's columns in a results table; notes Table 3's speeds."""
    column, accuracy = row["column"], round(row["value"] / 100, 6)
    pixels, _, kind = column.partition(" ")
    level, _, regularised = column.partition("+")
    if row["where"] == "figure 4" and level in LEVELS:
        rate = 0.1 if regularised else 0.0
        recipe = AugReg(level).release_augment
        name = f"figure 4, {row['name']}, {row['ds']}, {recipe}, {rate}"
        return {
            "aug": recipe, "do": rate, "sd": rate, "final_val": accuracy,
            "filename": name,
        }  # fmt: skip
    if row["where"] == "table 3":
        if kind == "img/s":
            speeds[row["name"], pixels] = row["value"]
        if kind in _TABLE_3:
            dataset = _TABLE_3[kind]
            return {
                "ds": dataset,
                "epochs": _EPOCHS[dataset],
                "adapt_ds": "imagenet2012",
                "adapt_resolution": int(pixels),
                "adapt_final_test": accuracy,
                "filename": f"table 3, {row['name']}, {dataset}",
            }
    if row["where"] == "table 5" and not column.endswith(" mean"):
        task = column.lower()
        return {
            "adapt_ds": canonical(_TASKS.get(task, task)),
            "adapt_final_test": accuracy,
            "filename": f"table 5, {row['name']}, {row['ds']}",
        }
    return {}
