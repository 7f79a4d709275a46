"""A recipe's augmentation as one layer: images and labels in, the same out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_augreg.augment import arrays, ops
from keras_augreg.augment.base import AugmentationLayer
from keras_augreg.augment.mixup import draw_share, mix
from keras_augreg.augment.randaugment import Run, augment_numpy, randaugment
from keras_augreg.recipe import AugReg, check_recipe


@keras.saving.register_keras_serializable(package="keras_augreg")
class AugRegAugment(AugmentationLayer):
    """RandAugment, then Mixup, with a recipe's settings.

    Works wherever `RandAugment` does, with the draws of `RandAugment` and
    `MixUp` with the same seed.

    Images stay in [0, 255], the range that models built with
    `include_preprocessing=True` take. Integer labels become probabilities:
    the losses and metrics of `keras_augreg.training.losses` take both,
    Keras's own do not.

    Args:
        recipe: A `keras_augreg.AugReg`; only its `augment` matters here.
        num_classes: Length of the one-hot labels.
        seed: Integer in [0, 2^31); equal seeds draw equally. `None` takes one
            from Keras's global seed.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        images: uint8 or float (batch, height, width, 3), values in [0, 255].
            RandAugment rounds floats to integers.
        labels: Integers (batch,) or (batch, 1); or one-hot or soft labels
            (batch, num_classes) of any dtype.
        step: As in `RandAugment`, for example the optimizer's `iterations`.
        training: With `False`, images are only cast to float32 and labels
            only one-hot encoded.

    Returns:
        float32 images in [0, 255], and float32 labels (batch, num_classes).

    Raises:
        TypeError: `recipe` is not an `AugReg`, or the images are neither
            uint8 nor float.
        ValueError: `num_classes`, `seed`, a shape or the images' values are
            not as above.

    Example:
    >>> recipe = keras_augreg.AugReg("medium1")
    >>> layer = keras_augreg.augment.AugRegAugment(recipe, 10, seed=0)
    >>> images, labels = np.zeros((4, 32, 32, 3), "uint8"), np.arange(4)
    >>> images, labels = layer(images, labels, step=0)
    >>> labels.shape
    (4, 10)
    """

    check = staticmethod(ops.check_images)

    def __init__(
        self, recipe: AugReg, num_classes: int, seed: int | None = None,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(seed=seed, **kwargs)
        check_recipe(recipe)
        if num_classes < 1:
            raise ValueError(
                f"`num_classes` must be at least 1. Received: {num_classes}."
            )
        self.recipe = recipe
        self.num_classes = num_classes

    def call(
        self, images: Any, labels: Any, step: Any = None, training: bool = True
    ) -> tuple[Any, Any]:
        labels = arrays.soft_labels(labels, self.num_classes)
        host, library = arrays.place(images)
        recipe = self.recipe.augment if training else "none"
        # A recipe that draws nothing does not count the step either.
        key = self._key(images, step) if recipe != "none" else ()
        return _compiled(library, host, recipe)(images, labels, *key)

    def on_host(
        self, images: np.ndarray, labels: np.ndarray, step: int, run: Run
    ) -> tuple[np.ndarray, np.ndarray]:
        """Augments NumPy's arrays with the draws of `call`, without a backend.

        Args:
            images: uint8 (batch, height, width, 3); they are overwritten.
            labels: As in `call`.
            step: As in `call`.
            run: Called as `run(function, batch)`, it calls `function` for
                every number below `batch`, on threads for example.

        Returns:
            What `call` returns, as NumPy's arrays.
        """
        xp = arrays.numpy_ops()
        labels = arrays.soft_labels(labels, self.num_classes, xp=xp)
        recipe = self.recipe
        key = keras.ops.convert_to_numpy(self.seed_generator.state)[0], step
        key = tuple(np.array(key, np.int64).astype(np.int32))
        if recipe.randaugment:
            augment_numpy(images, key, *recipe.randaugment, run)
        mixed = np.empty(images.shape, np.float32)
        if not recipe.mixup:
            mixed[:] = images
            return mixed, labels
        share = np.float32(draw_share(xp, key, recipe.mixup))

        def mix_one(i: int) -> None:
            np.multiply(images[i], share, out=mixed[i])
            mixed[i] += images[i - 1] * (1 - share)

        run(mix_one, len(images))
        return mixed, mix(labels, xp.roll(labels, 1, axis=0), share)

    def compute_output_spec(
        self, images: Any, labels: Any, *_: Any, **__: Any
    ) -> Any:
        shapes = images.shape, (labels.shape[0], self.num_classes)
        return tuple(keras.KerasTensor(s, dtype="float32") for s in shapes)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "recipe": self.recipe.to_json()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> AugRegAugment:
        recipe = AugReg.from_json(config["recipe"])
        return cls(**{**config, "recipe": recipe})


@functools.cache
def _compiled(library: str, host: bool, level: str) -> Callable:
    recipe = AugReg(level)

    def augment(images: Any, labels: Any, *key: Any) -> tuple[Any, Any]:
        xp = arrays.namespace(images)
        if recipe.randaugment:
            images = ops.to_uint8(xp, images)
            images = randaugment(images, key, *recipe.randaugment, host)
        if not recipe.mixup:
            return xp.cast(images, "float32"), labels
        share = draw_share(xp, key, recipe.mixup)
        # Rolled before the cast: uint8 takes a quarter of the memory.
        partners = xp.roll(images, 1, axis=0)

        def cast_and_mix(images: Any, partners: Any) -> Any:
            images = xp.cast(images, "float32")
            return mix(images, xp.cast(partners, "float32"), share)

        images = arrays.fused(cast_and_mix, images, partners, library)
        return images, mix(labels, xp.roll(labels, 1, axis=0), share)

    return arrays.compiled(augment, library)
