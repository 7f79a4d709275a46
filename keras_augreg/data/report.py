"""Reports of what is left out: by `on_error="skip"` and by `exclude`."""

from __future__ import annotations

from collections.abc import Iterable

from absl import logging

# Names that a report spells out.
NAMED = 5


def none_excluded(names: frozenset[str]) -> None:
    """Warns that a split has nothing that `exclude` names.

    No error: of a list for a whole data set, a part may have nothing.
    """
    logging.warning(
        "None of the %d names of `exclude` is in this split, so that nothing "
        "is left out. Expected are names as `CLASS/file.jpg` or TFDS's "
        "`tfds_id`. Received: %r.",
        len(names),
        min(names),
    )


class Skipped:
    """Counts what is left out.

    Args:
        always: Names that are left out before anything is read.

    Attributes:
        names: What the latest complete epoch left out, sorted.
    """

    def __init__(self, always: Iterable[str]) -> None:
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
            more = ", ..." if len(self.names) > NAMED else ""
            logging.warning(
                "Left out in this epoch, unreadable or of an unknown class: "
                "%d (%s%s)",
                len(self.names),
                ", ".join(map(repr, self.names[:NAMED])),
                more,
            )
