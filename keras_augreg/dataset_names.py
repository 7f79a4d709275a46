"""What data sets are called: one table of synonyms.

The paper, the release's file names and TensorFlow Datasets name the same data
sets differently. Every function that takes a data set takes all of a row.
"""

from __future__ import annotations

from collections.abc import Iterable

SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("imagenet-1k", "i1k", "imagenet2012", "imagenet1k", "ilsvrc2012"),
    ("imagenet-21k", "i21k", "imagenet21k"),
    ("cifar-100", "cifar100"),
    ("pets", "oxford_iiit_pet", "oxford-iiit-pet"),
    ("kitti-distance", "kitti"),
    ("resisc45",),
)


def find(name: str, choices: Iterable[str], argument: str = "dataset") -> str:
    """Returns the one of `choices` that means the same data set as `name`.

    Args:
        name: A data set's name, in any spelling of `SYNONYMS`.
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
    if name in choices:
        return name
    for row in SYNONYMS:
        if name in row:
            for choice in choices:
                if choice in row:
                    return choice
    raise ValueError(
        f"{argument}={name!r}: expected one of {', '.join(map(repr, choices))}."
    )
