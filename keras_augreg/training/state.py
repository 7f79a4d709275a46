"""Everything of a model that training changes, by names that are stable."""

from __future__ import annotations

from typing import Any


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


def assign(model: Any, arrays: dict[str, Any], file: Any) -> None:
    """Puts what was read from a checkpoint into the model's variables.

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
