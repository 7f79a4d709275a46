"""The augmentation layers' base class: seed, step, and where they run."""

from __future__ import annotations

from typing import Any

import keras

from keras_augreg.augment import arrays
from keras_augreg.layer import Layer


class AugmentationLayer(Layer):
    """A layer whose draws depend only on its seed and a step."""

    def __init__(self, seed: int | None = None, **kwargs: Any) -> None:
        # A cast to half precision would round values above 256.
        super().__init__(**{"autocast": False, **kwargs})
        if seed is not None and not 0 <= seed < 2**31:
            raise ValueError(
                f"`seed` must be in [0, 2^31). Received: seed={seed}."
            )
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self._dataset_steps: Any = None
        self.built = True

    @staticmethod
    def check(images: Any) -> None:
        """Checks images before Keras converts them; by default, nothing."""

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        self.check(images)
        # In `tf.data`, on a backend other than TensorFlow, Keras would
        # mistake the tensors for its own.
        if arrays.in_dataset(images):
            return self.call(images, *args, **kwargs)
        return super().__call__(images, *args, **kwargs)

    def _key(self, images: Any, step: Any) -> tuple[Any, Any]:
        """This call's (seed, step), int32 scalars that key its draws."""
        if not arrays.in_dataset(images):
            state = self.seed_generator.state
            if step is None:
                state = self.seed_generator.next()
                step = state[1]
            cast = keras.ops.cast
            return cast(state[0], "int32"), cast(step, "int32")
        import tensorflow as tf

        with tf.init_scope():
            state = keras.ops.convert_to_numpy(self.seed_generator.state)
            if step is None and self._dataset_steps is None:
                # Not the SeedGenerator's state: its backend may not run in
                # `tf.data`, and reading, then writing it is not atomic in a
                # parallel map. Updates of this TensorFlow state are.
                self._dataset_steps = tf.Variable([0, 0, 0], dtype="int64")
        if step is None:
            # Counts in units of 256, the numbers that a draw may use.
            count = self._dataset_steps.handle
            step = tf.raw_ops.RngReadAndSkip(resource=count, alg=1, delta=1)[0]
            step //= 256
        return tf.constant(int(state[0]), "int32"), tf.cast(step, "int32")

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        config.pop("autocast", None)
        return config
