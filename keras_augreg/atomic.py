"""Files that appear complete or not at all, on a disk or on gs://."""

from __future__ import annotations

import contextlib
import glob
import os
import pathlib
import re
import socket
import tempfile
from collections.abc import Iterator
from typing import Any, BinaryIO


def as_path(path: str | os.PathLike[str]) -> Any:
    """The path of a file or folder on this machine or on gs://.

    Args:
        path: Without a scheme, or `gs://BUCKET/NAME` as a string.

    Returns:
        A `pathlib.Path`, or an `etils.epath.Path`.

    Raises:
        ValueError: Another scheme, or a `pathlib.Path` of one, which has lost
            a slash.
        ImportError: gs:// without the packages for it.
    """
    text = os.fspath(path)
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        return pathlib.Path(text).expanduser()
    if not re.match(r"gs://[^/]+", text):
        raise ValueError(
            f"Expected a local path, or gs://BUCKET/NAME as a string. "
            f"Received: {path!r}. Mount other storage, and pass its folder."
        )
    try:
        import fsspec
        import gcsfs  # noqa: F401 (fsspec opens gs:// with it)
        from etils import epath
        from etils.epath import gpath
    except ImportError as error:
        raise ImportError(
            f"{text} needs etils and gcsfs: pip install 'etils[epath]' gcsfs"
        ) from error
    # Otherwise etils imports TensorFlow, where there is one, to read a file. It
    # looks once, and TFDS may have been before us.
    os.environ.setdefault("EPATH_USE_TF", "false")
    looked: Any = getattr(gpath, "_is_tf_installed", None)
    if hasattr(looked, "cache_clear"):
        looked.cache_clear()
    # TensorStore and other machines write beside gcsfs, which would not look.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(text)


def local_path(path: str | os.PathLike[str]) -> pathlib.Path:
    """`as_path`, for what only works on this machine's disks."""
    if is_remote(path):
        raise ValueError(f"Expected a local path. Received: {path!r}")
    return pathlib.Path(as_path(path))


def is_remote(path: Any) -> bool:
    """Whether `as_path` found it on gs://."""
    return os.fspath(path).startswith("gs://")


def exists(path: Any) -> bool:
    """Whether something has this name, if only a broken link."""
    return path.exists() if is_remote(path) else os.path.lexists(path)


@contextlib.contextmanager
def replacing(path: Any, unfinished: Any = None) -> Iterator[BinaryIO]:
    """Opens a file that takes its name once it is complete.

    Content and name are on the disk afterwards, even after a power cut. After
    an error the file is deleted and `path` unchanged. Until then it is
    `unfinished`, by default a name that only this process uses. On gs://, it
    is a file of this machine, and is uploaded when it is complete.
    """
    if is_remote(path):
        with _uploading(path) as file:
            yield file
        return
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


@contextlib.contextmanager
def _uploading(path: Any) -> Iterator[BinaryIO]:
    import fsspec

    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder, path.name)
        with local.open("wb") as file:
            yield file
        # An object appears when all of it has arrived.
        fsspec.filesystem("gcs").put_file(str(local), os.fspath(path))


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
