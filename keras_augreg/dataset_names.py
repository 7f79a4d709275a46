"""What data sets are called: one table of synonyms.

The paper, the release's file names and TensorFlow Datasets name the same data
sets differently. Every function that takes a data set takes any name of a
row, in upper or lower case and with or without "-" and "_".
"""

from __future__ import annotations

from collections.abc import Iterable

# Names that differ by more than case, "-" and "_".
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("imagenet-1k", "i1k", "in1k", "imagenet2012", "ilsvrc2012"),
    ("imagenet-21k", "i21k", "in21k"),
    ("imagenet-real", "imagenet2012_real"),
    ("pets", "oxford_iiit_pet"),
    ("flowers", "oxford_flowers102"),
    ("kitti-distance", "kitti"),
)

# Classes of the sets that checkpoints were trained on. ImageNet-21k's 21,843
# are those of the release's heads (`assets/README.md`).
CLASSES = {
    "imagenet-1k": 1000,
    "imagenet-21k": 21_843,
    "cifar-100": 100,
    "pets": 37,
    "kitti-distance": 4,
    "resisc45": 45,
}


def find(name: str, choices: Iterable[str], argument: str = "dataset") -> str:
    """Returns the one of `choices` that means the same data set as `name`.

    Args:
        name: A data set's name, in any spelling.
        choices: The spellings that the caller knows.
        argument: What the caller's argument is called, for the message.

    Returns:
        A member of `choices`.

    Raises:
        ValueError: If none of them is meant.

    Example:
    >>> find("pets", ["cifar100", "oxford_iiit_pet"])
    'oxford_iiit_pet'
    """
    choices = tuple(choices)
    found = lookup(name, choices)
    if found is None:
        raise ValueError(
            f"{argument}={name!r}: expected one of "
            f"{', '.join(map(repr, choices))}."
        )
    return found


def lookup(name: str, choices: Iterable[str]) -> str | None:
    """Like `find`, but returns `None` if no choice is meant."""
    choices = tuple(choices)
    if name in choices:
        return name
    same = _spellings(name)
    return next((c for c in choices if _plain(c) in same), None)


def _spellings(name: str) -> set[str]:
    plain = _plain(name)
    for row in SYNONYMS:
        names = set(map(_plain, row))
        if plain in names:
            return names
    return {plain}


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
