r"""What a checkpoint file says beside its arrays.

The grid is the rows and columns of patches, where it is not square: nothing
else in a `.safetensors` file tells 7 x 28 patches from 14 x 14. (`.npz` has
square ones only.) Class names are what the outputs of the head mean:

| file | where they are |
| --- | --- |
| `.npz` | in the comment of the zip archive, as JSON: `numpy.load`, and so \
the original code, sees arrays alone |
| `.safetensors` | in the header's `__metadata__`, as JSON |
| `.keras` | in the model's configuration, where Keras puts it |
| `.weights.h5` | nowhere: it holds weights alone |
"""

from __future__ import annotations

import json
import math
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

from keras_augreg.checkpoints.archive import MAX_HEADER_BYTES

CLASS_NAMES, GRID = "class_names", "patch_grid"
_MAX_COMMENT = 2**16 - 1  # bytes; the zip format's


def comment(class_names: Sequence[str] | None) -> bytes:
    """The comment of a `.npz` archive.

    Raises:
        ValueError: If the names do not fit.
    """
    if class_names is None:
        return b""
    found = {CLASS_NAMES: list(class_names)}
    text = json.dumps(found, ensure_ascii=False).encode()
    if len(text) > _MAX_COMMENT:
        raise ValueError(
            f"A .npz has room for {_MAX_COMMENT:,} bytes of class names; these "
            f"{len(class_names):,} take {len(text):,}. Shorten them, export "
            "with to_timm, which has no limit, or leave them out with "
            "model.class_names = None."
        )
    return text


def safetensors(
    class_names: Sequence[str] | None, grid: tuple[int, int]
) -> dict[str, str]:
    """The `__metadata__` of a `.safetensors` file, but for its format."""
    found: dict[str, Any] = {}
    if class_names is not None:
        found[CLASS_NAMES] = list(class_names)
    if grid[0] != grid[1]:  # A square one shows in the number of patches.
        found[GRID] = grid
    return {k: json.dumps(v, ensure_ascii=False) for k, v in found.items()}


def class_names(path: str | pathlib.Path) -> tuple[str, ...] | None:
    """Reads the class names that a checkpoint file holds.

    Args:
        path: A `.npz`, `.safetensors`, `.weights.h5` or `.keras` file.

    Returns:
        One name for each output of the head, or `None` if the file holds
        none, as the release's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds something else there.

    Example:
    ```python
    model.class_names = ["cat", "dog"]
    keras_augreg.checkpoints.to_npz(model, "pets.npz")
    names = keras_augreg.checkpoints.class_names("pets.npz")
    assert names == ("cat", "dog")
    ```
    """
    names = _read(pathlib.Path(path), CLASS_NAMES)
    if names is None:
        return None
    if not isinstance(names, list) or not all(
        isinstance(name, str) for name in names
    ):
        raise ValueError(
            f"{path}: its class names are {str(names)[:80]!a}, expected a list "
            "of strings. Export it again."
        )
    return tuple(names)


def grid(path: pathlib.Path, patches: int) -> tuple[int, int] | None:
    """Reads the rows and columns of patches that a checkpoint file states.

    Args:
        path: A `.safetensors` file; others state none.
        patches: How many there are.

    Returns:
        (rows, columns), or `None` if the file does not state them.

    Raises:
        ValueError: If what it states makes another number.
    """
    if path.suffix != ".safetensors":
        return None
    found = _read(path, GRID)
    if found is None:
        return None
    if (
        not isinstance(found, list)
        or len(found) != 2
        or not all(type(side) is int and side > 0 for side in found)
        or math.prod(found) != patches
    ):
        raise ValueError(
            f"{path}: its grid is {str(found)[:80]!a}, expected the rows and "
            f"columns of its {patches:,} patches. Export it again."
        )
    return found[0], found[1]


def _read(path: pathlib.Path, key: str) -> Any:
    try:
        return _find(path, key)
    except (
        AttributeError,
        KeyError,
        NotImplementedError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        what = key.replace("_", " ")
        raise ValueError(
            f"{path}: cannot read its {what}: {error}. The file is "
            "damaged or not from keras_augreg: export it again."
        ) from error


def _find(path: pathlib.Path, key: str) -> Any:
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            # Other programs may put a comment of their own.
            if not archive.comment.startswith(b'{"%s"' % key.encode()):
                return None
            return json.loads(archive.comment)[key]
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = archive.getinfo("config.json")
            _check_size(config.file_size)
            return json.loads(archive.read(config))["config"].get(key)
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            _check_size(length)
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        return json.loads(metadata[key]) if key in metadata else None
    return None


def _check_size(size: int) -> None:
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{size:,} bytes of text before the arrays")
