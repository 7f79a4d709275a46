"""Data sets of other libraries that read any example by its number.

An object with `__len__` and `__getitem__`: a data set of Hugging Face's
`datasets`, of PyTorch, Grain or TFDS (`tfds.data_source`), a list. Its items
are mappings or pairs of an image and a label; order, splits and everything
else come from the code that reads folders.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_augreg.checks import is_integer
from keras_augreg.data import decode, tfds
from keras_augreg.data.datasets import PaperDataset
from keras_augreg.data.decode import ImageError
from keras_augreg.data.options import Options
from keras_augreg.data.sources import (
    Examples,
    Labelled,
    Numbered,
    check_once,
    read_all,
    read_file,
)

# Keys of images and labels where a data set does not say which they are.
IMAGES = ("image", "img", "jpg", "jpeg", "png", "picture", "pixels")
LABELS = ("label", "labels", "class", "cls", "target", "category")
# A key of an item, or a place in a pair.
Key = str | int


def is_random_access(source: Any) -> bool:
    """Whether a source is such an object, or several of them by split."""
    return hasattr(type(source), "__len__") and hasattr(
        type(source), "__getitem__"
    )


def kind_of(source: Any) -> str:
    """What error messages call a source."""
    return type(source).__name__


def splits(source: Any) -> list[str]:
    """The splits that can be read; a split of its own is read as a whole."""
    if isinstance(source, Mapping):
        return [str(name) for name in source]
    own = _own_split(source)
    return [own] if own else ["train", "test"]


def saved(path: str) -> bool:
    """Whether `save_to_disk` of Hugging Face's `datasets` wrote a folder."""
    files = ("dataset_dict.json", "state.json")
    return any(os.path.isfile(os.path.join(path, file)) for file in files)


def load_saved(path: str) -> Any:
    """Reads what `save_to_disk` wrote."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{path!r} was written by `save_to_disk` of Hugging Face's "
            "datasets: pip install datasets"
        ) from error
    try:
        return datasets.load_from_disk(path)
    except Exception as error:
        raise ValueError(
            f"Cannot read the folder {path!r}, which `save_to_disk` of "
            f"Hugging Face's datasets wrote: {error}"
        ) from error


def examples(
    source: Any,
    split: str,
    class_names: Sequence[str] | None,
    options: Options,
) -> tuple[Examples, bool]:
    """Lists the examples of a split, and whether that is all of it.

    It is not if the source has no splits: then it has to be split by seed.

    Args:
        source: The object, or a mapping from splits to objects.
        split: As in `load`, without a part.
        class_names: As in `load`.
        options: As in `load`; its `image`, `label` and `on_error`.
    """
    mapping = isinstance(source, Mapping)
    own = None if mapping else _own_split(source)
    one, prefix = source, own or "examples"
    if mapping:
        if split not in source:
            raise ValueError(
                f"The {kind_of(source)} has no split {split!r}. It "
                f"has: {splits(source)}"
            )
        one, prefix = source[split], split
    elif own and split not in (own, "all"):
        raise ValueError(
            f"The {kind_of(source)} is the split {own!r}. Pass that "
            f'name, a part such as "{own}[:80%]", or all splits as a mapping: '
            f"{{{own!r}: ..., {split!r}: ...}}. Received: split={split!r}"
        )
    _check_length(one)
    if hasattr(one, "dataset_info") and hasattr(one, "deserialize_method"):
        row = PaperDataset(one.dataset_info.name, None, {}, 0)
        found = tfds.open_records(one.dataset_info, one.split, row, options)
        assert isinstance(found, Examples)  # TFRecord has no such object.
        return found, mapping or own is not None
    reader = _reader(one, prefix, options)
    names = Numbered([(f"{prefix}[", 0, len(one))], "]")
    column = _column(reader)
    if class_names is None and reader.classes is None:
        if column is None:
            column = _read_labels(reader)
        of_train = column
        if mapping and "train" in source and split != "train":
            first = _reader(source["train"], "train", options)
            of_train = _column(first) or _read_labels(first)
        reader.classes = classes(of_train, kind_of(one))
    known = [str(c) for c in class_names or reader.classes or ()]
    check_once(known)
    reader.number = numbers(known, reader.classes)
    found = Examples(names, None, known, reader)
    if column is not None:
        skip = options.on_error == "skip"
        found = labelled(found, column, reader.number, skip)
    elif reader.several:
        found.label_shape = (len(known),)
    return found, mapping or own is not None


def _check_length(source: Any) -> None:
    if not is_random_access(source):
        raise TypeError(
            "A split must be an object with `__len__` and `__getitem__`. "
            f"Received: {type(source).__name__}"
        )
    count = len(source)
    if count == 0:
        raise ValueError(f"The {kind_of(source)} has no examples.")
    if count == sys.maxsize:
        raise ValueError(
            f"The {kind_of(source)} repeats without end. Pass it "
            "without `repeat`: every epoch has its own order."
        )


def _own_split(source: Any) -> str | None:
    """The split that an object says it is."""
    train = getattr(source, "train", None)  # of torchvision
    if isinstance(train, bool):
        return "train" if train else "test"
    # Of `datasets` and TFDS, or of torchvision.
    split = getattr(source, "split", getattr(source, "_split", None))
    if isinstance(split, str) and "+" not in split:
        return split.partition("[")[0] or None
    return None


@dataclasses.dataclass
class _Reader:
    """Reads an example by its name; a class, so that it can be pickled."""

    source: Any
    prefix: str  # of names: PREFIX[NUMBER]
    image: Key
    label: Key
    classes: list[str] | None  # the source's own, in the order of its numbers
    several: bool = False  # whether a label is a sequence of classes
    number: Any = None  # `Numbers`

    def item(self, number: int) -> Any:
        try:
            return self.source[number]
        except Exception as error:
            raise ImageError(
                f"Cannot read {self.prefix}[{number}] of "
                f"the {kind_of(self.source)}: {type(error).__name__}: {error}. "
                'Correct it, or pass on_error="skip" to leave it out.'
            ) from error

    def own_label(self, number: int) -> Any:
        """The label as the source has it."""
        item, name = self.item(number), f"{self.prefix}[{number}]"
        return _part(item, self.label, "label", name)

    def __call__(self, name: str) -> Labelled:
        number = int(name[len(self.prefix) + 1 : -1])
        item = self.item(number)
        data = image_data(_part(item, self.image, "image", name), name)
        label = _part(item, self.label, "label", name)
        return Labelled(data, self.number(label, name))


def _part(item: Any, key: Key, what: str, name: str) -> Any:
    try:
        return item[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ImageError(f"{name} has no {what} {key!r}: {item!r:.200}") from (
            error
        )


def _reader(source: Any, prefix: str, options: Options) -> _Reader:
    """Finds the images, the labels and the classes of a source."""
    features = getattr(source, "features", None)
    if isinstance(features, Mapping) and hasattr(source, "cast_column"):
        return _hugging_face(source, prefix, features, options)
    try:
        item = source[0]
    except Exception as error:
        raise ValueError(
            f"Cannot read the first example of the {kind_of(source)}: "
            f"{type(error).__name__}: {error}"
        ) from error
    image: Key
    label: Key
    if isinstance(item, Mapping):
        image = _choose("image", options.image, item, IMAGES, _is_image)
        label = _choose("label", options.label_key, item, LABELS, _is_label)
    elif (
        isinstance(item, Sequence)
        and len(item) >= 2
        and not isinstance(item, (str, bytes))
    ):
        image, label = 0, 1
        for argument in ("image", "label"):
            if getattr(options, argument) is not None:
                raise ValueError(
                    f"`{argument}` names a key, and the items of "
                    f"the {kind_of(source)} are pairs: the image comes first. "
                    f"Received: {argument}={getattr(options, argument)!r}"
                )
    else:
        shape = f" of shape {item.shape}" if hasattr(item, "shape") else ""
        raise ValueError(
            "Expected items that are mappings, such as {'image': ..., "
            "'label': ...}, or pairs (image, label). Received: an item of "
            f"the {kind_of(source)}, of type {type(item).__name__}{shape}. Two "
            "arrays are such an object as `list(zip(images, labels))`."
        )
    image_data(_part(item, image, "image", "item"), f"{prefix}[0]")
    own = _part(item, label, "label", "item")
    classes = _class_attribute(source)
    return _Reader(source, prefix, image, label, classes, _is_vector(own))


def _hugging_face(
    source: Any, prefix: str, features: Mapping[str, Any], options: Options
) -> _Reader:
    """The reader of a `datasets.Dataset`, whose features have types."""
    import datasets

    def class_label(feature: Any) -> Any:
        inner = getattr(feature, "feature", feature)
        if isinstance(feature, list):
            inner = feature[0]
        return inner if isinstance(inner, datasets.ClassLabel) else None

    image = _choose(
        "image", options.image, features, IMAGES,
        lambda feature: isinstance(feature, datasets.Image),
    )  # fmt: skip
    label = _choose(
        "label", options.label_key, features, LABELS,
        lambda feature: class_label(feature) is not None,
    )  # fmt: skip
    several = class_label(features[label]) is not features[label]
    several = several and class_label(features[label]) is not None
    found = class_label(features[label])
    if source.format["type"] != "custom":  # A transform of the user's stays.
        source = source.with_format(None)
        if isinstance(features[image], datasets.Image):
            # The files as they are; decoding is done here, in part.
            source = source.cast_column(image, datasets.Image(decode=False))
    classes = list(found.names) if found is not None else None
    return _Reader(source, prefix, image, label, classes, several)


def _choose(
    argument: str,
    name: str | None,
    item: Mapping[str, Any],
    usual: tuple[str, ...],
    fits: Any,
) -> str:
    """Returns the key that an option names, or the only one that fits."""
    if name is not None:
        if name in item:
            return name
        raise ValueError(
            f"`{argument}` must be one of {[*item]}. Received: "
            f"{argument}={name!r}"
        )
    found = [key for key, value in item.items() if fits(value)]
    named = [key for key in usual if key in (found or item)]
    if len(found) != 1 and named:
        found = named[:1]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"Cannot tell which of {[*item]} is the {argument}. Name it with "
        f"`data.Options({argument}=...)`."
    )


def _is_image(value: Any) -> bool:
    if isinstance(value, Mapping):
        return {"bytes", "path"} <= {*value}
    if isinstance(value, (bytes, bytearray)):
        return True
    return hasattr(value, "getexif") or len(getattr(value, "shape", ())) > 1


def _is_label(value: Any) -> bool:
    return is_integer(value) or isinstance(value, str)


def _is_vector(label: Any) -> bool:
    return not isinstance(label, (str, bytes)) and np.ndim(label) == 1


def _class_attribute(source: Any) -> list[str] | None:
    """The names of the classes, as torchvision's data sets have them."""
    classes = getattr(source, "classes", None)
    if classes is None and hasattr(source, "indices"):  # torch's `Subset`
        return _class_attribute(getattr(source, "dataset", None))
    if not isinstance(classes, Sequence) or isinstance(classes, str):
        return None
    return [str(name) for name in classes]


def _column(reader: _Reader) -> list[Any] | None:
    """All labels, if the source gives them without its images."""
    source, label = reader.source, reader.label
    if hasattr(source, "cast_column"):
        custom = source.format["type"] == "custom"
        return None if custom else list(source[label])
    if isinstance(source, (list, tuple)):
        return [reader.own_label(i) for i in range(len(source))]
    column = _targets(source)
    if column is None:
        return None
    # Whatever an item has counts: a subclass may change it.
    for number in {0, len(column) - 1}:
        try:
            if not np.array_equal(reader.own_label(number), column[number]):
                return None
        except ImageError:
            continue
    return column


def _targets(source: Any) -> list[Any] | None:
    """The attribute with all labels that torchvision's data sets have."""
    indices = getattr(source, "indices", None)
    if indices is not None and hasattr(source, "dataset"):  # torch's `Subset`
        whole = _targets(source.dataset)
        return None if whole is None else [whole[i] for i in indices]
    for name in ("targets", "labels", "_labels"):
        column: Any = getattr(source, name, None)
        if not hasattr(column, "__len__") or len(column) != len(source):
            continue
        column = column.tolist() if hasattr(column, "tolist") else list(column)
        transform = getattr(source, "target_transform", None)
        return column if transform is None else [transform(x) for x in column]
    return None


def _read_labels(reader: _Reader) -> list[Any]:
    return read_all(reader.own_label, range(len(reader.source)))


def classes(labels: list[Any], where: str) -> list[str]:
    """Names for the classes: sorted text, or all numbers up to the largest."""
    kinds = collections.Counter(
        "text"
        if isinstance(label, str)
        else "vector"
        if _is_vector(label)
        else "number"
        for label in labels
        if label is not None
    )
    if not kinds:
        raise ValueError(
            f"No example of the {where} has a label. Name the label's key "
            "with `data.Options(label=...)`."
        )
    if len(kinds) > 1:
        raise ValueError(
            f"The labels of the {where} are of several kinds ({dict(kinds)}). "
            "Expected numbers or names of classes."
        )
    kind = next(iter(kinds))
    if kind == "text":
        return sorted({label for label in labels if label})
    if kind == "vector":
        sizes = {len(label) for label in labels}
        floats = [np.asarray(label).dtype.kind == "f" for label in labels]
        if len(sizes) == 1 and all(floats):
            return [str(i) for i in range(sizes.pop())]
        labels = [number for label in labels for number in label]
    numbers = [int(label) for label in labels if label is not None]
    return [str(i) for i in range(max(numbers, default=-1) + 1)]


@dataclasses.dataclass
class Numbers:
    """From a label of the source to the one that `load` gives."""

    names: dict[str, int]
    order: list[int] | None  # the source's number -> that of `class_names`
    classes: int

    def one(self, label: Any, name: str) -> int:
        if isinstance(label, (str, np.str_)):
            number = self.names.get(str(label))
        elif label is None or np.ndim(label) or label != int(label):
            number = None
        elif self.order is None or not 0 <= label < len(self.order):
            return int(label)  # Checked for its range, with the name.
        else:
            number = self.order[int(label)]
            number = None if number < 0 else number
        if number is None:
            raise ImageError(
                f"The label of {name} is {label!r}, which is none of the "
                f"{self.classes} classes. Correct it, pass `class_names`, or "
                'leave such examples out with on_error="skip".'
            )
        return number

    def __call__(self, label: Any, name: str) -> Any:
        if not _is_vector(label):
            return self.one(label, name)
        values = np.asarray(label)
        if values.dtype.kind == "f" and len(values) == self.classes:
            return values.astype(np.float32)
        vector = np.zeros(self.classes, np.float32)
        vector[[self.one(part, name) for part in label]] = 1.0
        return vector


def numbers(known: list[str], own: list[str] | None) -> Numbers:
    """Converts labels to numbers of `known`; `own` are the source's classes."""
    number = {name: i for i, name in enumerate(known)}
    order = None
    if own is not None and own != known:
        order = [number.get(name, -1) for name in own]
        if max(order, default=-1) < 0:
            # Other names for the same numbers.
            order = None
    return Numbers(number, order, len(known))


def labelled(
    found: Examples, column: list[Any], number: Numbers, skip: bool
) -> Examples:
    """Examples with the labels of a column; `skip` leaves out wrong ones."""
    labels, kept, left_out = [], [], []
    for i, label in enumerate(column):
        try:
            labels.append(number(label, found.names[i]))
            kept.append(i)
        except ImageError:
            if not skip:
                raise
            left_out.append(found.names[i])
    if left_out:
        found = found.subset(kept)
    dtype = np.float32 if labels and np.ndim(labels[0]) else np.int64
    return dataclasses.replace(
        found, labels=np.array(labels, dtype), left_out=left_out
    )


def image_data(value: Any, name: str) -> bytes | np.ndarray:
    """An image of any kind as a file's bytes or uint8 (height, width, 3)."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Mapping) and {"bytes", "path"} & {*value}:
        content = value.get("bytes")
        return image_data(value.get("path") if content is None else content,
                          name)  # fmt: skip
    if isinstance(value, (str, os.PathLike)):
        folder, file = os.path.split(os.path.expanduser(value))
        return read_file(folder or ".", file)
    try:
        if hasattr(value, "getexif"):  # a picture of Pillow
            return np.asarray(decode.upright_rgb(value))
        if hasattr(value, "shape"):
            return _pixels(np.asarray(value))
    except (ValueError, TypeError, OSError, SyntaxError) as error:
        raise ImageError(f"Cannot use the image of {name}: {error}") from error
    raise ImageError(
        f"The image of {name} is of type {type(value).__name__}. Expected the "
        "bytes of a file, a path, a picture of Pillow, an array or a mapping "
        "with 'bytes' and 'path'."
    )


def _pixels(array: np.ndarray) -> np.ndarray:
    """Pixels, grey or in colour, channels last or first, as (h, w, 3)."""
    import PIL.Image

    if array.dtype != np.uint8:
        raise ValueError(
            f"it is an array of {array.dtype}. Expected uint8, from 0 to 255; "
            "leave out transforms such as ToTensor and Normalize: "
            "augmentation and the model do the rest."
        )
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)  # PyTorch's order
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        return np.repeat(array[..., None], 3, axis=-1)
    if array.ndim != 3 or array.shape[-1] not in (3, 4):
        raise ValueError(
            f"its shape is {array.shape}. Expected (height, width, 3)."
        )
    if array.shape[-1] == 4:
        array = np.asarray(decode.upright_rgb(PIL.Image.fromarray(array)))
    return np.ascontiguousarray(array)
