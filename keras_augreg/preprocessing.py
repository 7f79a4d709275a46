"""From bytes to the range of values that the models take."""

from __future__ import annotations

import sys
from typing import Any

import keras
import numpy as np


def preprocess_input(x: Any) -> Any:
    """Maps pixel values from [0, 255] to [-1, 1], as the release was trained.

    That is `x / 127.5 - 1`. Models scale integer images on their own in
    `fit`, `evaluate` and `predict`; a float image that they should scale has
    to go through this function, once: it cannot tell a scaled image from a
    very dark one.

    It works on NumPy arrays, tensors of the backend and, whatever the backend
    is, on TensorFlow tensors, thus inside `tf.data.Dataset.map`.

    Args:
        x: Images of any shape with values from 0 to 255, of an integer or
            floating dtype: an array, a tensor or a `keras.KerasTensor`.

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
