r"""Measures `data.load` against a bare tf.data pipeline, alternately.

    python tests/benchmarks/data.py [FOLDER] [ROUNDS]

FOLDER holds class folders of JPEG files; without it, 600 photos of 500 x 375
pixels are made of those in scikit-image. Each round reads every file twenty
times with each pipeline: decode, inception crop, resize to 224, flip, batches
of 64. Printed are medians over the rounds: images/s after the first batch, the
ratio to the bare pipeline in the same round, processor time, which other work
on the machine disturbs less, and the seconds to the first batch.
"""

from __future__ import annotations

import os
import pathlib
import resource
import statistics
import sys
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import PIL.Image
import skimage.data
import tensorflow as tf
from libraries import SIZE, random_crop

from keras_augreg import data

BATCH = 64
# Passes of a round. Time is taken from the first batch on; in a short round,
# the images that a pipeline has read ahead by then would count.
EPOCHS = 20


def make_photos(root: pathlib.Path) -> None:
    """Writes 600 JPEG files of three photos."""
    rng = np.random.RandomState(0)
    names = ("astronaut", "coffee", "chelsea")
    photos = [PIL.Image.fromarray(getattr(skimage.data, n)()) for n in names]
    for i in range(600):
        folder = root / names[i % 3]
        folder.mkdir(exist_ok=True)
        image, cut = photos[i % 3], rng.randint(60)
        image = image.crop((cut, cut // 2, image.width, image.height))
        image = image.resize((500, 375) if i % 2 else (375, 500))
        image.save(folder / f"{i}.jpg", quality=90)


def bare(root: pathlib.Path, dct_method: str) -> tf.data.Dataset:
    """A hand-written pipeline."""
    files = sorted(root.glob("*/*.jpg"))
    classes = sorted({file.parent.name for file in files})
    labels = [classes.index(file.parent.name) for file in files]

    def read(path, label):
        return random_crop(tf.io.read_file(path), dct_method), label

    dataset = tf.data.Dataset.from_tensor_slices(
        (list(map(str, files)), labels)
    )
    dataset = dataset.shuffle(len(files)).repeat(EPOCHS)
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(BATCH, drop_remainder=True)
    return dataset.prefetch(tf.data.AUTOTUNE)


def main() -> None:
    """Measures and prints."""
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else folder)
        if len(sys.argv) < 2:
            make_photos(root)
        options = {
            "image_size": SIZE,
            "batch_size": BATCH,
            "training": True,
        }
        steps = EPOCHS * len(list(root.glob("*/*.jpg"))) // BATCH
        pipelines = {
            "bare": bare(root, "INTEGER_ACCURATE"),
            "bare, fast DCT": bare(root, ""),
        }
        for engine in ("tensorflow", "python"):
            dataset, _ = data.load(
                root, "all", options=data.Options(engine=engine), **options
            )
            pipelines[engine] = dataset.at(0, steps)
        first = {name: [] for name in pipelines}
        seconds = {name: [] for name in pipelines}
        processor = {name: [] for name in pipelines}
        for i in range(rounds + 1):
            for name, pipeline in pipelines.items():
                # tf.data takes seconds to end a long pass; end it here, so
                # that they do not count for the next one.
                batches = iter(())
                begin = time.perf_counter()
                batches = iter(pipeline)
                next(batches)
                # Costs that a run pays once are not throughput: tf.data
                # optimizes its graph before the first batch.
                start, used = time.perf_counter(), time.process_time()
                count = sum(len(batch[0]) for batch in batches)
                if i:  # The first round warms up.
                    wall = time.perf_counter() - start
                    first[name].append(start - begin)
                    seconds[name].append(wall / count)
                    processor[name].append((time.process_time() - used) / count)
    for name in pipelines:
        wall, cpu = (
            statistics.median(
                b / a for a, b in zip(t[name], t["bare"], strict=True)
            )
            for t in (seconds, processor)
        )
        print(
            f"{name:15} {1 / statistics.median(seconds[name]):6.0f} images/s  "
            f"of bare: {wall:4.2f}  by processor time: {cpu:4.2f} "
            f"({1e3 * statistics.median(processor[name]):.2f} ms/image)  "
            f"first batch: {statistics.median(first[name]):4.2f} s"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MB")


if __name__ == "__main__":
    main()
