"""The engine without TensorFlow: a `keras.utils.PyDataset` on threads.

Pillow and OpenCV release the interpreter's lock for most of their work, so
threads keep all cores busy; they prepare the next batches while the model
works on this one. Grain's threads are about as fast with the same operations,
its processes slower (docs/performance.md).
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from keras_augreg.data.decode import crop_and_resize
from keras_augreg.data.feed import Feed
from keras_augreg.data.order import PADDING, Batch, draws
from keras_augreg.data.sources import Examples

# Batches prepared ahead of the requested one.
AHEAD = 2
# Images per task, few enough to spread a batch over all cores.
CHUNK = 4


class Batches(keras.utils.PyDataset):
    """Batches of images and labels, for `fit`, `evaluate` and `predict`.

    In training, the k-th request of a pass gets the pass's k-th batch,
    whatever its index: `fit` shuffles the indices of a `PyDataset` by
    default, and the order is random already. A pass that was left early
    begins again; the pass after a complete one gets the steps after it.
    """

    # Tells a model that these pixels need no look at their range.
    image_dtype = "uint8"

    def __init__(self, feed: Feed) -> None:
        # Import OpenCV now rather than in a worker thread during training.
        import cv2  # noqa: F401

        super().__init__()
        assert isinstance(feed.examples, Examples)
        self._feed = feed
        self._examples = feed.examples
        self._order = feed.order
        self._cropping = feed.cropping
        self._first_step = feed.first_step  # of the next pass
        self._length = feed.num_batches
        self.checked_classes = feed.num_classes
        self.padded = feed.order.pad
        threads = os.cpu_count() or 1
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads)
        _keep_blocks(2 * threads)
        # The pass that `fit` is in: its first step, its steps by the index
        # they were requested with, and the batches under way.
        self._begun = feed.first_step
        self._steps: dict[int, int] = {}
        self._jobs: dict[int, _Job] = {}

    def at(self, step: int, steps: int | None = None) -> Batches:
        """Returns the run from a step on; see `load`."""
        return Batches(self._feed.at(step, steps))

    def sharded(self, index: int, count: int) -> Batches:
        """Returns the slices of one of `count` processes; see `load`."""
        return Batches(self._feed.sharded(index, count))

    def augmented(self, augment: Augment) -> Augmented:
        """Returns the batches for `fit`, augmented as they are read."""
        return Augmented(self, augment)

    def __reduce__(self) -> tuple[Any, ...]:
        # Threads and their jobs cannot be pickled.
        feed = dataclasses.replace(self._feed, first_step=self._first_step)
        return Batches, (feed,)

    @property
    def workers(self) -> int:
        """Keras's workers: only one keeps the order of the batches."""
        return 1

    @workers.setter
    def workers(self, value: int) -> None:
        if value != 1:
            raise ValueError(
                "Batches are prepared by threads of their own, in an order "
                f"that more workers of Keras would change. Received: {value} "
                "workers. Leave it at 1."
            )

    def __len__(self) -> int:
        return self._length

    def cardinality(self) -> int:
        """Returns the number of batches, as a `tf.data.Dataset` does."""
        return self._length

    @property
    def num_batches(self) -> int:
        # Keras reads it at the start of every pass.
        self._begin_pass()
        return self._length

    def __iter__(self) -> Iterator[tuple[np.ndarray, ...]]:
        if not self._order.training:
            self._begin_pass()
            yield from (self[index] for index in range(self._length))
            return
        # Independent of the pass that `fit` is in: a callback may look at
        # the data in the middle of it.
        steps = range(self._first_step, self._first_step + self._length)
        jobs: dict[int, _Job] = {}
        for step in steps:
            batch = self._finish(self._job(step, steps[-1], jobs))
            self._delivered(step, last=step == steps[-1])
            yield batch

    def _begin_pass(self) -> None:
        self._begun, self._steps = self._first_step, {}

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        return self.item(index, self._jobs, self._start, self._finish)

    def item(
        self,
        index: int,
        jobs: dict[int, Any],
        start: Callable[[int], Any],
        finish: Callable[[Any], tuple[np.ndarray, ...]],
    ) -> tuple[np.ndarray, ...]:
        """Returns the batch of a request, made by `start` and `finish`."""
        if not 0 <= index < self._length:
            raise IndexError(
                f"Batch {index} of a data set with {self._length} batches."
            )
        with self._lock:
            again = index in self._steps
            count = len(self._steps) if self._order.training else index
            step = self._steps.setdefault(index, self._begun + count)
            last = len(self._steps) == self._length
        last_step = self._begun + self._length - 1
        batch = finish(self._job(step, last_step, jobs, start))
        if not again:
            self._delivered(step, last)
        return batch

    def _delivered(self, step: int, last: bool) -> None:
        """Counts passes and ends epochs; a pass may span many epochs."""
        if last and self._order.training:
            self._first_step += self._length
        # The steps of an evaluation may come in any order.
        ended = last or (self._order.training and self._order.ends_epoch(step))
        if ended and self._feed.skipped:
            self._feed.skipped.end_epoch()

    def _job(
        self,
        step: int,
        last: int,
        jobs: dict[int, Any],
        start: Callable[[int], Any] | None = None,
    ) -> Any:
        """Returns the job of a step and starts those of the next ones."""
        start = start or self._start
        wanted = range(step, min(step + AHEAD, last) + 1)
        with self._lock:
            for other in [s for s in jobs if s not in wanted]:
                del jobs[other]
            for s in wanted:
                if s not in jobs:
                    jobs[s] = start(s)
            return jobs.pop(step)

    def _start(self, step: int) -> _Job:
        batch = self._order.batch(step)
        size = len(batch.numbers)
        job = _Job(
            batch,
            np.zeros((size, *self._cropping.image_size, 3), np.uint8),
            self._examples.blank_labels(size),
            np.ones(size, np.float32),
        )
        job.futures = [
            self._pool.submit(self._read, job, i) for i in range(0, size, CHUNK)
        ]
        return job

    def _read(self, job: _Job, start: int) -> list[int]:
        """Fills a part of a batch; returns the broken images of it."""
        batch, broken = job.batch, []
        for i in range(start, min(start + CHUNK, len(job.images))):
            number = int(batch.numbers[i])
            if number == PADDING:
                continue
            rng = draws(self._order.seed, batch.epoch, batch.start + i)
            try:
                picture, label, weight = self._examples.example(number)
                if self._examples.labels is None:
                    self._feed.check_label(label, self._examples.name(number))
                size = picture.height, picture.width
                window = self._cropping.window(*size, rng)
                pixels = picture.pixels(window.box)
            except ValueError:  # Image or label.
                if self._feed.skipped is None:
                    raise
                broken.append(i)
                continue
            job.labels[i], job.weights[i] = label, weight
            crop_and_resize(pixels, window, self._cropping, job.images[i])
        return broken

    @property
    def begun(self) -> int:
        """The first step of the pass that `fit` is in."""
        return self._begun

    @property
    def under_way(self) -> bool:
        """Whether a batch of that pass has been requested."""
        return bool(self._steps)

    def run(self, function: Callable[[int], None], count: int) -> None:
        """Calls a function for every number below another, on threads."""

        def part(start: int) -> None:
            for i in range(start, min(start + CHUNK, count)):
                function(i)

        for future in [
            self._pool.submit(part, start) for start in range(0, count, CHUNK)
        ]:
            future.result()

    def _finish(self, job: _Job) -> tuple[np.ndarray, ...]:
        numbers, images = job.batch.numbers, job.images
        broken = [""] * len(numbers)
        for future in job.futures:
            for i in future.result():
                broken[i] = self._examples.names[numbers[i]]
        take, labels, weights = self._feed.finish(
            job.labels, job.weights, numbers == PADDING, broken
        )
        if any(broken):
            images = images[take]
        if self._feed.has_weights:
            return images, labels, weights
        return images, labels


# (images, labels, number of the batch, run) -> images, labels; see
# `AugRegAugment.on_host`.
Augment = Callable[[np.ndarray, np.ndarray, int, Any], tuple[Any, Any]]


class Augmented(keras.utils.PyDataset):
    """`Batches` that threads augment ahead of the requests, in one `fit`.

    Set `first` to the number of the first batch of a pass before each.
    """

    def __init__(self, batches: Batches, augment: Augment) -> None:
        super().__init__()
        self.first = 0
        self._batches = batches
        self._augment = augment
        self.has_weights = batches._feed.has_weights
        self._jobs: dict[int, Future[Any]] = {}
        self._jobs_begun: tuple[int, int] | None = None
        # Threads of their own: they wait for those of the batches.
        self._pool = ThreadPoolExecutor(AHEAD + 1)

    def __len__(self) -> int:
        return len(self._batches)

    @property
    def num_batches(self) -> int:
        # Keras reads it at the start of every pass.
        return self._batches.num_batches

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        begun = self._batches.begun, self.first
        if not self._batches.under_way and begun != self._jobs_begun:
            # Batches of an earlier pass have other numbers.
            self._jobs, self._jobs_begun = {}, begun
        return self._batches.item(index, self._jobs, self._start, Future.result)

    def _start(self, step: int) -> Future[Any]:
        job = self._batches._start(step)
        assert self._jobs_begun is not None
        begun, first = self._jobs_begun
        return self._pool.submit(self._make, job, first + step - begun)

    def _make(self, job: _Job, number: int) -> tuple[Any, ...]:
        images, labels, *weights = self._batches._finish(job)
        run = self._batches.run
        return (*self._augment(images, labels, number, run), *weights)


def _keep_blocks(count: int) -> None:
    """Lets Pillow reuse the memory of images: up to 40% less time to decode.

    The environment variable PILLOW_BLOCKS_MAX wins if it is set.
    """
    import PIL.Image

    if PIL.Image.core.get_blocks_max() == 0:
        PIL.Image.core.set_blocks_max(count)


@dataclasses.dataclass
class _Job:
    """A batch under way."""

    batch: Batch
    images: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    futures: list[Future[list[int]]] = dataclasses.field(default_factory=list)
