"""Which example comes when: the order of batches, by arithmetic alone.

Nothing is remembered from batch to batch, so that a run can start at any
step and every host finds its own slice of a global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from typing import NamedTuple

import numpy as np

PADDING = -1


class Batch(NamedTuple):
    """One host's slice of a batch.

    Attributes:
        epoch: The pass over the data that it belongs to, from 0.
        start: Its first example's place in the order of that pass.
        numbers: int64, the examples; `PADDING` where there is none.
    """

    epoch: int
    start: int
    numbers: np.ndarray


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of a data set's examples.

    Args:
        num_examples: Of all hosts together.
        batch_size: Of all hosts together.
        training: A new random order for every epoch, whose last partial
            batch is dropped; otherwise the source's order, and all of it.
        seed: Of the random orders.
        pad: Whether the last batch of an evaluation is filled up.
        host: This host's number, from 0.
        hosts: How many hosts there are.
    """

    num_examples: int
    batch_size: int
    training: bool
    seed: int
    pad: bool = False
    host: int = 0
    hosts: int = 1

    @property
    def host_batch(self) -> int:
        """Examples of a batch that this host reads."""
        return self.batch_size // self.hosts

    @property
    def steps(self) -> int:
        """Batches of one epoch, the same for every host."""
        if self.training:
            return self.num_examples // self.batch_size
        return -(-self.num_examples // self.batch_size)

    def ends_epoch(self, step: int) -> bool:
        """Whether a step of the run is the last of its epoch."""
        return (step + 1) % self.steps == 0

    def batch(self, step: int) -> Batch:
        """The batch of a step, counted from the first step of the run."""
        epoch, step = divmod(step, self.steps)
        start = step * self.batch_size + self.host * self.host_batch
        if self.training:
            order = _shuffled(self.num_examples, self.seed, epoch)
            return Batch(epoch, start, order[start : start + self.host_batch])
        numbers = np.arange(start, start + self.host_batch)
        numbers[numbers >= self.num_examples] = PADDING
        if not self.pad:
            numbers = numbers[numbers != PADDING]
        return Batch(0, start, numbers)


@functools.lru_cache(maxsize=4)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    # RandomState's streams are frozen, Generator's are not (NEP 19).
    return np.random.RandomState([seed, epoch]).permutation(n)


def draws(seed: int, epoch: int, place: int) -> random.Random:
    """Where the crop and flip of the example at a place are drawn from."""
    return random.Random(f"{seed}/{epoch}/{place}")
