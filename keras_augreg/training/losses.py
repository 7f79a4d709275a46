"""Losses and metrics on logits that take integer or soft labels.

Mixup turns integers into probabilities inside the training step. Keras's own
losses take one or the other, and are built for what the data set yields.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_augreg.augment.arrays import soft_labels


@keras.saving.register_keras_serializable(package="keras_augreg")
class SigmoidCrossentropy(keras.losses.Loss):
    """Sigmoid cross-entropy of logits: the sum over classes.

    Averaged over the batch; the AugReg study's pre-training loss (source:
    `sigmoid_xent` in `utils.py` of google-research/big_vision).
    `keras.losses.BinaryCrossentropy` also averages over classes, so it is
    smaller by a factor of the number of classes.

    Call arguments:
        y_true: Integer labels (batch,) or (batch, 1), or probabilities
            (batch, classes).
        y_pred: Float logits (batch, classes).

    Example:
    >>> loss = keras_augreg.training.losses.SigmoidCrossentropy()
    >>> float(loss(np.array([2]), np.zeros((1, 4), "float32")))  # 4 ln 2
    2.7725887298583984
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels = soft_labels(y_true, y_pred.shape[-1], y_pred.dtype)
        # log(1 + e^x) - x * label, the negative log-likelihood.
        return ops.sum(ops.softplus(y_pred) - y_pred * labels, axis=-1)


@keras.saving.register_keras_serializable(package="keras_augreg")
class SoftmaxCrossentropy(keras.losses.Loss):
    """Softmax cross-entropy of logits, averaged over the batch.

    Call arguments: As in `SigmoidCrossentropy`.

    Example:
    >>> loss = keras_augreg.training.losses.SoftmaxCrossentropy()
    >>> float(loss(np.array([2]), np.zeros((1, 4), "float32")))  # ln 4
    1.3862943649291992
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels = soft_labels(y_true, y_pred.shape[-1], y_pred.dtype)
        return -ops.sum(ops.log_softmax(y_pred, axis=-1) * labels, axis=-1)


@keras.saving.register_keras_serializable(package="keras_augreg")
class Accuracy(keras.metrics.MeanMetricWrapper):
    """How often the highest logit belongs to the most probable label.

    Args:
        name: Name of the metric.
        dtype: Dtype of its computation.

    Call arguments: As in `SigmoidCrossentropy`; probabilities do as well.

    Example:
    >>> metric = keras_augreg.training.losses.Accuracy()
    >>> metric.update_state(np.array([1, 1]), np.eye(2, dtype="float32"))
    >>> float(metric.result())
    0.5
    """

    def __init__(self, name: str = "accuracy", dtype: Any = None) -> None:
        super().__init__(fn=_hits, name=name, dtype=dtype)
        self._direction = "up"

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable(package="keras_augreg")
class MeanLoss(keras.metrics.MeanMetricWrapper):
    """The mean of a loss over examples, weighted by their sample weights.

    It replaces Keras's own "loss" in the logs, which counts padding (weight
    0, when several hosts evaluate) as examples with loss 0.

    Args:
        loss: `SigmoidCrossentropy()` or `SoftmaxCrossentropy()`, whose call
            arguments the metric takes.
        name: Name of the metric.
        dtype: Dtype of its computation.

    Example:
    >>> metric = keras_augreg.training.losses.MeanLoss(SoftmaxCrossentropy())
    >>> metric.update_state(np.array([1, 0]), np.zeros((2, 4)), [1.0, 0.0])
    >>> float(metric.result())  # ln 4
    1.3862943649291992
    """

    def __init__(
        self, loss: Any, name: str = "loss", dtype: Any = None
    ) -> None:
        super().__init__(fn=loss.call, name=name, dtype=dtype)
        self.loss = loss
        self._direction = "down"

    def get_config(self) -> dict[str, Any]:
        loss = keras.saving.serialize_keras_object(self.loss)
        return {"loss": loss, "name": self.name, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MeanLoss:
        loss = keras.saving.deserialize_keras_object(config["loss"])
        return cls(**{**config, "loss": loss})


def _hits(y_true: Any, y_pred: Any) -> Any:
    labels = soft_labels(y_true, y_pred.shape[-1], y_pred.dtype)
    return ops.equal(ops.argmax(labels, axis=-1), ops.argmax(y_pred, axis=-1))
