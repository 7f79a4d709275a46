r"""Files of the release: where they are, and how they come here intact.

`fetch` finds a file in the cache or in a mirror directory, or downloads it. A
download is written to `NAME.npz.part`, resumed after a break, checked against
the length and the hash that the server states, and only then renamed, under a
lock that other processes wait for: a file under its final name is complete.

| environment variable | meaning |
| --- | --- |
| `KERAS_AUGREG_CACHE` | cache directory, by default `~/.cache/keras_augreg` |
| `KERAS_AUGREG_MIRROR` | what replaces the release's bucket: a directory (a \
mounted Kaggle data set, say) or the URL of a copy |
| `KERAS_AUGREG_OFFLINE` | `1`: the network is never used |

The cache and a mirror are laid out as the bucket is, `augreg/NAME.npz`; a
mirror directory may also hold plain `NAME.npz`. Sources: the bucket's address
is that of google-research/vision_transformer's README; Google Cloud Storage's
reference of HTTP headers (XML API) describes `x-goog-hash`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from keras_augreg.checkpoints import names
from keras_augreg.checkpoints.download import DownloadError, receive

BUCKET = "https://storage.googleapis.com/vit_models"
INDEX = "augreg/index.csv"

_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_HUB = re.compile(rf"hf://({_PART}/{_PART})(?:@({_PART}))?")


def cache_dir() -> Path:
    """The directory of downloaded files; see the module."""
    value = os.environ.get("KERAS_AUGREG_CACHE") or "~/.cache/keras_augreg"
    return Path(value).expanduser()


def _mirror() -> Path | str:
    """A mirror directory, or the URL that replaces the bucket's."""
    value = os.environ.get("KERAS_AUGREG_MIRROR") or BUCKET
    if re.match(r"https?://", value):
        return value.rstrip("/")
    if (path := Path(value).expanduser()).is_dir():
        return path
    raise ValueError(
        f"KERAS_AUGREG_MIRROR={value!r}: expected a directory or an http(s) "
        f"URL."
    )


def _offline() -> bool:
    value = os.environ.get("KERAS_AUGREG_OFFLINE", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"KERAS_AUGREG_OFFLINE={value!r}: expected 0 or 1.")
    return value == "1"


def _places(path: str) -> list[Path]:
    """Where a file of the bucket may lie on this machine."""
    places = [cache_dir() / path]
    if isinstance(mirror := _mirror(), Path):
        places.append(mirror / path)
        # Not so the older releases: several folders have a ViT-B_16.npz.
        if path.startswith("augreg/"):
            places.append(mirror / Path(path).name)
    return places


def _find(path: str) -> Path | None:
    return next(filter(Path.is_file, _places(path)), None)


def cached(name: str) -> Path | None:
    """The file of a checkpoint, if it is in the cache or a mirror directory.

    Args:
        name: A full name, as `names.resolve` returns it.

    Returns:
        Its path, or `None`.

    Raises:
        ValueError: If it is not a name of the release.
    """
    return _find(names.bucket_path(name))


def locate(name: str) -> Path:
    """Like `cached`, but raises where `cached` returns `None`.

    Raises:
        ValueError: If it is not a name of the release.
        FileNotFoundError: If it is not on this machine; it says where it was
            looked for and how to get it.
    """
    path = names.bucket_path(name)
    return _find(path) or _missing(path)


def _missing(path: str) -> NoReturn:
    """Raises the error for a file that is not on this machine."""
    command = (
        "`python -m keras_augreg.checkpoints "
        f"{path.removeprefix('augreg/').removesuffix('.npz')}`"
        if path.endswith(".npz")
        else "keras_augreg.checkpoints.search(refresh=True)"
    )
    why = " (KERAS_AUGREG_OFFLINE=1: no download)" if _offline() else ""
    raise FileNotFoundError(
        f"{path} is not on this machine{why}: it is not at "
        f"{', nor at '.join(map(str, _places(path)))}. Where there is "
        f"internet, get it with {command} or from "
        f"{BUCKET}/{urllib.parse.quote(path)}; then put it there."
    )


def cached_index() -> Path | None:
    """The release's `index.csv`, if it is on this machine."""
    return _find(INDEX)


def download_index() -> Path:
    """Downloads `index.csv` into the cache, over an older one.

    Raises:
        FileNotFoundError: If the network must not be used.
        DownloadError: If the download fails; it is tried once.
    """
    if _offline() or isinstance(_mirror(), Path):
        _missing(INDEX)
    return _download(INDEX, timeout=30.0, retries=0, progress=True)


def download(
    name: str,
    *,
    timeout: float = 30.0,
    retries: int = 5,
    progress: bool = True,
) -> Path:
    """Downloads a checkpoint, unless it is on this machine already.

    The file is checked against the length and the hash that the server
    states; where it states no hash, against the checksums inside the archive.
    A download that broke is resumed by the next call. Of several processes
    that want the same file, one downloads and the others wait for it.

    Args:
        name: A full name, as `names.resolve` returns it; or
            `"hf://OWNER/NAME"`, optionally `"hf://OWNER/NAME@REVISION"`, for
            the `model.safetensors` of a repository on the Hugging Face Hub
            (huggingface_hub downloads it, with its own settings and cache).
        timeout: Seconds without an answer, or with less than 1 KiB/s, after
            which a connection counts as broken.
        retries: How often a failed attempt that brought less than 1 MiB is
            repeated, after waiting 1, 2, 4, ... at most 30 seconds.
        progress: Whether to report on standard error: continuously on a
            terminal, every 10 seconds elsewhere.

    Returns:
        The path of the file.

    Raises:
        ValueError: If it is not a name of the release.
        FileNotFoundError: If it is not on this machine, and either
            `KERAS_AUGREG_OFFLINE` is 1 or the mirror is a directory.
        DownloadError: If the server refuses or does not answer, if what
            arrived is not what it announced, or if the cache cannot be
            written to.
        ImportError: For `hf://` without huggingface_hub.

    Example:
    ```python
    path = keras_augreg.checkpoints.download(
        "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
    )
    ```
    """
    if name.startswith("hf://"):
        return _from_hub(name)
    path = names.bucket_path(name)
    if found := _find(path):
        return found
    if _offline() or isinstance(_mirror(), Path):
        _missing(path)
    return _download(path, timeout, retries, progress)


fetch = download  # the name under which weights= uses it


def _from_hub(name: str) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!a}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, "
            f"such as hf://timm/vit_tiny_patch16_224.augreg_in21k."
        )
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs huggingface_hub: pip install huggingface_hub"
        ) from error
    repository, revision = match.groups()
    try:
        path = huggingface_hub.hf_hub_download(
            repository,
            "model.safetensors",
            revision=revision,
            local_files_only=_offline(),
        )
    except OSError as error:
        if _offline():
            raise FileNotFoundError(
                f"{name} is not in the cache of huggingface_hub, and "
                f"KERAS_AUGREG_OFFLINE=1 forbids to download it."
            ) from error
        raise DownloadError(f"{name}: {error}") from error
    return Path(path)


def _download(path: str, timeout: float, retries: int, progress: bool) -> Path:
    """Downloads a file of the bucket into the cache, over an old one."""
    target = cache_dir() / path
    part = target.with_name(target.name + ".part")
    before = target.stat().st_mtime_ns if target.exists() else None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.with_name(target.name + ".lock")):
            # Another process may have brought it meanwhile.
            after = target.stat().st_mtime_ns if target.exists() else None
            if before == after:
                receive(
                    f"{_mirror()}/{urllib.parse.quote(path)}",
                    part,
                    timeout=timeout,
                    retries=retries,
                    progress=progress,
                )
                os.replace(part, target)
    except DownloadError:
        raise
    except OSError as error:  # the network's errors are DownloadErrors
        if error.errno == errno.ENOSPC:
            part.unlink(missing_ok=True)
        raise DownloadError(
            f"Cannot write {target} ({error.strerror or error}). Make room "
            f"or give write access, or set KERAS_AUGREG_CACHE to another "
            f"directory."
        ) from error
    return target


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes; the system frees it if one is killed.

    The lock file stays: deleting it would let two processes in.
    """
    with path.open("ab") as file:
        waiting = False
        while not _try_lock(file):
            if not waiting:
                print(f"Waiting for another process: {path}", file=sys.stderr)
                waiting = True
            time.sleep(0.1)
        yield


def _try_lock(file: IO[bytes]) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
