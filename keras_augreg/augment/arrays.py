"""Which library computes: Keras's backend, or TensorFlow in `tf.data`.

Inside `tf.data.Dataset.map`, tensors are TensorFlow's whatever the Keras
backend is, and `keras.ops` would not work. So the functions of this package
take a namespace `xp` from `namespace`, with the function names of `keras.ops`.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np


def is_tensorflow(x: Any) -> bool:
    """Whether `x` is a TensorFlow tensor; does not import TensorFlow."""
    return "tensorflow" in sys.modules and _tensorflow().is_tensor(x)


def in_tensorflow_graph(x: Any) -> bool:
    """Whether `x` belongs to a TensorFlow function that is being traced."""
    return is_tensorflow(x) and not _tensorflow().executing_eagerly()


def in_dataset(x: Any) -> bool:
    """Whether `x` belongs to a function that `tf.data` runs on the host."""
    if not is_tensorflow(x):
        return False
    if keras.backend.backend() != "tensorflow":
        return True
    # On the TensorFlow backend, a training step differs only by the name that
    # `tf.data` gives the functions it traces. A wrong guess would cost speed,
    # not change the result.
    graph = _tensorflow().compat.v1.get_default_graph()
    while graph is not None:
        if getattr(graph, "name", "").startswith("Dataset_"):
            return True
        graph = getattr(graph, "outer_graph", None)
    return False


def place(x: Any) -> tuple[bool, str]:
    """(whether `x` is on the host in `tf.data`, the library of its array)."""
    host = in_dataset(x)
    return host, "tensorflow" if host else keras.backend.backend()


def namespace(x: Any) -> Any:
    """The array functions for `x`, under their names in `keras.ops`."""
    return _tensorflow_ops() if is_tensorflow(x) else keras.ops


def soft_labels(
    labels: Any, classes: int, dtype: str = "float32", xp: Any = None
) -> Any:
    """Integer labels (batch,) or (batch, 1), or soft ones, as probabilities.

    With one class, they are probabilities in any shape. `xp` is the namespace
    to compute with; `None` for that of the labels.
    """
    xp = xp or namespace(labels)
    shape = tuple(labels.shape)
    if len(shape) == 1 == classes:
        labels = xp.reshape(labels, (-1, 1))
        shape = (*shape, 1)
    if len(shape) == 2 and shape[1] == classes:
        return xp.cast(labels, dtype)
    if len(shape) == 1 or shape[1:] == (1,):
        labels = xp.cast(xp.reshape(labels, (-1,)), "int32")
        return xp.one_hot(labels, classes, dtype=dtype)
    raise ValueError(
        "Labels must be integers of shape (batch,), or one-hot or soft labels "
        f"of shape (batch, {classes}), the model's classes. Received: "
        f"shape={shape}."
    )


def compiled(function: Callable, library: str) -> Callable:
    """Compiles a function of a library's arrays with XLA; not on PyTorch.

    Keep the result: calling this again compiles again.
    """
    if library == "tensorflow":
        # Traced for each shape, as in JAX: `ops.Lookups` needs a known size.
        tf = _tensorflow()
        return tf.function(function, jit_compile=True, autograph=False)
    if library == "jax":
        import jax

        return jax.jit(function)
    return function


def computed_once(columns: list[Any]) -> list[Any]:
    """Returns the columns behind a barrier so that XLA computes them once.

    On a CPU, XLA fuses an image's draw into the decisions about its pixels
    and draws again for each pixel: 16 images of 224 px took 14 times as long
    under JAX. It drops barriers before fusing, but keeps a sort.
    """
    on_host = isinstance(columns[0], np.ndarray)
    backend = keras.backend.backend()
    if on_host or is_tensorflow(columns[0]) or backend != "jax":
        return columns
    import jax

    table = jax.numpy.stack(columns, axis=1)
    # Along the columns, because the other axis may be split over devices.
    order = jax.lax.broadcasted_iota("int32", table.shape, 1)
    _, table = jax.lax.sort((order, table), dimension=1, num_keys=1)
    return [table[:, i] for i in range(len(columns))]


def fused(function: Callable, x: Any, y: Any, library: str) -> Any:
    """Computes an elementwise `function(x, y)`, float32, in little memory.

    Compilers fuse; on PyTorch, this computes a few examples at a time.
    """
    if library != "torch":
        return function(x, y)
    result = keras.ops.empty(x.shape, "float32")
    for part in zip(*(a.split(8) for a in (result, x, y)), strict=True):
        part[0].copy_(function(*part[1:]))
    return result


def _tensorflow() -> types.ModuleType:
    import tensorflow

    return tensorflow


@functools.cache
def _tensorflow_ops() -> types.SimpleNamespace:
    tf = _tensorflow()

    def shape(x: Any) -> tuple[Any, ...]:
        """Integers where known, otherwise scalar tensors."""
        dynamic = tf.shape(x)
        return tuple(
            dynamic[i] if size is None else size
            for i, size in enumerate(x.shape)
        )

    def take_along_axis(x: Any, indices: Any, axis: int) -> Any:
        if len(x.shape) == 3:
            indices = indices[..., 0]
        return tf.gather(x, indices, axis=axis, batch_dims=1)

    def segment_sum(data: Any, segment_ids: Any, num_segments: Any) -> Any:
        # XLA drops ids out of range; the CPU kernel raises an error.
        kept = tf.where(segment_ids < num_segments, segment_ids, -1)
        return tf.math.unsorted_segment_sum(data, kept, num_segments)

    def map_uint8(function: Callable, xs: Any) -> Any:
        spec = tf.TensorSpec(None, "uint8")
        return tf.map_fn(function, xs, fn_output_signature=spec)

    def swapaxes(x: Any, a: int, b: int) -> Any:
        order = list(range(5))
        order[a], order[b] = b, a
        return tf.transpose(x, order)

    same = (
        "abs cast convert_to_tensor cumsum exp floor maximum minimum one_hot "
        "ones_like reshape roll sigmoid where"
    )
    return types.SimpleNamespace(
        **{name: getattr(tf, name) for name in same.split()},
        arange=lambda n, dtype="int32": tf.range(n, dtype=dtype),
        argmax=functools.partial(tf.argmax, output_type=tf.int32),
        clip=tf.clip_by_value, concatenate=tf.concat, log=tf.math.log,
        max=tf.reduce_max, min=tf.reduce_min, sum=tf.reduce_sum,
        map=map_uint8, segment_sum=segment_sum, shape=shape,
        swapaxes=swapaxes, take=tf.gather, take_along_axis=take_along_axis,
    )  # fmt: skip


@functools.cache
def numpy_ops() -> types.SimpleNamespace:
    """The functions for NumPy's arrays on the host, without any backend."""

    def one_hot(x: Any, classes: int, dtype: str) -> np.ndarray:
        return (x[..., None] == np.arange(classes)).astype(dtype)

    def segment_sum(data: Any, ids: Any, num_segments: int) -> np.ndarray:
        return np.bincount(ids, minlength=num_segments)

    same = (
        "abs argmax clip concatenate cumsum exp floor log max maximum min "
        "minimum ones_like reshape roll shape sum take take_along_axis where"
    )
    return types.SimpleNamespace(
        **{name: getattr(np, name) for name in same.split()},
        arange=lambda n, dtype="int32": np.arange(n, dtype=dtype),
        cast=lambda x, dtype: np.asarray(x).astype(dtype, copy=False),
        one_hot=one_hot,
        segment_sum=segment_sum,
        sigmoid=lambda x: 1 / (1 + np.exp(-x)),
    )
