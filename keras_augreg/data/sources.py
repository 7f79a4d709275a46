"""Where images and labels come from: folders and bundled data.

A source has `names`, `labels` and `class_names`, and reads one example by its
number. Data sets that other libraries read are in `access.py` and `tfds.py`,
the latter with TFDS's TFRecord files, which are read in their order.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from keras_augreg.data import remote, report
from keras_augreg.data.decode import (
    ArrayPicture,
    ImageError,
    Picture,
    extensions,
)
from keras_augreg.data.order import shuffled_classes

# Lower-case names that folders of splits have, so not names of classes.
# Those to evaluate on come in the order of preference.
EVALUATION = ("test", "testing", "eval", "evaluation", "val", "valid",
              "validation", "dev")  # fmt: skip
SPLITS = frozenset(("train", "training", *EVALUATION))
# What operating systems and archivers leave behind, in lower case.
JUNK = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin")
    + ("system volume information", "lost+found", "@eadir")
)
# Share of the test split of class folders and digits, which come without one.
TEST_SHARE = 0.2
BUNDLED = ("digits",)
# Images whose sizes tell whether a data set has small ones.
SAMPLE = 16
# Seconds between lines of progress.
EVERY = 10.0
# "train[:10%]", TFDS's syntax.
_PART = re.compile(r"([^\[\]]+)\[(?:([0-9]+)%)?:(?:([0-9]+)%)?\]")


class Labelled(NamedTuple):
    """An image with its label, where both are read together."""

    data: bytes | np.ndarray  # as `Examples.read` returns it
    label: Any  # the number of a class, or float32 (num_classes,)
    weight: float = 1.0


class Numbered(Sequence[str]):
    """Names that end in numbers, such as "train[7]", made when asked for."""

    def __init__(
        self, parts: Sequence[tuple[str, int, int]], end: str = ""
    ) -> None:
        self._parts = parts  # (what comes before the number, first, count)
        self._end = end
        self._stops = np.cumsum([count for _, _, count in parts], dtype=int)

    def __len__(self) -> int:
        return int(self._stops[-1]) if len(self._stops) else 0

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        part = int(np.searchsorted(self._stops, index, side="right"))
        start, first, count = self._parts[part]
        number = first + index - int(self._stops[part] - count)
        return f"{start}{number}{self._end}"


@dataclasses.dataclass
class Examples:
    """Examples that can be read in any order."""

    names: Sequence[str]  # in error messages and `exclude` lists
    # int64 of shape (n,) or float32 of shape (n, num_classes); `None` if
    # `read` returns each example's.
    labels: np.ndarray | None
    class_names: list[str]
    # Name of an example -> the bytes of an image file, or uint8 (h, w, 3).
    read: Callable[[str], bytes | np.ndarray | Labelled]
    root: str = ""  # the folder that names are relative to, if any
    # Names that `on_error="skip"` left out before reading.
    left_out: list[str] = dataclasses.field(default_factory=list)
    # Extension -> number of files of a kind that cannot be read.
    unread: dict[str, int] = dataclasses.field(default_factory=dict)
    label_shape: tuple[int, ...] = ()  # of one label: () or (num_classes,)
    weighted: bool = False  # whether examples have weights of their own
    brightness: int = 1
    weights: np.ndarray = dataclasses.field(init=False)  # float32 (n,)

    def __post_init__(self) -> None:
        self.weights = np.ones(len(self.names), np.float32)
        if self.labels is not None:
            self.label_shape = self.labels.shape[1:]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        return self.names[number]

    def picture(self, number: int) -> Picture | ArrayPicture:
        """Reads an example up to the header of its file."""
        return self.example(number)[0]

    def example(self, number: int) -> tuple[Picture | ArrayPicture, Any, float]:
        """Returns an example's picture, label and weight."""
        name = os.path.join(self.root, self.names[number])
        try:
            data = self.read(self.names[number])
        except OSError as error:
            raise ImageError(
                f"Cannot read {name!r}: {error}. Replace or remove the file, "
                'or pass on_error="skip" to leave out such files.'
            ) from error
        label, weight = None, self.weights[number]
        if isinstance(data, Labelled):
            data, label, own_weight = data
            weight = weight * own_weight
        if self.labels is not None:
            label, weight = self.labels[number], self.weights[number]
        picture: Picture | ArrayPicture
        if isinstance(data, bytes):
            picture = Picture(data, name, self.brightness)
        else:
            picture = ArrayPicture(data)
        return picture, label, weight

    def blank_labels(self, count: int) -> np.ndarray:
        """Returns zeros with the dtype and shape of that many labels."""
        dtype = np.float32 if self.label_shape else np.int64
        return np.zeros((count, *self.label_shape), dtype)

    def labelled(self, skip: bool) -> Examples:
        """Returns examples whose labels are known, after reading them all.

        `skip` leaves out those that cannot be read.
        """
        if self.labels is not None:
            return self

        def label_of(name: str) -> Any:
            try:
                _, label, weight = self.read(name)
            except ImageError:
                if not skip:
                    raise
                return None
            return label, weight

        found = read_all(label_of, self.names)
        kept = [i for i, label in enumerate(found) if label is not None]
        labels = self.blank_labels(len(kept))
        weights = np.ones(len(kept), np.float32)
        for i, k in enumerate(kept):
            labels[i], weights[i] = found[k]
        result = dataclasses.replace(
            self,
            names=[self.names[i] for i in kept],
            labels=labels,
            left_out=self.left_out
            + [self.names[i] for i, x in enumerate(found) if x is None],
        )
        result.weights = weights * self.weights[np.array(kept, np.int64)]
        return result

    def pictures(self) -> Iterator[tuple[str, Callable]]:
        """Yields each example's name and how to read it, in order."""
        for i, name in enumerate(self.names):
            yield name, functools.partial(self.picture, i)

    def smaller_side(self) -> int | None:
        """Returns the median smaller side of a few images, in pixels."""
        few = np.linspace(0, len(self) - 1, min(SAMPLE, len(self)))
        sides = []
        for number in few.astype(int).tolist():
            try:
                picture = self.picture(number)
            except ImageError:
                continue
            sides.append(min(picture.height, picture.width))
        return int(np.median(sides)) if sides else None

    def subset(self, numbers: Iterable[int]) -> Examples:
        """Returns the examples with these numbers, in this order."""
        numbers = np.asarray(list(numbers), np.int64)
        names = [self.names[i] for i in numbers]
        labels = None if self.labels is None else self.labels[numbers]
        taken = dataclasses.replace(self, names=names, labels=labels)
        taken.weights = self.weights[numbers]
        return taken


class Cached:
    """Keeps what a function returns; the kept values are not pickled."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read
        self._kept: dict[str, Any] = {}

    def __call__(self, name: str) -> Any:
        if name not in self._kept:
            self._kept[name] = self._read(name)
        return self._kept[name]

    def __reduce__(self) -> tuple[object, ...]:
        return Cached, (self._read,)


def read_all(
    read: Callable[[Any], Any],
    whats: Sequence[Any],
    what: str = "labels",
    at_once: int = 1024,
) -> list[Any]:
    """Reads everything on threads, with progress on the standard error."""
    results: list[Any] = []
    reported = time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(whats), at_once):
            some = whats[start : start + at_once]
            results += pool.map(read, some)
            if time.monotonic() > reported + EVERY:
                reported = time.monotonic()
                done = f"{len(results)} of {len(whats)} {what} read"
                print(f"keras_augreg: {done}", file=sys.stderr, flush=True)
    return results


def strata(labels: np.ndarray) -> np.ndarray:
    """Classes to take equal shares of: of vectors, those that are alike.

    Vectors of which there are too few for a share are one stratum together.
    """
    if labels.ndim == 1:
        return labels.clip(0)  # -1: without a label
    _, alike, counts = np.unique(
        labels, axis=0, return_inverse=True, return_counts=True
    )
    alike = alike.reshape(-1)
    return np.where(counts[alike] * TEST_SHARE < 1, 0, alike + 1)


def digits(split: str, split_seed: int) -> Examples:
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8 pixels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'The source "digits" is scikit-learn\'s: pip install scikit-learn'
        ) from error
    bunch = load_digits()
    # Sixteen is white.
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(images[..., None], 3, axis=-1)
    names = [f"digits[{i}]" for i in range(len(images))]
    read = dict(zip(names, images, strict=True)).__getitem__
    classes = [str(name) for name in bunch.target_names]
    everything = Examples(names, bunch.target.astype(np.int64), classes, read)
    return split_by_seed(everything, "digits", split, split_seed)


def folder(
    path: Any,
    split: str,
    split_seed: int,
    class_names: Sequence[str] | None,
    on_error: str,
) -> Examples:
    """Lists image files in one folder per class, sorted by class and name.

    The class folders, or folders of splits that hold them, may be in a single
    outer folder. `path` is a `pathlib.Path`, or a `RemoteFolder`. Without
    `class_names`, the classes are the sorted names of the folders in `train`
    (or "seg_train"), if it exists, or else in the split or in `path`.
    """
    root = unwrapped(path, class_names or ())
    splits = _splits(root, split)
    inside = _folders(root)
    top = root / split if splits else root
    only_splits = inside and SPLITS.issuperset(map(str.lower, inside))
    if not top.is_dir() or (only_splits and not splits):
        raise ValueError(
            f"{str(root)!r} has no split {split!r} with class folders in it. "
            f"It has: {inside}. Pass one of these as `split`, if it has some."
        )
    check_once(class_names or ())
    of_train = root
    if splits:
        of_train = _inside_split(root / splits[0], class_names or ())
        known = class_names or _folders(of_train)
        same = split == splits[0]
        top = of_train if same else _inside_split(top, known)
    found, unread = _images_of_classes(top)
    if class_names is None:
        _check_nested(top, found)
        if splits and found and SPLITS.issuperset(map(str.lower, found)):
            raise ValueError(
                f"{str(top)!r} holds no class folders, but {_some(found)}. "
                "Images that are not in class folders need a table of their "
                'labels: data.load("labels.csv", ..., data_dir=FOLDER).'
            )
    report.not_read(str(top), unread, sum(map(_is_image, _files(top))))
    known, left_out = _classes(top, found, of_train, class_names, on_error)
    files = [(n, f) for n in known for f in found.get(n, ())]
    if not files:
        raise ValueError(
            f"{str(top)!r} holds no images in class folders: expected files "
            f"such as CLASS/picture.jpg ({', '.join(extensions())}). Folders "
            f"found: {_folders(top)}"
        )
    number = {name: i for i, name in enumerate(known)}
    names = [f"{name}/{file}" for name, file in files]
    labels = np.array([number[name] for name, _ in files], np.int64)
    is_remote = isinstance(top, remote.RemoteFolder)
    reader = remote.read_file if is_remote else read_file
    read = functools.partial(reader, str(top))
    everything = Examples(
        names, labels, known, read, str(top), left_out, dict(unread)
    )
    if splits:
        return everything
    return split_by_seed(everything, str(root), split, split_seed)


def check_once(class_names: Sequence[str]) -> None:
    """Raises a `ValueError` if a name of a class is there twice."""
    if len(set(class_names)) < len(class_names):
        raise ValueError(
            "`class_names` must not repeat a class. Received: class_names="
            f"{list(class_names)}"
        )


def split_folders(root: Any) -> list[str]:
    """Returns the names of the folders that hold class folders."""
    return [name for name in _folders(root) if _folders(root / name)]


def _splits(root: Any, split: str) -> list[str]:
    """The folders of the training split and of `split`, if they are there."""
    folders = split_folders(root)
    found = [name for name in ("train", split) if name in folders]
    training = [n for n in folders if split_word(n) in ("train", "training")]
    if found == [split] and len(training) == 1:
        return [*training, split]  # "seg_train" and "seg_test"
    return found


def _inside_split(top: Any, class_names: Sequence[str]) -> Any:
    """The folder, or that of a split in it: "train/train", of zips."""
    inside = _folders(top)
    again = len(inside) == 1 and split_word(inside[0])
    return unwrapped(top, class_names, ()) if again else top


def split_word(name: str) -> str:
    """The word for a split in a folder's name ("seg_train"), "" if none."""
    words = re.findall("[A-Z]?[a-z]+|[A-Z]+", name)
    words = [word.lower().removesuffix("set") for word in words]
    return next((word for word in words if word in SPLITS), "")


def _check_nested(top: Any, found: dict[str, list[str]]) -> None:
    """Raises if folders in the place of classes seem to hold the classes."""
    nested = {name: _inner(files) for name, files in found.items() if files}
    several = [name for name, inner in nested.items() if len(inner) > 1]
    splits = [name for name in several if split_word(name)]
    copies = [n for n in several if nested[n] <= nested.keys() - {n}]
    alike = len(several) > 1 and all(
        inner == nested[several[0]] for inner in nested.values()
    )
    if copies:
        problem = (
            f"{str(top / copies[0])!r} holds folders of the names of those "
            f"beside it, {_some(nested[copies[0]])}. Remove it if it is a copy"
        )
    elif alike and all(map(split_word, nested[several[0]])):
        problem = (
            f"The class folders in {str(top)!r} hold splits, "
            f"{_some(nested[several[0]])}. Expected SPLIT/CLASS/picture.jpg "
            "instead of CLASS/SPLIT/picture.jpg: move the folders"
        )
    elif splits or alike:
        outer = splits or several
        example = min(outer, key=lambda n: "train" not in split_word(n))
        problem = (
            f"Expected class folders in {str(top)!r}. Found {_some(outer)}, "
            "which seem to be splits: they hold the folders "
            f"{_some(nested[outer[0]])}. Pass {str(top)!r} as `source` and one "
            f"of them as `split`, such as split={example!r}"
        )
    else:
        return
    names = list(nested) if len(nested) < 10 else "[...]"
    raise ValueError(
        f"{problem}. If all of them are classes, pass class_names={names}."
    )


def _inner(files: list[str]) -> set[str]:
    """The names of the folders that a folder of only folders holds."""
    first = {file.partition("/")[0] for file in files if "/" in file}
    if not all("/" in file for file in files):
        return set()  # It holds images.
    if len(first) == 1:  # "train/train/CLASS"
        deeper = _inner([file.partition("/")[2] for file in files])
        return deeper or first
    return first


def _some(names: Iterable[str]) -> str:
    """The first names, for a message."""
    names = sorted(names)
    return ", ".join(map(repr, names[:3])) + (", ..." if names[3:] else "")


def unwrapped(
    root: Any,
    class_names: Sequence[str] = (),
    splits: Collection[str] = SPLITS,
) -> Any:
    """Returns the inner folder if archives wrapped everything in one.

    Not one of the names of classes or, in lower case, of splits.
    """
    folders = _folders(root)
    if len(folders) != 1 or folders[0].lower() in splits:
        return root
    inner = root / folders[0]
    if folders[0] in class_names or not _folders(inner):
        return root
    if any(map(_is_image, _files(inner))):
        return root  # A class whose folder has folders.
    report.once(f"{str(root)!r} holds one folder; reading {str(inner)!r}.")
    return unwrapped(inner, class_names, splits)


def _classes(
    top: Any,
    found: dict[str, list[str]],
    of_train: Any,
    class_names: Sequence[str] | None,
    on_error: str,
) -> tuple[list[str], list[str]]:
    """Returns the classes in order, and the names that are left out."""
    in_train = found if top == of_train else _images_of_classes(of_train)[0]
    # A folder that is empty in `train` is not a class in any split.
    empty = [n for n, files in in_train.items() if not files]
    known = list(class_names or (n for n in in_train if n not in empty))
    unknown = [n for n in found if n not in known and n not in empty]
    lost = _lost_links(top)
    problem = None
    if lost:
        problem = f"{str(top / lost[0])!r} is a broken link"
    elif class_names is None and empty:
        problem = (
            f"The class folder {str(of_train / empty[0])!r} holds no image "
            f"(expected files that end in {', '.join(extensions())})"
        )
    elif unknown:
        where = "`class_names`" if class_names else repr(str(of_train))
        problem = (
            f"The class folder {str(top / unknown[0])!r} is unknown: {where} "
            f"has no class {unknown[0]!r}"
        )
    if problem and on_error == "raise":
        raise ValueError(
            f'{problem}. Remove or fill it, or pass on_error="skip".'
        )
    left_out = [f"{n}/{f}" for n in unknown for f in found[n]]
    if class_names is None:
        left_out += [f"{n}/" for n in empty]
    return known, left_out + lost


def line_of(name: str) -> str:
    """Returns an example's name as a list of names holds it, on one line."""
    return name.replace("\n", "\\n")


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Reads a list of names, one per line, which need not be UTF-8."""
    folder, name = os.path.split(path)
    text = read_file(folder or ".", name).decode("utf-8", "surrogateescape")
    # `splitlines` would break at characters that names may hold.
    return [line.removesuffix("\r") for line in text.split("\n") if line]


def part(split: str) -> tuple[str, tuple[int, int]]:
    """Parses "train[:10%]" as ("train", (0, 10)); a whole split is 0 to 100."""
    if "[" not in split:
        return split, (0, 100)
    match = _PART.fullmatch(split)
    if match:
        first, last = int(match[2] or 0), int(match[3] or 100)
        if first < last <= 100:
            return match[1], (first, last)
    raise ValueError(
        "Expected a part of a split such as 'train[:10%]' or "
        f"'train[10%:50%]', between 0% and 100%. Received: split={split!r}"
    )


def take(examples: Examples, percent: tuple[int, int], seed: int) -> Examples:
    """Takes the same share of every class, in the original order.

    Bounds are rounded up, so a part from 0 has an example of each class, while
    others may lack small classes. Adjacent parts are disjoint and together
    make up the whole.
    """
    taken: list[int] = []
    assert examples.labels is not None
    for members in shuffled_classes(strata(examples.labels), seed, 1):
        first, last = (-(-p * len(members) // 100) for p in percent)
        taken.extend(members[first:last])
    if not taken:
        raise ValueError(
            f"{percent[0]}% to {percent[1]}% of each class is empty: there "
            f"are {len(examples)} examples in {len(examples.class_names)} "
            "classes. Take a larger part, or one that begins at 0%."
        )
    return examples.subset(sorted(taken))


def read_file(root: str, name: str) -> bytes:
    """Reads a file of a folder; anything but a file is an `OSError`."""
    # Three times as fast as `pathlib`.
    with open(f"{root}/{name}", "rb", 0, opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError("not a regular file")
        return file.read()


def _open_at_once(path: str, flags: int) -> int:
    """Opens a file; a FIFO in its place would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _wanted(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in JUNK


def _is_image(name: str) -> bool:
    return name.lower().endswith(extensions())


def _folders(path: Any) -> list[str]:
    entries = sorted(path.iterdir())
    return [p.name for p in entries if p.is_dir() and _wanted(p.name)]


def _files(path: Any) -> list[str]:
    return [p.name for p in path.iterdir() if p.is_file() and _wanted(p.name)]


def _lost_links(path: Any) -> list[str]:
    """Returns broken links in the place of class folders."""
    lost = sorted(p for p in path.iterdir() if not p.exists())
    return [p.name for p in lost if _wanted(p.name)]


def _images_of_classes(
    path: Any,
) -> tuple[dict[str, list[str]], collections.Counter[str]]:
    unread: collections.Counter[str] = collections.Counter()
    return {
        name: images(path / name, unread) for name in _folders(path)
    }, unread


def images(path: Any, unread: collections.Counter[str]) -> list[str]:
    """Returns the sorted relative names of images; counts other files."""
    found = []

    def fail(error: OSError) -> None:
        raise error

    seen = set()
    if isinstance(path, remote.RemoteFolder):
        walk = path.walk()
    else:
        walk = os.walk(path, onerror=fail, followlinks=True)
    for where, folders, names in walk:
        real = os.path.realpath(where)
        if real in seen:  # Links can lead to a folder again, and in circles.
            folders.clear()
            continue
        seen.add(real)
        # Not `.ipynb_checkpoints`, which holds copies.
        folders[:] = sorted(filter(_wanted, folders))
        for name in filter(_wanted, names):
            if _is_image(name):
                file = os.path.relpath(os.path.join(where, name), path)
                found.append(file.replace(os.sep, "/"))
            else:
                unread[os.path.splitext(name)[1].lower() or name] += 1
    return sorted(found)


def split_by_seed(
    examples: Examples, where: str, split: str, seed: int
) -> Examples:
    """Returns the train or test part, with the same share of every class."""
    if split == "all":
        return examples
    if split not in ("train", "test"):
        raise ValueError(
            f'{where!r} is split by seed into "train" and "test" ("all" is '
            f"both). Received: split={split!r}"
        )
    in_test = np.zeros(len(examples), bool)
    assert examples.labels is not None
    for members in shuffled_classes(strata(examples.labels), seed):
        count = min(round(TEST_SHARE * len(members)), len(members) - 1)
        in_test[members[:count]] = True
    return examples.subset(np.flatnonzero(in_test == (split == "test")))
