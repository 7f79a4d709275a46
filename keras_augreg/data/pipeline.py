"""The route on `tf.data`, stage by stage.

    steps of a pass -> examples in order -> file's bytes and plan
      -> decode, crop, resize, flip -> batch -> prefetch -> targets

Everything before decoding is cheap, everything random is drawn from the seed
and an example's place, and the number of the pass is counted where batches
leave: what was prepared in advance does not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_augreg.data.decode import ImageError, Preprocess
from keras_augreg.data.order import PADDING, Order, draws
from keras_augreg.data.sources import Examples
from keras_augreg.data.targets import Targets
from keras_augreg.data.tfds_source import Records

# What `_fetch` hands to `_decode`.
NOTHING, RAW, JPEG = 0, 1, 2
PLAN_SIZE = 14
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

    def next_step() -> np.ndarray:
        return np.int64(first_step + passes * num_batches)

    if isinstance(source, Records):
        examples = source.stream(order, num_batches)
    else:
        examples = _stream(tf, source, order, num_batches)

    def fetch(epoch: Any, place: Any, what: Any, *more: Any) -> Any:
        data, plan, broken = tf.numpy_function(
            lambda *a: _fetch(source, order, preprocess, targets, *a),
            [epoch, place, *what],
            [tf.string, tf.int32, tf.string],
        )
        data.set_shape([])
        plan.set_shape([PLAN_SIZE])
        broken.set_shape([])
        return _decode(tf, data, plan, preprocess), *more, place, broken

    label_shape = source.labels.shape[1:]
    int_labels = not targets.one_hot and not label_shape

    def finish(k: Any, batch: Any) -> Any:
        images, labels, weights, place, broken = batch

        def on_arrays(k: Any, *arrays: Any) -> Any:
            nonlocal passes
            labels, weights, place, broken = arrays
            names = [name.decode() for name in broken]
            done = targets(labels, weights, place == PADDING, names)
            if k == num_batches - 1:
                passes += order.training
                if targets.skipped is not None:
                    targets.skipped.end_pass()
            return done

        take, labels, weights = tf.numpy_function(
            on_arrays,
            [k, labels, weights, place, broken],
            [tf.int64, tf.int32 if int_labels else tf.float32, tf.float32],
        )
        if targets.skipped is not None:
            images = tf.gather(images, take)
        size = images.shape[0]
        vector = [] if int_labels else [targets.num_classes]
        labels.set_shape([size, *vector])
        weights.set_shape([size])
        if targets.has_weights:
            return images, labels, weights
        return images, labels

    dataset = tf.data.Dataset.range(1)
    dataset = dataset.map(lambda _: tf.numpy_function(next_step, [], tf.int64))
    dataset = dataset.flat_map(examples)
    dataset = dataset.map(fetch, num_parallel_calls=tf.data.AUTOTUNE)
    dataset = dataset.batch(
        order.host_batch, drop_remainder=order.training or order.pad
    )
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


def _stream(
    tf: Any, source: Examples, order: Order, num_batches: int
) -> Callable[[Any], Any]:
    """As `Records.stream`: (epoch, place, (number,), label, weight)."""

    def of_step(step: Any) -> Any:
        batch = order.batch(int(step))
        places = batch.start + np.arange(len(batch.numbers))
        places[batch.numbers == PADDING] = PADDING
        return (
            np.full(len(places), batch.epoch, np.int64),
            places,
            batch.numbers,
            source.labels[batch.numbers],
            source.weights[batch.numbers],
        )

    def examples(step: Any) -> Any:
        columns = tf.numpy_function(
            of_step,
            [step],
            [tf.int64, tf.int64, tf.int64, tf.int64, tf.float32],
        )
        for column in columns:
            column.set_shape([None])
        epoch, place, number, label, weight = columns
        return tf.data.Dataset.from_tensor_slices(
            (epoch, place, (number,), label, weight)
        )

    def of_pass(step: Any) -> Any:
        steps = tf.data.Dataset.range(step, step + num_batches)
        return steps.flat_map(examples)

    return of_pass


def _fetch(
    source: Examples | Records,
    order: Order,
    preprocess: Preprocess,
    targets: Targets,
    epoch: int,
    place: int,
    *what: Any,
) -> tuple[Any, np.ndarray, str]:
    """Reads an example and plans its crop.

    Returns:
        The bytes of a JPEG file, or of decoded pixels; the plan; the name of
        the example if it is broken.
    """
    if place == PADDING:
        return b"", np.zeros(PLAN_SIZE, np.int32), ""
    try:
        picture = source.picture(*what)
        rng = draws(order.seed, int(epoch), int(place))
        plan = preprocess.plan(picture.height, picture.width, rng)
        top, left, height, width = plan.box
        if picture.plain_jpeg:
            y, x = max(top - MARGIN, 0), max(left - MARGIN, 0)
            window = (
                y,
                x,
                min(top + height + MARGIN, picture.height) - y,
                min(left + width + MARGIN, picture.width) - x,
            )
            kind, data = JPEG, picture.data
        else:
            y, x, window = top, left, plan.box
            pixels = picture.pixels(plan.box)
            kind, data = RAW, np.ascontiguousarray(pixels[..., :3]).tobytes()
    except ImageError:
        if targets.skipped is None:
            raise
        return b"", np.zeros(PLAN_SIZE, np.int32), source.name(*what)
    inner = (top - y, left - x, height, width)
    numbers = [kind, *window, *inner, *plan.size, *plan.corner, plan.flip]
    # As an object: NumPy's own strings lose zeros at the end.
    return np.array(data, object), np.array(numbers, np.int32), ""


def _decode(tf: Any, data: Any, plan: Any, preprocess: Preprocess) -> Any:
    """Follows a plan with TensorFlow's operations."""
    height, width = preprocess.image_size

    def raw() -> Any:
        pixels = tf.io.decode_raw(data, tf.uint8)
        return tf.reshape(pixels, [plan[3], plan[4], 3])

    def jpeg() -> Any:
        return tf.io.decode_and_crop_jpeg(
            data, plan[1:5], channels=3, dct_method="INTEGER_ACCURATE"
        )

    def image() -> Any:
        image = tf.cond(plan[0] == JPEG, jpeg, raw)
        y, x, h, w = (plan[i] for i in range(5, 9))
        image = image[y : y + h, x : x + w]
        image = tf.image.resize(image, plan[9:11], preprocess.method)
        image = tf.cast(image, tf.uint8)
        y, x = plan[11], plan[12]
        image = image[y : y + height, x : x + width]
        return tf.cond(plan[13] == 1, lambda: image[:, ::-1], lambda: image)

    def nothing() -> Any:
        return tf.zeros([height, width, 3], tf.uint8)

    result = tf.cond(plan[0] == NOTHING, nothing, image)
    result.set_shape([height, width, 3])
    return result
