"""The labels of a batch and, if there are any, its weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_augreg.data.decode import ImageError
from keras_augreg.data.report import Skipped


@dataclasses.dataclass(frozen=True)
class Targets:
    """Finishes a batch, on NumPy arrays, for both engines."""

    num_classes: int
    # Broken images are replaced by others; in evaluation they are left out,
    # or get weight 0 with `pad`.
    training: bool
    pad: bool  # whether batches keep their size, and padding gets weight 0
    one_hot: bool  # whether labels become float32 vectors
    class_weights: np.ndarray | None  # float32 of shape (num_classes,)
    weighted: bool  # whether examples have weights of their own
    skipped: Skipped | None  # counts broken images, if they are not errors

    @property
    def has_weights(self) -> bool:
        return self.pad or self.weighted or self.class_weights is not None

    def __call__(
        self,
        labels: np.ndarray,
        weights: np.ndarray,
        padding: np.ndarray,
        broken: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finishes one batch of n examples.

        `labels` are int64 of shape (n,) or float32 of shape (n, num_classes),
        `weights` the examples' own, and `broken` the names of images that
        could not be read, "" otherwise. Returns the positions in the batch to
        take images from (int64), and their labels (int32, or float32
        vectors) and weights (float32).
        """
        bad = np.array([name != "" for name in broken], bool)
        if self.skipped is not None:
            self.skipped.add(name for name in broken if name)
        good = ~(bad | padding)
        if bad.any() and not good.any() and not self.pad:
            otherwise = "evaluate with `pad=True` and `weighted_metrics`"
            if self.training:
                otherwise = "use larger batches"
            raise ImageError(
                "No image of a batch could be read, among them "
                f"{broken[int(bad.argmax())]!r}. Remove such files, or "
                f"{otherwise}."
            )
        take = np.arange(len(labels))
        if self.training:
            # A broken image is replaced by the next good one.
            found = np.flatnonzero(good)
            take = found[np.searchsorted(found, take) % len(found)]
        elif not self.pad:
            take = np.flatnonzero(good)
        labels = np.where(padding, 0, labels.T).T[take]
        of_class = self.one_hot or self.class_weights is not None
        if of_class and (labels < 0).any():  # a test set that is kept secret
            raise ValueError(
                "The split has examples without a label (-1), to which "
                "`one_hot` and `class_weight` do not apply. Use it with "
                "`predict` and without them, or take a split with labels."
            )
        weights = (weights * good)[take].astype(np.float32)
        if self.class_weights is not None:
            weights = weights * self.class_weights[labels]
        if self.one_hot:
            labels = np.eye(self.num_classes, dtype=np.float32)[labels]
        elif labels.ndim == 1:
            labels = labels.astype(np.int32)
        return take, labels, weights
