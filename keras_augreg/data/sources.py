"""Where images and labels come from: folders and bundled data.

A source has `names`, `labels` and `class_names`, and reads one example by its
number. TFDS, which reads in files' order, is in `tfds.py`.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from keras_augreg.data.decode import ArrayPicture, ImageError, Picture

EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp",
)  # fmt: skip
# What folders of splits are called, in lower case: no names of classes.
SPLITS = frozenset(
    ("train", "training", "val", "valid", "validation", "dev", "test")
    + ("testing", "eval", "evaluation")
)
# Of class folders and digits, which come without a test split.
TEST_SHARE = 0.2
BUNDLED = ("digits",)
# "train[:10%]", TFDS's syntax.
_PART = re.compile(r"([^\[\]]+)\[(?:([0-9]+)%)?:(?:([0-9]+)%)?\]")


@dataclasses.dataclass
class Examples:
    """Examples that can be read in any order.

    Attributes:
        names: What error messages and `exclude` lists call each example.
        labels: int64 of shape (n,).
        class_names: What each label means.
        read: Example's number -> the bytes of an image file, or a uint8 array
            of shape (h, w, 3).
        root: The folder that names are relative to, if any.
        left_out: Names that `on_error="skip"` left out before reading.
        weights: float32 of shape (n,), the examples' own weights.
    """

    names: list[str]
    labels: np.ndarray
    class_names: list[str]
    read: Callable[[int], bytes | np.ndarray]
    root: str = ""
    left_out: list[str] = dataclasses.field(default_factory=list)
    weights: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.weights = np.ones(len(self.names), np.float32)

    @property
    def label_shape(self) -> tuple[int, ...]:
        """The shape of one label."""
        return self.labels.shape[1:]

    def __len__(self) -> int:
        return len(self.names)

    def name(self, number: int) -> str:
        """The name of an example."""
        return self.names[number]

    def picture(self, number: int) -> Picture | ArrayPicture:
        """Reads an example, as far as the header of its file.

        Args:
            number: Of the example.

        Returns:
            The picture, whose pixels are not decoded yet.

        Raises:
            ImageError: If it is no picture that can be read.
        """
        name = os.path.join(self.root, self.names[number])
        try:
            data = self.read(number)
        except OSError as error:
            raise ImageError(
                f"Cannot read {name!r}: {error}. Replace or remove the file, "
                'or pass on_error="skip" to leave out such files.'
            ) from error
        if isinstance(data, bytes):
            return Picture(data, name)
        return ArrayPicture(data)

    def pictures(
        self,
    ) -> Iterator[tuple[str, Callable[[], Picture | ArrayPicture]]]:
        """All examples' names, and how to read each, in order."""
        for i, name in enumerate(self.names):
            yield name, functools.partial(self.picture, i)

    def subset(self, numbers: Iterable[int]) -> Examples:
        """These examples alone, in this order."""
        numbers = np.asarray(list(numbers), np.int64)
        read = self.read
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in numbers],
            labels=self.labels[numbers],
            read=lambda i: read(int(numbers[i])),
        )


def digits(split: str, split_seed: int) -> Examples:
    """Scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, 10 classes.

    Args:
        split: "train", "test" or "all".
        split_seed: Of the stratified split.

    Returns:
        The examples, as arrays of shape (8, 8, 3).

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If there is no such split.
    """
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
    everything = Examples(
        names=[f"digits[{i}]" for i in range(len(images))],
        labels=bunch.target.astype(np.int64),
        class_names=[str(name) for name in bunch.target_names],
        read=lambda i: images[i],
    )
    return _split(everything, "digits", split, split_seed)


def folder(
    path: str | os.PathLike[str],
    split: str,
    split_seed: int,
    class_names: Sequence[str] | None,
    on_error: str,
) -> Examples:
    """Image files in one folder for each class.

    Args:
        path: Either holds one folder for each split (`train/CLASS/x.jpg`), or
            the class folders themselves. Folders in `train`, or in the one
            that `split` names, tell which.
        split: The split's folder; of class folders "train", "test" or "all".
        split_seed: Of the stratified split of class folders.
        class_names: The classes in the order of their labels; `None` for the
            sorted names of the folders that `train` has, or else the split,
            or `path`.
        on_error: "raise" or "skip": what to do about an empty class folder
            and a class that `train` lacks.

    Returns:
        The examples, sorted by class and name.

    Raises:
        ValueError: If a folder is not as described.
    """
    root = pathlib.Path(path)
    inside = _folders(root)
    splits = [n for n in ("train", split) if n in inside and _folders(root / n)]
    with_splits = bool(splits)
    top = root / split if with_splits else root
    if not top.is_dir() or (
        inside and not with_splits and SPLITS.issuperset(map(str.lower, inside))
    ):
        raise ValueError(
            f"{str(root)!r} has no split {split!r} with class folders in it. "
            f"It has: {inside}"
        )
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise ValueError(
            "`class_names` has each class once. Received: class_names="
            f"{list(class_names)}"
        )
    found = {name: _images(top / name) for name in _folders(top)}
    of_train = root / splits[0] if with_splits else root
    # An empty class is none, in every split alike.
    in_train = found if top == of_train else {
        name: _images(of_train / name) for name in _folders(of_train)
    }  # fmt: skip
    empty = [n for n, files in in_train.items() if not files]
    known = list(class_names or (n for n in in_train if n not in empty))
    unknown = [n for n in found if n not in known and n not in empty]
    lost = _lost_links(top)
    problem = None
    if lost:
        problem = f"{str(top / lost[0])!r} is a link to nothing"
    elif class_names is None and empty:
        problem = (
            f"The class folder {str(of_train / empty[0])!r} holds no image "
            f"(expected files that end in {', '.join(EXTENSIONS)})"
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
    files = [(n, f) for n in known for f in found.get(n, ())]
    if not files:
        raise ValueError(
            f"{str(top)!r} holds no images in class folders: expected files "
            f"such as CLASS/picture.jpg ({', '.join(EXTENSIONS)}). Folders "
            f"found: {_folders(top)}"
        )
    number = {name: i for i, name in enumerate(known)}
    names = [f"{name}/{file}" for name, file in files]
    everything = Examples(
        names=names,
        labels=np.array([number[name] for name, _ in files], np.int64),
        class_names=known,
        read=lambda i: _read_file(f"{top}/{names[i]}"),
        root=str(top),
        left_out=[f"{n}/{f}" for n in unknown for f in found[n]]
        + [f"{n}/" for n in empty if class_names is None]
        + lost,
    )
    if with_splits:
        return everything
    return _split(everything, str(root), split, split_seed)


def line_of(name: str) -> str:
    """An example's name as a list of names has it, on one line."""
    return name.replace("\n", "\\n")


def read_names(path: str | os.PathLike[str]) -> list[str]:
    """Reads a list of names, a line each, whose bytes may be no UTF-8."""
    text = pathlib.Path(path).read_bytes().decode("utf-8", "surrogateescape")
    # `splitlines` would break at characters that names may hold.
    return [line.removesuffix("\r") for line in text.split("\n") if line]


def part(split: str) -> tuple[str, tuple[int, int]]:
    """Takes a split such as `"train[:10%]"` apart.

    Args:
        split: A split, or a part of one between two percentages.

    Returns:
        (name, (first, last)), in percent; (0, 100) of a whole split.

    Raises:
        ValueError: If the part is empty or not within the split.
    """
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


def take(
    examples: Examples, percent: tuple[int, int], split_seed: int
) -> Examples:
    """A part of every class, so that few examples still show all of them.

    Args:
        examples: The whole.
        percent: (first, last), 0 <= first < last <= 100. Bounds are rounded
            up, so a part from 0 has an example of each class, and one from
            elsewhere may lack small classes; parts that meet in a bound share
            nothing and together are the whole.
        split_seed: Of the order in which examples are taken.

    Returns:
        The examples, in the order of the whole.

    Raises:
        ValueError: If the part is empty.
    """
    taken: list[int] = []
    for label in np.unique(examples.labels):
        members = np.flatnonzero(examples.labels == label)
        first, last = (-(-p * len(members) // 100) for p in percent)
        # Not the stream of `_split`, which ordered them already.
        rng = np.random.RandomState([split_seed, label, 1])
        taken.extend(rng.permutation(members)[first:last])
    if not taken:
        raise ValueError(
            f"{percent[0]}% to {percent[1]}% of each class is no example at "
            f"all: there are {len(examples)} in {len(examples.class_names)} "
            "classes. Take a larger part, or one that begins at 0%."
        )
    return examples.subset(sorted(taken))


def _read_file(path: str) -> bytes:
    # A third of the time that `pathlib` takes.
    with open(path, "rb", buffering=0) as file:
        return file.read()


def _folders(path: pathlib.Path) -> list[str]:
    return sorted(
        p.name
        for p in path.iterdir()
        if p.is_dir() and not p.name.startswith(".")
    )


def _lost_links(path: pathlib.Path) -> list[str]:
    """Links in the places of class folders that lead nowhere."""
    return sorted(
        p.name
        for p in path.iterdir()
        if p.is_symlink() and not p.exists() and not p.name.startswith(".")
    )


def _images(path: pathlib.Path) -> list[str]:
    """Names of image files under a folder, relative to it, sorted."""
    found = []

    def fail(error: OSError) -> None:
        raise error

    for where, folders, names in os.walk(path, onerror=fail):
        # Such as `.ipynb_checkpoints`, with copies.
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [
            os.path.relpath(os.path.join(where, n), path).replace(os.sep, "/")
            for n in names
            if n.lower().endswith(EXTENSIONS) and not n.startswith(".")
        ]
    return sorted(found)


def _split(
    examples: Examples, where: str, split: str, split_seed: int
) -> Examples:
    """The train or test part, with every class in the same proportion."""
    if split == "all":
        return examples
    if split not in ("train", "test"):
        raise ValueError(
            f'{where!r} is split by seed into "train" and "test" ("all" is '
            f"both). Received: split={split!r}"
        )
    in_test = np.zeros(len(examples), bool)
    for label in np.unique(examples.labels):
        members = np.flatnonzero(examples.labels == label)
        # RandomState's streams are frozen, Generator's are not (NEP 19).
        rng = np.random.RandomState([split_seed, label])
        count = min(round(TEST_SHARE * len(members)), len(members) - 1)
        in_test[rng.permutation(members)[:count]] = True
    return examples.subset(np.flatnonzero(in_test == (split == "test")))
