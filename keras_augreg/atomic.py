"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, unfinished: pathlib.Path | None = None
) -> Iterator[BinaryIO]:
    """Opens a file that takes its name once it is complete.

    Content and name are on the disk afterwards, even after a power cut. After
    an error the file is deleted and `path` unchanged. Until then it is
    `unfinished`, by default a name that only this process uses.
    """
    if unfinished is None:
        unfinished = path.with_name(f"{path.name}.{owner()}.part")
    _remove_leftovers(unfinished)
    try:
        with unfinished.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # Elsewhere a folder cannot be opened.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # Some networks' refuse it.
                os.fsync(folder)
        finally:
            os.close(folder)


def owner() -> str:
    """This machine and process, for the names of unfinished files."""
    return f"{socket.gethostname()}.{os.getpid()}"


def _remove_leftovers(unfinished: pathlib.Path) -> None:
    """Deletes what killed processes of this machine left under such names."""
    before, own, after = unfinished.name.partition(owner())
    if not own or os.name != "posix":  # Elsewhere a signal 0 is not a question.
        return
    before += f"{socket.gethostname()}."
    pattern = f"{glob.escape(before)}*{glob.escape(after)}"
    for file in unfinished.parent.glob(pattern):
        pid = file.name.removeprefix(before).removesuffix(after)
        with contextlib.suppress(ValueError, OverflowError, PermissionError):
            try:
                os.kill(int(pid), 0)
            except ProcessLookupError:
                if not file.is_dir():
                    file.unlink(missing_ok=True)
