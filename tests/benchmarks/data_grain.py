r"""Measures the engine without TensorFlow against Grain, alternately.

    pip install grain
    python tests/benchmarks/data_grain.py FOLDER [ROUNDS [EPOCHS]]

FOLDER holds class folders of JPEG files (`data.py` here makes some).
Each round reads all of them EPOCHS times (10) with each pipeline, with the
same operations: decode, inception crop, resize to 224, flip, batches of 64.
Grain reads on threads and in processes, and batches after its threads or in
them. Printed are medians over the rounds.
"""

from __future__ import annotations

import os
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
    speeds = {name: [] for name in pipelines}
    for i in range(rounds + 1):
        for name, pipeline in pipelines.items():
            iterator = iter(pipeline)
            next(iterator)
            start = time.perf_counter()
            count = sum(len(batch[0]) for batch in iterator)
            if i:  # The first round warms up.
                speeds[name].append(count / (time.perf_counter() - start))
    for name, values in speeds.items():
        ratio = statistics.median(
            a / b for a, b in zip(values, speeds["PyDataset"], strict=True)
        )
        print(
            f"{name:32} {statistics.median(values):6.0f} images/s, "
            f"{ratio:4.2f} of PyDataset"
        )


if __name__ == "__main__":
    main()
