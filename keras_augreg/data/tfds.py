"""Examples of TensorFlow Datasets, read in the order of their files."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from keras_augreg.data.decode import Picture
from keras_augreg.data.order import PADDING, Order
from keras_augreg.data.report import none_excluded

# Files that training reads in turn.
CYCLE = 16

# (path, first record, number of records) of a part of a file.
Part = tuple[str, int, int]


@dataclasses.dataclass
class Records:
    """The examples of a split, and this host's share of its files.

    Attributes:
        num_examples: Of all hosts together.
        largest_share: Examples of the host that has most of them.
        smallest_share: Examples of the host that has fewest.
        labels: An empty array of the labels' dtype and shape.
        class_names: What each label means.
        parts: What this host reads.
        parse: A serialised record -> the image file's bytes, the label and
            the weight, as tensors.
        excluded: Names of examples to leave out.
        shuffle_buffer: Records among which training draws the next one.
        cache: Whether to keep all records in memory.
        brightness: What to multiply pixel values by.
        left_out: As `Examples` has it.
    """

    num_examples: int
    largest_share: int
    smallest_share: int
    labels: np.ndarray
    class_names: list[str]
    parts: list[Part]
    parse: Callable[[Any], tuple[Any, Any, Any]]
    excluded: frozenset[str]
    shuffle_buffer: int
    cache: bool
    brightness: int
    left_out: tuple[str, ...] = ()

    def name(self, data: bytes, name: bytes) -> str:
        """What error messages call an example: TFDS's `tfds_id`."""
        return name.decode()

    def picture(self, data: bytes, name: bytes) -> Picture:
        """As `Examples.picture`."""
        return Picture(data, self.name(data, name), self.brightness)

    def pictures(self) -> Iterator[tuple[str, Callable[[], Picture]]]:
        """All examples' names, and how to read each, in the files' order."""
        import tensorflow as tf

        for record, name in self._read(tf, self.parts):
            data, name = self.parse(record)[0].numpy(), name.numpy()
            yield name.decode(), functools.partial(self.picture, data, name)

    def stream(self, order: Order, num_batches: int) -> Callable[[Any], Any]:
        """Makes a function from a pass's first step to its examples.

        Args:
            order: Of the batches.
            num_batches: How many batches a pass has.

        Returns:
            A function from an int64 tensor to a `tf.data.Dataset` of (number
            in the pass, (epoch, place, (bytes, name), label, weight)). The
            records before the first step are read and not parsed.
        """
        import tensorflow as tf

        size = order.host_batch
        # Outside of any epoch, which would each have a cache of its own.
        kept = self._read(tf, self.parts).cache() if self.cache else None

        def epoch_records(epoch: Any) -> Any:
            # Of this function alone, whatever `tf.random.set_seed` says;
            # not 0, which `shuffle` compares with a tensor.
            tf.compat.v1.set_random_seed(1)
            records, buffer = kept, len(self)
            if records is None:
                records = self._read(tf, self.parts, order.seed, epoch)
                buffer = self.shuffle_buffer
            records = records.shuffle(
                max(buffer, 1),
                seed=order.seed * 1_000_003 + epoch,
                reshuffle_each_iteration=False,
            )
            records = records.enumerate().take(order.steps * size)
            return records.map(lambda i, record: (epoch, i, *record))

        def parse(epoch: Any, i: Any, record: Any, name: Any) -> Any:
            data, label, weight = self.parse(record)
            place = i * order.hosts + order.host
            return epoch, place, (data, name), label, weight

        def training(step: Any) -> Any:
            last = (step + num_batches - 1) // order.steps
            records = tf.data.Dataset.range(step // order.steps, last + 1)
            records = records.flat_map(epoch_records)
            records = records.skip(step % order.steps * size)
            return records.take(num_batches * size).map(parse).enumerate()

        def evaluation(step: Any) -> Any:
            records = self._read(tf, self.parts) if kept is None else kept
            zero = tf.zeros([], tf.int64)
            records = records.enumerate()
            records = records.map(lambda i, r: parse(zero, i, *r))
            if not order.pad:
                return records.enumerate()
            nothing = (zero, zero + PADDING, (tf.constant(""),) * 2)
            label = tf.zeros(self.labels.shape[1:], self.labels.dtype)
            padding = tf.data.Dataset.from_tensors(
                (*nothing, label, tf.zeros([]))
            )
            records = records.concatenate(padding.repeat())
            return records.take(num_batches * size).enumerate()

        return training if order.training else evaluation

    def __len__(self) -> int:
        return self.num_examples

    def _read(
        self, tf: Any, parts: list[Part], seed: int = 0, epoch: Any = None
    ) -> Any:
        """(record, name), in a random order of files if there is an epoch."""
        columns = [
            tf.constant([part[i] for part in parts], dtype)
            for i, dtype in enumerate((tf.string, tf.int64, tf.int64))
        ]
        columns.append(
            tf.constant(
                [os.path.basename(part[0]) for part in parts], tf.string
            )
        )
        if epoch is not None:
            shuffled = tf.numpy_function(
                lambda e: np.random.RandomState([seed, e]).permutation(
                    len(parts)
                ),
                [epoch],
                tf.int64,
            )
            columns = [tf.gather(column, shuffled) for column in columns]

        def read(path: Any, first: Any, count: Any, base: Any) -> Any:
            records = tf.data.TFRecordDataset(path, buffer_size=1 << 20)
            records = records.enumerate().skip(first).take(count)
            return records.map(
                lambda i, r: (r, tf.strings.join([base, tf.as_string(i)], "__"))
            )

        files = tf.data.Dataset.from_tensor_slices(tuple(columns))
        records = files.interleave(
            read,
            cycle_length=1 if epoch is None else CYCLE,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if self.excluded:
            table = tf.lookup.StaticHashTable(
                tf.lookup.KeyValueTensorInitializer(
                    sorted(self.excluded), [1] * len(self.excluded)
                ),
                0,
            )
            records = records.filter(lambda _, name: table[name] == 0)
        return records


def open_builder(name: str, data_dir: str | None) -> Any:
    """Finds a data set, and prepares it as `tfds.load` does.

    Args:
        name: A TFDS name, or a directory that TFDS wrote (with
            `dataset_info.json`), also on `gs://`.
        data_dir: Where TFDS keeps its data sets; `None` for its default.

    Returns:
        The `tfds.core.DatasetBuilder`.

    Raises:
        ImportError: If TensorFlow Datasets is not installed.
        ValueError: If there is no such data set, or it is not stored as
            TFRecord files.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"{name!r} is neither a folder nor bundled, and reading it from "
            "TensorFlow Datasets needs pip install 'keras_augreg[data]'"
        ) from error
    if is_prepared_directory(name):
        builder = tfds.builder_from_directory(name)
    else:
        try:
            builder = tfds.builder(name, data_dir=data_dir)
        except tfds.core.DatasetNotFoundError as error:
            near = _nearest(name, tfds.list_builders())
            raise ValueError(
                f"Unknown source {name!r}: neither an existing folder, nor "
                "bundled, nor a data set of the paper, nor one of TensorFlow "
                f"Datasets (data_dir={data_dir!r}). Nearest names: {near}"
            ) from error
        builder.download_and_prepare()
    file_format = builder.info.file_format
    if file_format.value != "tfrecord":
        raise ValueError(
            f"{name!r} is stored as {file_format.value}. Expected tfrecord: "
            'prepare it with `tfds.builder(..., file_format="tfrecord")`.'
        )
    return builder


def is_prepared_directory(path: str) -> bool:
    """Whether TFDS wrote this directory, local or on `gs://`."""
    if "://" in path:
        try:
            import tensorflow as tf
        except ImportError as error:
            raise ImportError(
                f"Reading {path!r} needs pip install 'keras_augreg[data]'"
            ) from error
        return bool(tf.io.gfile.exists(f"{path}/dataset_info.json"))
    return os.path.exists(os.path.join(path, "dataset_info.json"))


def part_of(builder: Any, split: str, part: str) -> str:
    """TFDS's expression for a part of a split.

    Args:
        builder: Of the data set.
        split: In TFDS's syntax.
        part: What follows the bracket in TFDS's syntax, such as `":100]"`
            (of all examples) or `"10%:20%]"` (of each of the split's
            summands).

    Returns:
        The expression, in numbers of examples.

    Raises:
        ValueError: If the part is not of that form, empty, or not within the
            split.
    """
    import tensorflow_datasets as tfds

    pieces = []
    whole = tfds.core.ReadInstruction.from_spec(split)
    for piece in whole.to_absolute(builder.info.splits):
        start, stop = piece.from_ or 0, piece.to
        if stop is None:
            stop = builder.info.splits[piece.splitname].num_examples
        pieces.append((piece.splitname, start, stop))
    unit = "%" if "%" in part else ""
    total = 100 if unit else sum(stop - start for _, start, stop in pieces)
    bound = f"(?:(-?[0-9]+){unit})?"
    match = re.fullmatch(rf"{bound}:{bound}\]", part)
    first, last = (
        int(number) + total * number.startswith("-") if number else default
        for number, default in zip(
            match.groups() if match else "00", (0, total), strict=True
        )
    )
    if not match or not 0 <= first < last <= total:
        raise ValueError(
            "Expected a part of a split such as 'train[:10%]' or "
            f"'train[100:200]', within {total}{unit}. Received: "
            f"[{part} of {split!r}"
        )
    parts, before = [], 0
    for name, start, stop in pieces:
        count = stop - start
        if unit:
            low, high = (count * p // 100 for p in (first, last))
        else:
            low, high = (min(max(p - before, 0), count) for p in (first, last))
        if high > low:
            parts.append(f"{name}[{start + low}:{start + high}]")
        before += count
    if not parts:
        raise ValueError(
            f"[{part} of {split!r} is no example at all. Take a larger part."
        )
    return "+".join(parts)


def open_records(
    builder: Any,
    split: str,
    *,
    label: str | Callable[[Any], Any] | None,
    label_features: Iterable[str],
    num_classes: int | None,
    sample_weight: str | None,
    excluded: frozenset[str],
    host: int,
    hosts: int,
    shuffle_buffer: int,
    cache: bool,
    brightness: int = 1,
) -> Records:
    """Opens a split for one host.

    Args:
        builder: Of the data set.
        split: In TFDS's syntax.
        label: The feature that is the label (a class or a sequence of
            classes), or a function that makes it of an example; `None` for
            the data set's own.
        label_features: The features that such a function needs.
        num_classes: How many classes such a function makes.
        sample_weight: The feature that weighs an example, if any.
        excluded: Names of examples (`tfds_id`) to leave out.
        host: This host's number, from 0.
        hosts: How many hosts there are.
        shuffle_buffer: As `Records` has it.
        cache: As `Records` has it.
        brightness: As `Records` has it.

    Returns:
        The records.

    Raises:
        ValueError: If the split or a feature does not exist.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    features = builder.info.features
    image, own_label = _keys(tfds, builder)
    label = label or own_label
    if label is None:
        raise ValueError(
            f"Cannot tell which feature of {builder.name!r} is the label: "
            f"expected one class label in {list(features)}"
        )
    wanted = [image, *label_features]
    if isinstance(label, str):
        wanted.append(label)
    if sample_weight is not None:
        wanted.append(sample_weight)
    stored = np.dtype(features[image].np_dtype)
    if stored.kind != "u":
        raise ValueError(
            f"Expected images of uint8 or uint16. Feature {image!r} of "
            f"{builder.name!r} holds {stored}; prepare it with uint8."
        )
    missing = [key for key in wanted if key not in features]
    if missing:
        raise ValueError(
            f"{builder.name!r} has no feature {missing[0]!r}. It has: "
            f"{sorted(features)}"
        )
    class_names = [str(i) for i in range(num_classes or 0)]
    several = False
    if isinstance(label, str):
        feature = features[label]
        several = isinstance(feature, tfds.features.Sequence)
        feature = feature.feature if several else feature
        if not isinstance(feature, tfds.features.ClassLabel):
            raise ValueError(
                f"Feature {label!r} of {builder.name!r} is no class label: "
                f"{feature}"
            )
        class_names = list(feature.names)
    count = len(class_names)
    partial = tfds.decode.PartialDecoding(dict.fromkeys(wanted, True))
    decoded = partial.extract_features(features)
    skip = {image: tfds.decode.SkipDecoding()}

    def parse(record: Any) -> tuple[Any, Any, Any]:
        example = decoded.deserialize_example(record, decoders=skip)
        weight = tf.ones([])
        if sample_weight is not None:
            weight = tf.cast(example[sample_weight], tf.float32)
        if callable(label):
            return example[image], tf.cast(label(example), tf.int64), weight
        target = example[label]
        if several:
            # Examples without any label do not count.
            target = tf.reduce_sum(tf.one_hot(target, count), axis=0)
            target = tf.minimum(target, 1.0)
            weight *= tf.reduce_max(target)
        return example[image], target, weight

    try:
        found = builder.info.splits[split]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{builder.name!r} has no split {split!r}: {error} It has: "
            f"{sorted(builder.info.splits)}"
        ) from error
    parts = [(f.filename, f.skip, f.take) for f in found.file_instructions]
    shares = [_share(parts, i, hosts) for i in range(hosts)]
    counts = [_count(share, excluded) for share in shares]
    if excluded and sum(counts) == _count(parts, frozenset()):
        none_excluded(excluded)
    return Records(
        num_examples=sum(counts),
        largest_share=max(counts),
        smallest_share=min(counts),
        labels=np.zeros((0, count), np.float32)
        if several
        else np.zeros(0, np.int64),
        class_names=class_names,
        parts=shares[host],
        parse=parse,
        excluded=excluded,
        shuffle_buffer=shuffle_buffer,
        cache=cache,
        brightness=brightness,
    )


def _keys(tfds: Any, builder: Any) -> tuple[str, str | None]:
    """The names of a data set's image and label."""
    features = builder.info.features
    images, labels = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    supervised = builder.info.supervised_keys or ()
    # What the data set calls its input and target comes first, if it fits.
    image = [key for key in supervised if key in images] or images
    label = [key for key in supervised if key in labels] or labels
    if len(image) != 1:
        raise ValueError(
            f"Cannot tell which feature of {builder.name!r} is the image: "
            f"expected one, found {images} in {list(features)}"
        )
    return image[0], label[0] if len(label) == 1 else None


def _share(parts: list[Part], host: int, hosts: int) -> list[Part]:
    """What one of several hosts reads, in the same order."""
    total = sum(count for _, _, count in parts)
    start, stop = total * host // hosts, total * (host + 1) // hosts
    share, before = [], 0
    for path, first, count in parts:
        low, high = (min(max(x - before, 0), count) for x in (start, stop))
        if high > low:
            share.append((path, first + low, high - low))
        before += count
    return share


def _count(parts: list[Part], excluded: frozenset[str]) -> int:
    """How many examples are left."""
    ranges: dict[str, list[tuple[int, int]]] = {}
    for path, first, count in parts:
        name = os.path.basename(path)
        ranges.setdefault(name, []).append((first, first + count))
    total = sum(count for _, _, count in parts)
    for name in excluded:
        file, _, number = name.rpartition("__")
        if number.isdecimal():
            total -= sum(
                low <= int(number) < high for low, high in ranges.get(file, ())
            )
    return total


def _nearest(name: str, names: Iterable[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, list(names), n=5, cutoff=0.5)
