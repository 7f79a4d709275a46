"""A bucket on 127.0.0.1 that misbehaves on demand.

Each GET, or CONNECT as to a proxy, takes the next of `faults`, then `always`;
both hold dictionaries:

    status: answer with this status      location: and this header
    cut: close after this many bytes     chunked: no Content-Length
    stall: wait before the rest          drip: seconds from byte to byte
    headers: replace or (None) drop      no_range: ignore Range
    endless: one of `ENDLESS`, until the client closes the connection
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import io
import threading
import time
from collections.abc import Iterator

import numpy as np

# The first bytes, those repeated forever, and the seconds between them.
_CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
_MD5 = b"x-goog-hash: md5=1B2M2Y8AsgTpgAmY7PhCfg==\r\n\r\n"
ENDLESS = {
    "bytes of a header": (b"HTTP/1.1 200 OK\r\nX-Header: ", b"x", 0.02),
    "headers": (b"HTTP/1.1 200 OK\r\n", b"X-Header: x\r\n", 0.02),
    "100 Continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.0),
    "digits of a chunk's size": (_CHUNKED + _MD5, b"0", 0.02),
    "chunks": (_CHUNKED + _MD5, b"10000\r\n" + bytes(2**16) + b"\r\n", 0.0),
}


def npz(size: int = 3 << 20, seed: int = 0) -> bytes:
    """A real archive of about `size` bytes."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, size, np.uint8)
    np.savez(file, noise=noise)
    return file.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Bucket

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        bucket = self.server
        bucket.log.append((self.path, self.headers.get("Range")))
        faults = bucket.faults
        fault = faults.pop(0) if faults else bucket.always
        self.close_connection = True
        with contextlib.suppress(ConnectionError):
            self._answer(fault, bucket.files.get(self.path))

    do_CONNECT = do_GET  # noqa: N815

    def do_HEAD(self) -> None:
        """The first request of huggingface_hub."""
        body = self.server.files.get(self.path)
        self.send_response(404 if body is None else 200)
        self.send_header("Content-Length", str(len(body or b"")))
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", "c" * 40)
        # Said aloud, or the client may send its next request into the end.
        self.send_header("Connection", "close")
        self.end_headers()

    def _answer(self, fault: dict, body: bytes | None) -> None:
        if "endless" in fault:
            start, more, seconds = ENDLESS[fault["endless"]]
            self.wfile.write(start)
            while True:
                self.wfile.write(more)
                time.sleep(seconds)
        status = fault.get("status", 404 if body is None else 200)
        headers: dict[str, str | None] = {"Connection": "close"}
        if "location" in fault:
            headers["Location"] = fault["location"]
        if status != 200 or body is None:
            body = b""
        else:
            md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
            headers["x-goog-hash"] = f"crc32c=AAAAAA==,md5={md5}"
            wanted = self.headers.get("Range")
            if wanted and not fault.get("no_range"):
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                total = len(body)
                if start >= total:
                    status, body = 416, b""
                else:
                    status, body = 206, body[start:]
                    content = f"bytes {start}-{total - 1}/{total}"
                    headers["Content-Range"] = content
        if not fault.get("chunked"):
            headers["Content-Length"] = str(len(body))
        headers |= fault.get("headers", {})
        self.send_response(status)
        for key, value in headers.items():
            if value is not None:
                self.send_header(key, value)
        self.end_headers()
        self._body(fault, body)

    def _body(self, fault: dict, body: bytes) -> None:
        body = body[: fault.get("cut")]
        if "drip" in fault:
            for byte in body:
                self.wfile.write(bytes([byte]))
                time.sleep(fault["drip"])
        elif "stall" in fault:
            self.wfile.write(body[: len(body) // 2])
            time.sleep(fault["stall"])
            self.wfile.write(body[len(body) // 2 :])
        else:
            self.wfile.write(body)


class Bucket(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: list[dict] = []
        self.always: dict = {}
        self.log: list[tuple[str, str | None]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextlib.contextmanager
def bucket() -> Iterator[Bucket]:
    with Bucket() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
