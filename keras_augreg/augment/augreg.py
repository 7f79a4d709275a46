"""A recipe's augmentation as one layer, from uint8 images to soft labels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import keras

from keras_augreg.augment import arrays, ops
from keras_augreg.augment.base import AugmentationLayer
from keras_augreg.augment.mixup import draw_share, mix
from keras_augreg.augment.randaugment import randaugment
from keras_augreg.recipe import AugReg


@keras.saving.register_keras_serializable(package="keras_augreg")
class AugRegAugment(AugmentationLayer):
    """RandAugment, scaling to [-1, 1] and Mixup, as a recipe says.

    Works eagerly, inside a compiled training step on JAX, TensorFlow and
    PyTorch, and inside `tf.data.Dataset.map` on any backend, with the same
    draws for the same seed and step. RandAugment and Mixup draw as the layers
    of that name do with this seed.

    Labels may change from integers to probabilities inside the step: the
    losses and metrics of `keras_augreg.training.losses` take both, Keras's
    own do not.

    Args:
        recipe: A `keras_augreg.AugReg`, of which `augment` counts here.
        num_classes: Length of the one-hot labels.
        seed: Integer in [0, 2^31). The same seed gives the same run again.
            `None` takes one from Keras's global seed.
        **kwargs: Of `keras.layers.Layer`.

    Call arguments:
        images: uint8 (batch, height, width, 3).
        labels: Integer (batch,) or (batch, 1), or one-hot or soft (batch,
            num_classes) of any dtype.
        step: As in `RandAugment`: pass the optimizer's `iterations`, and a
            resumed run draws what it would have drawn.
        training: With `False`, images are scaled and labels one-hot encoded,
            and that is all.

    Returns:
        float32 images in [-1, 1], and float32 labels (batch, num_classes).

    Raises:
        TypeError: `recipe` is no `AugReg`, or the images are not uint8.
        ValueError: `num_classes`, `seed` or a shape is not as above.

    Example:
    >>> recipe = keras_augreg.AugReg("medium1")
    >>> layer = keras_augreg.augment.AugRegAugment(recipe, 10, seed=0)
    >>> images, labels = np.zeros((4, 32, 32, 3), "uint8"), np.arange(4)
    >>> images, labels = layer(images, labels, step=0)
    >>> labels.shape
    (4, 10)
    """

    def __init__(
        self,
        recipe: AugReg,
        num_classes: int,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if not isinstance(recipe, AugReg):
            raise TypeError(
                "`recipe` must be a `keras_augreg.AugReg`, such as "
                f"`AugReg('medium1')`. Received: recipe={recipe!r}."
            )
        if num_classes < 1:
            raise ValueError(
                "`num_classes` must be at least 1. Received: "
                f"num_classes={num_classes}."
            )
        self.recipe = recipe
        self.num_classes = num_classes

    def call(
        self,
        images: Any,
        labels: Any,
        step: Any = None,
        training: bool = True,
    ) -> tuple[Any, Any]:
        ops.check_images(images)
        dtype = keras.backend.standardize_dtype(images.dtype)
        if dtype != "uint8":
            raise TypeError(
                "`images` must be uint8, not yet scaled. Received: "
                f"dtype={dtype}."
            )
        labels = self._one_hot(labels)
        host, library = arrays.place(images)
        recipe = self.recipe.augment if training else "none"
        # A recipe without a draw does not count the step either.
        drawn = recipe != "none"
        key = self._key(images, step) if drawn else ()
        return _compiled(library, host, recipe)(images, labels, *key)

    def _one_hot(self, labels: Any) -> Any:
        xp = arrays.namespace(labels)
        shape = tuple(labels.shape)
        if len(shape) == 2 and shape[1] == self.num_classes:
            return xp.cast(labels, "float32")
        if len(shape) == 1 or shape[1:] == (1,):
            labels = xp.cast(xp.reshape(labels, (-1,)), "int32")
            return xp.one_hot(labels, self.num_classes, dtype="float32")
        raise ValueError(
            "`labels` must be integers of shape (batch,), or of shape (batch, "
            f"{self.num_classes}), the number of classes. Received: "
            f"shape={shape}."
        )

    def compute_output_spec(
        self, images: Any, labels: Any, *_: Any, **__: Any
    ) -> Any:
        return (
            keras.KerasTensor(images.shape, dtype="float32"),
            keras.KerasTensor(
                (labels.shape[0], self.num_classes), dtype="float32"
            ),
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "recipe": self.recipe.to_json(),
            "num_classes": self.num_classes,
        }

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
            images = randaugment(images, key, *recipe.randaugment, host)
        if not recipe.mixup:
            return _scale(xp, images), labels
        share = draw_share(xp, key, recipe.mixup)
        # Rolled as uint8, a quarter of what rolled floats take.
        partners = xp.roll(images, 1, axis=0)

        def scale_and_mix(images: Any, partners: Any) -> Any:
            return mix(_scale(xp, images), _scale(xp, partners), share)

        images = arrays.fused(scale_and_mix, images, partners, library)
        return images, mix(labels, xp.roll(labels, 1, axis=0), share)

    return arrays.compiled(augment, library)


def _scale(xp: Any, images: Any) -> Any:
    # x / 127.5 - 1 in the order that rounds once, so alike everywhere.
    return (xp.cast(images, "float32") - 127.5) * (1 / 127.5)
