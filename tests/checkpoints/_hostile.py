"""Damaged and hostile checkpoint files, and what has to happen with them.

Shared by `test_archive.py` and `fuzz.py`.
"""

from __future__ import annotations

import io
import json
import pathlib
import random
import zipfile
from typing import Any

import numpy as np
from _checkpoints import release, same, timm, weights

from keras_augreg import checkpoints

# With checksums or without: there a changed number that is finite is not seen.
CHECKED = ("npz", "npz compressed", "keras")
KINDS = ("npz", "npz compressed", "safetensors", "weights.h5", "keras")


def contents(kind: str, model: Any, folder: pathlib.Path) -> bytes:
    """A sound file of a kind, for `model`."""
    import safetensors.numpy

    path = folder / f"sound.{kind.split()[0]}"
    grid = {}
    if model.patch_grid[0] != model.patch_grid[1]:
        grid = {"patch_grid": model.patch_grid}
    if kind == "npz":
        np.savez(path, **release(), **grid)
    elif kind == "npz compressed":
        np.savez_compressed(path, **release(), **grid)
    elif kind == "safetensors":
        metadata = {key: json.dumps(value) for key, value in grid.items()}
        safetensors.numpy.save_file(timm(release()), path, metadata or None)
    elif kind == "keras":
        model.save(path)
    else:
        model.save_weights(path)
    return path.read_bytes()


def mutate(content: bytes, rng: random.Random) -> bytes:
    """Damages a file: bits, bytes, blocks, length, or the numbers inside."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        # Headers and directories are at either end.
        at = rng.choice(
            (
                rng.randrange(len(data)),
                rng.randrange(min(len(data), 2048)),
                len(data) - 1 - rng.randrange(min(len(data), 4096)),
            )
        )
        size = rng.choice((1, 2, 4, 8, 64))
        how = rng.randrange(7)
        if how == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif how == 1:
            data[at] = rng.randrange(256)
        elif how == 2:
            data[at : at + size] = rng.choice((b"\0", b"\xff")) * size
        elif how == 3:
            del data[at : at + size]
        elif how == 4:
            data[at:at] = rng.randbytes(size)
        elif how == 5:
            other = rng.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        else:
            value = rng.choice(
                (0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1)
            )
            data[at : at + size] = value.to_bytes(8, "little")[:size]
        if not data:
            return b""
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    return bytes(data)


def attempt(model: Any, path: pathlib.Path, expected: Any = None) -> str:
    """Loads a file into a model and returns "loaded" or "refused".

    Args:
        model: Where to.
        path: The file.
        expected: Weights of the sound file, where its format has checksums: a
            damaged file that loads has to give these.

    Raises:
        AssertionError: If the file was refused without a reason, or the model
            changed though it was, or was given damaged numbers.
        Exception: Whatever else than a `ValueError` the loading raises.
    """
    before = weights(model)
    try:
        checkpoints.load(model, path)
    except ValueError as error:
        if str(path) not in str(error):
            raise AssertionError(f"names no file: {error}") from error
        if not same(weights(model), before):
            raise AssertionError(f"half loaded: {error}") from error
        return "refused"
    after = weights(model)
    if expected is not None and not same(after, expected):
        raise AssertionError("loaded other numbers than the file's")
    for name, array in after.items():
        if "seed_generator" not in name and not np.isfinite(array).all():
            raise AssertionError(f"loaded NaN or Inf into {name}")
    return "loaded"


def rewrite(content: bytes, **changed: bytes | None) -> bytes:
    """A `.npz` with other bytes in some entries; `None` leaves one out."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(out, "w") as new,
    ):
        for info in old.infolist():
            data = changed.pop(info.filename, old.read(info))
            if data is not None:
                new.writestr(info.filename, data)
        for name, data in changed.items():
            new.writestr(name, data)
    return out.getvalue()
