"""The route on `tf.data`, stage by stage.

    steps of a pass -> examples in order -> file's bytes and plan
      -> decode, crop, resize, flip -> batch -> prefetch -> targets

Everything before decoding is cheap, everything random is drawn from the seed
and an example's place, and the number of the pass is counted where batches
leave: what was prepared in advance does not count.
"""

from __future__ import annotations

import functools
import math
import os
from typing import Any

import keras
import numpy as np

from keras_augreg.data.decode import (
    ImageError,
    Plan,
    Preprocess,
    crop_and_resize,
)
from keras_augreg.data.order import PADDING, Order, draws
from keras_augreg.data.sources import Examples
from keras_augreg.data.targets import Targets
from keras_augreg.data.tfds import Records

# What `_fetch` hands to `_decode`, one int32 after the other: the kind of data,
# the window to decode, the box in it (with the channels, as `tf.slice` has it),
# the size to resize to, the corner of the final crop (with the channels),
# (columns, values of a column) to mirror the result in: one column changes
# nothing.
PLAN = {"kind": 1, "window": 4, "begin": 3, "extent": 3, "size": 2,
        "corner": 3, "mirror": 2}  # fmt: skip
PIXELS, JPEG, SMALL_JPEG = range(3)
# TensorFlow resizes floats twice as fast as integers: boxes of up to this many
# times the result's pixels are made floats before. Of larger ones, the copy
# costs more than it saves (docs/performance.md).
SMALL = 4
PLAN_SIZE = sum(PLAN.values())
# What an example without an image becomes: one black pixel, made larger.
NOTHING = (0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 3)
# Examples that one call from `tf.data` into Python reads, one after the other.
# With 16, the calls take 5% of the time (docs/performance.md); with more, the
# first batch comes later and more files lie in memory.
CHUNK = 64
# Iterations at once whose files' names are remembered.
KEPT = 4
# Chroma of neighbouring pixels changes the edge of what is decoded: one more
# pixel on each side makes the cut exact.
MARGIN = 1


def tensorflow() -> Any:
    """Imports TensorFlow; under another backend, keeps it off the GPUs."""
    import tensorflow as tf

    visible = tf.config.get_visible_devices("GPU")
    if visible and keras.backend.backend() != "tensorflow":
        tf.config.set_visible_devices([], "GPU")
    return tf


def build(
    source: Examples | Records,
    order: Order,
    preprocess: Preprocess,
    targets: Targets,
    first_step: int,
    num_batches: int,
) -> Any:
    """Builds the data set.

    Args:
        source: What to read.
        order: Which examples when.
        preprocess: Which crop.
        targets: What comes after the images of a batch.
        first_step: The step of the run that the first batch belongs to.
        num_batches: How many batches a pass has.

    Returns:
        A `tf.data.Dataset` of (images, labels) or (images, labels, weights).
        The pass after a complete one gets the steps after it.
    """
    tf = tensorflow()
    passes = 0
    under_way = _UnderWay() if targets.skipped is None else None
    if isinstance(source, Records):
        # Once, for its cache to last from pass to pass.
        stream = source.stream(order, num_batches)
    else:
        stream = functools.partial(_examples, tf, source, order, num_batches)

    def begin() -> tuple[np.ndarray, np.ndarray]:
        iteration = under_way.begin() if under_way else 0
        step = first_step + passes * num_batches
        return np.array(step), np.array(iteration)

    def chunks(step: Any, iteration: Any) -> Any:
        return (
            stream(step)
            .batch(CHUNK)
            .map(lambda number, example: (iteration, number, *example))
        )

    def fetch(
        iteration: Any,
        number: Any,
        epoch: Any,
        place: Any,
        what: Any,
        *more: Any,
    ) -> Any:
        data, plan, place, broken = tf.numpy_function(
            lambda *a: _fetch(source, order, preprocess, under_way, *a),
            [iteration, number, epoch, place, *what],
            [tf.string, tf.int32, tf.int64, tf.string],
        )
        data.set_shape([None])
        plan.set_shape([None, PLAN_SIZE])
        place.set_shape([None, 3])
        broken.set_shape([None])
        return data, plan, *more, place, broken

    def decode(data: Any, plan: Any, *more: Any) -> Any:
        return _decode(tf, data, plan, preprocess), *more

    def decoded(*chunk: Any) -> Any:
        examples = tf.data.Dataset.from_tensor_slices(chunk)
        examples = examples.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        if under_way is None:
            return examples
        # `finish` raises. Of this dataset, and not of one that reads: tf.data
        # would try a file that has been deleted for ever.
        return examples.ignore_errors(log_warning=True)

    label_shape = source.labels.shape[1:]
    int_labels = not targets.one_hot and not label_shape

    def finish(k: Any, batch: Any) -> Any:
        images, labels, weights, *more = batch

        def on_arrays(k: Any, *arrays: Any) -> Any:
            nonlocal passes
            labels, weights, place, broken = arrays
            iteration, number, place = place.T
            names = [os.fsdecode(name) for name in broken]
            last = k == num_batches - 1
            if under_way:
                under_way.arrived(
                    iteration, number, names, k, order.host_batch, last
                )
            done = targets(labels, weights, place == PADDING, names)
            step = first_step + passes * num_batches + int(k)
            passes += last and order.training
            if targets.skipped and (last or order.ends_epoch(step)):
                targets.skipped.end_epoch()
            return done

        take, labels, weights = tf.numpy_function(
            on_arrays,
            [k, labels, weights, *more],
            [tf.int64, tf.int32 if int_labels else tf.float32, tf.float32],
        )
        if targets.skipped is not None:
            images = tf.gather(images, take)
        size = order.host_batch if order.training or order.pad else None
        # After the check above, which knows the name of what is missing.
        with tf.control_dependencies([take]):
            images = tf.ensure_shape(images, [size, *preprocess.image_size, 3])
        vector = [] if int_labels else [targets.num_classes]
        labels.set_shape([size, *vector])
        weights.set_shape([size])
        if targets.has_weights:
            return images, labels, weights
        return images, labels

    dataset = tf.data.Dataset.range(1)
    dataset = dataset.map(
        lambda _: tf.numpy_function(begin, [], (tf.int64, tf.int64))
    )
    dataset = dataset.flat_map(chunks)
    dataset = dataset.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)
    # One chunk after the other; while the last images of one are decoded, the
    # next one is begun.
    dataset = dataset.interleave(
        decoded,
        cycle_length=2,
        block_length=CHUNK,
        num_parallel_calls=2,
        deterministic=True,
    )
    dataset = dataset.batch(order.host_batch)
    if under_way is not None:
        # In the place of a batch that has lost all of its examples.
        nothing = tf.nest.map_structure(
            lambda spec: tf.zeros([0, *spec.shape[1:]], spec.dtype),
            dataset.element_spec,
        )
        dataset = dataset.concatenate(
            tf.data.Dataset.from_tensors(nothing)
        ).take(num_batches)
    dataset = dataset.prefetch(tf.data.AUTOTUNE)
    dataset = dataset.enumerate().map(finish)
    dataset = dataset.apply(
        tf.data.experimental.assert_cardinality(num_batches)
    )
    options = tf.data.Options()
    options.deterministic = True
    # Hosts have their slices already.
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    # `finish` counts what leaves.
    options.experimental_optimization.inject_prefetch = False
    return dataset.with_options(options)


def _examples(
    tf: Any, source: Examples, order: Order, num_batches: int, first: Any
) -> Any:
    """As what `Records.stream` returns."""

    def of_step(step: Any, first: Any) -> Any:
        batch = order.batch(int(step))
        number = np.arange(len(batch.numbers))
        place = batch.start + number
        place[batch.numbers == PADDING] = PADDING
        return (
            (step - first) * order.host_batch + number,
            np.full(len(place), batch.epoch, np.int64),
            place,
            batch.numbers,
            source.labels[batch.numbers],
            source.weights[batch.numbers],
        )

    def examples(step: Any) -> Any:
        columns = tf.numpy_function(
            of_step, [step, first], [tf.int64] * 5 + [tf.float32]
        )
        for column in columns:
            column.set_shape([None])
        number, epoch, place, example, label, weight = columns
        return tf.data.Dataset.from_tensor_slices(
            (number, (epoch, place, (example,), label, weight))
        )

    return tf.data.Dataset.range(first, first + num_batches).flat_map(examples)


class _UnderWay:
    """Files whose decoder is TensorFlow's, which does not know their names.

    What it refuses is dropped; that a number is missing in what arrives then
    tells which file it was.
    """

    def __init__(self) -> None:
        # By iteration and number. An iteration that was left early may go on
        # for a while in TensorFlow's threads, beside the next one.
        self._files: dict[int, dict[int, str]] = {}
        self._begun = 0

    def begin(self) -> int:
        """Returns the number of a new iteration."""
        self._begun += 1
        self._files = {
            k: v for k, v in self._files.items() if k > self._begun - KEPT
        }
        self._files[self._begun] = {}
        return self._begun

    def add(self, iteration: int, number: int, name: str) -> None:
        """Notes the file of an example."""
        if iteration in self._files:
            self._files[iteration][number] = name

    def arrived(
        self,
        iterations: np.ndarray,
        numbers: np.ndarray,
        broken: list[str],
        k: int,
        size: int,
        last: bool,
    ) -> None:
        """Raises if an example of a batch is broken or missing.

        Args:
            iterations: From `begin`, for each example of the batch.
            numbers: Of the examples.
            broken: What is wrong with each of them, "" for nothing.
            k: The batch's number in the pass.
            size: How many examples a batch has; the last one may have fewer.
            last: Whether it is the last batch of the pass.

        Raises:
            ImageError: It names the file.
        """
        for message in filter(None, broken):
            raise ImageError(message)
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


def _fetch(
    source: Examples | Records,
    order: Order,
    preprocess: Preprocess,
    under_way: _UnderWay | None,
    iteration: int,
    numbers_in_pass: np.ndarray,
    epochs: np.ndarray,
    places: np.ndarray,
    *what: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Reads examples and plans their crops.

    Returns:
        The bytes of JPEG files, of other files their pixels; what `_decode` has
        to know; (iteration, number, place) of each; "" or, of examples that are
        broken, their names if `under_way` is `None`, else error messages.
    """
    contents = [b"\0\0\0"] * len(places)
    broken = np.full(len(places), b"", object)
    numbers = np.zeros((len(places), PLAN_SIZE), np.int32)
    numbers[:, : len(NOTHING)] = NOTHING
    size = preprocess.image_size
    numbers[:, len(NOTHING) : len(NOTHING) + 2] = size
    mirrored, as_it_is = (size[1], 3), (1, 3 * size[1])
    numbers[:, -2:] = as_it_is
    for i, place in enumerate(places.tolist()):
        if place == PADDING:
            continue
        example = [column[i] for column in what]
        try:
            picture = source.picture(*example)
            rng = draws(order.seed, int(epochs[i]), place)
            plan = preprocess.plan(picture.height, picture.width, rng)
            small = math.prod(plan.box[2:]) <= SMALL * math.prod(plan.size)
            stretches = preprocess.stretches(plan)
            # What TensorFlow's decoder refuses cannot be left out, so that
            # Python decodes where it should be.
            by_tensorflow = (
                picture.plain_jpeg and under_way is not None and not stretches
            )
            if not by_tensorflow:
                kind, pixels = PIXELS, picture.pixels(plan.box)
                if stretches or not small:
                    # A chunk of large pictures would fill the memory. The
                    # result is TensorFlow's to within one grey level.
                    result = np.empty((*size, 3), np.uint8)
                    crop_and_resize(pixels, plan, preprocess, result)
                    pixels = result
                    plan = Plan((0, 0, *size), size, (0, 0), flip=False)
                contents[i] = pixels.tobytes()
        except ImageError as error:
            skip = under_way is None
            message = source.name(*example) if skip else str(error)
            # File names may hold what is no UTF-8.
            broken[i] = os.fsencode(message)
            continue
        y, x, height, width = plan.box
        top, left, bottom, right = y, x, y + height, x + width
        if under_way and by_tensorflow:
            kind, contents[i] = SMALL_JPEG if small else JPEG, picture.data
            number = int(numbers_in_pass[i])
            under_way.add(int(iteration), number, picture.name)
            top, left = max(y - MARGIN, 0), max(x - MARGIN, 0)
            bottom = min(bottom + MARGIN, picture.height)
            right = min(right + MARGIN, picture.width)
        numbers[i] = (
            kind, top, left, bottom - top, right - left,
            y - top, x - left, 0, height, width, 3,
            *plan.size, *plan.corner, 0,
            *(mirrored if plan.flip else as_it_is),
        )  # fmt: skip
    # As objects: NumPy's own strings lose zeros at the end.
    where = np.stack(
        [np.full(len(places), iteration), numbers_in_pass, places], axis=1
    )
    return np.array(contents, object), numbers, where, broken


def _decode(tf: Any, data: Any, numbers: Any, preprocess: Preprocess) -> Any:
    """Follows a plan with TensorFlow's operations."""
    plan = dict(zip(PLAN, tf.split(numbers, list(PLAN.values())), strict=True))
    shape = [*preprocess.image_size, 3]

    def raw() -> Any:
        return tf.reshape(tf.io.decode_raw(data, tf.uint8), plan["extent"])

    def jpeg() -> Any:
        image = tf.io.decode_and_crop_jpeg(
            data, plan["window"], channels=3, dct_method="INTEGER_ACCURATE"
        )
        return tf.slice(image, plan["begin"], plan["extent"])

    def resize(image: Any) -> Any:
        return tf.image.resize(image, plan["size"], preprocess.method)

    branches = {
        PIXELS: lambda: resize(raw()),
        JPEG: lambda: resize(jpeg()),
        SMALL_JPEG: lambda: resize(tf.cast(jpeg(), tf.float32)),
    }
    image = tf.switch_case(plan["kind"][0], branches)
    if preprocess.crop == "resize_small":
        image = tf.slice(image, plan["corner"], shape)
    image = tf.cast(image, tf.uint8)
    if preprocess.training and preprocess.flip:
        # One fixed axis is reversed by copying rows, of one column at once.
        # Axes that are known only now take 0.07 ms even where none is.
        columns = tf.concat([shape[:1], plan["mirror"]], axis=0)
        image = tf.reverse(tf.reshape(image, columns), axis=[1])
    return tf.reshape(image, shape)
