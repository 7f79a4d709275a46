"""One file over https: resumed, retried, verified.

Knows nothing of checkpoints. `receive` brings a file to completeness at a
temporary name; whoever calls it renames it. Sources: Google Cloud Storage's
reference of HTTP headers (XML API) for `x-goog-hash`; RFC 9110 for ranges.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import math
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

_CHUNK = 1 << 20
# An attempt that brings less than this is one of the `retries`.
_PROGRESS = 1 << 20
# Slower than this over a whole `timeout` is a broken connection.
_BYTES_PER_SECOND = 1024
_TRANSIENT = (408, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """A file could not be downloaded, or did not arrive intact."""


class _TransientError(DownloadError):
    """A failure that may pass: a broken connection, an overloaded server."""


def receive(
    url: str,
    part: Path,
    *,
    timeout: float = 30.0,
    retries: int = 5,
    progress: bool = True,
) -> None:
    """Downloads `url` to `part`, from where an earlier call broke off.

    Args:
        url: An http(s) address. Only what ends in `.npz` is resumed: if the
            server states no hash, the checksums inside tell whether the
            pieces belong together.
        part: The temporary file. After an error it holds what has arrived,
            or is gone if that was wrong.
        timeout: See `files.download`.
        retries: See `files.download`.
        progress: See `files.download`.

    Raises:
        DownloadError: If the server refuses or does not answer, or if what
            arrived is not what it announced.
        OSError: If `part` cannot be written.
    """
    if not url.endswith(".npz"):
        part.unlink(missing_ok=True)
    best = failures = 0
    while True:
        start = part.stat().st_size if part.exists() else 0
        best = max(best, start)
        try:
            hashes = _attempt(url, part, start, timeout, progress)
            damage = _damage(url, part, hashes)
            if damage is None:
                break
            part.unlink()
            error = f"arrived damaged: {damage}"
            if start == 0:  # else the beginning may be of another version
                raise DownloadError(f"{url}: {error}. Nothing was kept.")
        except _TransientError as transient:
            error = str(transient)
        size = part.stat().st_size if part.exists() else 0
        failures = 1 if size - best >= _PROGRESS else failures + 1
        if failures > retries:
            raise DownloadError(
                f"{url}: {error}. Gave up in attempt {failures}; call again "
                f"to continue. Without internet, set KERAS_AUGREG_MIRROR to a "
                f"directory or KERAS_AUGREG_OFFLINE=1."
            )
        wait = min(2.0 ** (failures - 1), 30.0)
        if progress:
            print(
                f"{part.stem}: {error}; again in {wait:.0f} s", file=sys.stderr
            )
        time.sleep(wait)
    with part.open("rb+") as file:  # on the disk before it gets its name
        os.fsync(file.fileno())


def _attempt(
    url: str, part: Path, start: int, timeout: float, progress: bool
) -> dict[str, bytes]:
    """One request: appends to `part`; returns the hashes of the whole file."""
    with _open(url, part, start, timeout) as response:
        headers = response.headers
        encoding = headers.get("Content-Encoding", "identity")
        if encoding != "identity":
            raise DownloadError(f"{url}: sent {encoding}-encoded.")
        hashes = _hashes(url, headers.get_all("x-goog-hash", []))
        if response.status == 206:
            content = headers.get("Content-Range", "")
            match = re.fullmatch(rf"bytes {start}-[0-9]+/([0-9]+)", content)
            if match is None:
                raise DownloadError(
                    f"{url}: asked for bytes {start}-, sent {content!a}."
                )
            total = int(match[1])
        else:  # it knows no Range and starts over
            start, total = 0, -1 if response.length is None else response.length
        if total < 0 and not hashes:
            raise DownloadError(
                f"{url}: the server states neither length nor hash: nothing "
                f"to verify the file with."
            )
        missing = total - start
        if missing > (free := shutil.disk_usage(part.parent).free):
            raise OSError(
                errno.ENOSPC, f"{missing:,} bytes to come, {free:,} free"
            )
        with part.open("ab" if start else "wb") as file:
            line = _Progress(part.stem, start, total, progress)
            for chunk in _chunks(response, timeout):
                file.write(chunk)
                line.advance(len(chunk))
            size = file.tell()
        line.close()
    if total >= 0 and size < total:
        raise _TransientError(f"broke off after {size:,} of {total:,} bytes")
    return hashes


def _open(
    url: str, part: Path, start: int, timeout: float
) -> http.client.HTTPResponse:
    """Requests `url` from byte `start` on, and sorts the errors."""
    headers = {"User-Agent": "keras_augreg"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response: http.client.HTTPResponse = urllib.request.build_opener(
            _Redirects
        ).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the part is no beginning of this file
            part.unlink()
        answer = f"HTTP {error.code} {http.client.responses.get(error.code)}"
        if error.code not in (416, *_TRANSIENT):
            raise DownloadError(f"{url}: {answer}.") from None
        raise _TransientError(answer) from None
    except DownloadError:
        raise
    except (OSError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise DownloadError(f"{url}: {cause}") from error
        raise _TransientError(f"no answer ({cause})") from error
    return response


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https; plain http only within the same host."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = (urllib.parse.urlsplit(u) for u in (req.full_url, newurl))
        same = old.scheme == new.scheme and old.hostname == new.hostname
        if new.scheme != "https" and not (new.scheme == "http" and same):
            raise DownloadError(f"{req.full_url}: redirects to {newurl!a}.")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _chunks(
    response: http.client.HTTPResponse, timeout: float
) -> Iterator[bytes]:
    """The body, piece by piece; a connection that crawls counts as broken."""
    since, received = time.monotonic(), 0
    while True:
        try:
            chunk = response.read1(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _TransientError(f"broke off ({error!r})") from error
        if not chunk:
            return
        yield chunk
        received += len(chunk)
        if (seconds := time.monotonic() - since) > timeout:
            if received < seconds * _BYTES_PER_SECOND:
                raise _TransientError(
                    f"{received:,} bytes in {seconds:.0f} seconds"
                )
            since, received = time.monotonic(), 0


def _hashes(url: str, values: list[str]) -> dict[str, bytes]:
    """`x-goog-hash`: algorithm -> digest, of those we know."""
    hashes = {}
    for value in ",".join(values).split(","):
        algorithm, _, digest = value.strip().partition("=")
        if algorithm in ("md5", "crc32c"):
            try:
                hashes[algorithm] = base64.b64decode(digest, validate=True)
            except ValueError:
                raise DownloadError(
                    f"{url}: cannot read its hash {value!a}."
                ) from None
    return hashes


def _damage(url: str, part: Path, hashes: dict[str, bytes]) -> str | None:
    """What is wrong with `part`, by the server's hash or by those inside."""
    for algorithm, digest in (("md5", _md5), ("crc32c", _crc32c)):
        if algorithm in hashes:
            found, stated = digest(part).hex(), hashes[algorithm].hex()
            if found == stated:
                return None
            return f"its {algorithm} is {found}, the server states {stated}"
    if not url.endswith(".npz"):
        return None
    try:
        with zipfile.ZipFile(part) as archive:
            member = archive.testzip()
    except Exception as error:  # zipfile raises many kinds on hostile files
        return repr(error)
    return None if member is None else f"the checksum of {member!a} is wrong"


def _md5(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").digest()


def _crc32c(path: Path) -> bytes:
    """CRC-32C (Castagnoli; RFC 3720, appendix B.4), 100 MB/s or more.

    Blocks are cut into rows of 256 bytes whose remainders are computed side
    by side; the remainder of the whole follows because CRC is linear.
    """
    table: np.ndarray = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.uint32(0x82F63B78) * (table & 1)

    def advance(state: np.ndarray, byte: np.ndarray | int) -> np.ndarray:
        return table[(state ^ byte) & 0xFF] ^ (state >> 8)

    # What 256 zero bytes make of each value of each byte of the remainder.
    shifts = np.arange(0, 32, 8, dtype=np.uint32)[:, None]
    zeros = np.arange(256, dtype=np.uint32) << shifts
    for _ in range(256):
        zeros = advance(zeros, 0)
    z0, z1, z2, z3 = zeros.tolist()
    crc = 0xFFFFFFFF
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            rows = len(block) // 256
            data = np.frombuffer(block, np.uint8, rows * 256).reshape(rows, 256)
            remainders = np.zeros(rows, np.uint32)
            for column in np.ascontiguousarray(data.T):
                remainders = advance(remainders, column)
            for r in remainders.tolist():
                crc = (
                    z0[crc & 255]
                    ^ z1[crc >> 8 & 255]
                    ^ r
                    ^ (z2[crc >> 16 & 255] ^ z3[crc >> 24])
                )
            for byte in block[rows * 256 :]:
                crc = int(table[(crc ^ byte) & 255]) ^ crc >> 8
    return (crc ^ 0xFFFFFFFF).to_bytes(4, "big")


class _Progress:
    """A line on standard error: live on a terminal, else every 10 seconds."""

    def __init__(self, label: str, done: int, total: int, show: bool) -> None:
        self._label, self._done, self._total = label, done, total
        self._terminal = sys.stderr.isatty()
        self._every = (0.2 if self._terminal else 10.0) if show else math.inf
        self._start = self._last = time.monotonic()
        self._first, self._shown = done, False

    def advance(self, size: int) -> None:
        self._done += size
        if time.monotonic() - self._last >= self._every:
            self._print()

    def close(self) -> None:
        if self._shown:
            self._print()
            if self._terminal:
                print(file=sys.stderr)

    def _print(self) -> None:
        self._last, self._shown = time.monotonic(), True
        mib = 1 << 20
        rate = (self._done - self._first) / (self._last - self._start) / mib
        of = f" of {self._total / mib:,.1f}" if self._total >= 0 else ""
        print(
            f"{self._label}: {self._done / mib:,.1f}{of} MiB, {rate:.1f} MiB/s",
            end="   \r" if self._terminal else "\n",
            file=sys.stderr,
            flush=True,
        )
