"""Batches checked as they pass to a model, in any kind of data."""

from __future__ import annotations

import copy
import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import check_labels
from keras_augreg.preprocessing import images_of, only


def check_batch_labels(classes: int | None, unlabelled: bool, y: Any) -> None:
    """Refuses labels, of any library, that are not numbers of classes.

    Where `classes` is `None`, only a batch to train on that has no examples.
    """
    # An array of several hosts is not all here.
    if y is None or not getattr(y, "is_fully_addressable", True):
        return
    shape = tuple(getattr(y, "shape", ()))
    if shape[:1] == (0,) and not unlabelled:
        raise ValueError(
            "Expected batches of one or more images to train on. Received: a "
            f"batch without examples (labels of shape {shape})."
        )
    if getattr(getattr(y, "dtype", None), "kind", "?") in "OSTU" and any(
        isinstance(label, (str, bytes)) for label in np.ravel(y)[:1]
    ):
        raise ValueError(
            "Expected numbers of classes, or vectors, as labels. Received: "
            f"text, {np.ravel(y)[0]!r}. Turn names into numbers with "
            "`numpy.unique(labels, return_inverse=True)`, and pass the names "
            "as `class_names` of the model."
        )
    if classes is None:
        return
    if keras.ops.is_tensor(y):
        y = keras.ops.convert_to_numpy(y)
    check_labels(y, classes, unlabelled=unlabelled)


def check_batch(
    check_images: Callable[[Any], None],
    check_labels: Callable[[Any], None],
    batch: Any,
) -> None:
    """Checks images and labels; a function that workers can unpickle."""
    check_images(images_of(batch))
    check_labels(labels_of(batch))


def labels_of(batch: Any) -> Any:
    """The labels of (images, labels, ...), or `None`."""
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return only(batch[1])
    return None


def checked_data(
    data: Any,
    check_images: Callable[[Any], None],
    check_labels: Callable[[Any], None],
    found: list[Exception],
    shape: tuple[int | None, ...],
) -> Any:
    """The same data, whose batches are checked as they pass.

    What is found wrong is added to `found`, as other libraries wrap errors in
    theirs. A data set's images of unknown shape get the `shape` of the model's.
    """
    torch = sys.modules.get("torch")
    check = functools.partial(check_batch, check_images, check_labels)
    if isinstance(data, types.GeneratorType):
        return _checked_generator(data, _noting(check, found))
    if is_dataset(data):
        data = _checked_shapes(data, _noting(check_images, found), shape)
        return _checked_labels(data, _noting(check_labels, found))
    if torch is not None and isinstance(data, torch.utils.data.DataLoader):
        data = copy.copy(data)
        data.collate_fn = _CheckedCollate(data.collate_fn, check)
    elif isinstance(data, keras.utils.PyDataset):
        data = _CheckedPyDataset(data, check)
    return data


def _noting(
    check: Callable[[Any], None], found: list[Exception]
) -> Callable[[Any], np.int32]:
    """A check, as `tf.numpy_function` takes it, that notes what is wrong."""

    def noting(values: Any) -> np.int32:
        try:
            check(values)
        except ValueError as error:
            found.append(error)
            raise
        return np.int32(0)

    return noting


def _checked_generator(data: Any, check: Callable[[Any], Any]) -> Iterator[Any]:
    for batch in data:
        check(batch)
        yield batch


def _checked_shapes(
    dataset: Any, check: Callable[[Any], Any], expected: tuple[int | None, ...]
) -> Any:
    """The same data set; watched if its spec does not state the shape."""
    tf = sys.modules["tensorflow"]
    spec = images_of(dataset.element_spec)
    if not isinstance(spec, tf.TensorSpec) or (
        spec.shape.rank is not None and None not in spec.shape[1:]
    ):
        return dataset

    def check_shape(shape: Any) -> np.int32:
        return check(np.broadcast_to(np.uint8(0), shape))

    def watch(*batch: Any) -> Any:
        images = images_of(batch)
        tf.numpy_function(check_shape, [tf.shape(images)], "int32")
        images.set_shape((None, *expected))
        return batch if len(batch) > 1 else batch[0]

    return dataset.map(watch)


def _checked_labels(dataset: Any, check: Callable[[Any], Any]) -> Any:
    tf = sys.modules["tensorflow"]
    spec = labels_of(dataset.element_spec)
    if not isinstance(spec, tf.TensorSpec) or not (
        spec.dtype.is_integer or spec.dtype.is_floating
    ):
        return dataset
    soft = spec.shape.rank == 2 and spec.shape[1] not in (None, 1)
    if soft and spec.shape[0] is not None:
        return dataset

    def watch(*batch: Any) -> Any:
        labels = labels_of(batch)
        labels = labels[:1] if soft else labels  # Is there an example?
        tf.numpy_function(check, [labels], "int32")
        return batch

    return dataset.map(watch)


class _CheckedCollate:
    """A `collate_fn` that checks batches; a class, as workers unpickle it."""

    def __init__(self, collate: Any, check: Callable[[Any], None]) -> None:
        self.collate = collate
        self.check = check

    def __call__(self, examples: Any) -> Any:
        batch = self.collate(examples)
        self.check(batch)
        return batch


class _CheckedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` that checks each batch."""

    def __init__(self, data: Any, check: Callable[[Any], None]) -> None:
        super().__init__(
            data.workers, data.use_multiprocessing, data.max_queue_size
        )
        self.data = data
        self.check = check

    def __getitem__(self, index: int) -> Any:
        batch = self.data[index]
        self.check(batch)
        return batch

    @property
    def num_batches(self) -> int | None:
        return self.data.num_batches

    def on_epoch_begin(self) -> None:
        self.data.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self.data.on_epoch_end()


def is_dataset(x: Any) -> bool:
    """Whether it is a `tf.data.Dataset`."""
    tf = sys.modules.get("tensorflow")
    return tf is not None and isinstance(x, tf.data.Dataset)
