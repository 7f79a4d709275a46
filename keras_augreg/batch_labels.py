"""Labels checked as they pass to `fit` and `evaluate`, in any kind of data."""

from __future__ import annotations

import copy
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import check_labels
from keras_augreg.preprocessing import only


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
    if classes is None:
        return
    if keras.ops.is_tensor(y):
        y = keras.ops.convert_to_numpy(y)
    check_labels(y, classes, unlabelled=unlabelled)


def labels_of(batch: Any) -> Any:
    """The labels of (images, labels, ...), or `None`."""
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return only(batch[1])
    return None


def checked_data(
    data: Any, check: Callable[[Any], None], found: list[Exception]
) -> Any:
    """The same data, whose labels are checked as they pass.

    What is found wrong is added to `found`, as other libraries wrap errors in
    theirs.
    """
    torch = sys.modules.get("torch")

    def noting(labels: Any) -> np.int32:
        try:
            check(labels)
        except ValueError as error:
            found.append(error)
            raise
        return np.int32(0)

    if isinstance(data, types.GeneratorType):
        return _checked_generator(data, noting)
    if is_dataset(data):
        return _checked_dataset(data, noting)
    if torch is not None and isinstance(data, torch.utils.data.DataLoader):
        data = copy.copy(data)
        data.collate_fn = _CheckedCollate(data.collate_fn, check)
    elif isinstance(data, keras.utils.PyDataset):
        data = _CheckedPyDataset(data, check)
    return data


def _checked_generator(data: Any, check: Callable[[Any], Any]) -> Iterator[Any]:
    for batch in data:
        check(labels_of(batch))
        yield batch


def _checked_dataset(dataset: Any, check: Callable[[Any], Any]) -> Any:
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
    """A `collate_fn` that checks labels; a class, as workers unpickle it."""

    def __init__(self, collate: Any, check: Callable[[Any], None]) -> None:
        self.collate = collate
        self.check = check

    def __call__(self, examples: Any) -> Any:
        batch = self.collate(examples)
        self.check(labels_of(batch))
        return batch


class _CheckedPyDataset(keras.utils.PyDataset):
    """A `PyDataset` that checks the labels of each batch."""

    def __init__(self, data: Any, check: Callable[[Any], None]) -> None:
        super().__init__(
            data.workers, data.use_multiprocessing, data.max_queue_size
        )
        self.data = data
        self.check = check

    def __getitem__(self, index: int) -> Any:
        batch = self.data[index]
        self.check(labels_of(batch))
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
