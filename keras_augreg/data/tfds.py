"""Examples of TensorFlow Datasets.

TFRecord files are read in their order, by TensorFlow (`Records`); array_record
files in any order, without TensorFlow.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from keras_augreg.atomic import as_path
from keras_augreg.data.datasets import PaperDataset
from keras_augreg.data.decode import ImageError, Picture
from keras_augreg.data.options import Options
from keras_augreg.data.order import PADDING, Order
from keras_augreg.data.report import none_excluded
from keras_augreg.data.sources import Examples, Labelled, Numbered

# Number of files that training interleaves.
CYCLE = 16

# A name of TFDS: "namespace:name/config:1.*.*/argument=value".
_NAME = re.compile(
    r"([\w-]+:)?[a-zA-Z]\w*(/[\w+.-]+)?(:[\d*]+(\.[\d*]+){2})?(/(\w+=[^,]+,?)+)?"
)

# (path, first record, number of records) of a part of a file.
Part = tuple[str, int, int]


@dataclasses.dataclass
class Records:
    """The examples of a split, and one shard's share of its files."""

    class_names: list[str]
    parts: list[Part]
    # A record -> the image file's bytes, the label and the weight, as tensors.
    parse: Callable[[Any], tuple[Any, Any, Any]]
    label_shape: tuple[int, ...]  # of one label: () or (num_classes,)
    options: Options
    # (height, width, channels) of every image; `None` where they differ.
    image_shape: tuple[int | None, ...] = (None, None, None)
    brightness: int = 1
    shard: tuple[int, int] = (0, 1)  # (index, count)
    # As in `Examples`: labels are in the files, and nothing is left out.
    labels = None
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._excluded = self.options.excluded
        self._share = _share(self.parts, *self.shard)
        self._length = _count(self.parts, self._excluded)

    def __len__(self) -> int:
        return self._length

    @property
    def weighted(self) -> bool:
        """Whether examples have weights: those without a label have 0."""
        return bool(self.label_shape)

    @property
    def names(self) -> list[str]:
        """Names (TFDS's `tfds_id`) of the split's examples, in order."""
        names = (
            f"{os.path.basename(path)}__{i}"
            for path, first, count in self.parts
            for i in range(first, first + count)
        )
        return [name for name in names if name not in self._excluded]

    def smaller_side(self) -> int | None:
        """Returns the smaller side of the images if all have one size."""
        height, width, _ = self.image_shape
        return min(height, width) if height and width else None

    def in_order(self, training: bool) -> int:
        """Number of places in an epoch over all shards.

        In training, shards drop what the smallest one lacks; otherwise all are
        padded to the largest one.
        """
        count = self.shard[1]
        shares = [_share(self.parts, i, count) for i in range(count)]
        counts = [_count(share, self._excluded) for share in shares]
        return (min(counts) if training else max(counts)) * count

    def name(self, data: bytes, name: bytes) -> str:
        """An example's name in error messages: TFDS's `tfds_id`."""
        return name.decode()

    def picture(self, data: bytes, name: bytes) -> Picture:
        return Picture(data, self.name(data, name), self.brightness)

    def pictures(self) -> Iterator[tuple[str, Callable[[], Picture]]]:
        """Yields each example's name and how to read it, in order."""
        import tensorflow as tf

        for record, name in self._read(tf):
            data, name = self.parse(record)[0].numpy(), name.numpy()
            yield name.decode(), functools.partial(self.picture, data, name)

    def stream(self, order: Order, num_batches: int) -> Callable[[Any], Any]:
        """Makes a function from a pass's first step to its examples.

        It returns a `tf.data.Dataset` of (number in the pass, (epoch, place,
        (bytes, name), label, weight)). The records before the first step are
        read and not parsed.
        """
        import tensorflow as tf

        size = order.shard_batch
        # Outside the epochs, or each would have a cache of its own.
        kept = self._read(tf).cache() if self.options.cache else None

        def epoch_records(epoch: Any) -> Any:
            # Seeds this function only, independently of `tf.random.set_seed`.
            # Must not be 0: `shuffle` compares 0 with a tensor.
            tf.compat.v1.set_random_seed(1)
            records, buffer = kept, len(self)
            if records is None:
                records = self._read(tf, order.seed, epoch)
                buffer = self.options.shuffle_buffer
            records = records.shuffle(
                max(buffer, 1),
                seed=order.seed * 1_000_003 + epoch,
                reshuffle_each_iteration=False,
            )
            records = records.enumerate().take(order.steps * size)
            return records.map(lambda i, record: (epoch, i, *record))

        def parse(epoch: Any, i: Any, record: Any, name: Any) -> Any:
            data, label, weight = self.parse(record)
            place = i * order.shard[1] + order.shard[0]
            return epoch, place, (data, name), label, weight

        def training(step: Any) -> Any:
            last = (step + num_batches - 1) // order.steps
            records = tf.data.Dataset.range(step // order.steps, last + 1)
            records = records.flat_map(epoch_records)
            records = records.skip(step % order.steps * size)
            return records.take(num_batches * size).map(parse).enumerate()

        def evaluation(step: Any) -> Any:
            records = self._read(tf) if kept is None else kept
            zero = tf.zeros([], tf.int64)
            records = records.enumerate()
            records = records.map(lambda i, r: parse(zero, i, *r))
            if not order.pad:
                return records.enumerate()
            dtype = tf.float32 if self.label_shape else tf.int64
            label = tf.zeros(self.label_shape, dtype)
            what = (tf.constant(""),) * 2
            nothing = (zero, zero + PADDING, what, label, tf.zeros([]))
            padding = tf.data.Dataset.from_tensors(nothing)
            records = records.concatenate(padding.repeat())
            return records.take(num_batches * size).enumerate()

        return training if order.training else evaluation

    def _read(self, tf: Any, seed: int = 0, epoch: Any = None) -> Any:
        """(record, name); with an epoch, files come in a random order."""
        rows = [(*part, os.path.basename(part[0])) for part in self._share]
        columns = [
            tf.constant([row[i] for row in rows], dtype)
            for i, dtype in enumerate((tf.string, *[tf.int64] * 2, tf.string))
        ]

        def shuffled(epoch: int) -> np.ndarray:
            return np.random.RandomState([seed, epoch]).permutation(len(rows))

        if epoch is not None:
            order = tf.numpy_function(shuffled, [epoch], tf.int64)
            columns = [tf.gather(column, order) for column in columns]

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
        if self._excluded:
            names = sorted(self._excluded)
            ones = tf.lookup.KeyValueTensorInitializer(names, [1] * len(names))
            table = tf.lookup.StaticHashTable(ones, 0)
            records = records.filter(lambda _, name: table[name] == 0)
        return records


def open_builder(name: str, data_dir: str | None, engine: str) -> Any:
    """Finds a data set, and prepares it as `tfds.load` does.

    Without TensorFlow, or for the engine "python", it is prepared as
    array_record.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            f"No folder {name!r} in {os.getcwd()!r}. To read a data set of "
            "TensorFlow Datasets with that name, pip install "
            "'keras_augreg[data]' or, for array_record files without "
            "TensorFlow, 'keras_augreg[tfds]'"
        ) from error
    installed = importlib.util.find_spec("tensorflow") is not None
    random_access = engine == "python" or not installed
    if is_prepared_directory(name):
        builder = tfds.builder_from_directory(name)
    else:
        find = functools.partial(tfds.builder, name, data_dir=data_dir)
        try:
            builder = find()
        except tfds.core.DatasetNotFoundError as error:
            near = nearest(name, tfds.list_builders())
            raise ValueError(
                f"Unknown source {name!r}: no folder in {os.getcwd()!r}, not "
                "bundled, not a data set of the paper, and not one of "
                f"TensorFlow Datasets (data_dir={data_dir!r}). Nearest names: "
                f"{near}"
            ) from error
        if random_access and not builder.is_prepared():
            builder = find(file_format="array_record")
        builder.download_and_prepare()
    _check_format(builder, name, random_access, installed)
    return builder


def _check_format(
    builder: Any, name: str, random_access: bool, installed: bool
) -> None:
    """Raises if the files cannot be read here."""
    formats = {f.value for f in builder.info.available_file_formats()}
    if "array_record" in formats and random_access:
        builder.info.set_file_format(
            "array_record", override=True, override_if_initialized=True
        )
    stored = builder.info.file_format.value
    if stored == "array_record":
        if importlib.util.find_spec("array_record") is None:
            raise ImportError(
                f"{name!r} is stored as array_record: pip install array_record"
            )
        return
    if stored == "tfrecord" and not random_access:
        return
    again = (
        f"`tfds build {builder.name} --file_format=array_record`, or "
        f'`tfds.load({builder.name!r}, file_format="array_record")`'
    )
    if stored == "tfrecord" and not installed:
        raise ImportError(
            f"{name!r} is stored as tfrecord, which only TensorFlow reads. "
            f"Prepare it as array_record ({again}), or pip install tensorflow."
        )
    if stored == "tfrecord":
        raise ValueError(
            f'{name!r} is stored as tfrecord, which engine="python" cannot '
            f'read. Pass engine="tensorflow", or prepare it as array_record: '
            f"{again}."
        )
    raise ValueError(
        f"{name!r} is stored as {stored}. Expected array_record or tfrecord: "
        f"prepare it with {again}."
    )


def is_prepared_directory(path: str) -> bool:
    """Whether TFDS wrote this directory, local or on `gs://`."""
    return (as_path(path) / "dataset_info.json").exists()


def is_name(text: str) -> bool:
    """Whether TFDS would take this for a name; known without TFDS."""
    return _NAME.fullmatch(text) is not None


def part_of(builder: Any, split: str, part: str) -> str:
    """Returns TFDS's expression for a part of a split in TFDS's syntax.

    `part` is what follows the opening bracket: ":100]" is of all examples,
    "10%:20%]" of each of the split's summands.
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
    lengths = [(name, start, stop - start) for name, start, stop in pieces]
    if unit:
        shares = []
        for piece in lengths:
            ends = (piece[2] * percent // 100 for percent in (first, last))
            shares += _range([piece], *ends)
    else:
        shares = _range(lengths, first, last)
    parts = [f"{name}[{low}:{low + count}]" for name, low, count in shares]
    if not parts:
        raise ValueError(
            f"[{part} of {split!r} is empty. Choose a larger part."
        )
    return "+".join(parts)


@dataclasses.dataclass(frozen=True)
class Fields:
    """The features of a data set that are read."""

    image: str
    label: str | Callable[[Any], int]  # a feature, or a function of an example
    weight: str | None
    features: Any  # of TFDS: all those that are read
    class_names: list[str]
    several: bool  # whether the label is a sequence of classes

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (len(self.class_names),) if self.several else ()

    @property
    def decoders(self) -> dict[str, Any]:
        """TFDS leaves the image's file as it is."""
        import tensorflow_datasets as tfds

        return {self.image: tfds.decode.SkipDecoding()}


def _fields(info: Any, row: PaperDataset, options: Options) -> Fields:
    """Chooses features; the row tells what its label is."""
    import tensorflow_datasets as tfds

    image, own_label = _keys(tfds, info, options)
    label = options.label_key or row.label or own_label
    if label is None:
        raise ValueError(
            f"Cannot tell which feature of {info.name!r} is the label: "
            f"expected one class label in {list(info.features)}. Name it with "
            "`data.Options(label=...)`."
        )
    weight = options.sample_weight
    if weight is not None and not isinstance(weight, str):
        raise ValueError(
            "For a TFDS data set, `sample_weight` must be the name of a "
            f"feature. Received: {type(weight).__name__}"
        )
    wanted = [image, *row.label_features]
    wanted += [name for name in (label, weight) if isinstance(name, str)]
    _check_features(info, image, wanted)
    class_names = [str(i) for i in range(row.num_classes)]
    several = False
    if isinstance(label, str):
        class_names, several = _classes(tfds, info, label)
    # `tfds.decode.PartialDecoding` imports TensorFlow.
    features = {name: info.features[name] for name in wanted}
    features = tfds.features.FeaturesDict(features)
    return Fields(image, label, weight, features, class_names, several)


def open_records(
    info: Any, split: str, row: PaperDataset, options: Options
) -> Records | Examples:
    """Opens a split in TFDS's syntax; `info` is a `tfds.core.DatasetInfo`."""
    fields = _fields(info, row, options)
    try:
        found = info.splits[split]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{info.name!r} has no split {split!r}: {error} It has: "
            f"{sorted(info.splits)}"
        ) from error
    if info.file_format.value == "array_record":
        return _examples(fields, found.file_instructions, row.brightness)
    parts = [(f.filename, f.skip, f.take) for f in found.file_instructions]
    records = Records(
        fields.class_names,
        parts,
        functools.partial(_parse_tensor, fields, row.label_features),
        fields.label_shape,
        options,
        tuple(info.features[fields.image].shape),
        row.brightness,
    )
    if options.excluded and len(records) == found.num_examples:
        none_excluded(options.excluded)
    return records


def _examples(
    fields: Fields, instructions: list[Any], brightness: int
) -> Examples:
    """Lists the examples of array_record files, named as `tfds_id` does."""
    from array_record.python import array_record_data_source

    files = {f.filename: f.examples_in_shard for f in instructions}
    starts = np.cumsum([0, *files.values()]).tolist()
    names = [os.path.basename(file) for file in files]
    try:
        source = array_record_data_source.ArrayRecordDataSource(list(files))
    except Exception as error:
        raise ValueError(
            f"Cannot open {names[0]!r} and what follows it: {error}. Prepare "
            "the data set again."
        ) from error
    read = _ArrayRecords(
        source, dict(zip(names, starts[:-1], strict=True)), fields
    )
    parts = [
        (f"{os.path.basename(f.filename)}__", f.skip, f.take)
        for f in instructions
    ]
    return Examples(
        Numbered(parts),
        None,
        fields.class_names,
        read,
        label_shape=fields.label_shape,
        weighted=fields.several,
        brightness=brightness,
    )


@dataclasses.dataclass
class _ArrayRecords:
    """Reads an example by its name; a class, so that it can be pickled."""

    source: Any
    starts: dict[str, int]  # file -> position of its first record
    fields: Fields

    def __call__(self, name: str) -> Labelled:
        fields = self.fields
        file, _, number = name.rpartition("__")
        try:
            record = self.source[self.starts[file] + int(number)]
            example = fields.features.deserialize_example_np(
                record, decoders=fields.decoders
            )
        except Exception as error:
            raise ImageError(
                f"Cannot read the record {name!r}: {error}. Prepare the data "
                'set again, or pass on_error="skip" to leave it out.'
            ) from error
        weight = float(example[fields.weight]) if fields.weight else 1.0
        if callable(fields.label):
            label: Any = fields.label(example)
        elif fields.several:
            label = np.zeros(fields.label_shape, np.float32)
            label[np.asarray(example[fields.label], np.int64)] = 1.0
            # Examples without any label do not count.
            weight *= float(label.max())
        else:
            label = int(example[fields.label])
        return Labelled(example[fields.image], label, weight)


def _parse_tensor(
    fields: Fields, label_features: tuple[str, ...], record: Any
) -> tuple[Any, Any, Any]:
    """Returns the image's bytes, the label and the weight of a TFRecord."""
    import tensorflow as tf

    example = fields.features.deserialize_example(
        record, decoders=fields.decoders
    )
    image = example[fields.image]
    weight = tf.cast(
        example[fields.weight] if fields.weight else 1.0, "float32"
    )
    if callable(fields.label):
        needed = {name: example[name] for name in label_features}

        def label(*values: Any) -> np.int64:
            assert callable(fields.label)
            packed = tf.nest.pack_sequence_as(needed, values)
            return np.int64(fields.label(packed))

        target = tf.numpy_function(label, tf.nest.flatten(needed), tf.int64)
        target.set_shape([])
        return image, target, weight
    target = example[fields.label]
    if fields.several:
        # Examples without any label do not count.
        target = tf.one_hot(target, len(fields.class_names))
        target = tf.minimum(tf.reduce_sum(target, axis=0), 1.0)
        weight *= tf.reduce_max(target)
    return image, target, weight


def _check_features(info: Any, image: str, wanted: list[str]) -> None:
    """Raises if images are not unsigned integers or a feature is missing."""
    features = info.features
    stored = np.dtype(features[image].np_dtype)
    if stored.kind != "u":
        raise ValueError(
            f"Expected images of uint8 or uint16. Feature {image!r} of "
            f"{info.name!r} holds {stored}; prepare it with uint8."
        )
    missing = [key for key in wanted if key not in features]
    if missing:
        raise ValueError(
            f"{info.name!r} has no feature {missing[0]!r}. It has: "
            f"{sorted(features)}"
        )


def _classes(tfds: Any, info: Any, label: str) -> tuple[list[str], bool]:
    """Returns the class names of a label, and whether it is a sequence."""
    feature = info.features[label]
    several = isinstance(feature, tfds.features.Sequence)
    feature = feature.feature if several else feature
    if not isinstance(feature, tfds.features.ClassLabel):
        raise ValueError(
            f"Feature {label!r} of {info.name!r} is not a class label: "
            f"{feature}"
        )
    return list(feature.names), several


def _keys(tfds: Any, info: Any, options: Options) -> tuple[str, str | None]:
    """Returns the names of a data set's image and label."""
    features = info.features
    images, labels = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    supervised = info.supervised_keys or ()
    # Prefer what the data set declares as its input and target, if it fits.
    image = [key for key in supervised if key in images] or images
    label = [key for key in supervised if key in labels] or labels
    for name in (options.image, options.label):
        if name is not None and name not in features:
            raise ValueError(
                f"{info.name!r} has no feature {name!r}. It has: "
                f"{sorted(features)}"
            )
    if options.image is not None:
        image = [options.image]
    if len(image) != 1:
        raise ValueError(
            f"Cannot tell which feature of {info.name!r} is the image: "
            f"expected one, found {images} in {list(features)}. Name it with "
            "`data.Options(image=...)`."
        )
    return image[0], label[0] if len(label) == 1 else None


def _share(parts: list[Part], index: int, count: int) -> list[Part]:
    """Returns the parts that one of `count` shards reads, in order."""
    total = sum(length for _, _, length in parts)
    return _range(parts, total * index // count, total * (index + 1) // count)


def _range(parts: list[Part], start: int, stop: int) -> list[Part]:
    """Returns examples `start` to `stop` of the parts."""
    share, before = [], 0
    for path, first, length in parts:
        low, high = (min(max(x - before, 0), length) for x in (start, stop))
        if high > low:
            share.append((path, first + low, high - low))
        before += length
    return share


def _count(parts: list[Part], excluded: frozenset[str]) -> int:
    """Returns how many examples are left."""
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


def nearest(name: str, names: Iterable[str] = ()) -> list[str]:
    """Returns the most similar of some names and of the folders here."""
    import difflib

    names = [*names, *filter(os.path.isdir, os.listdir())]
    return difflib.get_close_matches(name.strip("./"), names, n=5, cutoff=0.5)
