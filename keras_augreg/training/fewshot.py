"""Few-shot linear evaluation in closed form.

As big_vision's `evaluators/fewshot_lsr.py`: ridge regression from a frozen
model's features to targets of -1 and 1, on a few images of each class. It
takes seconds, and tracks what pre-training learns.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

# `configs/common_fewshot.py` of big_vision.
L2 = 2.0**10
# The constant feature of `fewshot_lsr.py`: so large that the ridge hardly
# shrinks its weight.
CONSTANT = 100.0


def fewshot_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    test_features: np.ndarray,
    test_labels: np.ndarray,
    *,
    shots: int = 10,
    l2: float = L2,
    seed: int = 0,
) -> float:
    """Accuracy of ridge regression on a few examples of each class.

    Features are standardised with the few examples' means and deviations.

    Args:
        features: Float (N, D), of the examples to choose from.
        labels: Integer (N,).
        test_features: Float (M, D).
        test_labels: Integer (M,).
        shots: Examples of each class, at least 1.
        l2: Strength of the ridge, above 0.
        seed: Of the choice of the examples.

    Returns:
        Share of the test examples that are classified rightly.

    Raises:
        ValueError: If a class has fewer examples than `shots`, or an argument
            is out of range.

    Example:
    >>> features, labels = np.eye(4)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
    >>> fewshot_accuracy(features, labels, features, labels, shots=2)
    1.0
    """
    if shots < 1 or not l2 > 0:
        raise ValueError(
            "`shots` is at least 1 and `l2` above 0. Received: "
            f"shots={shots}, l2={l2}"
        )
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < shots:
        raise ValueError(
            f"Every class needs {shots} examples. Class "
            f"{classes[counts.argmin()]} has {counts.min()}."
        )
    rng = np.random.RandomState(seed)
    chosen = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes]
    )
    x = features[chosen].astype("float64")
    mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-5

    def standardised(x: np.ndarray) -> np.ndarray:
        x = (x - mean) / deviation
        return np.pad(x, ((0, 0), (0, 1)), constant_values=CONSTANT)

    x = standardised(x)
    targets = np.where(labels[chosen, None] == classes, 1.0, -1.0)
    # The smaller of the two equal forms of the solution.
    if len(x) > x.shape[1]:
        gram = x.T @ x + l2 * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x.T @ targets)
    else:
        gram = x @ x.T + l2 * np.eye(len(x))
        weights = x.T @ np.linalg.solve(gram, targets)
    scores = standardised(test_features) @ weights
    return float(np.mean(classes[scores.argmax(axis=1)] == test_labels))


class FewShot(keras.callbacks.Callback):
    """Adds few-shot accuracy to the logs of every epoch.

    Args:
        train: (images, labels) to choose from: uint8 (N, H, W, 3), integer
            (N,).
        test: (images, labels) to test on.
        shots: Examples of each class.
        every: Epochs from one evaluation to the next.

    The log's name is `fewshot_SHOTS`.

    Example:
    ```python
    model.fit(dataset, callbacks=[FewShot((images, labels), (x, y), shots=5)])
    ```
    """

    def __init__(
        self,
        train: tuple[np.ndarray, np.ndarray],
        test: tuple[np.ndarray, np.ndarray],
        shots: int = 10,
        every: int = 1,
    ) -> None:
        super().__init__()
        self.train, self.test = train, test
        self.shots, self.every = shots, every

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self.every:
            return
        x, y = (
            features(self.model, images)
            for images, _ in (self.train, self.test)
        )
        accuracy = fewshot_accuracy(
            x, self.train[1], y, self.test[1], shots=self.shots
        )
        if logs is not None:
            logs[f"fewshot_{self.shots}"] = accuracy


def features(model: Any, images: np.ndarray, batch_size: int = 64) -> Any:
    """What a model's classifier reads.

    Args:
        model: A `keras_augreg` model with classifier.
        images: (N, H, W, 3), as the model takes them.
        batch_size: Images of a step.

    Returns:
        Float array (N, width).
    """
    body = keras.Model(model.inputs, model.get_layer("head").input)
    return body.predict(images, batch_size=batch_size, verbose=0)
