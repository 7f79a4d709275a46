"""From pixels to the range of values that the weights were trained on."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import warn

# Images of a batch that are looked at to find its range of values.
_SAMPLE = 4


def preprocess_input(x: Any) -> Any:
    """Maps pixel values from [0, 255] to [-1, 1], as the release was trained.

    That is `x / 127.5 - 1`. Models do this themselves; only those built with
    `include_preprocessing=False` take the result of this function.

    Args:
        x: Images of any shape with values from 0 to 255, of an integer or
            floating dtype: a NumPy array, a tensor of the backend, a
            `keras.KerasTensor` or, on any backend, a TensorFlow tensor.

    Returns:
        The scaled images, of the same kind. Integers become float32;
        a floating dtype is kept.

    Raises:
        ValueError: If the dtype is neither an integer nor a floating one.

    Example:
    >>> import keras_augreg
    >>> import numpy as np
    >>> keras_augreg.preprocess_input(np.array([0, 51, 255], "uint8"))
    array([-1. , -0.6,  1. ], dtype=float32)
    """
    # A TensorFlow tensor can only be one where TensorFlow is loaded already.
    tf = sys.modules.get("tensorflow")
    if tf is not None and tf.is_tensor(x):
        cast = tf.cast
    elif keras.ops.is_tensor(x) or isinstance(x, keras.KerasTensor):
        cast = keras.ops.cast
    else:
        x = np.asarray(x)
        cast = np.ndarray.astype
    dtype = getattr(x.dtype, "name", str(x.dtype)).removeprefix("torch.")
    if "int" in dtype:
        x = cast(x, "float32")
    elif "float" not in dtype:
        raise ValueError(
            "preprocess_input expects images of an integer or floating dtype "
            f"with values from 0 to 255, but received dtype {dtype}."
        )
    return x / 127.5 - 1


@keras.saving.register_keras_serializable(package="keras_augreg")
class Preprocessing(keras.layers.Layer):
    """`preprocess_input` as the first layer of a model.

    It computes in float32 whatever the model's dtype policy is: bfloat16
    would round the scaled pixels.
    """

    def __init__(self, dtype: Any = "float32", **kwargs: Any) -> None:
        super().__init__(dtype=dtype, **kwargs)

    def call(self, x: Any) -> Any:
        return preprocess_input(keras.ops.cast(x, self.compute_dtype))

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape


def check_shape(
    expected: tuple[int, int, int], stride: int | None, images: Any
) -> None:
    """Checks the shape of a batch, before a compiled step gets it.

    With a `stride`, it may have any size that the stride divides.
    """
    shape = getattr(images, "shape", None)
    if shape is None or getattr(shape, "rank", 0) is None:
        return
    shape = tuple(shape)
    height, width, channels = expected
    if len(shape) == 4 and all(
        n is None or n == m or (stride and axis < 2 and n and not n % stride)
        for axis, (n, m) in enumerate(zip(shape[1:], expected, strict=True))
    ):
        return
    if len(shape) == 3:
        hint = "Add the axis of images, images[None]."
    elif len(shape) != 4:
        hint = "Expected are four axes."
    elif shape[3] != channels and shape[1] == channels:
        hint = (
            "Put the channels last: keras.ops.transpose(images, (0, 2, 3, 1))."
        )
    elif shape[3] == 1:
        hint = f"Repeat it: keras.ops.repeat(images, {channels}, axis=-1)."
    elif shape[3] != channels:
        hint = f"This model takes {channels} channels."
        if channels == 3:
            hint = "Make them RGB."
    elif stride:
        hint = f"Pad or resize them: {stride} divides height and width."
    else:
        hint = (
            "Resize them, or build the model with "
            f"input_shape={(*shape[1:3], channels)} or dynamic_image_size=True."
        )
    sides = "height, width" if stride else f"{height}, {width}"
    raise ValueError(
        f"Expected images of shape (batch, {sides}, {channels}). Received: "
        f"shape={shape}. {hint}"
    )


def first_images(data: Any, check: Callable[[Any], None]) -> Any:
    """Calls `check` on the first images; use the data that it returns.

    All images of an array or tensor; the first batch of a generator or
    `PyDataset`; the first example of a PyTorch `DataLoader`, with a batch
    axis; a `tf.data.Dataset`'s `tf.TensorSpec`, then, if they are floats, some
    images of its first batch, as it passes.
    """
    tf, torch = sys.modules.get("tensorflow"), sys.modules.get("torch")
    if isinstance(data, types.GeneratorType):
        for first in data:
            check(images_of(first))
            return (batch for batch in itertools.chain([first], data))
    elif isinstance(data, keras.utils.PyDataset):
        # Those of `keras_augreg.data` say that they yield integers.
        if getattr(data, "image_dtype", None) != "uint8":
            with same_draws():
                check(images_of(data[0]))
    elif tf is not None and isinstance(data, tf.data.Dataset):
        return _first_of_dataset(tf, data, check)
    elif torch is not None and isinstance(data, torch.utils.data.DataLoader):
        examples = data.dataset
        if not isinstance(examples, torch.utils.data.IterableDataset):
            with same_draws():
                image = images_of(examples[0])
            check(image[None] if hasattr(image, "shape") else image)
    else:
        check(only(data))
    return data


def only(x: Any) -> Any:
    """The tensor in a list or dict of one, as Keras accepts it; else `x`."""
    if isinstance(x, (list, tuple, dict)) and len(x) == 1:
        (x,) = x.values() if isinstance(x, dict) else x
    return x


def images_of(batch: Any) -> Any:
    """The images of (images, labels, ...)."""
    return only(batch[0] if isinstance(batch, (tuple, list)) else batch)


def warn_if_scaled(
    images: Any,
    taker: str = "this model",
    otherwise: str = "; or build the model with include_preprocessing=False, "
    "which takes floats in [-1, 1]",
) -> None:
    """Warns if images for what scales them seem to be scaled already.

    Looks at a few images, if they are floats with values: not inside a
    compiled function. Constant images prove nothing.
    """
    images = _sample(images)
    if images is None or not images.size:
        return
    low, high = images.min(), images.max()
    if -1 <= low < high <= 1:
        warn(
            f"The images are floats from {low:.3g} to {high:.3g}, but {taker} "
            "takes pixels from 0 to 255 and scales them itself. Pass pixels, "
            "without `preprocess_input`, `Rescaling` or a division by 255"
            f"{otherwise}."
        )


def _sample(x: Any) -> np.ndarray | None:
    """Some images of a batch, `None` unless they are floats with values."""
    dtype = str(getattr(x, "dtype", ""))
    if "float" not in dtype or isinstance(x, keras.KerasTensor):
        return None
    if isinstance(x, np.ndarray):
        return x[:_SAMPLE]
    jax, torch = sys.modules.get("jax"), sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or type(x) not in (torch.Tensor, torch.nn.Parameter)
            or x.is_meta
        ):
            return None
        return x[:_SAMPLE].detach().cpu().float().numpy()
    if jax is not None and isinstance(x, jax.Array):
        if isinstance(x, jax.core.Tracer) or not x.is_fully_addressable:
            return None
    elif not hasattr(x, "numpy"):  # a symbolic tensor of TensorFlow
        return None
    return np.asarray(x[:_SAMPLE]).astype("float32")


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Reading one example in advance must not change later random numbers."""
    torch = sys.modules.get("torch")
    states = random.getstate(), np.random.get_state()
    forked = torch.random.fork_rng([]) if torch else contextlib.nullcontext()
    with forked:
        yield
    random.setstate(states[0])
    np.random.set_state(states[1])


def _first_of_dataset(
    tf: Any, dataset: Any, check: Callable[[Any], None]
) -> Any:
    """The same data set, whose first batch is checked when it passes.

    Iterating over it in advance would fill its shuffle buffers, and draw other
    orders for the passes that follow.
    """
    images = images_of(dataset.element_spec)
    check(images)
    if not isinstance(images, tf.TensorSpec) or not images.dtype.is_floating:
        return dataset
    looked = False

    def look(images: np.ndarray) -> np.int32:
        nonlocal looked
        if not looked:
            looked = True
            check(images.astype("float32"))
        return np.int32(0)

    def watch(number: Any, batch: Any) -> Any:
        tf.cond(
            number == 0,
            lambda: tf.numpy_function(
                look, [images_of(batch)[:_SAMPLE]], "int32"
            ),
            lambda: 0,
        )
        return batch

    return dataset.enumerate().map(watch)
