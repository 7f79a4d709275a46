"""Random weights, unless a checkpoint is about to replace them."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

_random_weights = contextvars.ContextVar("random_weights", default=True)


@contextlib.contextmanager
def zero_weights() -> Iterator[None]:
    """Within it, new layers start at zero: a checkpoint is about to come.

    Drawing the random weights of a model takes longer than reading a
    checkpoint, above all on JAX, which compiles the draw for every shape.
    """
    token = _random_weights.set(False)
    try:
        yield
    finally:
        _random_weights.reset(token)


def random_weights(initializer: Any) -> Any:
    """The initializer of a random weight, or zeros within `zero_weights`."""
    return initializer if _random_weights.get() else "zeros"
