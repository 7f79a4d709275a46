"""Where the checkpoints of a run are written and read: Orbax or NumPy files.

| name in `checkpoints/` | written by | on |
| --- | --- | --- |
| `0000001200` | Orbax: in the background, every host its part | JAX |
| `0000001200.npz` | NumPy: whole, by the first process | all else |

Both kinds can be read wherever orbax-checkpoint is installed, so a run can
move between backends. Each holds arrays by name and the step, appears only
when it is whole, and has a checksum of all of it. Damage of any kind is one
error, `DamagedError`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any, Protocol

import keras
import numpy as np

from keras_augreg import atomic, distribution
from keras_augreg.training.rundir import move_aside_unless_file, replacing

# What Orbax is writing to, on a disk; on gs:// it has its final name, and this
# file only when all is there.
UNFINISHED = ".orbax-checkpoint-tmp"
COMMITTED = "commit_success.txt"


class DamagedError(ValueError):
    """The file is not a whole checkpoint of a run."""


class NotFiniteError(ValueError):
    """An array holds NaN or infinity; the message is its name."""


class Engine(Protocol):
    """Writes checkpoints. All processes make the same calls."""

    def take(self, variables: dict[str, Any]) -> Any:
        """Returns what `write` needs, or raises `NotFiniteError`."""

    def write(self, folder: Any, step: int, taken: Any) -> Any:
        """Begins to write; training may go on. Returns the path."""

    def wait(self) -> None:
        """Returns when it is written, or raises `OSError`."""


def engine() -> Engine:
    """Orbax on JAX, if it is installed; otherwise NumPy files."""
    if keras.backend.backend() == "jax":
        try:
            return _Orbax()
        except ImportError:
            pass
    return _Npz()


def step_of(path: Any) -> int:
    """The step in a checkpoint's name."""
    return int(path.name.removesuffix(".npz"))


def checkpoints(folder: Any) -> list[Any]:
    """The checkpoints in a folder that appear whole, in the order of steps."""
    found = [p for p in _named(folder) if p.suffix or _committed(p)]
    return sorted(found, key=lambda path: (step_of(path), path.name))


def _named(folder: Any) -> list[Any]:
    """All that is called as a checkpoint is."""
    if atomic.is_remote(folder):
        found = list(folder.iterdir()) if folder.exists() else []
    else:
        # Unlike `glob`, `listdir` says if it is not allowed to look.
        found = [folder / name for name in os.listdir(folder)]
    return [p for p in found if re.fullmatch(r"\d+(\.npz)?", p.name)]


def clean(folder: Any) -> None:
    """Deletes what killed or failed writes have left."""
    if atomic.is_remote(folder):
        left = [p for p in _named(folder) if not (p.suffix or _committed(p))]
    else:
        left = [*folder.glob("*.tmp"), *folder.glob(f"*{UNFINISHED}*")]
    for path in left:
        remove(path)


def remove(path: Any) -> None:
    """Deletes a checkpoint, or what is in its place."""
    if atomic.is_remote(path):
        if path.is_dir():
            (path / COMMITTED).unlink(missing_ok=True)
            path.rmtree()
        else:
            path.unlink(missing_ok=True)
    elif path.is_dir() and path.suffix not in (".npz", ".tmp"):
        shutil.rmtree(path)
    else:
        move_aside_unless_file(path)
        path.unlink(missing_ok=True)


def read(path: Any, like: dict[str, Any]) -> dict[str, Any]:
    """Reads a checkpoint.

    Args:
        path: One of `checkpoints`.
        like: The model's variables. On JAX, each host reads what it needs of
            arrays of their names and shapes, and puts it where theirs is.

    Returns:
        Arrays by name, and "step".

    Raises:
        DamagedError: It is anything but a whole checkpoint of its name; the
            message says what.
        PermissionError: This process may not read it.
        ImportError: Orbax wrote it and is not installed here.
    """
    arrays = (_read_npz if path.suffix else _read_orbax)(path, like)
    if arrays["step"] != step_of(path):
        raise DamagedError(f"its name is not its step, {arrays['step']}")
    return arrays


class _Npz:
    """One file of NumPy's, written by the first process."""

    def take(self, variables: dict[str, Any]) -> dict[str, np.ndarray]:
        arrays = {}
        for key, variable in variables.items():
            array = distribution.to_numpy(variable)
            # NumPy cannot load bfloat16.
            if array.dtype.kind not in "biuf":
                array = array.astype("float32")
            if not np.isfinite(array).all():
                raise NotFiniteError(key)
            arrays[key] = array
        return arrays

    def write(self, folder: Any, step: int, taken: Any) -> Any:
        path = folder / f"{step:010d}.npz"
        if distribution.process()[0] == 0:
            arrays = {**taken, "step": np.int64(step)}
            with replacing(path) as file:
                np.savez(file, **arrays, checksum=_checksum(arrays))
        return path

    def wait(self) -> None:
        pass


def _read_npz(path: Any, like: dict[str, Any]) -> dict[str, Any]:
    if not path.is_file():  # Opening a FIFO would wait forever.
        raise DamagedError("not a regular file")
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays: dict[str, Any] = {k: archive[k] for k in archive.files}
    except PermissionError:
        raise
    # Damage anywhere in a zip file raises nearly anything.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise DamagedError(f"unreadable, {what}") from error
    checksum = arrays.pop("checksum", None)
    if checksum is None or "step" not in arrays:
        raise DamagedError("it lacks its checksum or step")
    if checksum.tobytes() != _checksum(arrays).tobytes():
        raise DamagedError("its checksum does not match its content")
    step = arrays["step"]
    if step.shape or step.dtype.kind != "i" or step < 0:
        raise DamagedError(f"its step is {step!r}")
    return {**arrays, "step": int(step)}


def _checksum(arrays: dict[str, Any]) -> np.ndarray:
    """SHA-256 of names, dtypes, shapes and bytes: uint8 (32,)."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        head = f"{key}:{array.dtype.str}:{np.shape(arrays[key])}\n"
        digest.update(head.encode())
        digest.update(array.reshape(-1).view("uint8").data)
    return np.frombuffer(digest.digest(), "uint8")


def _orbax() -> Any:
    if keras.backend.backend() != "jax":
        # It only reads here; JAX would take the memory of a GPU.
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import orbax.checkpoint

    return orbax.checkpoint


def _committed(path: Any) -> bool:
    """Whether Orbax has finished a folder; on a disk, it has no name before."""
    # By Orbax's own rule, also where it is not installed.
    return not atomic.is_remote(path) or (path / COMMITTED).exists()


class _Orbax:
    """A folder for TensorStore, to which every host writes its part.

    Orbax gives it its name, or on gs:// its commit file, when all is there.
    """

    def __init__(self) -> None:
        ocp = _orbax()
        self._pytree = ocp.args.PyTreeSave
        self._writer = ocp.AsyncCheckpointer(
            # Weights hardly become smaller.
            ocp.PyTreeCheckpointHandler(use_compression=False),
            # Otherwise threads wait for a folder that cannot be made, and
            # the process does not end.
            async_options=ocp.AsyncOptions(
                create_directories_asynchronously=False
            ),
        )

    def take(self, variables: dict[str, Any]) -> Any:
        arrays = {key: variable.value for key, variable in variables.items()}
        digests = _digests(arrays)
        for key, (finite, _) in digests.items():
            if not finite:
                raise NotFiniteError(key)
        info = {
            key: [str(array.dtype), list(array.shape), digests[key][1]]
            for key, array in arrays.items()
        }
        return arrays, info

    def write(self, folder: Any, step: int, taken: Any) -> Any:
        arrays, info = taken
        path = folder / f"{step:010d}"
        if distribution.process()[0] == 0 and atomic.exists(path):
            remove(path)
        text = json.dumps({"step": step, "arrays": info})
        with _os_errors():
            self._writer.save(
                path,
                args=self._pytree(arrays),
                custom_metadata={"info": text, "sha256": _sha256(text)},
            )
        return path

    def wait(self) -> None:
        with _os_errors():
            self._writer.wait_until_finished()


@contextlib.contextmanager
def _os_errors() -> Iterator[None]:
    """Raises whatever TensorStore does as an `OSError`."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"The checkpoint cannot be written: {error}") from error


def _read_orbax(path: Any, like: dict[str, Any]) -> dict[str, Any]:
    try:
        ocp = _orbax()
    except ImportError as error:
        raise ImportError(
            f"{path} was written by Orbax: pip install orbax-checkpoint"
        ) from error
    if not path.is_dir():
        raise DamagedError("not a folder")
    try:
        if not atomic.is_remote(path):
            for file in path.rglob("*"):  # Opening a FIFO would wait forever.
                if not (file.is_file() or file.is_dir()):
                    raise DamagedError(f"{file.name} is not a regular file")
        handler = ocp.PyTreeCheckpointHandler()
        custom = ocp.Checkpointer(handler).metadata(path).custom_metadata
        if custom["sha256"] != _sha256(custom["info"]):
            raise DamagedError("its checksum does not match its description")
        info = json.loads(custom["info"])
        how = {
            key: _restore_args(ocp, like.get(key), shape)
            for key, (_, shape, _) in info["arrays"].items()
        }
        # Not by a Checkpointer: hosts would wait for one that found damage.
        arrays = handler.restore(
            path, args=ocp.args.PyTreeRestore(restore_args=how)
        )
        for key, (finite, digest) in _digests(arrays).items():
            dtype, shape, wanted = info["arrays"][key]
            array = arrays[key]
            found = (str(array.dtype), list(array.shape), digest)
            if found != (dtype, shape, wanted) or not finite:
                raise DamagedError(f"the checksum of {key} does not match")
    except (DamagedError, PermissionError):
        raise
    # Damage anywhere raises nearly anything.
    except Exception as error:
        what = f"{type(error).__name__}: {str(error)[:500]}"
        raise DamagedError(f"unreadable, {what}") from error
    return {**arrays, "step": info["step"]}


def _restore_args(ocp: Any, variable: Any, shape: list[int]) -> Any:
    if (
        keras.backend.backend() == "jax"
        and variable is not None
        and list(variable.shape) == shape
    ):
        return ocp.ArrayRestoreArgs(sharding=variable.value.sharding)
    return ocp.RestoreArgs(restore_type=np.ndarray)


def _digests(arrays: dict[str, Any]) -> dict[str, tuple[bool, int]]:
    """For each array, whether it is finite, and a checksum.

    The sum of its elements' bits, each times an odd number of its own, modulo
    2**32: every device sums its part, and any flipped bit changes it.
    """
    found = {}
    for key in sorted(arrays):  # In one order on all hosts.
        if isinstance(arrays[key], np.ndarray):
            found[key] = _digest_numpy(arrays[key])
            continue
        found[key] = _in_jax()(arrays[key])
        # Devices of a CPU wait for each other forever where several such
        # programs are on their way.
        if len(arrays[key].sharding.device_set) > 1:
            int(found[key][1])
    return {k: (bool(finite), int(bits)) for k, (finite, bits) in found.items()}


def _digest_numpy(array: np.ndarray) -> tuple[Any, Any]:
    array = np.ascontiguousarray(array).reshape(-1)
    bits = array.view(f"uint{8 * min(array.itemsize, 4)}").astype("uint32")
    weights = np.arange(len(bits), dtype="uint32") * np.uint32(2) + np.uint32(1)
    finite = array.dtype.kind in "biu" or np.isfinite(array).all()
    return finite, np.sum(bits * weights, dtype="uint32")


@functools.cache
def _in_jax() -> Any:
    """`_digest_numpy` for arrays of JAX, also split over hosts."""
    import jax
    import jax.numpy as jnp

    @jax.jit
    def digest(array: Any) -> tuple[Any, Any]:
        if array.dtype == bool:
            array = array.astype("uint8")
        finite = jnp.isfinite(array).all()
        size = min(array.dtype.itemsize, 4)
        bits = jax.lax.bitcast_convert_type(array, f"uint{8 * size}")
        weights, stride = jnp.uint32(1), 2
        for axis in reversed(range(bits.ndim)):
            place = jax.lax.broadcasted_iota("uint32", bits.shape, axis)
            weights = weights + place * jnp.uint32(stride % 2**32)
            stride *= bits.shape[axis]
        return finite, jnp.sum(bits.astype("uint32") * weights, dtype="uint32")

    return digest


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
