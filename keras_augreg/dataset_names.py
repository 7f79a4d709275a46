"""What data sets are called: one table of synonyms.

The paper, the release's file names and TensorFlow Datasets name the same data
sets differently. Every function that takes a data set takes any name of a
row, in upper or lower case and with or without "-", "_" and spaces.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Names that differ by more than case, "-", "_" and spaces.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("imagenet-1k", "i1k", "in1k", "imagenet2012", "ilsvrc2012"),
    ("imagenet-21k", "i21k", "in21k"),
    ("imagenet-21k-30", "i21k_30", "in21k_30"),  # pre-training of 30 epochs
    ("imagenet-real", "imagenet2012_real"),
    ("pets", "oxford_iiit_pet", "oxford_iiit_pets"),
    ("flowers", "oxford_flowers102"),
    ("kitti-distance", "kitti"),
)

# Classes of data sets that several modules know. ImageNet-21k's 21,843 are
# those of the release's heads (`assets/README.md`).
CLASSES = {
    "imagenet-1k": 1000,
    "imagenet-21k": 21_843,
    "cifar-100": 100,
    "pets": 37,
    "flowers": 102,
    "kitti-distance": 4,
    "resisc45": 45,
}


def choose(name: str, choices: Iterable[str], argument: str = "dataset") -> str:
    """Returns the one of `choices` that means the same data set as `name`.

    >>> choose("pets", ["cifar100", "oxford_iiit_pet"])
    'oxford_iiit_pet'
    """
    choices = tuple(choices)
    found = lookup(name, choices)
    if found is None:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{argument}={name!r}: expected one of {expected}.")
    return found


def lookup(name: object, choices: Iterable[str]) -> str | None:
    """Like `choose`, but returns `None` if no choice is meant."""
    if not isinstance(name, str):
        return None
    choices = tuple(choices)
    if name in choices:
        return name
    same = _spellings(name)
    return next((c for c in choices if _plain(c) in same), None)


def canonical(name: str) -> str:
    """Returns this package's name of a data set; `name` if it has none."""
    return lookup(name, (*CLASSES, *(row[0] for row in SYNONYMS))) or name


def _spellings(name: str) -> set[str]:
    plain = _plain(name)
    for row in SYNONYMS:
        names = set(map(_plain, row))
        if plain in names:
            return names
    return {plain}


def _plain(name: str) -> str:
    return re.sub("[-_ ]", "", name.lower())
