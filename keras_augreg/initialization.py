"""Random initial weights, or zeros where a checkpoint will replace them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_random_weights = contextvars.ContextVar("random_weights", default=True)


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """Makes layers built inside it start at zero, for a checkpoint to fill.

    Drawing random weights takes longer than reading a checkpoint, most of all
    on JAX, which compiles the draw for every shape.
    """
    token = _random_weights.set(False)
    try:
        yield
    finally:
        _random_weights.reset(token)


def random_weights(initializer: Any) -> Any:
    """Returns the initializer, or "zeros" inside `zero_weights`."""
    return initializer if _random_weights.get() else "zeros"
