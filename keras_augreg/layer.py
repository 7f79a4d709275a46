"""The base class of the package's layers; the state that a config lacks."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.initialization import random_weights


def sets_trainable(layer: Any, name: str, value: Any) -> bool:
    """Sets the attribute of this name if it is the flag `trainable`.

    TensorFlow skips the flag's setter if it has the value already. The
    weights, which `thaw` looks at, must change nevertheless.
    """
    if name != "trainable":
        return False
    keras.layers.Layer.trainable.fset(layer, value)
    return True


class Freezable(keras.layers.Layer):
    """A layer that notices when it is frozen again."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not sets_trainable(self, name, value):
            super().__setattr__(name, value)


class Owner(str):
    """The name of the model that a layer belongs to, with a link to it.

    `keras.models.clone_model` passes it on in a layer's config, so that a
    clone finds its original. In a saved file it is a name.
    """

    model: Callable[[], Any]  # returns `None` if it is gone

    def __new__(cls, model: Any) -> Owner:
        owner = super().__new__(cls, model.name)
        owner.model = weakref.ref(model)
        return owner

    def __reduce__(self) -> Any:
        return str, (str(self),)


class Layer(Freezable):
    """A layer whose attributes hold its constructor's arguments.

    `get_config` finds them there by name, and adds the state of its parts,
    which `restore_parts` restores at the end of `build`.
    """

    _parts: Any = None  # state of parts that are not built yet
    owner: Owner | None = None

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

    @property
    def dtype_policy(self) -> Any:
        return super().dtype_policy

    @dtype_policy.setter
    def dtype_policy(self, policy: Any) -> None:
        # Parts follow, or they would multiply arrays of different dtypes.
        keras.layers.Layer.dtype_policy.fset(self, policy)
        for part in getattr(self, "_layers", ()):
            part.dtype_policy = policy

    def own_config(self) -> dict[str, Any]:
        """The config without the state of parts."""
        names = inspect.getfullargspec(type(self).__init__).args[1:]
        own = {name: getattr(self, name) for name in names}
        return {**own, **super().get_config()}

    def get_config(self) -> dict[str, Any]:
        state = layer_state(self)
        parts = {"layer_state": state} if state else {}
        owner = {"owner": self.owner} if self.owner else {}
        return {**self.own_config(), **parts, **owner}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        config = dict(config)
        state, owner = config.pop("layer_state", None), config.pop("owner", "")
        layer = cls(**config)
        layer._parts = state
        if isinstance(owner, Owner):
            layer.owner = owner
        return layer

    def restore_parts(self) -> None:
        """Brings the parts into the state that the config had."""
        note_configs(self)
        if self._parts:
            restore_layer_state(self, self._parts)


def named_layers(parent: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All layers inside a layer or model, by their path in it."""
    for layer in parent._layers:
        yield path + layer.name, layer
        yield from named_layers(layer, f"{path}{layer.name}/")


def _weights(parent: Any) -> Iterator[tuple[str, Any]]:
    """The weights to train of a layer or model and all layers inside."""
    for path, layer in [("", parent), *named_layers(parent)]:
        for weight in layer._trainable_variables:
            yield f"{path}/{weight.name}", weight


# Of configs: what is kept in another way, or names a layer.
_NOT_COMPARED = {
    "layer_state", "lora_alpha", "lora_rank", "name", "quantization_config",
    "trainable",
}  # fmt: skip


def _configs(parent: Any) -> dict[str, dict[str, Any]]:
    """Configs of all layers inside that can be made from one, by path."""
    found = {}
    for path, layer in named_layers(parent):
        if hasattr(layer, "kernel_name"):  # a projection: made by its owner
            continue
        config = getattr(layer, "own_config", layer.get_config)()
        left_out = _NOT_COMPARED
        if getattr(layer, "quantization_mode", None):
            left_out = left_out | {"dtype"}
        found[path] = {
            k: _plain(v) for k, v in config.items() if k not in left_out
        }
    return found


def _plain(config: Any) -> Any:
    """Without the numbers that Keras gives objects while it loads a model."""
    if isinstance(config, dict):
        return {
            k: _plain(v) for k, v in config.items() if k != "shared_object_id"
        }
    return config


def note_configs(parent: Any) -> None:
    """Notes the configs of fresh layers, to find what users change."""
    configs = _configs(parent)
    parent._fresh = lambda: configs  # Keras would track a dict.


def _changes(parent: Any) -> dict[str, dict[str, Any]]:
    """What differs from the configs of fresh layers, by path."""
    fresh: dict[str, Any] = getattr(parent, "_fresh", dict)()
    changes = {}
    for path, config in _configs(parent).items():
        before = fresh.get(path, config)
        changed = {k: v for k, v in config.items() if v != before.get(k)}
        if changed:
            changes[path] = changed
    return changes


def _restore_changes(layer: Any, changed: dict[str, Any]) -> None:
    """Gives a layer the changed attributes, as a layer made with them has."""
    config = getattr(layer, "own_config", layer.get_config)()
    wanted = type(layer).from_config({**config, **changed})
    for key in changed:
        key = "dtype_policy" if key == "dtype" else key
        value = getattr(wanted, key)
        setattr(layer, key, value)
        # `kernel_regularizer` acts through the weight `kernel`.
        weight, _, kind = key.rpartition("_")
        if kind in ("regularizer", "constraint"):
            setattr(getattr(layer, weight), kind, value)


def layer_state(model: Any) -> dict[str, Any]:
    """What users change in layers after a model is built, as JSON values.

    Of all layers inside a layer or model.
    """
    layers = dict(named_layers(model))
    by_compile = getattr(model, "frozen_by_compile", ())
    serialize = keras.saving.serialize_keras_object
    state: dict[str, Any] = {
        "configs": _changes(model),
        "frozen": [n for n, layer in layers.items() if not layer.trainable],
        "frozen_by_compile": list(by_compile),
        # Only some of a layer's.
        "frozen_weights": [
            path
            for path, weight in _weights(model)
            for layer in [path.rpartition("/")[0]]
            if weight.trainable is False
            and (not layer or layer in by_compile or layers[layer].trainable)
        ],
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
    for name, changed in state.get("configs", {}).items():
        _restore_changes(layers[name], changed)
    for name, (mode, config) in state.get("quantized", {}).items():
        config = keras.saving.deserialize_keras_object(config)
        layers[name].quantize(mode, config=config)
    for name, (rank, alpha) in state.get("lora", {}).items():
        layers[name].enable_lora(rank, lora_alpha=alpha)
    set_frozen(model, state.get("frozen", ()))
    for path, weight in _weights(model):
        if path in state.get("frozen_weights", ()):
            weight.trainable = False
        elif path.rpartition("/")[0] in state.get("frozen_by_compile", ()):
            _freeze_by_compile(weight)
    if "frozen_by_compile" in state:
        model.frozen_by_compile = tuple(state["frozen_by_compile"])


def adopt_layer_state(clone: Any, original: Any) -> None:
    """Brings what the layers' configs did not: who froze which weights."""
    clone._fresh = original._fresh
    frozen = [n for n, layer in named_layers(clone) if not layer.trainable]
    if not original.trainable:
        clone.trainable = False
    weights = layer_state(original).get("frozen_weights", ())
    state = {
        "frozen": frozen,
        "frozen_by_compile": [
            name for name in original.frozen_by_compile if name in frozen
        ],
        "frozen_weights": weights,
    }
    restore_layer_state(clone, state)


def set_frozen(model: Any, names: Collection[str]) -> None:
    """Freezes the layers of these paths, and no others, inside a model."""
    # Parents first: a layer's flag is set for its parts too. Only what
    # changes: the flag is set for weights that the layer itself has frozen.
    for name, layer in named_layers(model):
        if layer.trainable == (name in names):
            layer.trainable = name not in names


def _freeze_by_compile(weight: Any) -> None:
    """Freezes a weight in a way that tells it from what the user froze."""
    weight.trainable = False
    # It equals False, which Keras puts in its place when the user sets
    # `trainable` of the weight or a layer around it.
    weight._trainable = 0


def thaw(model: Any) -> None:
    """Unfreezes what `freeze` froze, but not what the user froze since."""
    thawed = []
    frozen = []
    for path, weight in _weights(model):
        if weight.trainable is False:
            frozen.append(weight)
        elif not weight.trainable:
            thawed.append((path.rpartition("/")[0], weight))
    names = {name for name, _ in thawed}
    stay = set()
    for name, layer in named_layers(model):
        own = bool(layer._trainable_variables)
        kept = name not in names if own else name.rpartition("/")[0] in stay
        if not layer.trainable and (
            name not in model.frozen_by_compile or kept
        ):
            stay.add(name)
    set_frozen(model, stay)
    for weight in frozen:
        weight.trainable = False
    for _, weight in thawed:
        weight.trainable = True
    model.frozen_by_compile = ()


def freeze(model: Any, what: bool | str | int | Sequence[str]) -> None:
    """Freezes what `compile_finetuning(freeze=what)` describes.

    Unfreezes what an earlier call froze. Layers and weights that the user
    froze stay frozen, the parts of a block too.
    """
    chosen = _chosen(model, what)
    thaw(model)
    layers = dict(named_layers(model))
    frozen = {n for n, layer in layers.items() if not layer.trainable}
    more = [
        name
        for name in layers
        if name not in frozen and name.split("/")[0] in chosen
    ]
    weights = {
        path: weight for path, weight in _weights(model) if weight.trainable
    }
    kept = [path for path in weights if path.rpartition("/")[0] not in more]
    if not model.trainable or not kept:
        raise ValueError(
            "There is nothing to train: every layer is frozen. Set "
            "`model.trainable = True`, or leave a layer to `freeze`. Received: "
            f"freeze={what!r}"
        )
    set_frozen(model, frozen.union(more))
    for path in weights.keys() - kept:
        _freeze_by_compile(weights[path])
    model.frozen_by_compile = tuple(more)


def _chosen(model: Any, what: Any) -> list[str]:
    """The names of the model's layers that `freeze=what` stands for."""
    names = [layer.name for layer in model.layers]
    depth = model.sizes.depth
    if isinstance(what, (bool, np.bool_)):
        what = "backbone" if what else []
    if isinstance(what, str) and what == "backbone":
        return [name for name in names if name != "head"]
    if isinstance(what, (int, np.integer)) and 1 <= what <= depth:
        return names[: names.index(f"encoderblock_{what - 1}") + 1]
    if isinstance(what, (list, tuple, set)) and set(what) <= set(names):
        return list(what)
    raise ValueError(
        "`freeze` must be False, 'backbone' (or True), a number of blocks from "
        f"1 to {depth}, or a list of names of layers among {', '.join(names)}. "
        f"Received: freeze={what!r}"
    )
