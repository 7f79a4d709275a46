"""KerasCV layers that come close to a recipe, for KerasCV pipelines."""

from __future__ import annotations

from typing import Any

from keras_augreg.recipe import AugReg


def keras_cv_layers(recipe: AugReg, seed: int | None = None) -> list[Any]:
    """KerasCV's layers with the settings closest to a recipe's.

    They follow the recipe's idea, but only this package's `RandAugment` and
    `MixUp` are the study's augmentation. The documentation's page on
    augmentation lists the differences.

    Args:
        recipe: A `keras_augreg.AugReg`.
        seed: Integer or `None`, passed to the layers.

    Returns:
        A list of layers to call in order, in `tf.data`, on a dictionary of
        float `"images"` (batch, height, width, 3) in [0, 255] and float
        one-hot `"labels"` (batch, classes): `RandAugment` and `MixUp`, if the
        recipe has them.

    Raises:
        ImportError: KerasCV is not installed.

    Example:
    >>> layers = keras_cv_layers(keras_augreg.AugReg("medium1"))
    >>> [type(layer).__name__ for layer in layers]
    ['RandAugment', 'MixUp']
    """
    try:
        import keras_cv
    except ImportError as error:
        raise ImportError(
            "`keras_cv_layers` needs KerasCV, which is not installed: pip "
            "install 'keras_augreg[keras-cv]'."
        ) from error
    layers = []
    if recipe.randaugment is not None:
        num_layers, magnitude = recipe.randaugment
        randaugment = keras_cv.layers.RandAugment(
            value_range=(0, 255),
            augmentations_per_image=num_layers,
            magnitude=magnitude / 20,
            magnitude_stddev=0.0,
            rate=1.0,
            seed=seed,
        )
        layers.append(randaugment)
    if recipe.mixup:
        layers.append(keras_cv.layers.MixUp(alpha=recipe.mixup, seed=seed))
    return layers
