"""Which rows of a results table are compared with each other.

What figures, searches and verdicts have in common: finished runs, means over
seeds, the choice by validation. Accuracies named `accuracy` are in percent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from keras_augreg.dataset_names import canonical
from keras_augreg.recipe import FINETUNING_BATCH, PRETRAINING_RESOLUTION
from keras_augreg.study.table import IMAGES

if TYPE_CHECKING:
    import pandas

# VTAB's groups of fine-tuning sets (paper, section 3.1 and Table 5); every
# other data set is a group of its own.
GROUPS = {
    task: group
    for group, tasks in {
        "natural": "caltech101 cifar-100 dtd flowers pets sun397 svhn",
        "specialized": "camelyon eurosat resisc45 retinopathy",
        "structured": "clevr-count clevr-distance dmlab dsprites-x "
        "dsprites-orientation kitti-distance norb-azimuth norb-elevation",
    }.items()
    for task in tasks.split()
}
IMAGENET = "imagenet-1k"
RECIPE = ["name", "ds", "epochs", "fraction", "aug", "wd", "do", "sd"]
SEEN = ["images", "seen"]
KEYS = ["name", "ds", "epochs", *SEEN]
SETTINGS = ["adapt_ds", "adapt_lr", "adapt_steps", "adapt_resolution"]
SPEED = "infer_samples_per_sec"


class NotInTableError(ValueError):
    """The table lacks the rows that a figure needs."""


def done(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows with a result, with the number of training images."""
    rows = table[table["status"].isna() | (table["status"] == "done")].copy()
    images = rows["num_examples"].fillna(rows["ds"].map(IMAGES))
    rows["images"] = images.astype(float)
    rows["fraction"] = rows["fraction"].fillna(1.0)
    rows["seen"] = rows["images"] * rows["epochs"]
    rows["adapt_ds"] = canonical_names(rows["adapt_ds"])
    return rows


def upstream(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row for each pre-training whose accuracy is known."""
    rows = done(table).dropna(subset=["final_val"])
    # Of its fine-tunings, one at the resolution nearest to its own.
    off = rows["adapt_resolution"] - rows["resolution"].fillna(
        PRETRAINING_RESOLUTION
    )
    rows = rows.assign(off=off.abs().fillna(-1.0))
    rows = rows.sort_values("off", kind="stable").drop_duplicates("filename")
    return rows.drop(columns="off").sort_index()


def tuned(table: pandas.DataFrame, *extra: str) -> pandas.DataFrame:
    """The best fine-tuning of each pre-trained recipe on each data set.

    `accuracy` is in percent, `chosen` what it was chosen by, `upstream` the
    validation accuracy of the pre-training.
    """
    rows = done(table).dropna(subset=["adapt_final_test"])
    rows = rows.assign(
        chosen=rows["adapt_final_val"].fillna(rows["adapt_final_test"]),
        accuracy=100 * rows["adapt_final_test"],
        upstream=rows["final_val"],
    )
    rows = mean(rows, "chosen", "accuracy", "upstream", "adapt_final_val",
                 SPEED, keys=SETTINGS)  # fmt: skip
    return best(rows, "chosen", [*RECIPE, *SEEN, "adapt_ds", *extra])


def accuracy(table: pandas.DataFrame) -> pandas.DataFrame:
    """Each recipe's accuracy: on ImageNet-1k if known, or its own test's.

    Recipes are `chosen` by upstream validation, as in the paper; see MINIVAL.
    """
    rows = tuned(table, "adapt_resolution")
    rows = rows[rows["adapt_ds"] == IMAGENET]
    if len(rows):
        rows["resolution"] = rows["adapt_resolution"]
        rows["chosen"] = rows["upstream"].fillna(rows["accuracy"])
        return rows
    rows = upstream(table).dropna(subset=["final_test"])
    if rows.empty:
        raise NotInTableError("no row has a test accuracy")
    rows["accuracy"] = 100 * rows["final_test"]
    rows["chosen"] = rows["final_val"]
    return mean(rows, "chosen", "accuracy", SPEED, keys=["resolution"])


def mean(
    rows: pandas.DataFrame, *values: str, keys: Sequence[str] = ()
) -> pandas.DataFrame:
    """The mean over seeds."""
    groups = rows.groupby([*RECIPE, *SEEN, *keys], dropna=False)
    return groups[list(values)].mean().reset_index()


def best(
    rows: pandas.DataFrame, by: str, keys: Sequence[str]
) -> pandas.DataFrame:
    """The row with the greatest `by` of each group."""
    rows = rows.sort_values(by, kind="stable", na_position="first")
    return rows.groupby(list(keys), dropna=False).tail(1).copy()


def canonical_names(names: pandas.Series) -> pandas.Series:
    """One spelling for each data set."""
    return names.map(canonical, na_action="ignore")


def dataset(rows: pandas.DataFrame) -> pandas.Series:
    """The data set's name without the release's mark of 30 epochs."""
    return rows["ds"].str.removesuffix("_30")


def count(rows: pandas.DataFrame) -> list[str]:
    """Training images: 1293 -> "1293", 1280000 -> "1.28M"."""
    return [f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n:g}" for n in rows["images"]]


def labels(text: str, *columns: Iterable[Any]) -> list[str]:
    """Formats a text for each row."""
    return [text.format(*row) for row in zip(*columns, strict=True)]


def runs_by_target(table: pandas.DataFrame) -> pandas.DataFrame:
    """The runs on data sets that were both trained on and fine-tuned on.

    With `target`, `how` ("scratch" or "transfer"), `seconds`, `accuracy` and
    `chosen`. The cost of the pre-training before a fine-tuning is not counted,
    as in the paper's section 4.2. Our tables have seconds; for the release's,
    the cost is the number of images seen divided by images/s: the forward
    passes only, on a V100. Without the speed at the pre-training's resolution,
    it has none.
    """
    import pandas

    scratch = upstream(table).dropna(subset=["final_test"])
    # The index's speed is that at the resolution of the fine-tuning.
    same = scratch["adapt_resolution"].isna() | (
        scratch["adapt_resolution"]
        == scratch["resolution"].fillna(PRETRAINING_RESOLUTION)
    )
    forward = scratch["seen"] / scratch[SPEED].where(same)
    scratch = scratch.assign(
        how="scratch",
        target=canonical_names(scratch["ds"]),
        seconds=scratch["train_seconds"].fillna(forward),
        accuracy=100 * scratch["final_test"],
        chosen=scratch["final_val"],
    )
    tuned = done(table).dropna(subset=["adapt_final_test"])
    tuned = tuned[canonical_names(tuned["ds"]) != tuned["adapt_ds"]]
    forward = tuned["adapt_steps"] * FINETUNING_BATCH / tuned[SPEED]
    tuned = tuned.assign(
        how="transfer",
        target=tuned["adapt_ds"],
        seconds=tuned["adapt_seconds"].fillna(forward),
        accuracy=100 * tuned["adapt_final_test"],
        chosen=tuned["adapt_final_val"].fillna(tuned["adapt_final_test"]),
    )
    both = {*scratch["target"]} & {*tuned["target"]}
    if not both:
        raise NotInTableError(
            "no data set was both trained on from scratch (`ds`) and "
            "fine-tuned on (`adapt_ds`)"
        )
    runs = pandas.concat([scratch, tuned], ignore_index=True)
    runs = runs[runs["target"].isin(both)]
    return runs.assign(line=runs["name"] + ", " + runs["how"])
