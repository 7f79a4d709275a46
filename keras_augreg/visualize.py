"""Pictures of what a model does. They need matplotlib (extra `study`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def predictions(
    images: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    columns: int = 8,
) -> Any:
    """Draws images with their predicted classes, wrong ones in red.

    Args:
        images: uint8 array (N, height, width, 3).
        labels: Integer array (N,): the true classes.
        scores: Float array (N, classes): probabilities.
        class_names: Names of the classes.
        columns: Images in a row, at least 1.

    Returns:
        A `matplotlib.figure.Figure`; `figure.savefig("predictions.png")`.

    Example:
    ```python
    figure = predictions(images, labels, model.predict(images), list("0123"))
    figure.savefig("predictions.png")
    ```
    """
    from matplotlib.figure import Figure

    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    axes = np.reshape(figure.subplots(rows, columns), -1)
    for axis in axes:
        axis.axis("off")
    predicted = scores.argmax(axis=1)
    for axis, image, label, guess, score in zip(
        axes, images, labels, predicted, scores.max(axis=1), strict=False
    ):
        axis.imshow(image)
        right = guess == label
        title = f"{class_names[guess]} {score:.0%}"
        if not right:
            title += f"\n(is {class_names[label]})"
        axis.set_title(title, fontsize=9, color="black" if right else "red")
    return figure
