r"""Class names inside a checkpoint file: what the outputs of its head mean.

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
import pathlib
import zipfile
from collections.abc import Sequence
from typing import Any

from keras_augreg.checkpoints.archive import MAX_HEADER_BYTES

KEY = "class_names"
_MAX_COMMENT = 2**16 - 1  # bytes; the zip format's


def comment(class_names: Sequence[str] | None) -> bytes:
    """The comment of a `.npz` archive.

    Raises:
        ValueError: If the names do not fit.
    """
    if class_names is None:
        return b""
    text = json.dumps({KEY: list(class_names)}, ensure_ascii=False).encode()
    if len(text) > _MAX_COMMENT:
        raise ValueError(
            f"A .npz has room for {_MAX_COMMENT:,} bytes of class names; these "
            f"{len(class_names):,} take {len(text):,}. Shorten them, export "
            "with to_timm, which has no limit, or leave them out with "
            "model.class_names = None."
        )
    return text


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
    path = pathlib.Path(path)
    try:
        names = _read(path)
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
        raise ValueError(
            f"{path}: cannot read its class names: {error}. The file is "
            "damaged or not from keras_augreg: export it again."
        ) from error
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


def _read(path: pathlib.Path) -> Any:
    if path.suffix == ".npz":
        with zipfile.ZipFile(path) as archive:
            # Other programs may put a comment of their own.
            if not archive.comment.startswith(b'{"%s"' % KEY.encode()):
                return None
            return json.loads(archive.comment)[KEY]
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = archive.getinfo("config.json")
            _check_size(config.file_size)
            return json.loads(archive.read(config))["config"].get(KEY)
    if path.suffix == ".safetensors":
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            _check_size(length)
            metadata = json.loads(file.read(length)).get("__metadata__", {})
        return json.loads(metadata[KEY]) if KEY in metadata else None
    return None


def _check_size(size: int) -> None:
    if size > MAX_HEADER_BYTES:
        raise ValueError(f"{size:,} bytes of text before the arrays")
