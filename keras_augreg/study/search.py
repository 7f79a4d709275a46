"""Random search within a budget: the paper's section 4.2 and Figure 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_augreg.study import select
from keras_augreg.study.table import as_table

if TYPE_CHECKING:
    import pandas

DRAWS = 1000  # the paper's
BAND = (5.0, 95.0)  # percentiles: the paper's 90%
_ROUNDING = 1 + 1e-9  # of sums of costs


def random_search(
    table: pandas.DataFrame,
    hours: Sequence[float] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> pandas.DataFrame:
    """Simulates random search, from scratch and by transfer.

    A draw pays for the table's runs in random order, leaving out those that
    cost more than the whole budget, until the next would exceed it; the one
    with the best validation accuracy is kept. Of a setting that was run with
    several seeds, each seed is a run. The paper draws settings within a
    budget, too, but does not say how many a draw may try.

    Args:
        table: From `read`: a sweep's table or the release's `index.csv`. A
            run's cost is its seconds of training, with validation; where the
            table has none (the index), the forward passes of the images seen,
            on a V100. The pre-training before a transfer costs nothing, as in
            the paper. The index's transfer is to ImageNet-1k, where minival
            chooses: for models of ImageNet-21k it is too kind (section 4.5).
        hours: Budgets in hours, each above 0; `None` for 10 from the cheapest
            run of the table to all of them.
        draws: Searches for each budget.
        seed: Seed of the draws.

    Returns:
        A row for each data set (`target`), `how` ("scratch" or "transfer"),
        model (`name`) and budget (`hours`) that pays for a run: `runs`
        affordable in themselves, `tried` in the median, and the `median`,
        `low` and `high` (5th and 95th percentile) of the test accuracy in
        percent.

    Raises:
        NotInTableError: If no data set was both trained on from scratch and
            fine-tuned on, or no run has a cost.
        ValueError: If an argument is out of range.

    Example:
    >>> found = random_search(read("runs/sweep/results.csv"), hours=(0.1, 1))
    """
    runs = select.runs_by_target(table).dropna(subset=["seconds", "chosen"])
    if runs.empty:
        raise select.NotInTableError("no run has a cost in seconds")
    if draws < 1:
        raise ValueError(f"`draws` must be at least 1. Received: {draws=}")
    costs = runs["seconds"] / 3600
    if hours is None:
        most = runs.groupby(["target", "how", "name"])["seconds"].sum().max()
        hours = np.geomspace(costs.min(), most / 3600, 10).tolist()
    if not all(budget > 0 for budget in hours):
        raise ValueError(f"`hours` must be above 0. Received: {hours=}")
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    groups = runs.assign(hours=costs).groupby(["target", "how", "name"])
    for keys, group in groups:
        names = dict(zip(("target", "how", "name"), keys, strict=True))
        order = rng.random((draws, len(group))).argsort(axis=1)
        columns = group[["hours", "chosen", "accuracy"]].to_numpy().T
        cost, chosen, accuracy = (column[order] for column in columns)
        for budget in hours:
            fits = cost <= budget * _ROUNDING
            if not fits.any():
                continue
            spent = np.where(fits, cost, 0).cumsum(axis=1)
            paid = fits & (spent <= budget * _ROUNDING)
            best = np.where(paid, chosen, -np.inf).argmax(axis=1)
            found = np.take_along_axis(accuracy, best[:, None], axis=1)
            low, median, high = np.percentile(found, (BAND[0], 50, BAND[1]))
            rows.append(
                {
                    **names, "hours": budget, "runs": int(fits[0].sum()),
                    "tried": float(np.median(paid.sum(axis=1))),
                    "median": median, "low": low, "high": high,
                }
            )  # fmt: skip
    return as_table(
        rows, ("target", "how", "name", "hours", "runs", "tried", "median",
               "low", "high"),
    )  # fmt: skip
