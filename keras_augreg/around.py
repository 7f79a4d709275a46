"""What a plain Keras model around one of this package takes and returns."""

from __future__ import annotations

from typing import Any

import keras

from keras_augreg.preprocessing import only
from keras_augreg.resnet import ResNetRoot
from keras_augreg.vit import PatchEmbedding, PositionEmbedding

# Layers that move pixels, but do not scale their values.
_KEEP_VALUES = (
    keras.layers.CenterCrop, keras.layers.Identity, keras.layers.RandomCrop,
    keras.layers.RandomFlip, keras.layers.RandomRotation,
    keras.layers.RandomTranslation, keras.layers.RandomZoom,
    keras.layers.Resizing, keras.layers.ZeroPadding2D,
)  # fmt: skip


def ends(model: Any) -> list[Any]:
    """The model, the model in it that it ends in, ..., and the last layer."""
    found = [model]
    while getattr(found[-1], "outputs", None):
        found.append(found[-1].outputs[0]._keras_history.operation)
    return found


def class_names(model: Any) -> tuple[str, ...] | None:
    """Names of a model's outputs, its own or of one that it ends in."""
    found = (getattr(end, "class_names", None) for end in ends(model)[:-1])
    return next(filter(None, found), None)


def takes_scaled(model: Any) -> bool:
    """Whether a model takes floats in [-1, 1], with no layer that scales.

    So does a model around one with `include_preprocessing=False`.
    """
    if not getattr(model, "include_preprocessing", True):
        return True
    graph = getattr(model, "_functional", model)  # of a Sequential
    # Not the layers' nodes: they may be called in other models, too.
    depths = getattr(graph, "_nodes_by_depth", {})
    unscaled = {id(x) for x in getattr(graph, "inputs", None) or ()}
    for depth in sorted(depths, reverse=True):  # from the inputs
        for node in depths[depth]:
            layer = node.operation
            if not unscaled & {*map(id, node.input_tensors)}:
                continue
            if isinstance(layer, (PatchEmbedding, ResNetRoot)) or (
                isinstance(layer, keras.Model) and takes_scaled(layer)
            ):
                return True
            if isinstance(layer, _KEEP_VALUES):
                unscaled |= {*map(id, node.output_tensors)}
    return False


def image_shape(model: Any) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a model is made for.

    Of a model for images of any size, or one around it, those that its
    position embedding was trained for.
    """
    shape = tuple(only(model.input_shape)[1:])
    if None in shape:
        for layer in model._flatten_layers():
            if isinstance(layer, PositionEmbedding) and layer.stride:
                sides = [n * layer.stride for n in layer.patch_grid]
                own = zip(shape, (*sides, 3), strict=True)
                return tuple(n or m for n, m in own)
        raise ValueError(
            "The images' height and width must be known. Give the model "
            "some: keras.Sequential([keras.Input((height, width, 3)), model]). "
            f"Received: {model.name!r}, with input_shape={model.input_shape}"
        )
    return shape
