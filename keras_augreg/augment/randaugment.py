"""RandAugment as the AugReg study used it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_augreg.augment import arrays, draws, ops
from keras_augreg.augment.base import AugmentationLayer

# On the device, images are augmented in chunks of about 32 at 224 x 224
# pixels, which bounds the memory of intermediate results.
_CHUNK_PIXELS = 32 * 224 * 224

# Calls a function for every number below another.
Run = Callable[[Callable[[int], None], int], None]


@keras.saving.register_keras_serializable(package="keras_augreg")
class RandAugment(AugmentationLayer):
    """`num_layers` random operations on each image, as in the AugReg study.

    For each image and layer, one of the 16 operations of `apply_op` is drawn
    uniformly and applied. Rotate, Shear* and Translate* draw a sign, Cutout
    the pixel of its centre; nothing else is random (source:
    `pp/archive/autoaugment.py` of google-research/big_vision). The
    operations compute the same bytes as the original.

    Works eagerly and inside a compiled training step on JAX, TensorFlow and
    PyTorch, without a loop over images and in chunks of bounded memory; and
    inside `tf.data.Dataset.map` on any backend, where it computes only the
    operations drawn for each image. All give the same bytes for the same seed,
    step and position in the batch.

    Args:
        num_layers: Operations per image, at least 0. The study used 2 (from
            scratch 4, too).
        magnitude: Their strength, in [0, 20]. The study used 0, 10, 15, 20;
            magnitude 0 is not the identity.
        seed: Integer in [0, 2^31); equal seeds draw equally. `None` takes one
            from Keras's global seed.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        images: uint8 or float (batch, height, width, 3), values in [0, 255],
            sides below 32,768 pixels. Floats are rounded to integers first.
        step: Integer scalar, traced or not: the number of this call. Equal
            steps draw equally, so a resumed run draws what the uninterrupted
            run would have drawn. `None` counts the calls from 0. A parallel
            `map` counts in no fixed order; where that matters, number the
            batches: `dataset.enumerate(first_step).map(lambda step, images:
            layer(images, step=step), tf.data.AUTOTUNE)`.
        training: With `False`, images are returned unchanged.

    Returns:
        The images, with their shape and dtype unchanged.

    Raises:
        ValueError: `num_layers`, `magnitude`, `seed` or the images' shape or
            values are not as above.
        TypeError: The images' dtype is neither uint8 nor float.

    Example:
    >>> layer = keras_augreg.augment.RandAugment(2, 15, seed=0)
    >>> images = np.zeros((8, 224, 224, 3), "uint8")
    >>> augmented = layer(images)
    >>> dataset = tf.data.Dataset.from_tensors(images).map(layer)
    """

    check = staticmethod(ops.check_images)

    def __init__(
        self,
        num_layers: int = 2,
        magnitude: float = 15,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if num_layers < 0:
            raise ValueError(
                f"`num_layers` must be at least 0. Received: {num_layers}."
            )
        ops.check_magnitude(magnitude)
        self.num_layers = num_layers
        self.magnitude = magnitude

    def call(self, images: Any, step: Any = None, training: bool = True) -> Any:
        if not training:
            return images
        key = self._key(images, step)
        host, library = arrays.place(images)
        augment = _compiled(library, host, self.num_layers, self.magnitude)
        xp = arrays.namespace(images)
        return xp.cast(augment(ops.to_uint8(xp, images), *key), images.dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape

    def compute_output_spec(self, images: Any, *_: Any, **__: Any) -> Any:
        return keras.KerasTensor(images.shape, dtype=images.dtype)


@functools.cache
def _compiled(
    library: str, host: bool, num_layers: int, magnitude: float
) -> Callable:
    def augment(images: Any, *key: Any) -> Any:
        return randaugment(images, key, num_layers, magnitude, host)

    return arrays.compiled(augment, library)


def randaugment(
    images: Any, key: tuple, num_layers: int, magnitude: float, host: bool
) -> Any:
    """RandAugment of uint8 images with the draws of a (seed, step) key.

    On the host, it branches for each image (in TensorFlow) instead of
    computing every operation for the whole batch.
    """
    xp = arrays.namespace(images)
    n, height, width, _ = xp.shape(images)
    choices = [
        draw(xp, key, n, height, width, layer) for layer in range(num_layers)
    ]
    lookups = ops.lookups(magnitude, height, width)
    if host:
        return ops.apply_each(images, choices, lookups)
    return _apply_in_chunks(xp, images, choices, lookups)


def augment_numpy(
    images: np.ndarray, key: tuple, num_layers: int, magnitude: float, run: Run
) -> None:
    """Overwrites NumPy's images with `randaugment`'s results."""
    n, height, width, _ = images.shape
    lookups = ops.lookups(magnitude, height, width)
    choices = [
        np.stack(draw(arrays.numpy_ops(), key, n, height, width, layer), axis=1)
        for layer in range(num_layers)
    ]

    def augment(i: int) -> None:
        image = images[i]
        for choice in choices:
            image = ops.apply_numpy(image, tuple(choice[i].tolist()), lookups)
        images[i] = image

    run(augment, n)


def draw(
    xp: Any, key: tuple[Any, ...], n: int, height: int, width: int, layer: int
) -> ops.Choice:
    """Draws what one layer does to each of `n` images."""
    index = xp.arange(n)
    operation, sign = draws.threefry(key, (index, index * 0 + 2 * layer))
    row, column = draws.threefry(key, (index, index * 0 + 2 * layer + 1))
    which = [draws.top_bits(operation, 4), draws.top_bits(sign, 1)]
    center = [draws.below(row, height), draws.below(column, width)]
    return ops.Choice(*arrays.computed_once(which + center))


def _apply_in_chunks(
    xp: Any, images: Any, choices: list[ops.Choice], lookups: ops.Lookups
) -> Any:
    """`ops.apply_all` for each layer, some images at a time."""

    def apply(images: Any, choices: list[ops.Choice]) -> Any:
        for choice in choices:
            images = ops.apply_all(xp, images, choice, lookups)
        return images

    n, height, width, channels = xp.shape(images)
    most = max(1, _CHUNK_PIXELS // (height * width))
    if isinstance(n, int) and n <= most:
        return apply(images, choices)
    count = -(-n // most)
    size = -(-n // count)

    # Chunk i holds images i, i + count, ...: if the batch is split over
    # devices, each device has its part of every chunk.
    def split(x: Any) -> Any:
        x = xp.concatenate((x, x[: count * size - n]), axis=0)
        return xp.reshape(x, (size, count, *x.shape[1:]))

    parts = split(images)
    split_choices = [ops.Choice(*map(split, choice)) for choice in choices]

    def chunk(i: Any) -> Any:
        def taken(x: Any) -> Any:
            return xp.take(x, i, axis=1)

        some = [ops.Choice(*map(taken, choice)) for choice in split_choices]
        return apply(taken(parts), some)

    chunks = xp.map(chunk, xp.arange(count))
    shape = (count * size, height, width, channels)
    return xp.reshape(xp.swapaxes(chunks, 0, 1), shape)[:n]
