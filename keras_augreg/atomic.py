"""Files that appear complete or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def replacing(
    path: pathlib.Path, unfinished: pathlib.Path | None = None
) -> Iterator[BinaryIO]:
    """Opens a file that takes its name once it is complete.

    Content and name are on the disk afterwards, even after a power cut.

    Args:
        path: The file. One that exists is replaced at the end.
        unfinished: Its name until then, in the same folder; `None` for a name
            that only this process uses.

    Yields:
        The file, for writing bytes. After an error it is deleted, because a
        full disk needs the space, and `path` is unchanged.

    Raises:
        OSError: If it cannot be written.
    """
    if unfinished is None:
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
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
            os.fsync(folder)
        finally:
            os.close(folder)
