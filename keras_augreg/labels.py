"""Class names of the released heads."""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import is_integer
from keras_augreg.dataset_names import CLASSES

_FILES = {
    CLASSES["imagenet-1k"]: "imagenet1k.txt",
    CLASSES["imagenet-21k"]: "imagenet21k.txt",
}


@functools.cache
def class_labels(classes: int) -> tuple[tuple[str, str], ...]:
    """The (synset, label) of ImageNet's classes in a head of that size.

    None where it is neither ImageNet-1k's nor -21k's.
    """
    if classes not in _FILES:
        return ()
    file = importlib.resources.files("keras_augreg").joinpath(
        "assets", _FILES[classes]
    )
    lines = file.read_text(encoding="utf-8").splitlines()
    return tuple((line[:9], line[10:]) for line in lines)


def decode_predictions(
    preds: Any, top: int = 5, class_names: Sequence[str] | None = None
) -> list[list[tuple[str, str, float]]]:
    """Names the classes with the highest scores, offline.

    The names are those of WordNet 3.0. The order of the 1,000 classes is that
    of TensorFlow Datasets' `imagenet2012`, on which the release was
    fine-tuned. The order of the 21,843 classes is **unverified**: it is
    timm's (sorted synsets, no background class), whose author is one of the
    paper's authors. `assets/README.md` in the package has the details.

    Args:
        preds: Logits or probabilities: an array or tensor of shape
            `(batch, 1000)` or `(batch, 21843)`.
        top: Number of classes to return for an image, at least 1; all if
            there are fewer `class_names`.
        class_names: Names of other classes, such as a fine-tuned model's
            `class_names`; `preds` then has one score for each.

    Returns:
        One list for each image, of `top` tuples `(synset, label, score)` such
        as `("n01440764", "tench, Tinca tinca", 0.9)`: highest score first,
        lower class first among equal scores. The label holds all synonyms of
        the synset, because one word often names several classes ("crane" is a
        bird and a machine). With `class_names`, both are the name.

    Raises:
        ValueError: `preds` has another shape, or `top` is out of range.

    Example:
    >>> import keras_augreg
    >>> import numpy as np
    >>> preds = np.eye(1000)[[0]]
    >>> keras_augreg.decode_predictions(preds, top=1)
    [[('n01440764', 'tench, Tinca tinca', 1.0)]]
    """
    # float64 holds float16, bfloat16 and float32 exactly, and unlike unsigned
    # integers it can be negated.
    scores = np.asarray(keras.ops.convert_to_numpy(preds)).astype("float64")
    known = _FILES if class_names is None else [len(class_names)]
    if scores.ndim != 2 or scores.shape[1] not in known:
        shapes = " or ".join(f"(batch, {classes})" for classes in known)
        what = "ImageNet-1k and -21k" if class_names is None else "these names"
        raise ValueError(
            f"`preds` of {what} have shape {shapes}. Received: shape "
            f"{scores.shape}. One image needs a batch axis, `preds[None]`; a "
            "model of other classes needs their names, "
            "class_names=model.class_names."
        )
    classes = scores.shape[1]
    whole = is_integer(top)
    if whole and class_names is not None:
        top = min(top, classes)  # As `predict` does.
    if not whole or not 1 <= top <= classes:
        raise ValueError(
            f"`top` is an integer, at least 1 and at most {classes}. "
            f"Received: top={top!r}"
        )
    return best_classes(scores, top, class_names)


def best_classes(
    scores: np.ndarray, top: int, class_names: Sequence[str] | None
) -> list[list[tuple[str, str, float]]]:
    """Like `decode_predictions`; classes without any names have numbers."""
    classes = scores.shape[1]
    names: Sequence[tuple[str, str]]
    if class_names is None and classes in _FILES:
        names = class_labels(classes)
    else:
        plain = class_names or list(map(str, range(classes)))
        names = [(name, name) for name in plain]
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(*names[i], float(row[i])) for i in order]
        for row, order in zip(scores, best, strict=True)
    ]
