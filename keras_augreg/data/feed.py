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
    """The batches of one data set, for one shard, from one step on.

    Args:
        examples: What to read.
        cropping: How images are cropped.
        batch_size: Examples per step over all shards.
        seed: Seed of order, crops and flips.
        options: The options of `load`.
        class_weights: float32 of shape (num_classes,) or `None`.
        skipped: Counts broken images, if they are not errors.
        shard: (index, count) of the shard.
        first_step: Step of the run that the first batch belongs to.
        steps: Batches per pass; `None` for an epoch.

    Raises:
        ValueError: If `batch_size`, `shard` and the number of examples do not
            fit together, or a label is not the number of a class.
    """

    examples: Examples | Records
    cropping: Cropping
    batch_size: int
    seed: int
    options: Options
    class_weights: np.ndarray | None = None
    skipped: Skipped | None = None
    shard: tuple[int, int] = (0, 1)
    first_step: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        count = self.shard[1]
        if (
            not is_integer(self.batch_size)
            or self.batch_size < 1
            or self.batch_size % count
        ):
            raise ValueError(
                "`batch_size` must be an integer of at least 1 and, as it "
                "counts the examples of all shards, divisible by their number."
                f" Received: batch_size={self.batch_size}, shards={count}"
            )
        if isinstance(self.examples, Examples):
            check_labels(
                self.examples.labels,
                len(self.examples.class_names),
                self.examples.names,
            )
        if self.order.steps == 0:
            raise ValueError(
                f"The split has {len(self.examples)} examples, too few for a "
                f"batch of {self.batch_size}. Reduce `batch_size`."
            )

    @functools.cached_property
    def order(self) -> Order:
        """The order of the examples."""
        count, training = self.shard[1], self.cropping.training
        in_order = len(self.examples)
        if isinstance(self.examples, Records):
            in_order = self.examples.in_order(training)
        pad = self.options.pad
        if pad is None:
            pad = count > 1 or keras.distribution.distribution() is not None
        return Order(
            in_order,
            self.batch_size,
            training,
            self.seed,
            pad and not training,
            self.shard,
        )

    @functools.cached_property
    def targets(self) -> Targets:
        """Makes a batch's labels and weights."""
        return Targets(
            num_classes=len(self.examples.class_names),
            training=self.cropping.training,
            pad=self.order.pad,
            one_hot=self.options.one_hot,
            class_weights=self.class_weights,
            weighted=self.options.sample_weight is not None
            or bool(self.examples.label_shape),
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
        """Returns the batches of the run from a step on.

        Args:
            step: The step, from 0.
            steps: Batches per pass; `None` for an epoch.

        Returns:
            The feed.

        Raises:
            ValueError: If the data are not for training, or a number is not
                as described.
        """
        if not self.cropping.training:
            raise ValueError(
                "`at` is for training data; an evaluation is always one pass "
                f"over the split. Received: step={step}, steps={steps}"
            )
        numbers = [("step", step, 0)]
        if steps is not None:
            numbers.append(("steps", steps, 1))
        for name, value, least in numbers:
            if not is_integer(value) or value < least:
                raise ValueError(
                    f"`{name}` must be an integer of at least {least}. "
                    f"Received: {name}={value!r}"
                )
        # NumPy's integers would draw from other streams.
        return dataclasses.replace(
            self,
            first_step=int(step),
            steps=None if steps is None else int(steps),
        )

    def sharded(self, index: int, count: int) -> Feed:
        """Returns one process's slice of every batch.

        Args:
            index: Number of the process, from 0.
            count: Number of processes.

        Returns:
            The feed, with the same number of steps for every process.

        Raises:
            ValueError: If a number is not as described, the batch cannot be
                divided, or the data are a shard already.
        """
        if not (is_integer(index) and is_integer(count)) or not (
            0 <= index < count
        ):
            raise ValueError(
                "`sharded(index, count)` takes an index from 0 to count - 1. "
                f"Received: index={index!r}, count={count!r}"
            )
        if self.shard[1] > 1:
            raise ValueError(f"The data are shard {self.shard} already.")
        if (
            count > 1
            and self.options.pad is False
            and not (self.cropping.training)
        ):
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
