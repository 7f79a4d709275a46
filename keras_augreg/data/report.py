"""What `on_error="skip"` left out, reported at the end of every epoch."""

from __future__ import annotations

from collections.abc import Iterable

from absl import logging

# Names that a report spells out.
NAMED = 5


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
