"""The settings of `load` that few users change, checked here."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import at_least, check_choice, is_integer
from keras_augreg.data.datasets import PaperDataset
from keras_augreg.data.decode import CROPS, SMALLER_SIDE, Cropping
from keras_augreg.data.sources import read_names

ENGINES = ("auto", "tensorflow", "python")
ON_ERROR = ("raise", "skip")


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """How images become square: the argument `preprocess` of `load`.

    Args:
        crop: `"inception"` (training only: 5% to 100% of the area, width over
            height 0.75 to 1.33), `"resize_small"` (resize the smaller side to
            `smaller_side`, then take a random or, in evaluation, the central
            crop) or `"resize"` (resize to `image_size` without cropping).
            `None` takes the crop of the source's row in `DATASETS`; other
            sources get `"inception"` in training and `"resize_small"` in
            evaluation, digits and images of at most 32 pixels `"resize"`.
        flip: Whether to mirror half of the training images. `None` means yes,
            except for digits and where the source's row says otherwise.
        smaller_side: Smaller side before the crop of `"resize_small"`, in
            pixels; `None` for 256/224 of the smaller side of `image_size`.
            big_vision fine-tunes at 384 with 448.

    Raises:
        ValueError: If an argument is not as described.

    Example:
    >>> Preprocess("resize_small", flip=False).crop
    'resize_small'
    """

    crop: str | None = None
    flip: bool | None = None
    smaller_side: int | None = None

    def __post_init__(self) -> None:
        if self.crop is not None:
            check_choice("crop", self.crop, CROPS)

    def cropping(
        self,
        image_size: int | tuple[int, int],
        training: bool,
        row: PaperDataset,
    ) -> Cropping:
        """Fills in what is `None`, from the row of `load`'s source."""
        size = _sides(image_size)
        crop = self.crop or (row.crop if training else row.eval_crop)
        if crop == "inception" and not training:
            raise ValueError(
                'crop="inception" draws random crops, for training only. '
                'Evaluate with "resize_small" or "resize".'
            )
        smaller_side = self.smaller_side
        if smaller_side is None:
            smaller_side = round(SMALLER_SIDE * min(size))
        elif crop != "resize_small" or not (
            is_integer(smaller_side) and smaller_side >= min(size)
        ):
            raise ValueError(
                '`smaller_side` requires crop="resize_small" and must be an '
                "integer of at least the smaller side of `image_size`. "
                f"Received: smaller_side={smaller_side!r}, crop={crop!r}, "
                f"image_size={image_size}"
            )
        flip = row.flip if self.flip is None else self.flip
        return Cropping(size, crop, training, flip, smaller_side)


@dataclasses.dataclass(frozen=True)
class Options:
    """Further settings of `load`.

    Args:
        one_hot: Labels as float32 vectors (batch, num_classes).
        sample_weight: One weight for each example of the split (folders and
            digits), in the order of evaluation and without the examples that
            `exclude` names; or the name of a feature (TFDS). Batches become
            (images, labels, weights).
        split_seed: Seeds the split of sources that have none (use the same
            for "train" and "test") and the parts of folders' and digits'
            splits, from 0 to 2**32 - 1.
        exclude: Names of examples to leave out (`CLASS/file.jpg`, or TFDS's
            `tfds_id`), or a file with one name per line, as
            `keras_augreg.data.dedup` writes it.
        cache: Whether to keep the encoded files in memory.
        shuffle_buffer: Number of TFDS training records in memory among which
            the next one is drawn. Other sources are shuffled as a whole.
        pad: Whether to fill up the last evaluation batch with examples of
            weight 0. Batches are then (images, labels, weights), and metrics
            belong in `compile(weighted_metrics=...)`. `None` pads sharded
            data and where a `keras.distribution` is set.
        on_error: `"raise"`: a broken file is an error that names it.
            `"skip"`: it is left out (in training, the next image of the batch
            takes its place), counted in `info.skipped`, and reported in a
            warning at the end of the epoch. A batch without any readable
            image is an error unless it is padded. The TensorFlow engine is
            slower with `"skip"`: it decodes whole images in Python.
        engine: `"tensorflow"` (a `tf.data.Dataset`), `"python"` (a
            `keras.utils.PyDataset`, needs no TensorFlow) or `"auto"`: Python
            where TensorFlow is not installed, and where it is not the backend
            for digits, objects and array_record files. TFRecord files need
            TensorFlow. Python is refused in the scope of a `tf.distribute`
            strategy.
        image: The column of a table with the names of image files, relative
            to `data_dir`, with or without extension; `None` for the first.
            Or the key of the image in an object's items or TFDS's examples.
        label: The column with the classes, `None` for the second; or the key
            of the label. For images of several classes, a list of columns of
            0 and 1, one for each class: labels are then vectors. Labels that
            are all whole numbers are integers, 1.0 too: the class "1".
        group: A column; rows with the same value come into the same fold.
        folds: Number of parts for cross-validation (not for TFDS), with the
            same share of every class. The split "validation" is then the part
            `fold`, "train" the others; `split_seed` seeds them.
        fold: Which part, from 0 to `folds` - 1.

    Raises:
        ValueError: If an argument is not as described.

    Example:
    >>> Options(on_error="skip").engine
    'auto'
    """

    one_hot: bool = False
    sample_weight: str | Sequence[float] | None = None
    split_seed: int = 0
    exclude: str | os.PathLike[str] | Iterable[str] = ()
    cache: bool = False
    shuffle_buffer: int = 10_000
    pad: bool | None = None
    on_error: str = "raise"
    engine: str = "auto"
    image: str | None = None
    label: str | Sequence[str] | None = None
    group: str | None = None
    folds: int | None = None
    fold: int = 0

    def __post_init__(self) -> None:
        self._check_folds()
        check_choice("on_error", self.on_error, ON_ERROR)
        check_choice("engine", self.engine, ENGINES)
        check_seed("split_seed", self.split_seed)
        self._name_columns()
        at_least(1, "shuffle_buffer", self.shuffle_buffer)
        exclude: Any = self.exclude
        if isinstance(exclude, (str, os.PathLike)):
            exclude = read_names(exclude)
        # Read once: an iterator is then empty, and a file may change.
        object.__setattr__(self, "exclude", frozenset(exclude))

    def _name_columns(self) -> None:
        """Numbers of a DataFrame's columns become their names."""
        for argument in ("image", "label", "group"):
            name: Any = getattr(self, argument)
            if is_integer(name):
                name = str(name)
            elif argument == "label" and isinstance(name, Iterable):
                if not isinstance(name, str):
                    name = tuple(str(n) if is_integer(n) else n for n in name)
            elif not isinstance(name, str | None):
                raise TypeError(
                    f"`{argument}` must be the name of a column or key"
                    f"{', or a list of them' if argument == 'label' else ''}. "
                    f"Received: {argument}={name!r}"
                )
            object.__setattr__(self, argument, name)

    def _check_folds(self) -> None:
        at_least(0, "fold", self.fold)
        if self.folds is not None:
            at_least(2, "folds", self.folds)
        last = (self.folds or 1) - 1
        if self.fold > last or (self.group is not None and not last):
            raise ValueError(
                "`fold` and `group` require `folds`, and `fold` is less than "
                f"that. Received: folds={self.folds}, fold={self.fold}, "
                f"group={self.group!r}"
            )

    @property
    def label_key(self) -> str | None:
        """The key of the label; only tables have several columns of labels."""
        return self.label if isinstance(self.label, str) else None

    @property
    def excluded(self) -> frozenset[str]:
        """The names that `exclude` gave or that its file held."""
        names: Any = self.exclude
        return names


def choose_engine(engine: str, kind: str) -> str:
    """Returns "tensorflow" or "python", or says why `engine` cannot be used.

    The kind is "records" for TFRecord files, else that of a `Location`.
    """
    installed = importlib.util.find_spec("tensorflow") is not None
    if engine == "auto":
        if kind == "records":
            return "tensorflow"
        fits = (
            kind in ("folder", "table")
            or keras.backend.backend() == "tensorflow"
        )
        return "tensorflow" if installed and fits else "python"
    if engine == "python" and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.distribute.has_strategy():
            raise ValueError(
                "In the scope of a tf.distribute strategy, Keras loses batches "
                "of a PyDataset: it starts a pass while another is unfinished. "
                'Pass engine="tensorflow" or "auto". Received: engine="python"'
            )
    if engine == "tensorflow" and not installed:
        raise ImportError(
            'engine="tensorflow" needs `pip install tensorflow`; '
            'engine="python" does not.'
        )
    return engine


def is_weight(values: np.ndarray) -> np.ndarray:
    """Which of the numbers can weigh an example."""
    return np.isfinite(values) & (values >= 0)


def check_seed(argument: str, value: Any) -> None:
    """Raises a `ValueError` if the value is not a seed of NumPy's."""
    if not is_integer(value) or not 0 <= value < 2**32:
        raise ValueError(
            f"`{argument}` must be an integer from 0 to 2**32 - 1. Received: "
            f"{argument}={value!r}"
        )


def _sides(image_size: int | tuple[int, int]) -> tuple[int, int]:
    several = isinstance(image_size, Sequence)
    sides: Any = image_size if several else (image_size, image_size)
    if len(sides) != 2 or not all(is_integer(s) and s >= 1 for s in sides):
        raise ValueError(
            "`image_size` must be one side or (height, width), in pixels. "
            f"Received: image_size={image_size}"
        )
    return int(sides[0]), int(sides[1])
