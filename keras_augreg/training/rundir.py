"""The files of a run's directory: written whole, locked, read with care."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from keras_augreg import atomic, distribution
from keras_augreg.checks import warn

# How a system says that files on this file system cannot be locked.
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextlib.contextmanager
def locked(path: Any) -> Iterator[Callable[[], None]]:
    """Keeps other processes from training in this directory.

    The system frees the lock when a process ends, however it ends. On gs://,
    which has no such locks, the last process that started has the directory:
    call what this yields before writing, and the earlier ones stop.

    The processes of one run share the directory; only the first writes, so
    only the first holds the lock.
    """
    if distribution.process()[0] > 0:
        yield lambda: None
    elif atomic.is_remote(path):
        with _claimed(path) as check:
            yield check
    else:
        with _file_locked(path):
            yield lambda: None


@contextlib.contextmanager
def _claimed(path: Any) -> Iterator[Callable[[], None]]:
    holder = path / "lock.json"
    who = {"host": socket.gethostname(), "pid": os.getpid()}
    mine = json.dumps({**who, "start": uuid.uuid4().hex})

    def check() -> None:
        found = holder.read_text() if holder.exists() else ""
        if found != mine:
            raise RuntimeError(
                f"Another process trains in {path} now: {_holder(found)}. "
                "This one stops; use another directory for it."
            )

    # Whatever the network and the credentials raise.
    try:
        holder.write_text(mine)
    except Exception as error:
        raise unusable(path, error) from error
    try:
        yield check
    finally:
        with contextlib.suppress(RuntimeError):
            check()
            holder.unlink(missing_ok=True)


def unusable(path: Any, error: Exception) -> ValueError:
    """Says that nothing can be written there."""
    return ValueError(
        f"{path} cannot be a run's directory: {error}. Use another path, or "
        "get write access."
    )


def _holder(text: str) -> str:
    """Who a `lock.json` names."""
    try:
        return "host {host}, process {pid}".format(**json.loads(text))
    except (ValueError, LookupError, TypeError):
        return "unknown"


@contextlib.contextmanager
def _file_locked(path: pathlib.Path) -> Iterator[None]:
    import filelock  # Here: it imports asyncio.

    file, holder = path / "lock", path / "lock.json"
    if os.path.lexists(file) and not file.is_file():
        raise ValueError(
            f"{file} should be a file. Found: something else. Delete it."
        )
    lock = filelock.FileLock(file)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        try:
            text = holder.read_text() if holder.is_file() else ""
        except (OSError, ValueError):
            text = ""
        raise RuntimeError(
            f"Another process trains in {path}: {_holder(text)}. Wait for "
            "it, stop it, or use another directory."
        ) from error
    except (NotImplementedError, OSError) as error:
        if getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        warn(
            f"The file system of {path} has no locks. Make sure that "
            "only one process trains there."
        )
        yield
        return
    try:
        with replacing(holder) as f:
            who = {"host": socket.gethostname(), "pid": os.getpid()}
            f.write(json.dumps(who).encode())
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def read_settings(file: Any) -> dict[str, Any]:
    """The settings of the run; a ValueError says what else is there."""
    try:
        if not (atomic.is_remote(file) or file.is_file() or file.is_dir()):
            raise OSError("not a regular file")  # Reading could wait forever.
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        text = f"{type(error).__name__}: {error}"
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise ValueError(
            f"{file} should hold a JSON object with the run's settings. "
            f"Found: {text[:80]!r}. Restore it from a copy; or delete it, if "
            "you know that the run had the settings given now."
        )
    return settings


def plain(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings as JSON gives them back."""
    try:
        return dict(json.loads(json.dumps(settings)))
    except (TypeError, ValueError) as error:
        raise TypeError(
            "`settings` must be a dict of JSON values: numbers, strings, "
            f"lists, dicts, None. Received: {settings!r} ({error})"
        ) from error


def read_log(file: Any) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; warns if some are damaged."""
    lines, damaged = [], 0
    there = file.exists() if atomic.is_remote(file) else file.is_file()
    text = file.read_bytes().decode(errors="replace") if there else ""
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            int(entry["step"])
            lines.append(entry)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += 1
    if damaged:
        warn(f"{file}: {damaged} damaged lines are dropped")
    return lines


def warn_of_damage(file: Any, error: str) -> None:
    """Says which file is not used, and why."""
    warn(f"{file} is damaged and is skipped: {error}")


def replacing(file: Any) -> AbstractContextManager[BinaryIO]:
    """Opens a file that takes its name once it is complete."""
    # Always the same name, so that a killed run's remains are overwritten.
    unfinished = file.with_suffix(".tmp")
    for path in (file, unfinished):
        move_aside_unless_file(path)
    return atomic.replacing(file, unfinished)


def move_aside_unless_file(path: Any) -> None:
    """Renames a folder, a FIFO or a broken link that has a file's name."""
    if os.path.lexists(path) and not path.is_file():  # Never on gs://.
        path.rename(path.with_name(f"{path.name}.{os.getpid()}.damaged"))
