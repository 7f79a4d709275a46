"""The base class of the package's layers."""

from __future__ import annotations

import inspect
from typing import Any

import keras

from keras_augreg.initialization import random_weights


class Layer(keras.layers.Layer):
    """A layer whose attributes hold its constructor's arguments.

    `get_config` finds them there by name.
    """

    def weight(
        self,
        name: str,
        shape: tuple[int, ...],
        initializer: Any = "zeros",
        **kwargs: Any,
    ) -> Any:
        """Adds a weight; inside `zero_weights`, it starts at zero."""
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=random_weights(initializer),
            **kwargs,
        )

    def get_config(self) -> dict[str, Any]:
        names = inspect.getfullargspec(type(self).__init__).args[1:]
        own = {name: getattr(self, name) for name in names}
        return {**own, **super().get_config()}
