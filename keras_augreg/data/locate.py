"""Finds a data set by name or path, and lists its examples."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_augreg import dataset_names
from keras_augreg.atomic import is_remote
from keras_augreg.data import (
    access,
    folds,
    remote,
    report,
    sources,
    tables,
    tars,
    tfds,
)
from keras_augreg.data.datasets import DATASETS, PaperDataset
from keras_augreg.data.options import Options, is_weight
from keras_augreg.data.sources import Examples
from keras_augreg.data.tfds import Records
from keras_augreg.labels import class_labels


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a data set is.

    Data sets other than the paper's get a row without splits and classes.
    """

    row: PaperDataset
    path: str  # a folder, or a name of TensorFlow Datasets
    kind: str  # "bundled", "folder", "table", "object", "tar" or "tfds"
    data_dir: str | None = None  # TFDS's directory, if the user named one
    # A table (path or DataFrame), an object of examples, tar files by split, or
    # a `RemoteFolder`.
    given: Any = None

    def read(
        self, split: str, class_names: Sequence[str] | None, options: Options
    ) -> Examples | Records:
        """Lists the examples of a split; the arguments are `load`'s."""
        self._check_columns(options)
        if self.kind == "tfds":
            found = self._records(split, options)
            if isinstance(found, Records):
                return found
        else:
            name, percent = sources.part(split)
            found = self._list(name, class_names, options)
            if percent != (0, 100):
                found = found.labelled(options.on_error == "skip")
                found = sources.take(found, percent, options.split_seed)
        if excluded := options.excluded:
            everything = len(found)
            names = enumerate(found.names)
            found = found.subset(
                i for i, n in names if not {n, sources.line_of(n)} & excluded
            )
            if len(found) == everything:
                report.none_excluded(excluded)
        if options.sample_weight is not None and self.kind != "tfds":
            weights = np.asarray(options.sample_weight)
            numbers = weights.dtype.kind in "fiub"
            if (
                not numbers
                or weights.shape != (len(found),)
                or not is_weight(weights).all()
            ):
                raise ValueError(
                    "`sample_weight` must have one finite number of at least "
                    f"0 for each of the {len(found)} examples. Received: "
                    f"{reprlib.repr(options.sample_weight)}"
                )
            found.weights = weights.astype(np.float32)
        if options.cache:
            found.read = sources.Cached(found.read)
        return found

    def _check_columns(self, options: Options) -> None:
        """Raises if options name columns of a source that has none."""
        keys = self.kind in ("object", "tar", "tfds")
        for column in ("image", "label", "group"):
            name = getattr(options, column)
            if name is None or self.kind == "table":
                continue
            one = isinstance(name, str)
            if not keys or column == "group" or not one:
                raise ValueError(
                    f"`{column}` is a column of a table: a CSV file or a "
                    f"DataFrame{'' if column == 'group' else ', or a key'}. "
                    f"Received: {column}={name!r} for {self.path!r}"
                )

    def _list(
        self, split: str, class_names: Sequence[str] | None, options: Options
    ) -> Examples:
        """Lists the examples of a whole split, or those of a fold."""
        seed, groups = options.split_seed, None
        skip = options.on_error == "skip"
        listed = self._folded(split) if options.folds else split
        if self.kind == "bundled":
            found = sources.digits(listed, seed)
        elif self.kind == "table":
            found, groups = tables.table(
                self.given, self.path, class_names, options
            )
            if class_names is None:
                report.numbers_as_classes(self.row.name, found.class_names)
            found = sources.split_by_seed(found, self.row.name, listed, seed)
        elif self.kind == "object":
            found, whole = access.examples(
                self.given, listed, class_names, options
            )
            if not whole and listed != "all":
                found = found.labelled(skip)
                found = sources.split_by_seed(found, self.path, listed, seed)
        elif self.kind == "tar":
            found = tars.examples(self.given, listed, class_names, options)
            if "" in self.given:
                found = sources.split_by_seed(found, self.path, listed, seed)
        else:
            if self.row.num_classes and class_names is None:
                # The release's order.
                class_names = [n for n, _ in class_labels(self.row.num_classes)]
            found = sources.folder(
                self._root(), listed, seed, class_names, options.on_error
            )
        if not options.folds or split not in ("train", "validation"):
            return found
        found = found.labelled(skip)
        assert found.labels is not None
        strata = sources.strata(found.labels)
        fold = folds.assign(strata, options.folds, seed, groups)
        inside = (fold == options.fold) == (split == "validation")
        return found.subset(np.flatnonzero(inside))

    def _root(self) -> Any:
        """The folder, local or on gs://, whose names are then known."""
        return self.given or pathlib.Path(self.path)

    def _folded(self, split: str) -> str:
        """The split that `split` with folds is a part of."""
        whole = "all"
        if self.kind == "folder":
            root = sources.unwrapped(self._root())
            if "train" in sources.split_folders(root):
                whole = "train"
        if isinstance(self.given, Mapping) and "" not in self.given:
            whole = "train"
        if split in ("train", "validation"):
            return whole
        if whole == "train" or split == "all":
            return split
        raise ValueError(
            'With `folds`, the splits are "train", "validation" and "all": '
            f"{self.path!r} has none of its own. Received: split={split!r}"
        )

    def splits(self) -> list[str]:
        """Returns the names of the splits that can be read."""
        if self.kind == "folder":
            root = sources.unwrapped(self._root())
            found = sources.split_folders(root)
            # One class may be called "test tube".
            words = [*filter(None, map(sources.split_word, found))]
            if len(words) > 1 or sources.SPLITS & set(map(str.lower, found)):
                return found
        if self.row.splits:
            return list(self.row.splits)
        if self.kind == "object":
            return access.splits(self.given)
        if self.kind == "tar" and "" not in self.given:
            return list(self.given)
        if self.kind == "tfds":
            builder = tfds.open_builder(self.path, self.data_dir, "auto")
            return list(builder.info.splits)
        return ["train", "test"]

    def _records(self, split: str, options: Options) -> Records | Examples:
        if options.folds:
            raise ValueError(
                "Folds are for folders, tables and digits: the labels of "
                "TFDS's data sets are in their files. Take parts of a split, "
                f'such as "train[:80%]". Received: folds={options.folds}'
            )
        builder = tfds.open_builder(self.path, self.data_dir, options.engine)
        split = "+".join(self._in_tfds(builder, s) for s in split.split("+"))
        records = tfds.open_records(builder.info, split, self.row, options)
        expected, received = self.row.num_classes, len(records.class_names)
        if expected and received != expected:
            raise ValueError(
                f"{self.row.name!r} has {expected} classes, but what was "
                f"found at {self.path!r} has {received}."
            )
        return records

    def _in_tfds(self, builder: Any, split: str) -> str:
        """Returns TFDS's expression for a row's split, or a part of one."""
        name, bracket, part = split.partition("[")
        if name not in self.row.splits:
            return split
        # TFDS's split of the same name may hold the row's test set.
        split = self.row.splits[name]
        if "{p}" in split:
            count = builder.info.splits["train"].num_examples
            first = self.row.held_out * count // 100
            split = split.format(p=first, p200=first + 200)
        return tfds.part_of(builder, split, part) if bracket else split


def locate(source: Any, data_dir: str | os.PathLike[str] | None) -> Location:
    """Finds a data set; the arguments are `load`'s."""
    if tables.is_frame(source):
        row = PaperDataset("DataFrame", None, {}, 0)
        root = os.path.expanduser(data_dir or ".")
        return Location(row, root, "table", given=source)
    if not isinstance(source, (str, os.PathLike)):
        return _locate_object(source)
    suffix = os.path.splitext(str(source))[1].lower()
    if suffix in tables.SUFFIXES and not is_remote(source):
        return _locate_table(os.path.expanduser(source), data_dir)
    is_folder = isinstance(source, os.PathLike)
    source = os.path.expanduser(source)
    if is_folder and "://" not in source:
        # A `Path` is always a folder; the "./" prefix marks it as one.
        source = os.path.join(".", source)
    directory = None if data_dir is None else os.path.expanduser(data_dir)
    known = dataset_names.lookup(source, (*sources.BUNDLED, *DATASETS))
    if known and directory is None and os.path.isdir(source):
        report.once(
            f"{source!r} is a data set's name and a folder here: reading the "
            f"data set. For the folder, pass pathlib.Path({source!r})."
        )
    if known in sources.BUNDLED:
        row = PaperDataset(known, None, {}, 0, "resize", "resize", False)
        return Location(row, known, "bundled")
    row = DATASETS[known] if known else PaperDataset(source, None, {}, 0)
    if row.tfds is not None:
        return Location(row, row.tfds, "tfds", directory)
    path = source
    if known:
        if directory is None:
            raise ValueError(
                f"{known!r} has no public TFDS data set: pass `data_dir`, a "
                "folder of class folders or a directory that TFDS wrote."
            )
        path = directory
    if is_remote(path):
        return _locate_remote(row, path, directory)
    if tars.are_at(path):
        return Location(row, path, "tar", given=tars.shards(path))
    if access.saved(path):
        given = access.load_saved(path)
        return Location(row, path, "object", given=given)
    if tfds.is_prepared_directory(path):
        return Location(row, path, "tfds", directory)
    is_path = (
        known
        or path.startswith((".", "/", "~"))
        or path.endswith("/")
        or not tfds.is_name(path)
    )
    # Where TFDS's directory is given, a name is one of TFDS's.
    if os.path.isdir(path) and (is_path or directory is None):
        return Location(row, path, "folder")
    if is_path and os.path.isfile(path):
        raise ValueError(
            f"{path!r} is a file. Expected a folder of class folders, a table "
            f"({', '.join(tables.SUFFIXES)}) or tar files (.tar): unpack other "
            "archives, and pass the folder."
        )
    if is_path:
        near = tfds.nearest(path, (*sources.BUNDLED, *DATASETS))
        raise ValueError(
            f"No folder {path!r} in {os.getcwd()!r}. Expected a folder of "
            "class folders, or a directory that TFDS wrote (with "
            f"dataset_info.json). Nearest names: {near}"
        )
    return Location(row, path, "tfds", directory)


def _locate_remote(
    row: PaperDataset, path: str, directory: str | None
) -> Location:
    if path.endswith((".tar", *tars.COMPRESSED, *tables.SUFFIXES)):
        raise ValueError(
            "Tables and tar files are read from disks only: copy them here, or "
            f"mount the bucket (gcsfuse). Received: {path!r}"
        )
    if tfds.is_prepared_directory(path):
        return Location(row, path, "tfds", directory)
    found = remote.RemoteFolder(path)
    if not found.exists():
        raise ValueError(
            f"No folder {path!r}. Expected a folder of class folders, or a "
            "directory that TFDS wrote (with dataset_info.json)."
        )
    return Location(row, path, "folder", given=found)


def _locate_table(
    path: str, data_dir: str | os.PathLike[str] | None
) -> Location:
    root = os.path.expanduser(data_dir or os.path.dirname(path) or ".")
    for missing, what in [
        (not os.path.isfile(path) and path, "file"),
        (not os.path.isdir(root) and root, "folder of images"),
    ]:
        if missing:
            raise ValueError(f"No such {what}: {missing!r} in {os.getcwd()!r}.")
    row = PaperDataset(path, None, {}, 0)
    return Location(row, root, "table", given=path)


def _locate_object(source: Any) -> Location:
    name = type(source).__name__
    if not access.is_random_access(source):
        raise TypeError(
            "`source` must be a name, a path, a table, or an object with "
            "`__len__` and `__getitem__`, whose examples can be read in any "
            "order. Streams cannot: load a data set of Hugging Face without "
            f"`streaming=True`. Received: {name}"
        )
    return Location(PaperDataset(name, None, {}, 0), name, "object",
                    given=source)  # fmt: skip


def evaluation_split(
    source: Any,
    train: str = "train",
    data_dir: str | os.PathLike[str] | None = None,
) -> tuple[str, str]:
    """Chooses the split to evaluate on, and says so if it is not the test set.

    Args:
        source: As in `load`.
        train: The split to train on.
        data_dir: As in `load`.

    Returns:
        (train, evaluation): the test split or, without one, the validation
        split; where there is neither, 90% and 10% of `train`.

    Raises:
        ValueError: If there is neither and `train` is a part of a split.

    Example:
    >>> evaluation_split("digits")
    ('train', 'test')
    """
    location = locate(source, data_dir)
    # A name, not the contents of an object or a DataFrame.
    where = location.row.name if location.given is not None else str(source)
    splits = location.splits()
    parts = [part.partition("[")[0].strip() for part in train.split("+")]
    known = {s.lower(): s for s in splits if s not in parts}
    if location.kind == "folder":  # "seg_test" is a test split, too.
        words = {sources.split_word(s): s for s in splits if s not in parts}
        known = words | known
    if "all" in parts:
        known = {}  # It holds all of them.
    chosen = next((known[s] for s in sources.EVALUATION if s in known), None)
    if chosen is None:
        if "[" in train or len(parts) > 1:
            raise ValueError(
                f"{where!r} has no split to evaluate on besides the "
                f"{train!r}. Train on one whole split, of which a tenth is "
                f"then held out. Splits: {splits}"
            )
        train, chosen = f"{train}[:90%]", f"{train}[90%:]"
    if chosen != "test":
        report.once(
            f"{where!r}: {train!r} is for training, {chosen!r} for evaluation."
        )
    return train, chosen


def find(
    source: Any,
    split: str,
    *,
    class_names: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> Examples | Records:
    """Lists the examples of a split without reading them.

    Args:
        source: As in `load`.
        split: As in `load`.
        class_names: As in `load`.
        data_dir: As in `load`.
        options: As in `load`.

    Returns:
        An object with `names` (as `Options.exclude` takes them), `labels`
        (int64 of shape (n,), or `None` where each is read with its image) and
        `class_names`.

    Raises:
        ValueError: If the source or the split does not exist.

    Example:
    >>> len(find("digits", "test"))
    359
    """
    options = options or Options()
    return locate(source, data_dir).read(split, class_names, options)
