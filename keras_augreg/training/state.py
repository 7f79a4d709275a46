"""The state of a run as one file that is whole, or recognised as damaged.

A `.npz` file with every variable that training changes, the step, and a
checksum of it all. Damage of any kind is one error, `DamagedError`.
"""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import numpy as np

from keras_augreg import distribution


class DamagedError(ValueError):
    """The file is not a whole checkpoint of a run."""


def variables(model: Any) -> dict[str, Any]:
    """Everything that training changes, under unique and stable names.

    The paths are not stable: Keras numbers the seed generators of a process.
    """
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{i}/{variable.name}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def metrics(model: Any) -> dict[str, Any]:
    """The variables of the metrics, in the same form."""
    return {
        f"metrics/{i}/{variable.name}": variable
        for i, variable in enumerate(model.metrics_variables)
    }


def collect(model: Any) -> dict[str, np.ndarray]:
    """The arrays of variables and metrics; every process takes part."""
    arrays = {}
    for key, variable in {**variables(model), **metrics(model)}.items():
        array = distribution.to_numpy(variable)
        # NumPy cannot load bfloat16.
        if array.dtype.kind not in "biuf":
            array = array.astype("float32")
        arrays[key] = array
    return arrays


def write(
    file: Any, arrays: dict[str, Any], step: int, value: float, goal: str
) -> None:
    """Writes what `collect` returned, and the monitored metric or NaN.

    `goal` says what makes such a value the best, as "max val_accuracy".
    """
    content = {
        **arrays,
        "step": np.int64(step),
        "value": np.float64(value),
        "goal": np.frombuffer(goal.encode(), "uint8"),
    }
    np.savez(file, **content, checksum=_checksum(content))


def read(file: pathlib.Path) -> dict[str, Any]:
    """Reads what `write` wrote: arrays, and "step", "value" and "goal".

    Raises:
        DamagedError: It is anything else; the message says what.
        PermissionError: This process may not read it.
    """
    if not file.is_file():  # Opening a FIFO would wait forever.
        raise DamagedError("not a regular file")
    try:
        with np.load(file) as archive:
            arrays: dict[str, Any] = {k: archive[k] for k in archive.files}
    except PermissionError:
        raise
    # Damage anywhere in a zip file raises nearly anything.
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise DamagedError(f"unreadable, {what}") from error
    checksum = arrays.pop("checksum", None)
    if checksum is None or not {"step", "value", "goal"} <= set(arrays):
        raise DamagedError("it lacks its checksum, step, value or goal")
    if checksum.tobytes() != _checksum(arrays).tobytes():
        raise DamagedError("its checksum does not match its content")
    step = arrays["step"]
    if step.shape or step.dtype.kind != "i" or step < 0:
        raise DamagedError(f"its step is {step!r}")
    if arrays["value"].shape or arrays["value"].dtype.kind != "f":
        raise DamagedError(f"its value is {arrays['value']!r}")
    if file.stem.isdecimal() and int(file.stem) != step:
        raise DamagedError(f"its name is not its step, {step}")
    return {
        **arrays,
        "step": int(step),
        "value": float(arrays["value"]),
        "goal": arrays["goal"].tobytes().decode(errors="replace"),
    }


def assign(model: Any, arrays: dict[str, Any], file: pathlib.Path) -> None:
    """Puts what was `read` from a file into the model's variables.

    Raises:
        ValueError: They belong to another model, which stays as it was.
    """
    wanted = variables(model)
    for key, variable in wanted.items():
        if key not in arrays or arrays[key].shape != tuple(variable.shape):
            found = arrays[key].shape if key in arrays else "no such array"
            raise ValueError(
                f"The checkpoint {file} is of another model: for {key} of "
                f"shape {tuple(variable.shape)} it has {found}. Build and "
                "compile the model as before, or use another directory."
            )
    for key, variable in wanted.items():
        variable.assign(arrays[key])


def assign_metrics(model: Any, arrays: dict[str, Any]) -> None:
    """Continues the means of an interval that was interrupted."""
    for key, variable in metrics(model).items():
        if key in arrays and arrays[key].shape == tuple(variable.shape):
            variable.assign(arrays[key])


def _checksum(arrays: dict[str, Any]) -> np.ndarray:
    """SHA-256 of names, dtypes, shapes and bytes: uint8 (32,)."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        head = f"{key}:{array.dtype.str}:{np.shape(arrays[key])}\n"
        digest.update(head.encode())
        digest.update(array.reshape(-1).view("uint8").data)
    return np.frombuffer(digest.digest(), "uint8")
