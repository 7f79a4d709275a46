"""Reports of what is left out: by `on_error="skip"` and by `exclude`."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping

from absl import logging

# Names that a report spells out.
NAMED = 5


def none_excluded(names: frozenset[str]) -> None:
    """Warns only: the list may cover more than this split."""
    logging.warning(
        f"None of the {len(names)} names of `exclude` is in this split, so "
        "nothing is left out. Expected names such as `CLASS/file.jpg`, or "
        f"TFDS's `tfds_id`. Received: {min(names)!r}."
    )


def not_read(folder: str, extensions: Mapping[str, int], outside: int) -> None:
    """Warns about files outside the class folders or of other extensions."""
    kinds = sorted(extensions.items(), key=lambda item: -item[1])
    counts = [f"{count} {kind}" for kind, count in kinds[:NAMED]]
    if len(kinds) > NAMED:
        counts.append(f"{sum(count for _, count in kinds[NAMED:])} others")
    if outside:
        counts.append(f"{outside} images outside the class folders")
    if counts:
        once(f"Files in {folder!r} that are not read: {', '.join(counts)}.")


@functools.cache
def once(message: str) -> None:
    """Logs a warning that the next split of the same source would repeat."""
    logging.warning("%s", message)


def error(problem: Exception) -> None:
    """Logs an error that another library is about to wrap."""
    logging.error("%s", problem)


def held_out(source: str, train: str, evaluation: str) -> None:
    """Says which splits are used where there is no test split."""
    once(
        f"{source!r} has no test split: training on {train!r} and evaluating "
        f"on {evaluation!r}."
    )


def shadowed(name: str) -> None:
    """Warns that a name means a data set although a folder has it too."""
    once(
        f"{name!r} is a data set's name and a folder here: reading the data "
        f"set. For the folder, pass pathlib.Path({name!r})."
    )


def small(source: str, side: int) -> None:
    """Says that a mild crop is the default for small images."""
    once(
        f"Images of {source!r} are small ({side} pixels): "
        'preprocess="resize", without cropping, is their default. Pass '
        "`preprocess` to choose."
    )


def unwrapped(folder: str, inner: str) -> None:
    """Says that the only folder in a folder is read in its place."""
    once(f"{folder!r} holds one folder; reading {inner!r}.")


class Skipped:
    """Counts what is left out.

    Attributes:
        names: What the latest complete epoch left out, sorted.
    """

    def __init__(self, always: Iterable[str]) -> None:
        """Takes the names that are left out before anything is read."""
        self._always = frozenset(always)
        self._this_epoch = set(self._always)
        self.names: list[str] = []

    def add(self, names: Iterable[str]) -> None:
        """Notes what this epoch left out; a name counts once."""
        self._this_epoch.update(names)

    def end_epoch(self) -> None:
        """Logs a warning if the epoch that ends left something out."""
        self.names = sorted(self._this_epoch)
        self._this_epoch = set(self._always)
        if self.names:
            names = ", ".join(map(repr, self.names[:NAMED]))
            more = ", ..." if len(self.names) > NAMED else ""
            logging.warning(
                "Left out in this epoch, unreadable or of an unknown class: "
                f"{len(self.names)} ({names}{more})"
            )
