"""Models of a named architecture whose patches may be smaller."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import keras_augreg
from keras_augreg import checkpoints
from keras_augreg.checkpoints.convert import inspect
from keras_augreg.variants import Variant, find, identify


def new(name: str, image_size: int, patch_size: int, **options: Any) -> Any:
    """Builds a model with random weights; a `patch_size` of 0 is the model's.

    Prints another one, and how few patches a small image has.
    """
    variant = find(name)
    patch_size = patch_size or variant.sizes.patch_size
    if patch_size != variant.sizes.patch_size:
        print(
            f"{variant.name} with patches of {patch_size} instead of "
            f"{variant.sizes.patch_size} pixels, for images of {image_size}. "
            f"--patch_size={variant.sizes.patch_size} is the original."
        )
    elif image_size <= 4 * patch_size:
        print(
            f"{variant.name} sees {(image_size // patch_size) ** 2} patches in "
            f"images of {image_size} pixels. --patch_size makes them smaller; "
            "docs/data.md compares some."
        )
    sizes = dataclasses.replace(variant.sizes, patch_size=patch_size)
    return _build(sizes, variant, image_size, **options)


def pretrained(
    name: str, image_size: int, weights: str, classes: int | None = None
) -> Any:
    """Builds a model for `weights`, which `new` may have built."""
    variant = find(name)
    if pathlib.Path(weights).is_file():
        found = inspect(weights)
        patch_size = variant.sizes.patch_size
        same = dataclasses.replace(found.sizes, patch_size=patch_size)
        # Files of another named architecture are errors.
        if same == variant.sizes and not identify(found.sizes):
            kept = classes in (None, found.classes)
            classes = classes or found.classes
            model = _build(found.sizes, variant, image_size, classes=classes)
            checkpoints.load(model, found, "keep" if kept else "new")
            model.class_names = found.class_names if kept else None
            return model
    return getattr(keras_augreg, variant.name)(
        weights=weights,
        input_shape=(image_size, image_size, 3),
        classes=classes,
    )


def _build(
    sizes: Any, variant: Variant, image_size: int, **options: Any
) -> Any:
    return keras_augreg.VisionTransformer(
        **dataclasses.asdict(sizes),
        input_shape=(image_size, image_size, 3),
        name=variant.name.lower(),
        **options,
    )
