"""Reports of what is left out: by `on_error="skip"` and by `exclude`."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

from absl import logging

# Names that a report spells out.
NAMED = 5
_NUMBER = re.compile(r"[+-]?[0-9]*\.?[0-9]+(e[+-]?[0-9]+)?")


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


def numbers_as_classes(where: str, class_names: Sequence[str]) -> None:
    """Warns about numbers such as 0.25, which may be targets of a regression.

    Not an error: they may be grades or versions.
    """
    if not all(map(_NUMBER.fullmatch, class_names)):
        return
    if any(float(name) % 1 for name in class_names):
        names = ", ".join(map(repr, class_names[:NAMED]))
        more = ", ..." if len(class_names) > NAMED else ""
        once(
            f"The labels of {where!r} are numbers, and each of the "
            f"{len(class_names)} is a class: {names}{more}. `data.load` reads "
            "classes only. If they are, pass `class_names`; if not, bin them, "
            "or name another column with `data.Options(label=...)`. For "
            "regression, call `fit` with your own arrays or data set, on a "
            "model with classes=1 and classifier_activation=None, compiled "
            'with loss="mse".'
        )


@functools.cache
def once(message: str) -> None:
    """Logs a warning that the next split of the same source would repeat."""
    logging.warning("%s", message)


class Skipped:
    """Counts what is left out, `always` before anything is read."""

    def __init__(self, always: Iterable[str]) -> None:
        self._always = frozenset(always)
        self._this_epoch = set(self._always)
        self.names: list[str] = []  # of the latest complete epoch, sorted

    def add(self, names: Iterable[str]) -> None:
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
