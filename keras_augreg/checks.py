"""Checks of arguments and labels; warnings at the line of the user."""

from __future__ import annotations

import importlib.util
import pathlib
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

# Files whose lines a warning does not point at: this package's and Keras's.
_INTERNAL = (str(pathlib.Path(__file__).parent), "/keras/src/", "contextlib.py")


def warn(message: str) -> None:
    """Warns at the line outside this package that led here."""
    level, frame = 1, sys._getframe()
    while frame.f_back and any(
        part in frame.f_code.co_filename for part in _INTERNAL
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)


# Arguments of timm, KerasHub, torchvision and transformers -> ours.
_MEANT = {
    "drop_path_rate": "stochastic_depth",
    "drop_rate": "dropout",
    "dropout_rate": "dropout",
    "global_pool": "pooling",
    "image_shape": "input_shape",
    "image_size": "input_shape",
    "img_size": "input_shape",
    "input_size": "input_shape",
    "channels": "input_shape",
    "in_chans": "input_shape",
    "num_channels": "input_shape",
    "dynamic_img_size": "dynamic_image_size",
    "n_classes": "classes",
    "num_class": "classes",
    "num_classes": "classes",
    "num_labels": "classes",
    "pretrained": "weights",
}


def check_argument_names(function: str, names: Iterable[str]) -> None:
    """Raises a `TypeError` that says what another library's argument is here.

    Raises:
        TypeError: If a name is an argument of another library.
    """
    for name in _MEANT.keys() & set(names):
        raise TypeError(
            f"{function}() has no argument {name!r}. Here it is called "
            f"{_MEANT[name]!r}."
        )


def is_integer(value: Any) -> bool:
    """Whether a value is a whole number and not a bool."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def at_least(least: int, argument: str, value: Any) -> int:
    """Returns a value as Python's integer, or raises a `ValueError`."""
    if not is_integer(value) or value < least:
        raise ValueError(
            f"`{argument}` must be an integer of at least {least}. Received: "
            f"{argument}={value!r}"
        )
    return int(value)


def check_choice(argument: str, value: Any, choices: Iterable[Any]) -> None:
    """Raises a `ValueError` if the value is not one of the choices."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(
            f"`{argument}` must be one of {choices}. Received: "
            f"{argument}={value!r}"
        )


def check_tensorboard(callbacks: Iterable[Any]) -> None:
    """Raises an `ImportError` for Keras's TensorBoard without TensorFlow."""
    if importlib.util.find_spec("tensorflow") is None and any(
        isinstance(callback, keras.callbacks.TensorBoard)
        for callback in callbacks
    ):
        raise ImportError(
            "keras.callbacks.TensorBoard writes its files with TensorFlow, "
            "which is not installed, on every backend: pip install tensorflow. "
            "Without it, keras.callbacks.CSVLogger writes the same numbers, "
            "and --tensorboard of `python -m keras_augreg finetune` and "
            "`pretrain` writes TensorBoard's files with tensorboardX."
        )


def check_labels(
    labels: Any,
    classes: int,
    names: Sequence[str] | None = None,
    unlabelled: bool = False,
) -> None:
    """Raises if a label is not the number of a class.

    JAX and TensorFlow train on such labels without an error.

    Args:
        labels: Numbers of shape (n,) or (n, 1); other arrays, such as soft
            labels (n, classes), also of one class, are not checked.
        classes: Number of classes; 1 for a binary decision, 0 or 1.
        names: What the message calls each example; `None` for its place.
        unlabelled: Whether -1 (no label) is allowed.

    Raises:
        ValueError: If a label is not an integer from 0 to `classes` - 1. The
            message names the label and its example.

    Example:
    >>> check_labels([0, 1, 2], classes=3)
    """
    labels = np.asarray(labels)
    if labels.ndim == 2 and labels.shape[1] == 1 < classes:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "biuf":
        return
    last = max(classes, 2) - 1
    good = (labels >= -int(unlabelled)) & (labels <= last)
    good &= labels == np.floor(labels)
    if good.all():
        return
    i = int(np.argmin(good))
    example = f"example {i}" if names is None else repr(names[i])
    hint = ""
    if labels.min() == 1 and labels.max() == last + 1:
        hint = " The labels seem to count from 1: subtract 1."
    elif labels[i] == -1:
        hint = " -1 means that an example has no label: leave it out."
    raise ValueError(
        f"The label of {example} is {labels[i]}. Expected an integer from 0 "
        f"to {last}, as there are {last + 1} classes.{hint}"
    )
