"""Mixup as the AugReg study used it."""

from __future__ import annotations

from typing import Any

import keras

from keras_augreg.augment import arrays, draws
from keras_augreg.augment.base import AugmentationLayer

# Candidate draws; the first accepted one is used. Each is accepted with
# probability at least 1/2 (exactly 1/2 at p = 1), so all 64 are rejected with
# probability at most 2^-64.
_TRIES = 64


@keras.saving.register_keras_serializable(package="keras_augreg")
class MixUp(AugmentationLayer):
    """Mixes each example with the previous one of the batch.

    The whole batch shares one lambda, max(b, 1 - b) with b drawn from
    Beta(p, p). The first example is mixed with the last. Images and labels
    are mixed alike (source: `get_mixup` in `utils.py` of
    google-research/big_vision).

    Works wherever `RandAugment` does. Lambda is the same everywhere, up to the
    rounding of a logarithm.

    Args:
        p: Parameter of the Beta distribution, in [0, 1]. The study used 0,
            0.2, 0.5 and 0.8; 0 mixes nothing.
        seed: Integer in [0, 2^31); equal seeds draw equally. `None` takes one
            from Keras's global seed.
        **kwargs: Passed to `keras.layers.Layer`.

    Call arguments:
        images: Float (batch, ...), in any range.
        labels: Float (batch, classes): one-hot or soft.
        step: As in `RandAugment`.
        training: With `False`, nothing is mixed.

    Returns:
        Images and labels, with their shapes and dtypes unchanged.

    Raises:
        ValueError: `p` or `seed` is not as above.
        TypeError: Images or labels are not float.

    Example:
    >>> images, labels = 255 * np.random.rand(8, 4, 4, 3), np.eye(8)
    >>> layer = keras_augreg.augment.MixUp(0.2, seed=0)
    >>> mixed_images, mixed_labels = layer(images, labels)
    """

    def __init__(
        self, p: float = 0.2, seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(seed=seed, **kwargs)
        if not 0 <= p <= 1:
            raise ValueError(
                f"`p` must be in [0, 1]; 0 turns Mixup off. Received: p={p}."
            )
        self.p = p

    def call(
        self, images: Any, labels: Any, step: Any = None, training: bool = True
    ) -> tuple[Any, Any]:
        for name, x in (("images", images), ("labels", labels)):
            dtype = keras.backend.standardize_dtype(x.dtype)
            if "float" not in dtype:
                raise TypeError(
                    f"`{name}` must be float: a mixture of integers is not an "
                    f"integer. Received: dtype={dtype}. Cast images to "
                    "float32, and one-hot encode labels."
                )
        if not training or self.p == 0:
            return images, labels
        xp = arrays.namespace(images)
        share = draw_share(xp, self._key(images, step), self.p)
        return tuple(
            mix(x, xp.roll(x, 1, axis=0), xp.cast(share, x.dtype))
            for x in (images, labels)
        )

    def compute_output_spec(
        self, images: Any, labels: Any, *_: Any, **__: Any
    ) -> Any:
        return tuple(
            keras.KerasTensor(x.shape, dtype=x.dtype) for x in (images, labels)
        )


def mix(x: Any, partner: Any, share: Any) -> Any:
    """`share` of `x` plus `1 - share` of `partner`."""
    return share * x + (1 - share) * partner


def draw_share(xp: Any, key: tuple[Any, ...], p: float) -> Any:
    """Draws max(b, 1 - b) with b from Beta(p, p), p in (0, 1].

    Johnk's method: if u^(1/p) + v^(1/p) <= 1 for uniform u and v, the first
    term's share of the sum follows Beta(p, p). In logarithms, because the
    powers underflow. Returns a float32 scalar in [0.5, 1].
    """
    tries = xp.arange(_TRIES)
    words = draws.threefry(key, (tries, tries * 0 + draws.MIXUP_STREAM))
    uniforms = [
        (xp.cast(draws.top_bits(word, 24), "float32") + 0.5) * 2**-24
        for word in words
    ]
    x, y = (xp.log(uniform) / p for uniform in uniforms)
    accepted = xp.cast(xp.exp(x) + xp.exp(y) <= 1.0, "int32")
    share = xp.sigmoid(xp.abs(x - y))
    return xp.take(share, xp.argmax(accepted, axis=0), axis=0)
