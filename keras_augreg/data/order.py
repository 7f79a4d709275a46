"""The order of examples in batches, by arithmetic only.

No state is kept between batches, so a run can start at any step and every
shard finds its own slice of a global batch.
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

PADDING = -1


class Batch(NamedTuple):
    """One shard's slice of a batch."""

    epoch: int  # the pass over the data that it belongs to, from 0
    start: int  # position of its first example in that pass
    numbers: np.ndarray  # int64, the examples; `PADDING` for missing ones


@dataclasses.dataclass(frozen=True)
class Order:
    """The order of a data set's examples.

    In training, every epoch has a new random order and drops its last partial
    batch; otherwise all examples come in the source's order.
    """

    num_examples: int  # over all shards, as `batch_size`
    batch_size: int
    training: bool
    seed: int
    pad: bool = False  # whether to fill up the last batch of an evaluation
    shard: tuple[int, int] = (0, 1)  # (index, count): the slice of each batch

    @property
    def shard_batch(self) -> int:
        """Examples per step of this shard."""
        return self.batch_size // self.shard[1]

    @property
    def steps(self) -> int:
        """Batches per epoch, the same for every shard."""
        if self.training:
            return self.num_examples // self.batch_size
        return -(-self.num_examples // self.batch_size)

    def ends_epoch(self, step: int) -> bool:
        return (step + 1) % self.steps == 0

    def batch(self, step: int) -> Batch:
        """Returns the batch of a step, counted from the start of the run."""
        epoch, step = divmod(step, self.steps)
        start = step * self.batch_size + self.shard[0] * self.shard_batch
        if self.training:
            order = _shuffled(self.num_examples, self.seed, epoch)
            return Batch(epoch, start, order[start : start + self.shard_batch])
        numbers = np.arange(start, start + self.shard_batch)
        numbers[numbers >= self.num_examples] = PADDING
        if not self.pad:
            numbers = numbers[numbers != PADDING]
        return Batch(0, start, numbers)


def shuffled_classes(
    labels: np.ndarray, seed: int, *stream: int
) -> Iterator[np.ndarray]:
    """Yields the places of each class's examples in a random order.

    Each use passes its own `stream`: what one takes first is then not what
    another put into the test set.
    """
    # RandomState's streams are frozen, Generator's are not (NEP 19).
    for label in np.unique(labels):
        rng = np.random.RandomState([seed, label, *stream])
        yield rng.permutation(np.flatnonzero(labels == label))


@functools.lru_cache(maxsize=4)
def _shuffled(n: int, seed: int, epoch: int) -> np.ndarray:
    # RandomState's streams are frozen, Generator's are not (NEP 19).
    return np.random.RandomState([seed, epoch]).permutation(n)


def draws(seed: int, epoch: int, place: int) -> random.Random:
    """Returns the generator of crop and flip for a position in an epoch."""
    return random.Random(f"{seed}/{epoch}/{place}")
