"""Few-shot linear evaluation in closed form.

Like big_vision's `evaluators/fewshot_lsr.py`: ridge regression from a frozen
model's features to targets of -1 and 1, on a few images of each class. It
takes seconds, and tracks what pre-training learns.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from keras_augreg.preprocessing import only

# `configs/common_fewshot.py` of big_vision.
L2 = 2.0**10
# The constant feature of `fewshot_lsr.py`, so large that the ridge hardly
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

    Features are standardised with the mean and deviation of those examples.

    Args:
        features: Float (N, D), of the examples to choose from.
        labels: Integer (N,).
        test_features: Float (M, D).
        test_labels: Integer (M,).
        shots: Examples of each class, at least 1.
        l2: Strength of the ridge, above 0.
        seed: Seed of the choice of the examples.

    Returns:
        Share of the test examples that are classified correctly.

    Raises:
        ValueError: A class has fewer examples than `shots`, or an argument
            is out of range.

    Example:
    >>> features, labels = np.eye(4)[[0, 1, 0, 1]], np.array([0, 1, 0, 1])
    >>> fewshot_accuracy(features, labels, features, labels, shots=2)
    1.0
    """
    if shots < 1 or not l2 > 0:
        raise ValueError(
            "`shots` must be at least 1 and `l2` above 0. Received: "
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
    # The solution has two equal forms; solve the smaller system.
    if len(x) > x.shape[1]:
        gram = x.T @ x + l2 * np.eye(x.shape[1])
        weights = np.linalg.solve(gram, x.T @ targets)
    else:
        gram = x @ x.T + l2 * np.eye(len(x))
        weights = x.T @ np.linalg.solve(gram, targets)
    scores = standardised(test_features) @ weights
    return float(np.mean(classes[scores.argmax(axis=1)] == test_labels))


class FewShot(keras.callbacks.Callback):
    """Adds few-shot accuracy to the logs of epochs, as `fewshot_SHOTS`.

    Args:
        train: Batches (images, labels) or (images, labels, weights), images
            in [0, 255] and integer labels, for example a training split that
            `data.load` loaded with `training=False`.
            The first `shots` images of each class are kept in memory.
        test: Batches to test on.
        shots: Examples of each class, at least 1.
        every: Epochs from one evaluation to the next, at least 1.

    Raises:
        ValueError: When the first evaluation finds fewer than `shots`
            examples of a class.

    Example:
    ```python
    batches = [(images, labels)]
    model.fit(dataset, callbacks=[FewShot(batches, batches, shots=5)])
    ```
    """

    def __init__(
        self,
        train: Iterable[Any],
        test: Iterable[Any],
        shots: int = 10,
        every: int = 1,
    ) -> None:
        super().__init__()
        self.train, self.test = train, test
        self.shots, self.every = shots, every
        self._chosen: list[tuple[np.ndarray, np.ndarray]] | None = None
        self._body: Any = None
        self._body_of: Any = None  # the model of this body

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if (epoch + 1) % self.every:
            return
        if self._chosen is None:
            self._chosen = list(_first_of_each(self.train, self.shots))
        if self._body_of is not self.model:
            # Kept: a new one would compile again.
            self._body_of, self._body = self.model, features_model(self.model)
        train, test = self._features(self._chosen), self._features(self.test)
        accuracy = fewshot_accuracy(*train, *test, shots=self.shots)
        if logs is not None:
            logs[f"fewshot_{self.shots}"] = accuracy

    def _features(self, batches: Iterable[Any]) -> tuple[Any, Any]:
        features, labels = [], []
        for images, truth in real_examples(batches):
            features.append(self._body.predict_on_batch(images))
            labels.append(truth)
        return np.concatenate(features), np.concatenate(labels)


def features_model(model: Any) -> keras.Model:
    """The part of `model` from images to what its classifier reads, (B, W)."""
    return keras.Model(model.inputs, model.get_layer("head").input)


def real_examples(batches: Iterable[Any]) -> Any:
    """Images and labels of each batch, without padding (weight 0)."""
    for batch in batches:
        images, labels, *weights = batch
        # As `fit` takes them: also {"image": images}, and labels (n, 1).
        images, labels = np.asarray(only(images)), np.asarray(only(labels))
        if labels.shape[1:] == (1,):
            labels = labels[:, 0]
        if labels.ndim != 1:
            raise ValueError(
                "FewShot needs one integer label for each image, not one-hot "
                f"or soft ones. Received: labels of shape {labels.shape}"
            )
        if weights:
            real = np.asarray(weights[0]) > 0
            images, labels = images[real], labels[real]
        yield images, labels


def _first_of_each(batches: Iterable[Any], shots: int) -> Any:
    """The same batches with the first `shots` examples of each class."""
    seen: collections.Counter[int] = collections.Counter()
    for images, labels in real_examples(batches):
        kept = []
        for i, label in enumerate(labels.tolist()):
            seen[label] += 1
            if seen[label] <= shots:
                kept.append(i)
        if kept:
            yield images[kept], labels[kept]
