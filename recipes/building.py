"""Models of a named architecture whose patches may be smaller."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import app

import keras_augreg
from keras_augreg.checkpoints.load import load, open_weights
from keras_augreg.initialization import zero_weights
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
    name: str,
    image_size: int,
    weights: str,
    class_names: Sequence[str] | None = None,
    head: str = "keep",
) -> Any:
    """Builds a model for `weights`, which `new` may have built.

    `head` is "keep" for the file's classifier, "new" for one of zeros, or
    "auto": kept if its classes are known to be `class_names`, otherwise new.
    Prints which it was.
    """
    variant = find(name)
    file = open_weights(weights, variant, image_size)
    sizes = variant.sizes
    same = dataclasses.replace(file.sizes, patch_size=sizes.patch_size)
    # Other patches are what `new` can make; `load` refuses other architectures.
    if same == sizes and not identify(file.sizes):
        sizes = file.sizes
    if head == "auto":
        head = "keep" if file.has_classes(class_names) else "new"
    class_names = class_names or file.class_names
    classes = len(class_names) if class_names else file.classes
    if not classes:
        raise app.UsageError(f"{weights} has no classifier. Fine-tune it.")
    with zero_weights():
        model = _build(
            sizes,
            variant,
            image_size,
            classes=classes,
            class_token=file.class_token,
        )
    load(model, file, head)
    if class_names:  # Not before: a head of other names is kept if asked for.
        model.class_names = class_names
    there = shown(file.class_names, file.classes)
    if head == "keep":
        print(f"Keeps the classifier of {weights}: {there}.")
    else:
        print(
            f"A new classifier for {shown(class_names)}; that of {weights} "
            f"is for {there}. --head=keep keeps it."
        )
    return model


def shown(names: Sequence[str] | None, count: int | None = None) -> str:
    """Says how many classes there are, and the first names."""
    if not names:
        return f"{count or 'no'} classes without names"
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names)} classes ({', '.join(names[:3])}{more})"


def _build(
    sizes: Any, variant: Variant, image_size: int, **options: Any
) -> Any:
    return keras_augreg.VisionTransformer(
        **dataclasses.asdict(sizes),
        input_shape=(image_size, image_size, 3),
        name=variant.name.lower(),
        **options,
    )
