"""The engine on `tf.data`, stage by stage.

    steps of a pass -> examples in order -> file's bytes and window
      -> decode, crop, resize, flip -> batch -> prefetch -> labels

Everything before decoding is cheap, everything random is drawn from the seed
and the example's place, and passes are counted where batches leave the
pipeline: what was prefetched does not count.
"""

from __future__ import annotations

import math
import os
import random
from typing import Any

import keras
import numpy as np
from absl import logging

from keras_augreg.data import decode
from keras_augreg.data.decode import Cropping, ImageError, Window
from keras_augreg.data.feed import Feed
from keras_augreg.data.order import PADDING, draws
from keras_augreg.data.sources import Examples
from keras_augreg.data.tfds import Records

# The int32 values that Python passes to TensorFlow for each example: the kind
# of data, the rectangle to decode, the box in it (with channels, as
# `tf.slice` takes it), the size to resize to, the corner of the final crop
# (with channels), and (columns, values per column) for mirroring the result:
# one column is left as it is.
LAYOUT = {"kind": 1, "decode": 4, "begin": 3, "extent": 3, "size": 2,
          "corner": 3, "mirror": 2}  # fmt: skip
LAYOUT_SIZE = sum(LAYOUT.values())
PIXELS, JPEG, SMALL_JPEG = range(3)
# TensorFlow resizes floats twice as fast as integers, so boxes of up to this
# many times the result's pixels are cast first. For larger ones the copy costs
# more than it saves (docs/performance.md).
SMALL = 4
# An example without an image becomes one black pixel, enlarged.
NOTHING = (PIXELS, 0, 0, 1, 1, 0, 0, 0, 1, 1, 3)
BLACK = b"\0\0\0"
# Examples that one call from `tf.data` into Python reads, one after another.
# With 16, the calls take 5% of the time (docs/performance.md); with more, the
# first batch comes later and more files are in memory.
CHUNK = 64
# Number of simultaneous iterations whose file names are remembered.
KEPT = 4
# The chroma of neighbouring pixels changes the edge of what is decoded: one
# more pixel on each side makes the cut exact.
MARGIN = 1


def tensorflow() -> Any:
    """Imports TensorFlow; under another backend, keeps it off the GPUs."""
    import tensorflow as tf

    visible = tf.config.get_visible_devices("GPU")
    if visible and keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")
    return tf


class Pipeline:
    """Builds a `tf.data.Dataset` of (images, labels[, weights]).

    The pass after a complete one gets the steps after it.
    """

    def __init__(self, feed: Feed) -> None:
        self._tf = tensorflow()
        self._feed = feed
        self._passes = 0
        # With `on_error="skip"`, Python decodes: TensorFlow's decoder cannot
        # leave out the images that it refuses.
        self._under_way = _UnderWay() if feed.skipped is None else None
        if isinstance(feed.examples, Records):
            # Once, so that its cache lasts from pass to pass.
            self._stream = feed.examples.stream(feed.order, feed.num_batches)
        else:
            self._stream = self._examples

    def dataset(self) -> Any:
        tf, feed = self._tf, self._feed
        dataset = tf.data.Dataset.range(1).map(
            lambda _: tf.numpy_function(self._begin, [], (tf.int64, tf.int64))
        )
        dataset = dataset.flat_map(self._chunks)
        dataset = dataset.map(self._fetch, num_parallel_calls=tf.data.AUTOTUNE)
        # Chunks follow one another; the next one starts while the last images
        # of one are decoded.
        dataset = dataset.interleave(
            self._decode_chunk, 2, CHUNK, num_parallel_calls=2,
            deterministic=True,
        )  # fmt: skip
        dataset = dataset.batch(feed.order.shard_batch)
        if self._under_way is not None:
            # Takes the place of a batch that has lost all its examples.
            nothing = tf.nest.map_structure(
                lambda spec: tf.zeros([0, *spec.shape[1:]], spec.dtype),
                dataset.element_spec,
            )
            last = tf.data.Dataset.from_tensors(nothing)
            dataset = dataset.concatenate(last).take(feed.num_batches)
        dataset = dataset.prefetch(tf.data.AUTOTUNE)
        dataset = dataset.enumerate().map(self._finish)
        count = tf.data.experimental.assert_cardinality(feed.num_batches)
        dataset = dataset.apply(count)
        options = tf.data.Options()
        options.deterministic = True
        # Shards have their slices already.
        off = tf.data.experimental.AutoShardPolicy.OFF
        options.experimental_distribute.auto_shard_policy = off
        # `_finish_arrays` counts the batches that leave.
        options.experimental_optimization.inject_prefetch = False
        dataset = dataset.with_options(options)
        # Attributes rather than a subclass: a subclass of `tf.data.Dataset`
        # would have to implement TensorFlow's private `_inputs` and to be
        # defined inside a function, since TensorFlow is imported late. The
        # results of `map`, `take` and so on lack them, as they should.
        dataset.checked_classes = feed.num_classes
        dataset.padded = feed.order.pad
        dataset.at = lambda step, steps=None: Pipeline(
            feed.at(step, steps)
        ).dataset()
        dataset.sharded = lambda index, count: Pipeline(
            feed.sharded(index, count)
        ).dataset()
        return dataset

    def _first_step(self) -> int:
        return self._feed.first_step + self._passes * self._feed.num_batches

    def _begin(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts an iteration; returns its first step and its number."""
        iteration = self._under_way.begin() if self._under_way else 0
        return np.array(self._first_step()), np.array(iteration)

    def _chunks(self, step: Any, iteration: Any) -> Any:
        """Groups the examples of a pass for calls into Python."""
        return self._stream(step).batch(CHUNK).map(
            lambda number, example: (iteration, number, *example)
        )  # fmt: skip

    def _examples(self, first: Any) -> Any:
        """Returns what `Records.stream`'s function returns."""
        tf, examples, order = self._tf, self._feed.examples, self._feed.order
        assert isinstance(examples, Examples)

        def columns_of(step: Any, first: Any) -> Any:
            batch = order.batch(int(step))
            number = np.arange(len(batch.numbers))
            place = batch.start + number
            place[batch.numbers == PADDING] = PADDING
            number += (step - first) * order.shard_batch
            epoch = np.full(len(place), batch.epoch, np.int64)
            label = examples.blank_labels(len(place))
            if examples.labels is not None:
                label = examples.labels[batch.numbers]
            weight = examples.weights[batch.numbers]
            return number, epoch, place, batch.numbers, label, weight

        label_type = tf.float32 if examples.label_shape else tf.int64

        def examples_of(step: Any) -> Any:
            columns = tf.numpy_function(
                columns_of,
                [step, first],
                [tf.int64] * 4 + [label_type, tf.float32],
            )
            number, epoch, place, example, label, weight = columns
            for column in (number, epoch, place, example, weight):
                column.set_shape([None])
            label.set_shape([None, *examples.label_shape])
            return tf.data.Dataset.from_tensor_slices(
                (number, (epoch, place, (example,), label, weight))
            )

        steps = tf.data.Dataset.range(first, first + self._feed.num_batches)
        return steps.flat_map(examples_of)

    def _fetch(self, *chunk: Any) -> Any:
        tf = self._tf
        iteration, number, epoch, place, what, label, weight = chunk
        shape = label.shape
        data, layout, label, weight, place, broken = tf.numpy_function(
            self._fetch_arrays,
            [iteration, number, epoch, place, label, weight, *what],
            [tf.string, tf.int32, label.dtype, weight.dtype, tf.int64,
             tf.string],
        )  # fmt: skip
        data.set_shape([None])
        label.set_shape(shape)
        weight.set_shape([None])
        layout.set_shape([None, LAYOUT_SIZE])
        place.set_shape([None, 3])
        broken.set_shape([None])
        return data, layout, label, weight, place, broken

    def _fetch_arrays(
        self, iteration: int, *columns: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Reads the examples of a chunk and draws their windows.

        Returns the bytes of JPEG files and the pixels of others; their
        layouts, labels and weights; (iteration, number, place) of each; and
        for each what is broken: a name if broken images are skipped, else an
        error message, else "".
        """
        numbers, epochs, places, labels, weights, *what = columns
        labels, weights = labels.copy(), weights.copy()
        feed, under_way = self._feed, self._under_way
        cropping = feed.cropping
        contents = [BLACK] * len(places)
        broken = np.full(len(places), b"", object)
        layouts = np.zeros((len(places), LAYOUT_SIZE), np.int32)
        layouts[:] = (*NOTHING, *cropping.image_size, 0, 0, 0,
                      *_mirror(cropping, False))  # fmt: skip
        for i, place in enumerate(places.tolist()):
            if place == PADDING:
                continue
            example = [column[i] for column in what]
            try:
                picture: Any
                label, weight = labels[i], weights[i]
                if isinstance(feed.examples, Examples):
                    picture, label, weight = feed.examples.example(*example)
                else:
                    picture = feed.examples.picture(*example)
                if feed.examples.labels is None:
                    feed.check_label(label, feed.examples.name(*example))
                labels[i], weights[i] = label, weight
                rng = draws(feed.seed, int(epochs[i]), place)
                contents[i], layouts[i] = _prepare(
                    picture, rng, cropping, under_way is not None
                )
            except ValueError as error:  # Image or label.
                message = str(error)
                if under_way is None:
                    message = feed.examples.name(*example)
                # File names need not be UTF-8.
                broken[i] = os.fsencode(message)
                continue
            if under_way is not None and layouts[i, 0] != PIXELS:
                under_way.add(int(iteration), int(numbers[i]), picture.name)
        iterations = np.full(len(places), iteration)
        where = np.stack([iterations, numbers, places], axis=1)
        # As objects: NumPy's own strings lose zeros at the end.
        data = np.array(contents, object)
        return data, layouts, labels, weights, where, broken

    def _decode_chunk(self, *chunk: Any) -> Any:
        tf = self._tf
        examples = tf.data.Dataset.from_tensor_slices(chunk)
        examples = examples.map(
            self._decode, num_parallel_calls=tf.data.AUTOTUNE
        )
        if self._under_way is None:
            return examples
        # Errors are dropped here and reported by `_finish_arrays`. Only the
        # decoding data set ignores errors: in one that reads files, tf.data
        # would retry a deleted file forever.
        return examples.ignore_errors(log_warning=True)

    def _decode(self, data: Any, layout: Any, *more: Any) -> Any:
        """Decodes, crops, resizes and flips with TensorFlow's operations."""
        tf, cropping = self._tf, self._feed.cropping
        columns = tf.split(layout, list(LAYOUT.values()))
        parts = dict(zip(LAYOUT, columns, strict=True))
        shape = [*cropping.image_size, 3]

        def raw() -> Any:
            pixels = tf.io.decode_raw(data, tf.uint8)
            return tf.reshape(pixels, parts["extent"])

        def jpeg() -> Any:
            image = tf.io.decode_and_crop_jpeg(
                data, parts["decode"], channels=3, dct_method="INTEGER_ACCURATE"
            )
            return tf.slice(image, parts["begin"], parts["extent"])

        def resize(image: Any) -> Any:
            return tf.image.resize(image, parts["size"], cropping.method)

        branches = {
            PIXELS: lambda: resize(raw()),
            JPEG: lambda: resize(jpeg()),
            SMALL_JPEG: lambda: resize(tf.cast(jpeg(), tf.float32)),
        }
        image = tf.switch_case(parts["kind"][0], branches)
        if cropping.crop == "resize_small":
            image = tf.slice(image, parts["corner"], shape)
        image = tf.cast(image, tf.uint8)
        if cropping.training and cropping.flip:
            # Reversing a fixed axis copies rows; for one column it copies
            # everything at once. An axis known only at run time costs 0.07 ms
            # even where nothing is flipped.
            columns = tf.concat([shape[:1], parts["mirror"]], axis=0)
            image = tf.reverse(tf.reshape(image, columns), axis=[1])
        return tf.reshape(image, shape), *more

    def _finish(self, k: Any, batch: Any) -> Any:
        tf, feed = self._tf, self._feed
        order = feed.order
        images, labels, weights, *more = batch
        integers = not feed.options.one_hot and not feed.examples.label_shape
        take, labels, weights = tf.numpy_function(
            self._finish_arrays,
            [k, labels, weights, *more],
            [tf.int64, tf.int32 if integers else tf.float32, tf.float32],
        )
        if feed.skipped is not None:
            images = tf.gather(images, take)
        size = order.shard_batch if order.training or order.pad else None
        # After the check above, which names the file that is missing.
        with tf.control_dependencies([take]):
            shape = [size, *feed.cropping.image_size, 3]
            images = tf.ensure_shape(images, shape)
        labels.set_shape([size] if integers else [size, feed.num_classes])
        weights.set_shape([size])
        if feed.has_weights:
            return images, labels, weights
        return images, labels

    def _finish_arrays(
        self, k: int, *columns: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Finishes the k-th batch of a pass, which leaves the pipeline."""
        labels, weights, where, broken = columns
        order, skipped = self._feed.order, self._feed.skipped
        padding = where[:, 2] == PADDING
        names = [os.fsdecode(name) for name in broken]
        last = bool(k == self._feed.num_batches - 1)
        try:
            if self._under_way:
                size = order.shard_batch
                self._under_way.arrived(where, names, k, size, last)
            done = self._feed.finish(labels, weights, padding, names)
        except ValueError as error:
            # TensorFlow raises it again, behind a page of its own text.
            logging.error("%s", error)
            raise
        step = self._first_step() + int(k)
        self._passes += last and order.training
        if skipped and (last or order.ends_epoch(step)):
            skipped.end_epoch()
        return done


def _prepare(
    picture: decode.Picture | decode.ArrayPicture,
    rng: random.Random,
    cropping: Cropping,
    by_tensorflow: bool,
) -> tuple[bytes, tuple[int, ...]]:
    """Returns the bytes and the layout for TensorFlow's operations."""
    size = cropping.image_size
    window = cropping.window(picture.height, picture.width, rng)
    small = math.prod(window.box[2:]) <= SMALL * math.prod(window.size)
    stretches = cropping.stretches(window)
    y, x, height, width = window.box
    if picture.plain_jpeg and by_tensorflow and not stretches:
        kind, content = SMALL_JPEG if small else JPEG, picture.data
        top, left = max(y - MARGIN, 0), max(x - MARGIN, 0)
        bottom = min(y + height + MARGIN, picture.height)
        right = min(x + width + MARGIN, picture.width)
    else:
        kind, pixels = PIXELS, picture.pixels(window.box)
        if stretches or not small:
            # A chunk of large images would fill the memory. The result equals
            # TensorFlow's to within one grey level.
            result = np.empty((*size, 3), np.uint8)
            decode.crop_and_resize(pixels, window, cropping, result)
            pixels = result
            window = Window((0, 0, *size), size, (0, 0), flip=False)
        content = pixels.tobytes()
        y, x, height, width = window.box
        top, left, bottom, right = y, x, y + height, x + width
    return content, (
        kind, top, left, bottom - top, right - left,
        y - top, x - left, 0, height, width, 3,
        *window.size, *window.corner, 0,
        *_mirror(cropping, window.flip),
    )  # fmt: skip


def _mirror(cropping: Cropping, flip: bool) -> tuple[int, int]:
    width = cropping.image_size[1]
    return (width, 3) if flip else (1, 3 * width)


class _UnderWay:
    """The files being decoded by TensorFlow, whose errors do not name them.

    Images that it refuses are dropped; the missing number then identifies the
    file.
    """

    def __init__(self) -> None:
        # By iteration and number. An iteration that was left early may
        # continue for a while in TensorFlow's threads, beside the next one.
        self._files: dict[int, dict[int, str]] = {}
        self._begun = 0

    def begin(self) -> int:
        """Returns the number of a new iteration."""
        self._begun += 1
        oldest = self._begun - KEPT
        self._files = {k: v for k, v in self._files.items() if k > oldest}
        self._files[self._begun] = {}
        return self._begun

    def add(self, iteration: int, number: int, name: str) -> None:
        if iteration in self._files:
            self._files[iteration][number] = name

    def arrived(
        self, rows: np.ndarray, broken: list[str], k: int, size: int, last: bool
    ) -> None:
        """Raises if an example of a pass's k-th batch is broken or missing.

        Each example has a row (iteration, number, place), and in `broken` an
        error message or ""; `size` is that of all batches but the last.
        """
        for message in filter(None, broken):
            raise ImageError(message)
        iterations, numbers, _ = rows.T
        iteration = iterations[0] if len(iterations) else self._begun
        files = self._files.get(iteration, {})
        for number in numbers.tolist():
            files.pop(number, None)
        count = len(numbers) if last else size
        missing = set(range(k * size, k * size + count)) - set(numbers)
        if last:
            missing |= set(files)
        if missing:
            name = files.get(min(missing), "")
            raise ImageError(
                f"Cannot read the image {name!r}: TensorFlow's decoder "
                "refuses it, its warning says why. Replace or remove the "
                'file, or pass on_error="skip" to leave out such files.'
            )
