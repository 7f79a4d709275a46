"""Downloads: resumed, retried, verified.

A file of the release is written to `NAME.npz.part`, resumed after a break,
checked against the length and the md5 that the server states, and only then
renamed, under a lock that other processes wait for: a file under its final
name is complete. Sources: Google Cloud Storage's reference of HTTP headers
(XML API) for `x-goog-hash`; RFC 9110 for ranges.

The transfer is `urllib.request`'s, or huggingface_hub's for `hf://`. Both know
a timeout for each read of a socket but none for an answer, so `_Watch` ends
those that crawl.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import functools
import hashlib
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from keras_augreg.checkpoints import files, names

_CHUNK = 1 << 20
# An attempt that brings less than this counts as one of the `retries`.
_PROGRESS = 1 << 20
# A connection that is slower than this over a whole `timeout` is broken.
_BYTES_PER_SECOND = 1024
# From a server that states no length; the largest files have 1.3 GB.
_MOST_WITHOUT_LENGTH = 1 << 31
_TRANSIENT = (408, 429, 500, 502, 503, 504)
_WITHOUT_INTERNET = (
    "Without internet, set KERAS_AUGREG_MIRROR to a folder with the "
    "files, see docs/guides/offline.md"
)
_PART = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_HUB = re.compile(rf"hf://({_PART}/{_PART})(?:@({_PART}))?")
_HUB_FILE = "model.safetensors"
# A process of its own: nothing else ends a transfer of huggingface_hub.
_HUB_PROCESS = """
import sys, huggingface_hub
repository, file, revision = sys.argv[1:]
try:
    print(huggingface_hub.hf_hub_download(
        repository, file, revision=revision or None
    ))
except Exception as error:
    print(error)
    sys.exit(1)
"""


class DownloadError(OSError):
    """A file could not be downloaded, or did not arrive intact."""


class _TransientError(DownloadError):
    """A failure that may pass: a broken connection, an overloaded server."""


def download(
    name: str, *, timeout: float = 30.0, retries: int = 5, progress: bool = True
) -> Path:
    """Downloads a checkpoint, unless it is on this machine already.

    The file is checked against the length and the md5 that the server states;
    where it states no md5, against the checksums inside the archive. A
    download that broke is resumed by the next call. Of several processes that
    want the same file, one downloads and the others wait for it.

    Args:
        name: A full name, as `checkpoints.resolve` returns it; or
            `"hf://OWNER/NAME"`, optionally `"hf://OWNER/NAME@REVISION"`, for
            the `model.safetensors` of a repository on the Hugging Face Hub
            (huggingface_hub downloads it, with its own settings, cache and
            number of attempts).
        timeout: Seconds without an answer, or with less than 1 KiB/s, after
            which a connection counts as broken.
        retries: How often a failed attempt that brought less than 1 MiB is
            repeated, after waiting 1, 2, 4, ... at most 30 seconds.
        progress: Whether to show a progress bar on standard error.

    Returns:
        The path of the file.

    Raises:
        ValueError: If `name` is not a name of the release.
        FileNotFoundError: If the file is not on this machine, and either
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
        return _from_hub(name, timeout, progress)
    path = names.bucket_path(name)
    return files.local(path) or _to_cache(path, timeout, retries, progress)


def download_index() -> Path:
    """Downloads `index.csv` into the cache, over an older one; tries once."""
    return _to_cache(files.INDEX, timeout=30.0, retries=0, progress=True)


def _from_hub(name: str, timeout: float, progress: bool) -> Path:
    match = _HUB.fullmatch(name)
    if match is None:
        raise ValueError(
            f"{name!a}: expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION, "
            f"such as hf://timm/vit_tiny_patch16_224.augreg_in21k."
        )
    try:
        import huggingface_hub
        from huggingface_hub.constants import HF_HUB_CACHE
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs huggingface_hub: pip install huggingface_hub"
        ) from error
    repository, revision = match.groups(default="")
    if files.offline():
        cached = huggingface_hub.try_to_load_from_cache(
            repository, _HUB_FILE, HF_HUB_CACHE, revision or None
        )
        if isinstance(cached, str):
            return Path(cached)
        raise FileNotFoundError(
            f"{name} is not in the cache of huggingface_hub, and "
            f"KERAS_AUGREG_OFFLINE=1 forbids downloading it."
        )
    # Xet receives pieces of up to 64 MB before it writes one to the disk.
    env = os.environ | {"HF_HUB_CACHE": HF_HUB_CACHE, "HF_HUB_DISABLE_XET": "1"}
    if not progress:
        env["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    if token := huggingface_hub.get_token():  # a notebook's secret too
        env["HF_TOKEN"] = token
    blobs = Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}/blobs")
    command = [sys.executable, "-c", _HUB_PROCESS, repository, _HUB_FILE]
    command.append(revision)
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            with _Watch(timeout, lambda: _size(*blobs.glob("*"))) as watch:
                watch.stop = process.kill
                answer = process.communicate()[0].strip()
        finally:
            process.kill()
    watch.check(f"{name}: ")
    if process.returncode == 0:
        return Path(answer.splitlines()[-1])
    raise DownloadError(f"{name}: {answer or 'huggingface_hub failed'}")


def _to_cache(path: str, timeout: float, retries: int, progress: bool) -> Path:
    """Downloads a file of the bucket into the cache, over an old one."""
    import filelock

    url = files.url(path)
    target = files.cache_dir() / path
    part = target.with_name(target.name + ".part")
    try:
        before = target.stat().st_mtime_ns if target.exists() else None
        target.parent.mkdir(parents=True, exist_ok=True)
        # The system frees it if this process is killed.
        lock = filelock.FileLock(target.with_name(target.name + ".lock"))
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting = f"Waiting for another process: {lock.lock_file}"
            print(waiting, file=sys.stderr)
            held = lock.acquire()
        if part.is_fifo():  # Opening it would wait for a reader.
            raise OSError(errno.EEXIST, f"{part} is not a file")
        with held:
            # Another process may have brought it in the meantime.
            after = target.stat().st_mtime_ns if target.exists() else None
            if before == after:
                _receive(url, part, timeout, retries, progress)
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


def _receive(
    url: str, part: Path, timeout: float, retries: int, progress: bool
) -> None:
    """Downloads `url` to `part`, from where an earlier call broke off."""
    if not url.endswith(".npz"):  # nothing inside tells if the pieces match
        part.unlink(missing_ok=True)
    best = failures = 0
    while True:
        start = _size(part)
        best = max(best, start)
        try:
            md5 = _attempt(url, part, start, timeout, progress)
            damage = _damage(part, md5, Path(url).suffix)
            if damage is None:
                break
            part.unlink()
            error = f"arrived damaged: {damage}"
            if start == 0:  # else the beginning may be of another version
                raise DownloadError(f"{url}: {error}. Nothing was kept.")
        except _TransientError as transient:
            error = str(transient)
        advanced = _size(part) - best >= _PROGRESS
        failures = 1 if advanced else failures + 1
        if failures > retries:
            raise DownloadError(
                f"{url}: {error}. Gave up in attempt {failures}; call again "
                f"to continue. {_WITHOUT_INTERNET}."
            )
        wait = min(2.0 ** (failures - 1), 30.0)
        if progress:
            again = f"again in {wait:.0f} s"
            print(f"{part.stem}: {error}; {again}", file=sys.stderr)
        time.sleep(wait)
    with part.open("rb+") as file:  # on the disk before it gets its name
        os.fsync(file.fileno())


def _attempt(
    url: str, part: Path, start: int, timeout: float, progress: bool
) -> str | None:
    """One request: appends to `part`; returns the md5 of the whole file."""
    with (
        _Watch(timeout, lambda: _size(part)) as watch,
        _open(url, part, start, watch) as response,
    ):
        watch.check()  # a break looks like the end of the headers
        start, total, md5 = _announced(url, start, response)
        most = _MOST_WITHOUT_LENGTH if total is None else total
        missing = 0 if total is None else total - start
        if missing > (free := shutil.disk_usage(part.parent).free):
            raise OSError(
                errno.ENOSPC, f"{missing:,} bytes to come, {free:,} free"
            )
        with (
            part.open("ab" if start else "wb") as file,
            _progress_bar(part.stem, progress) as bar,
        ):
            task = bar.add_task("", total=total, completed=start)
            while chunk := _read(response, watch):
                file.write(chunk)
                file.flush()  # `watch` looks at the file
                bar.advance(task, len(chunk))
                if file.tell() > most:
                    break
            size = file.tell()
        if size > most:
            part.unlink()
            raise DownloadError(
                f"{url}: sent more than {most:,} bytes. Nothing was kept."
            )
        watch.check()
    if total is not None and size < total:
        raise _TransientError(f"broke off after {size:,} of {total:,} bytes")
    return md5


def _announced(
    url: str, start: int, response: http.client.HTTPResponse
) -> tuple[int, int | None, str | None]:
    """Where a body starts, the length of the whole file, and its md5."""
    headers = response.headers
    encoding = headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise DownloadError(f"{url}: sent {encoding}-encoded.")
    md5 = None
    hashes = ",".join(headers.get_all("x-goog-hash", []))
    if stated := re.search(r"\bmd5=([^,\s]*)", hashes):
        try:
            md5 = base64.b64decode(stated[1], validate=True).hex()
        except ValueError:
            raise DownloadError(
                f"{url}: cannot read its hash {stated[0]!a}."
            ) from None
    total: int | None
    if response.status == 206:
        content = headers.get("Content-Range", "")
        match = re.fullmatch(rf"bytes {start}-[0-9]+/([0-9]{{1,15}})", content)
        if match is None:
            raise DownloadError(
                f"{url}: asked for bytes {start}-, sent {content!a}."
            )
        total = int(match[1])
    else:  # it knows no Range and starts over
        start, total = 0, response.length
    if total is None and md5 is None:
        raise DownloadError(
            f"{url}: the server states neither length nor md5 to verify."
        )
    return start, total, md5


class _Watch:
    """Calls `stop` if less than 1 KiB/s has come over a `timeout`.

    The timeout of a socket limits each read: a server that sends a byte of a
    header now and then, or `100 Continue` forever, never exceeds it.
    """

    def __init__(self, timeout: float, received: Callable[[], int]) -> None:
        self.timeout = timeout
        self.stop: Callable[[], object] | None = None
        self.resources = contextlib.ExitStack()
        self._received = received
        self._expired = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.resources.close()

    def _run(self) -> None:
        least = self.timeout * _BYTES_PER_SECOND
        stop, before = self.stop, self._received()
        while not self._done.wait(self.timeout):
            received = self._received()
            if received < before:  # started over
                before = 0
            # A new connection has a whole `timeout`.
            if stop and stop is self.stop and received - before < least:
                self._expired = True
                with contextlib.suppress(OSError):
                    stop()
            stop, before = self.stop, received

    def check(self, prefix: str = "") -> None:
        """Raises a `_TransientError` if `stop` was called."""
        if self._expired:
            raise _TransientError(
                f"{prefix}less than {_BYTES_PER_SECOND} bytes/s in "
                f"{self.timeout:g} seconds"
            )


class _Handler(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """Opens connections that a `_Watch` breaks."""

    def __init__(self, watch: _Watch) -> None:
        super().__init__()
        self._watch = watch

    def do_open(self, http_class: Any, req: Any, **kwargs: Any) -> Any:
        def opened(*args: Any, **kwargs: Any) -> Any:
            connection = http_class(*args, **kwargs)
            connection._create_connection = self._connect
            return connection

        return super().do_open(opened, req, **kwargs)

    def _connect(self, *args: Any, **kwargs: Any) -> socket.socket:
        """Connects; a proxy's answer and TLS come later, and are watched."""
        connected = socket.create_connection(*args, **kwargs)
        # A duplicate, because TLS takes the socket itself over.
        own = self._watch.resources.enter_context(connected.dup())
        self._watch.stop = functools.partial(own.shutdown, socket.SHUT_RDWR)
        return connected


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https; plain http only within the same host."""

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(u) for u in (req.full_url, newurl))
        same = old.scheme == new.scheme and old.hostname == new.hostname
        if new.scheme != "https" and not (new.scheme == "http" and same):
            raise DownloadError(f"{req.full_url}: redirects to {newurl!a}.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(
    url: str, part: Path, start: int, watch: _Watch
) -> http.client.HTTPResponse:
    """Requests `url` from byte `start` on, and sorts the errors."""
    headers = {"User-Agent": "keras_augreg"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(_Redirects, _Handler(watch))
    try:
        response: http.client.HTTPResponse = opener.open(
            request, timeout=watch.timeout
        )
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is not a prefix of this file
            part.unlink(missing_ok=True)
        answer = f"HTTP {error.code} {http.client.responses.get(error.code)}"
        if error.code not in (416, *_TRANSIENT):
            raise DownloadError(f"{url}: {answer}.") from None
        raise _TransientError(answer) from None
    except DownloadError:
        raise
    except (ValueError, OverflowError) as error:  # of an address, redirected
        raise DownloadError(f"{url}: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        watch.check()
        cause = getattr(error, "reason", error)
        if isinstance(cause, socket.gaierror):
            host = urllib.parse.urlsplit(url).hostname
            raise DownloadError(
                f"{_WITHOUT_INTERNET}. {url}: the name {host} cannot be "
                f"resolved ({cause.strerror})."
            ) from error
        if isinstance(
            cause, (ssl.SSLCertVerificationError, http.client.InvalidURL)
        ):
            raise DownloadError(f"{url}: {cause}") from error
        raise _TransientError(f"no answer ({cause})") from error
    return response


def _read(response: http.client.HTTPResponse, watch: _Watch) -> bytes:
    """Returns the next piece of a body, nothing at its end."""
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        watch.check()
        raise _TransientError(f"broke off ({error!r})") from error


def _size(*paths: Path) -> int:
    """Bytes of those of the files that exist."""
    size = 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def _damage(part: Path, md5: str | None, suffix: str) -> str | None:
    """What is wrong with `part`, by the md5 or by what is inside."""
    if md5 is not None:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != md5:
            return f"its md5 is {found}, the server states {md5}"
    elif suffix == ".npz":
        try:
            with zipfile.ZipFile(part) as archive:
                member = archive.testzip()
        except Exception as error:  # zipfile raises many kinds
            return repr(error)
        if member is not None:
            return f"the checksum of {member!a} is wrong"
    if suffix == ".csv":  # A portal answers with a page of its own.
        with part.open("rb") as file:
            line = file.readline(10_000)
        if b"adapt_filename" not in line:
            return f"not the release's index, but {line[:80]!a}"
    return None


def _progress_bar(label: str, show: bool) -> Any:
    """A bar on standard error, under its label."""
    from rich import console, progress

    if show:
        print(label, file=sys.stderr)
    return progress.Progress(
        progress.BarColumn(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        console=console.Console(stderr=True),
        disable=not show,
    )
