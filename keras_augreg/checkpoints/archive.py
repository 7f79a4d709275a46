r"""Files of named arrays, opened without trusting them.

`open_archive` reads what a file declares (names, shapes, dtypes, metadata)
and checks that the file can hold it; `Archive.read` reads one array. Nothing
is unpickled, and an absurd shape is refused before memory is taken for it.

Besides its arrays a file may state class names, that is what the outputs of
the head mean, and the patch grid, without which 7 x 28 patches look like
14 x 14:

| file | where they are |
| --- | --- |
| `.npz` | class names in the comment of the zip archive, as JSON, where \
readers of the arrays do not see them; the grid in the array `patch_grid`, \
which has a checksum, unless it is a square |
| `.safetensors` | in the header's `__metadata__`, as JSON |
| `.keras` | class names in the model's configuration, where Keras puts them; \
the grid as in `.weights.h5` |
| `.weights.h5` | the grid in the data set `patch_grid` beside the position \
embedding; no class names |
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

# The largest array of the release is L/16's head for ImageNet-21k, 89 MB.
MAX_ARRAY_BYTES = 2**30
# A header of JSON; the class names of ImageNet-21k take 0.4 MB of it.
MAX_HEADER_BYTES = 2**22
# The header of one array in a .npz; NumPy writes 128 bytes.
_MAX_NPY_HEADER_BYTES = 10_000
_MAX_AXES = 32

# Keys of the metadata.
CLASS_NAMES, PATCH_GRID = "class_names", "patch_grid"
LORA_ALPHA = "lora_alpha"  # only of adapters
_H5_GRID = f"layers/position_embedding/vars/{PATCH_GRID}"

# bfloat16 is unknown to NumPy: `numpy.savez` stores it as raw 2-byte values.
BFLOAT16 = np.dtype("V2")
_SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    "BF16": BFLOAT16,
    **{f"F{8 * n}": np.dtype(f"<f{n}") for n in (8, 4, 2)},
}


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file declares of one array."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        if len(self.shape) > _MAX_AXES or not all(
            isinstance(n, int) and 0 <= n <= MAX_ARRAY_BYTES for n in self.shape
        ):
            raise ValueError(
                f"it declares shape {self.shape!s:.200}, expected at most "
                f"{_MAX_AXES} axes of 0 to {MAX_ARRAY_BYTES:,}"
            )

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Archive:
    """A file of named arrays."""

    path: pathlib.Path
    kind: str  # "npz", "safetensors" or "h5"
    headers: dict[str, Header]
    fetch: Callable[[str], np.ndarray]  # the array of a name, as it is stored
    metadata: Mapping[str, Any]  # by the keys above, unchecked

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The class names, one for each output of the head, or `None`."""
        names = self.metadata.get(CLASS_NAMES)
        if names is None:
            return None
        if not isinstance(names, list) or {*map(type, names)} - {str}:
            raise ValueError(
                f"{self.path}: its class names are {str(names)[:80]!a}, "
                "expected a list of strings. Export it again."
            )
        return tuple(names)

    def patch_grid(self, patches: int) -> tuple[int, int] | None:
        """Returns the rows and columns of so many patches.

        What the file states, otherwise a square, as in the files of the
        release and of timm; `None` if there is no such square.
        """
        grid = self.metadata.get(PATCH_GRID)
        if grid is None:
            side = math.isqrt(patches)
            return (side, side) if side**2 == patches else None
        sides = grid if isinstance(grid, list) else []
        two = [type(side) for side in sides] == [int, int] and min(sides) > 0
        if not two or math.prod(sides) != patches:
            raise ValueError(
                f"{self.path}: its patch grid is {str(grid)[:80]!a}, expected "
                f"rows and columns of {patches:,} patches. Export it again."
            )
        return sides[0], sides[1]

    def read(self, name: str) -> np.ndarray:
        """Returns an array as float32, which must be whole and finite."""
        with _explained(self.path, f"array {name!r}"):
            array = self.fetch(name)
        if array.dtype == BFLOAT16:
            array = (array.view("<u2").astype("<u4") << 16).view("<f4")
        with np.errstate(over="ignore"):  # of a float64; found below
            array = array.astype(np.float32, copy=False)
        # The sum is a fast test, but it may overflow.
        with np.errstate(over="ignore", invalid="ignore"):
            suspect = not np.isfinite(array.sum(dtype=np.float32))
        if suspect and not np.isfinite(array).all():
            bad = np.argwhere(~np.isfinite(array))[0].tolist()
            raise ValueError(
                f"{self.path}: array {name!r} holds {array[tuple(bad)]} at "
                f"{bad}, expected finite numbers. The run that wrote it "
                "diverged or the file is damaged: use another checkpoint."
            )
        return array


@contextlib.contextmanager
def _explained(path: pathlib.Path, what: str) -> Iterator[None]:
    """Turns what a damaged file makes libraries raise into a `ValueError`."""
    try:
        yield
    except Exception as error:
        # Zip, JSON, HDF5 and NumPy's header raise some fifteen kinds.
        reason = str(error) or type(error).__name__
        raise ValueError(
            f"{path}: cannot read {what}: {reason}. The file is damaged, "
            "incomplete or of another format: download or export it again."
        ) from error


def open_archive(path: str | pathlib.Path) -> Archive:
    """Reads and checks what a checkpoint file declares."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"No such file: {path}. Expected a .npz, .safetensors, .weights.h5 "
            "or .keras checkpoint."
        )
    openers = {
        ".npz": _open_npz, ".safetensors": _open_safetensors,
        ".h5": _open_h5, ".keras": _open_keras,
    }  # fmt: skip
    if path.suffix not in openers:
        raise ValueError(
            f"{path} has the unknown extension {path.suffix!r}. Expected one "
            f"of {', '.join(openers)}."
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty: download or export it again.")
    with _explained(path, f"it as a {path.suffix} file"):
        archive = openers[path.suffix](path)
    for name, header in archive.headers.items():
        if header.dtype != BFLOAT16 and header.dtype.kind != "f":
            raise ValueError(
                f"{path}: array {name!r} has dtype {header.dtype}, expected "
                "float32, float16, float64 or bfloat16. Load a quantized "
                "model as a whole, with keras.saving.load_model."
            )
        if header.nbytes > MAX_ARRAY_BYTES:
            raise ValueError(
                f"{path}: array {name!r} declares shape {header.shape}, "
                f"{header.nbytes:,} bytes; expected at most "
                f"{MAX_ARRAY_BYTES:,}. The file is damaged or hostile."
            )
    return archive


def class_names(path: str | pathlib.Path) -> tuple[str, ...] | None:
    """Reads the class names that a checkpoint file holds.

    Args:
        path: A `.npz`, `.safetensors`, `.weights.h5` or `.keras` file.

    Returns:
        One name for each output of the head, or `None` if the file holds
        none, like the released files.

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
    return open_archive(path).class_names


def _npy_header(stream: Any) -> tuple[Header, Literal["C", "F"], int]:
    """Reads the header of a `.npy`: what it declares, order and length."""
    start = stream.read(12)
    version = np.lib.format.read_magic(io.BytesIO(start))
    # NumPy would believe any length of version 2 before it reads.
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"unknown .npy version {version}")
    end = 10 if version == (1, 0) else 12
    length = end + int.from_bytes(start[8:end], "little")
    if length > _MAX_NPY_HEADER_BYTES:
        raise ValueError(f"its header claims {length:,} bytes")
    start += stream.read(max(length - len(start), 0))
    read = getattr(np.lib.format, f"read_array_header_{version[0]}_0")
    shape, fortran, dtype = read(io.BytesIO(start[8:]))
    return Header(shape, dtype), "F" if fortran else "C", length


def _grid(shape: Any, fetch: Callable[[], np.ndarray]) -> Any:
    """The array of a patch grid, read only if it is as small as expected."""
    return fetch().tolist() if shape == (2,) else f"of shape {shape}"


def _open_npz(path: pathlib.Path) -> Archive:
    file = zipfile.ZipFile(path)
    headers: dict[str, Header] = {}
    orders: dict[str, Literal["C", "F"]] = {}
    for info in file.infolist():
        name = info.filename.removesuffix(".npy")
        if name == info.filename or name in headers:
            raise ValueError(f"unexpected or repeated entry {info.filename!r}")
        # NumPy writes none. A damaged length would hide the entries that
        # follow in one, such as the grid, which a file need not have.
        if info.comment:
            raise ValueError(f"entry {info.filename!r} has a comment")
        # NumPy uses no others, which unpack without a limit.
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ValueError(
                f"entry {info.filename!r} is compressed by the method "
                f"{info.compress_type}, expected none or deflate"
            )
        with _explained(path, f"array {name!r}"), file.open(info) as stream:
            headers[name], orders[name], length = _npy_header(stream)
            expected = length + headers[name].nbytes
        if headers[name].dtype.hasobject:
            raise ValueError(
                f"array {name!r} holds pickled objects, which are never loaded"
            )
        if info.file_size != expected:
            raise ValueError(
                f"array {name!r} declares shape {headers[name].shape} and "
                f"dtype {headers[name].dtype}, {expected:,} bytes with its "
                f"header, but its entry has {info.file_size:,}"
            )

    def fetch(name: str) -> np.ndarray:
        data, header = file.read(f"{name}.npy"), headers[name]
        start = len(data) - header.nbytes
        array = np.frombuffer(data, header.dtype, offset=start)
        return array.reshape(header.shape, order=orders[name])

    metadata: dict[str, Any] = {}
    # Other programs may put a comment of their own.
    if file.comment.startswith(b'{"%s"' % CLASS_NAMES.encode()):
        with _explained(path, "the comment of the archive"):
            metadata = json.loads(file.comment)
    if PATCH_GRID in headers:
        shape = headers[PATCH_GRID].shape
        metadata[PATCH_GRID] = _grid(shape, lambda: fetch(PATCH_GRID))
        del headers[PATCH_GRID]
    return Archive(path, "npz", headers, fetch, metadata)


def _open_safetensors(path: pathlib.Path) -> Archive:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"its header claims {length:,} of {size:,} bytes")
        entries = json.loads(file.read(length))
    stated = entries.pop("__metadata__", {})
    with _explained(path, "its metadata"):
        metadata = {
            key: json.loads(stated[key])
            for key in (CLASS_NAMES, PATCH_GRID, LORA_ALPHA)
            if key in stated
        }
    start = 8 + length
    headers: dict[str, Header] = {}
    offsets: dict[str, int] = {}
    end = 0
    for name, entry in sorted(
        entries.items(), key=lambda item: item[1]["data_offsets"]
    ):
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise ValueError(
                f"array {name!r} has dtype {entry['dtype']}, expected one of "
                f"{', '.join(_SAFETENSORS_DTYPES)}"
            )
        with _explained(path, f"array {name!r}"):
            shape = tuple(entry["shape"])
            header = Header(shape, _SAFETENSORS_DTYPES[entry["dtype"]])
        begin, stop = entry["data_offsets"]
        if begin != end or stop - begin != header.nbytes:
            raise ValueError(
                f"array {name!r} of shape {shape} lies at {begin}:{stop}, "
                f"expected {end}:{end + header.nbytes}"
            )
        end = stop
        headers[name], offsets[name] = header, start + begin
    if start + end != size:
        raise ValueError(f"it has {size:,} bytes, expected {start + end:,}")

    def fetch(name: str) -> np.ndarray:
        header = headers[name]
        with path.open("rb") as file:
            file.seek(offsets[name])
            data = file.read(header.nbytes)
        return np.frombuffer(data, header.dtype).reshape(header.shape)

    return Archive(path, "safetensors", headers, fetch, metadata)


def _open_h5(path: pathlib.Path, file: io.BytesIO | None = None) -> Archive:
    import h5py

    h5 = h5py.File(file or path, "r")
    headers: dict[str, Header] = {}
    metadata: dict[str, Any] = {}

    def visit(name: str, item: Any) -> None:
        # Keras keeps the optimizer and compiled metrics beside the layers.
        if not isinstance(item, h5py.Dataset):
            return
        if item.external or item.is_virtual:
            raise ValueError(f"array {name!r} lies in another file")
        if name == _H5_GRID:
            metadata[PATCH_GRID] = _grid(item.shape, lambda: item[()])
        elif name.startswith("layers/"):
            with _explained(path, f"array {name!r}"):
                headers[name] = Header(tuple(item.shape or ()), item.dtype)

    def fetch(name: str) -> np.ndarray:
        return np.asarray(h5[name][()])

    h5.visititems(visit)
    return Archive(path, "h5", headers, fetch, metadata)


def _open_keras(path: pathlib.Path) -> Archive:
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("model.weights.h5")
        # Keras does not compress, and weights can hardly be.
        if info.file_size > 4 * path.stat().st_size:
            raise ValueError(
                f"its {info.filename} claims {info.file_size:,} bytes, packed "
                f"into {path.stat().st_size:,}"
            )
        archive = _open_h5(path, io.BytesIO(file.read(info)))
        with _explained(path, "its config.json"):
            info = file.getinfo("config.json")
            if info.file_size > MAX_HEADER_BYTES:
                raise ValueError(f"it claims {info.file_size:,} bytes")
            names = json.loads(file.read(info))["config"].get(CLASS_NAMES)
    metadata = {**archive.metadata, CLASS_NAMES: names}
    return dataclasses.replace(archive, metadata=metadata)
