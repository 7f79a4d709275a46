"""Position embeddings for another grid of patches."""

from __future__ import annotations

from typing import Any

import numpy as np


def resample_positions(
    positions: Any,
    old: tuple[int, int],
    new: tuple[Any, Any],
    prefix: int = 1,
    ops: Any = np,
) -> Any:
    """Resamples positions (1, prefix + rows * columns, width) to another grid.

    Bilinear with aligned corners, that is `scipy.ndimage.zoom(order=1)` in
    `vit_jax/checkpoint.py` of google-research/vision_transformer. The first
    `prefix` rows, the class token's, are kept.

    Args:
        positions: Float array or tensor.
        old: Rows and columns of patches.
        new: Those to return; integers, or tensors in a graph of TensorFlow.
        prefix: Number of leading rows that belong to no patch.
        ops: The functions to compute with: `numpy`, or `keras.ops`.

    >>> resample_positions(np.zeros((1, 1 + 4, 8)), (2, 2), (3, 5)).shape
    (1, 16, 8)
    """
    if all(isinstance(n, int) for n in new) and tuple(old) == tuple(new):
        return positions

    cast = np.ndarray.astype if ops is np else ops.cast

    def zoom(x: Any, axis: int) -> Any:
        last = old[axis] - 1
        steps = ops.maximum(new[axis] - 1, 1)
        # In integers: where an old position is met, its share is exactly 1.
        at = ops.arange(new[axis], dtype="int32") * last
        low = at // steps
        share = ops.divide(at - low * steps, steps)
        share = ops.reshape(share, [-1 if i == axis else 1 for i in range(3)])
        start = ops.take(x, low, axis)
        after = ops.take(x, ops.minimum(low + 1, last), axis)
        # In this form equal neighbours give exactly their value. Functions
        # promote half precision, which TensorFlow's operators refuse to.
        return ops.add(start, ops.multiply(share, ops.subtract(after, start)))

    width = positions.shape[-1]
    cells = ops.reshape(positions[0, prefix:], (*old, width))
    cells = ops.reshape(zoom(zoom(cells, 0), 1), (1, new[0] * new[1], width))
    cells = cast(cells, positions.dtype)
    return ops.concatenate([positions[:, :prefix], cells], axis=1)
