"""Weights of the release's files as a model has them: they load faster.

Reading a `.npz` of the release means a checksum of each of its bytes and a
stacking of each block's query, key and value. The first load of a file that
has a release name keeps the result in the cache, beside the `.npz` and as
large; the next loads read that. `KERAS_AUGREG_CONVERTED=0` turns it off.

A kept file is one run of little-endian 64-bit words: their number plus the
sum of all others modulo 2**64; the number of words of the header; the header,
JSON filled up with spaces; the arrays as float32. One that is not what its sum
says, or whose `.npz` has changed, is not used and written anew.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import warnings
from typing import Any

import numpy as np

from keras_augreg.atomic import replacing
from keras_augreg.checkpoints import convert, files
from keras_augreg.checkpoints.archive import Archive, Header, open_archive

SUFFIX = ".converted"
# To be raised when what is written changes, the names of weights included.
VERSION = 1
_WORD, _FLOAT = np.dtype("<u8"), np.dtype("<f4")


def open_release(source: pathlib.Path) -> convert.Contents:
    """Opens a file of the release, or what was kept of it.

    Keeps the converted weights if none are; where they cannot be written, a
    warning says why.

    Args:
        source: The `.npz` file.

    Returns:
        Its `Contents`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or no ViT checkpoint, or if
            `KERAS_AUGREG_CONVERTED` is neither 0 nor 1.
    """
    value = os.environ.get("KERAS_AUGREG_CONVERTED", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"KERAS_AUGREG_CONVERTED={value!r}: expected 0 or 1.")
    words = None if value == "0" else _kept(source)
    if words is None:
        contents = convert.inspect(open_archive(source))
        # What two dialects have is no weight of a model.
        if (
            value == "0"
            or contents.hidden_head
            or contents.positions_without_class
        ):
            return contents
        words = _keep(contents)
    return convert.inspect(_archive(source, words))


def _kept(source: pathlib.Path) -> np.ndarray | None:
    """The words of a kept file, if there is one that can be relied on."""
    path = _path(source)
    if not path.is_file():
        return None
    words = np.fromfile(path, _WORD)
    if len(words) < 2 or words[0] != _sum(words):
        return None
    return words if _header(words)["source"] == _identity(source) else None


def _header(words: np.ndarray) -> dict[str, Any]:
    return json.loads(words[2 : 2 + int(words[1])].tobytes())


def _archive(source: pathlib.Path, words: np.ndarray) -> Archive:
    """An archive with the names of a Keras file and the path of its source."""
    values = words[2 + int(words[1]) :].view(_FLOAT)
    headers: dict[str, Header] = {}
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for name, shape in _header(words)["arrays"].items():
        headers[name] = header = Header(tuple(shape), _FLOAT)
        size = header.nbytes // _FLOAT.itemsize
        arrays[name] = values[at : at + size].reshape(shape)
        at += size
    return Archive(source, "h5", headers, arrays.__getitem__)


def _keep(contents: convert.Contents) -> np.ndarray:
    """Converts and writes; returns the words."""
    words = None
    source = contents.archive.path
    path = _path(source)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.locked(path.with_name(path.name + ".lock")):
            # Another process may have kept them meanwhile.
            words = _kept(source)
            if words is None:
                words = _convert(contents)
                # One name for all: it replaces what a killed process left.
                part = path.with_name(path.name + ".part")
                with replacing(path, part) as file:
                    file.write(words.data)
    except OSError as error:
        warnings.warn(
            f"Cannot keep the converted weights at {path} "
            f"({error.strerror or error}): the next load will take as long. "
            "Make room or give write access, set KERAS_AUGREG_CACHE to "
            "another directory, or KERAS_AUGREG_CONVERTED=0 to keep none.",
            stacklevel=2,
        )
    return _convert(contents) if words is None else words


def _convert(contents: convert.Contents) -> np.ndarray:
    column = convert.KINDS["h5"]
    names = {row[0]: row[column] for row in convert.layout(contents.sizes)}
    shapes = convert.shapes(contents)
    sources = convert.plan(contents, shapes, contents.classes is not None)
    header = {
        "source": _identity(contents.archive.path),
        "arrays": {names[key]: shapes[key] for key in sources},
    }
    text = json.dumps(header).encode()
    text = text.ljust(-(-len(text) // _WORD.itemsize) * _WORD.itemsize)
    start = 2 + len(text) // _WORD.itemsize
    size = sum(math.prod(shapes[key]) for key in sources)
    words = np.zeros(start + -(-size // 2), _WORD)
    words[1] = start - 2
    words[2:start] = np.frombuffer(text, _WORD)
    values, at = words[start:].view(_FLOAT), 0
    for key, source in sources.items():
        array = convert.read(contents, source, shapes[key])
        values[at : at + array.size] = array.ravel()
        at += array.size
    words[0] = _sum(words)
    return words


def _path(source: pathlib.Path) -> pathlib.Path:
    # In the cache also where the file is in a mirror, which may be read-only.
    return files.cache_dir() / "converted" / f"{source.stem}{SUFFIX}"


def _identity(source: pathlib.Path) -> list[int]:
    """What changes when the file or its conversion does."""
    status = source.stat()
    return [VERSION, status.st_size, status.st_mtime_ns]


def _sum(words: np.ndarray) -> int:
    return (len(words) + int(words[1:].sum(dtype=_WORD))) % 2**64
