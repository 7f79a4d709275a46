"""What engines turn into batches: examples, crops, order, labels, weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import at_least, check_labels, is_integer
from keras_augreg.data.decode import Cropping, ImageError
from keras_augreg.data.options import Options
from keras_augreg.data.order import Order
from keras_augreg.data.report import Skipped
from keras_augreg.data.sources import Examples
from keras_augreg.data.tfds import Records


@dataclasses.dataclass(frozen=True)
class Feed:
    """The batches of one data set, for one shard, from one step on."""

    examples: Examples | Records
    cropping: Cropping
    batch_size: int  # over all shards
    seed: int  # of order, crops and flips
    options: Options
    class_weights: np.ndarray | None = None  # float32 of shape (num_classes,)
    skipped: Skipped | None = None  # counts broken images, if not errors
    shard: tuple[int, int] = (0, 1)  # (index, count)
    first_step: int = 0  # of the run
    steps: int | None = None  # batches per pass; `None` for an epoch

    def __post_init__(self) -> None:
        size, count = self.batch_size, self.shard[1]
        if not is_integer(size) or size < 1 or size % count:
            raise ValueError(
                "`batch_size` must be an integer of at least 1 and, as it "
                "counts the examples of all shards, divisible by their number."
                f" Received: batch_size={self.batch_size}, shards={count}"
            )
        if isinstance(self.examples, Examples):
            labels, names = self.examples.labels, self.examples.names
            if labels is not None:
                unlabelled = not self.cropping.training
                check_labels(labels, self.num_classes, names, unlabelled)
        if self.order.steps == 0:
            raise ValueError(
                f"The split has {len(self.examples)} examples, too few for a "
                f"batch of {self.batch_size}. Reduce `batch_size`."
            )

    @functools.cached_property
    def order(self) -> Order:
        count, training = self.shard[1], self.cropping.training
        places = len(self.examples)
        if isinstance(self.examples, Records):
            places = self.examples.in_order(training)
        pad = self.options.pad
        if pad is None:
            pad = count > 1 or keras.distribution.distribution() is not None
        pad = pad and not training
        return Order(
            places, self.batch_size, training, self.seed, pad, self.shard
        )

    @property
    def num_classes(self) -> int:
        """Both engines check labels against it; `fit` then need not."""
        return len(self.examples.class_names)

    @property
    def has_weights(self) -> bool:
        weighted = self.options.sample_weight is not None
        weighted = weighted or self.examples.weighted
        return self.order.pad or weighted or self.class_weights is not None

    @property
    def num_batches(self) -> int:
        """Batches per pass."""
        return self.steps or self.order.steps

    def check_label(self, label: Any, name: str) -> None:
        """Raises if a label that came with an image is not a class's."""
        unlabelled = not self.cropping.training
        check_labels([label], self.num_classes, [name], unlabelled)

    def at(self, step: int, steps: int | None = None) -> Feed:
        """Returns the run from a step on; see `load`."""
        if not self.cropping.training:
            raise ValueError(
                "`at` is for training data; an evaluation is always one pass "
                f"over the split. Received: step={step}, steps={steps}"
            )
        # As Python's integers: NumPy's would draw from other streams.
        step = at_least(0, "step", step)
        steps = None if steps is None else at_least(1, "steps", steps)
        return dataclasses.replace(self, first_step=step, steps=steps)

    def sharded(self, index: int, count: int) -> Feed:
        """Returns the slice of every batch for one process; see `load`."""
        integers = is_integer(index) and is_integer(count)
        if not integers or not 0 <= index < count:
            raise ValueError(
                "`sharded(index, count)` takes an index from 0 to count - 1. "
                f"Received: index={index!r}, count={count!r}"
            )
        if self.shard[1] > 1:
            raise ValueError(f"The data are shard {self.shard} already.")
        unpadded = self.options.pad is False and not self.cropping.training
        if count > 1 and unpadded:
            raise ValueError(
                "Shards of an evaluation need batches of one size. Load with "
                "Options(pad=True) or pad=None. Received: pad=False, "
                f"count={count}"
            )
        shard = int(index), int(count)
        examples = self.examples
        if isinstance(examples, Records):
            examples = dataclasses.replace(examples, shard=shard)
        return dataclasses.replace(self, examples=examples, shard=shard)

    def finish(
        self, labels: np.ndarray, weights: np.ndarray, padding: np.ndarray,
        broken: Sequence[str],
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
        """Finishes a batch of n examples, for both engines.

        `labels` are int64 of shape (n,) or float32 of shape (n, num_classes),
        `weights` the examples' own, and `broken` the names of images that
        could not be read, "" otherwise. In training, others replace them; in
        evaluation they are left out or, with `pad`, get weight 0.

        Returns the positions in the batch to take images from (int64), and
        their labels (int32, or float32 vectors) and weights (float32).
        """
        bad = np.array([name != "" for name in broken], bool)
        if self.skipped is not None:
            self.skipped.add(name for name in broken if name)
        good = ~(bad | padding)
        if bad.any() and not good.any() and not self.order.pad:
            otherwise = "evaluate with `pad=True` and `weighted_metrics`"
            if self.cropping.training:
                otherwise = "use larger batches"
            raise ImageError(
                "No image of a batch could be read, among them "
                f"{broken[int(bad.argmax())]!r}. Remove such files, or "
                f"{otherwise}."
            )
        take = np.arange(len(labels))
        if self.cropping.training:
            # A broken image is replaced by the next good one.
            found = np.flatnonzero(good)
            take = found[np.searchsorted(found, take) % len(found)]
        elif not self.order.pad:
            take = np.flatnonzero(good)
        labels = np.where(padding, 0, labels.T).T[take]
        of_class = self.options.one_hot or self.class_weights is not None
        if of_class and (labels < 0).any():  # a test set that is kept secret
            raise ValueError(
                "The split has examples without a label (-1), to which "
                "`one_hot` and `class_weight` do not apply. Use it with "
                "`predict` and without them, or take a split with labels."
            )
        weights = (weights * good)[take].astype(np.float32)
        if self.class_weights is not None:
            weights = weights * self.class_weights[labels]
        if self.options.one_hot:
            labels = np.eye(self.num_classes, dtype=np.float32)[labels]
        elif labels.ndim == 1:
            labels = labels.astype(np.int32)
        return take, labels, weights
