"""Parts of a data set for cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_augreg.data.order import shuffled_classes


def assign(
    labels: np.ndarray,
    folds: int,
    seed: int,
    groups: Sequence[Any] | None = None,
) -> np.ndarray:
    """Assigns examples to folds that have about the same share of each class.

    Args:
        labels: Integer array (n,): the classes, from 0.
        folds: Number of folds, at least 2.
        seed: Seed of the assignment, from 0 to 2**32 - 1.
        groups: A value for each example; those with the same one, such as
            pictures of one patient, come into the same fold. The largest
            groups are placed first, each where the classes' shares then
            differ least between folds.

    Returns:
        Integer array (n,): each example's fold, from 0 to `folds` - 1.

    Raises:
        ValueError: If there are fewer examples or groups than folds.

    Example:
    >>> np.bincount(assign(np.array([0, 0, 0, 0, 1, 1]), folds=2, seed=0))
    array([3, 3])
    """
    numbers = np.arange(len(labels))
    if groups is not None:
        keys = {key: i for i, key in enumerate(dict.fromkeys(groups))}
        numbers = np.array([keys[key] for key in groups], np.int64)
    count = len(np.unique(numbers))
    if count < folds:
        raise ValueError(
            f"{folds} folds need as many "
            f"{'examples' if groups is None else 'groups'}. Found: {count}"
        )
    fold_of = np.zeros(count, np.int64)
    if groups is None:
        start = 0
        for members in shuffled_classes(labels, seed, 2):
            places = start + np.arange(len(members))
            fold_of[members] = places % folds
            start += len(members)
        return fold_of
    sizes = np.zeros((count, int(labels.max()) + 1))
    np.add.at(sizes, (numbers, labels), 1)
    shares = sizes / np.maximum(sizes.sum(axis=0), 1)
    order = np.random.RandomState([seed, 3]).permutation(count)
    order = order[np.argsort(-sizes[order].sum(axis=1), kind="stable")]
    filled = np.zeros((folds, sizes.shape[1]))
    for group in order:
        # trials[i]: the folds' shares of each class with the group in fold i.
        trials = np.repeat(filled[None], folds, axis=0)
        trials[np.arange(folds), np.arange(folds)] += shares[group]
        costs = trials.std(axis=1).mean(axis=1) + 1e-9 * filled.sum(axis=1)
        fold_of[group] = costs.argmin()
        filled[fold_of[group]] += shares[group]
    return fold_of[numbers]
