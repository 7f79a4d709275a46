"""The base class of the package's layers; the state that a config lacks."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras

from keras_augreg.initialization import random_weights


class Layer(keras.layers.Layer):
    """A layer whose attributes hold its constructor's arguments.

    `get_config` finds them there by name, and adds the state of its parts,
    which `restore_parts` restores at the end of `build`.
    """

    _parts: Any = None  # state of parts that are not built yet

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
        state = layer_state(self)
        parts = {"layer_state": state} if state else {}
        return {**own, **super().get_config(), **parts}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        state = config.get("layer_state")
        layer = cls(**{k: v for k, v in config.items() if k != "layer_state"})
        layer._parts = state
        return layer

    def restore_parts(self) -> None:
        """Brings the parts into the state that the config had."""
        if self._parts:
            restore_layer_state(self, self._parts)


def named_layers(parent: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All layers inside a layer or model, by their path in it."""
    for layer in parent._layers:
        yield path + layer.name, layer
        yield from named_layers(layer, f"{path}{layer.name}/")


def layer_state(model: Any) -> dict[str, Any]:
    """What users change in layers after a model is built, as JSON values.

    Of all layers inside a layer or model.
    """
    layers = dict(named_layers(model))
    serialize = keras.saving.serialize_keras_object
    state: dict[str, Any] = {
        "frozen": [n for n, layer in layers.items() if not layer.trainable],
        "frozen_by_compile": list(getattr(model, "frozen_by_compile", ())),
        "quantized": {
            name: [layer.quantization_mode, serialize(config)]
            for name, layer in layers.items()
            if getattr(layer, "quantization_mode", None)
            for config in [getattr(layer, "quantization_config", None)]
        },
        "lora": {
            name: [layer.lora_rank, layer.lora_alpha]
            for name, layer in layers.items()
            if getattr(layer, "lora_rank", None)
        },
    }
    return {key: value for key, value in state.items() if value}


def restore_layer_state(model: Any, state: dict[str, Any]) -> None:
    """Brings the layers of a fresh model into the state of `layer_state`."""
    layers = dict(named_layers(model))
    for name, (mode, config) in state.get("quantized", {}).items():
        config = keras.saving.deserialize_keras_object(config)
        layers[name].quantize(mode, config=config)
    for name, (rank, alpha) in state.get("lora", {}).items():
        layers[name].enable_lora(rank, lora_alpha=alpha)
    set_frozen(model, state.get("frozen", ()))
    if "frozen_by_compile" in state:
        model.frozen_by_compile = tuple(state["frozen_by_compile"])


def set_frozen(model: Any, names: Collection[str]) -> None:
    """Freezes the layers of these paths, and no others, inside a model."""
    # Parents first: a layer's flag is set for its parts too. Only what
    # changes: the flag is set for weights that the layer itself has frozen.
    for name, layer in named_layers(model):
        if layer.trainable == (name in names):
            layer.trainable = name not in names


def freeze(model: Any, what: bool | str | int | Sequence[str]) -> None:
    """Freezes what `compile_finetuning(freeze=what)` describes.

    Unfreezes what an earlier call froze. Layers that the user froze stay
    frozen, the parts of a block too.
    """
    chosen = _chosen(model, what)
    layers = dict(named_layers(model))
    frozen = {n for n, layer in layers.items() if not layer.trainable}
    frozen -= set(model.frozen_by_compile)
    model.frozen_by_compile = tuple(
        name
        for name in layers
        if name not in frozen and name.split("/")[0] in chosen
    )
    set_frozen(model, frozen.union(model.frozen_by_compile))
    if not model.trainable_variables:
        raise ValueError(
            "There is nothing to train: every layer is frozen. Set "
            "`model.trainable = True`, or leave a layer to `freeze`. Received: "
            f"freeze={what!r}"
        )


def _chosen(model: Any, what: Any) -> list[str]:
    """The names of the model's layers that `freeze=what` stands for."""
    names = [layer.name for layer in model.layers]
    depth = model.sizes.depth
    if what is False:
        return []
    if what is True or what == "backbone":
        return [name for name in names if name != "head"]
    if isinstance(what, int) and 1 <= what <= depth:
        return names[: names.index(f"encoderblock_{what - 1}") + 1]
    if isinstance(what, (list, tuple)) and set(what) <= set(names):
        return list(what)
    raise ValueError(
        "`freeze` must be False, 'backbone' (or True), a number of blocks from "
        f"1 to {depth}, or a list of names of layers among {', '.join(names)}. "
        f"Received: freeze={what!r}"
    )
