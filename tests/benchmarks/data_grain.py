r"""Measures the engine without TensorFlow against Grain, alternately.

    pip install grain
    python tests/benchmarks/data_grain.py FOLDER [ROUNDS [EPOCHS]]

FOLDER holds class folders of JPEG files (`data.py` here makes some).
Each round reads all of them EPOCHS times (10) with each pipeline, with the
same operations: decode, inception crop, resize to 224, flip, batches of 64.
Grain reads on threads and in processes, and batches after its threads or in
them. Printed are medians over the rounds, by the clock and by processor time
(of all processes, after a batch for each core), which other work on the machine
disturbs less: it gives more of the clock to those with more threads.
"""

from __future__ import annotations

import multiprocessing
import os
import pathlib
import resource
import statistics
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import grain
import numpy as np
from absl import flags

from keras_augreg import data
from keras_augreg.data.decode import crop_and_resize
from keras_augreg.data.order import draws

BATCH, SIZE = 64, 224


class Read(grain.transforms.Map):
    """Reads an image as `Batches` does."""

    def __init__(self, examples, cropping):
        self.examples, self.cropping = examples, cropping

    def map(self, place):
        number = place % len(self.examples)
        rng = draws(0, place // len(self.examples), number)
        picture = self.examples.picture(number)
        window = self.cropping.window(picture.height, picture.width, rng)
        image = np.empty((SIZE, SIZE, 3), np.uint8)
        crop_and_resize(
            picture.pixels(window.box), window, self.cropping, image
        )
        return image, self.examples.labels[number]


def processor_time() -> float:
    """Seconds of this process and of its children, also of those that ended."""
    ticks = 0
    for child in multiprocessing.active_children():
        stat = pathlib.Path(f"/proc/{child.pid}/stat").read_text()
        ticks += sum(map(int, stat.rpartition(")")[2].split()[11:13]))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    live = ticks / os.sysconf("SC_CLK_TCK")
    return time.process_time() + live + ended.ru_utime + ended.ru_stime


def main() -> None:
    """Measures and prints."""
    flags.FLAGS(sys.argv[:1])  # Grain's processes ask for them.
    rounds, epochs = (*map(int, sys.argv[2:]), *(5, 10)[len(sys.argv) - 2 :])
    examples = data.find(sys.argv[1], "all")
    ours, _ = data.load(
        sys.argv[1],
        "all",
        image_size=SIZE,
        batch_size=BATCH,
        training=True,
        options=data.Options(engine="python"),
    )
    ours = ours.at(0, epochs * len(examples) // BATCH)
    places = grain.MapDataset.range(epochs * len(examples)).shuffle(seed=0)
    images = places.map(Read(examples, ours._cropping))
    cores = os.cpu_count() or 1

    def threads(count):
        options = grain.ReadOptions(count, prefetch_buffer_size=3 * BATCH)
        read = images.to_iter_dataset(options)
        return read.batch(BATCH, drop_remainder=True)

    def batches(count):
        """Each of the threads makes whole batches."""
        whole = images.batch(BATCH, drop_remainder=True)
        options = grain.ReadOptions(count, prefetch_buffer_size=2 * count)
        return whole.to_iter_dataset(options)

    def processes(dataset, buffered):
        options = grain.MultiprocessingOptions(
            num_workers=cores, per_worker_buffer_size=buffered
        )
        return dataset.mp_prefetch(options)

    pipelines = {
        "PyDataset": ours,
        f"Grain, {cores} threads": threads(cores),
        "Grain, 16 threads": threads(16),
        f"Grain, {cores} threads of batches": batches(cores),
        f"Grain, {cores} processes": processes(threads(1), 1),
        f"Grain, {cores} processes, 4 buffered": processes(threads(1), 4),
        f"Grain, {cores} processes of batches": processes(batches(1), 2),
    }
    speeds = {name: ([], []) for name in pipelines}
    for i in range(rounds + 1):
        for name, pipeline in pipelines.items():
            iterator = iter(pipeline)
            for _ in range(cores):  # All processes have started then.
                next(iterator)
            start = time.perf_counter(), processor_time()
            count = sum(len(batch[0]) for batch in iterator)
            end = time.perf_counter(), processor_time()
            found = [count / (b - a) for a, b in zip(start, end, strict=True)]
            print(f"round {i}: {name:32}", *map(round, found), flush=True)
            for values, speed in zip(speeds[name], found, strict=True):
                if i:  # The first round warms up.
                    values.append(speed)
    for name, measured in speeds.items():
        ratios = [
            statistics.median(a / b for a, b in zip(*pair, strict=True))
            for pair in zip(measured, speeds["PyDataset"], strict=True)
        ]
        print(
            f"{name:32} {statistics.median(measured[0]):6.0f} images/s, "
            f"{ratios[0]:4.2f} of PyDataset; by processor time {ratios[1]:4.2f}"
        )


if __name__ == "__main__":
    main()
