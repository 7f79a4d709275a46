"""The base class of the package's layers."""

from __future__ import annotations

import inspect
from typing import Any

import keras


class Layer(keras.layers.Layer):
    """A layer whose attributes hold its constructor's arguments.

    `get_config` finds them there by name.
    """

    def get_config(self) -> dict[str, Any]:
        names = inspect.getfullargspec(type(self).__init__).args[1:]
        own = {name: getattr(self, name) for name in names}
        return {**own, **super().get_config()}
