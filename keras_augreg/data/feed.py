"""What an engine turns into batches: examples, crops, order, targets."""

from __future__ import annotations

import dataclasses
import functools

import keras
import numpy as np

from keras_augreg.checks import check_labels
from keras_augreg.data.decode import Cropping
from keras_augreg.data.options import Options, is_integer
from keras_augreg.data.order import Order
from keras_augreg.data.report import Skipped
from keras_augreg.data.sources import Examples
from keras_augreg.data.targets import Targets
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
            check_labels(labels, self.checked_classes, names)
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

    @functools.cached_property
    def targets(self) -> Targets:
        weighted = self.options.sample_weight is not None
        return Targets(
            num_classes=len(self.examples.class_names),
            training=self.cropping.training,
            pad=self.order.pad,
            one_hot=self.options.one_hot,
            class_weights=self.class_weights,
            weighted=weighted or bool(self.examples.label_shape),
            skipped=self.skipped,
        )

    @property
    def checked_classes(self) -> int:
        """The number of classes that the engines check integer labels for.

        Both engines' data sets carry it, for `fit` to skip its own check.
        """
        return len(self.examples.class_names)

    @property
    def num_batches(self) -> int:
        """Batches per pass."""
        return self.steps or self.order.steps

    def at(self, step: int, steps: int | None = None) -> Feed:
        """Returns the run from a step on; see `load`."""
        if not self.cropping.training:
            raise ValueError(
                "`at` is for training data; an evaluation is always one pass "
                f"over the split. Received: step={step}, steps={steps}"
            )
        # As Python's integers: NumPy's would draw from other streams.
        step = _at_least(0, "step", step)
        steps = None if steps is None else _at_least(1, "steps", steps)
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


def _at_least(least: int, name: str, value: int) -> int:
    if not is_integer(value) or value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}. Received: "
            f"{name}={value!r}"
        )
    return int(value)
