"""Losses and metrics on logits that take integer or soft labels.

Mixup turns integers into probabilities inside the training step. Keras's own
losses take one or the other, and are built for what the data set yields.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_augreg.augment.arrays import soft_labels


class _Crossentropy(keras.losses.Loss):
    from_logits = True
    takes_numbers = True  # as labels; `fit` checks them

    def __init__(self, label_smoothing: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "`label_smoothing` must be at least 0 and below 1. Received: "
                f"label_smoothing={label_smoothing}"
            )
        self.label_smoothing = label_smoothing

    def _labels(self, y_true: Any, y_pred: Any, uniform: float) -> Any:
        """Soft labels, moved by the smoothing towards `uniform`."""
        labels = soft_labels(y_true, y_pred.shape[-1], y_pred.dtype)
        if not self.label_smoothing:
            return labels
        return labels + self.label_smoothing * (uniform - labels)

    def get_config(self) -> dict[str, Any]:
        own = {"label_smoothing": self.label_smoothing}
        return {**super().get_config(), **own}


@keras.saving.register_keras_serializable(package="keras_augreg")
class SigmoidCrossentropy(_Crossentropy):
    """Sigmoid cross-entropy of logits: the sum over classes.

    Averaged over the batch; the AugReg study's pre-training loss (source:
    `sigmoid_xent` in `utils.py` of google-research/big_vision).
    `keras.losses.BinaryCrossentropy` also averages over classes, so it is
    smaller by a factor of the number of classes.

    Args:
        label_smoothing: In [0, 1): how far labels are moved towards 1/2.
        **kwargs: Passed to `keras.losses.Loss`.

    Call arguments:
        y_true: Integer labels (batch,) or (batch, 1), or probabilities
            (batch, classes), as for several labels of an image. With one
            class: 0 or 1, or a probability.
        y_pred: Float logits (batch, classes).

    Example:
    >>> loss = keras_augreg.training.losses.SigmoidCrossentropy()
    >>> float(loss(np.array([2]), np.zeros((1, 4), "float32")))  # 4 ln 2
    2.7725887298583984
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels = self._labels(y_true, y_pred, 1 / 2)
        # log(1 + e^x) - x * label, the negative log-likelihood.
        return ops.sum(ops.softplus(y_pred) - y_pred * labels, axis=-1)


@keras.saving.register_keras_serializable(package="keras_augreg")
class SoftmaxCrossentropy(_Crossentropy):
    """Softmax cross-entropy of logits, averaged over the batch.

    Args:
        label_smoothing: In [0, 1): how far labels are moved towards 1 divided
            by the number of classes.
        **kwargs: Passed to `keras.losses.Loss`.

    Call arguments: As in `SigmoidCrossentropy`.

    Example:
    >>> loss = keras_augreg.training.losses.SoftmaxCrossentropy()
    >>> float(loss(np.array([2]), np.zeros((1, 4), "float32")))  # ln 4
    1.3862943649291992
    """

    def call(self, y_true: Any, y_pred: Any) -> Any:
        labels = self._labels(y_true, y_pred, 1 / y_pred.shape[-1])
        return -ops.sum(ops.log_softmax(y_pred, axis=-1) * labels, axis=-1)


@keras.saving.register_keras_serializable(package="keras_augreg")
class Accuracy(keras.metrics.MeanMetricWrapper):
    """How often the highest output is that of the most probable label.

    With several labels, it must be one of them (as in big_vision's
    `evaluators/classification.py`), and without any, every class must be
    decided against. With one class, the decision counts.

    Args:
        from_logits: Whether outputs decide at 0 or, probabilities, at 1/2.
        name: Name of the metric.
        dtype: Dtype of its computation.

    Call arguments: As in `SigmoidCrossentropy`.

    Example:
    >>> metric = keras_augreg.training.losses.Accuracy()
    >>> metric.update_state(np.array([1, 1]), np.eye(2, dtype="float32"))
    >>> float(metric.result())
    0.5
    """

    def __init__(
        self,
        from_logits: bool = True,
        name: str = "accuracy",
        dtype: Any = None,
    ) -> None:
        threshold = 0.0 if from_logits else 0.5
        super().__init__(fn=_hits, name=name, dtype=dtype, threshold=threshold)
        self.from_logits = from_logits
        self._direction = "up"

    def get_config(self) -> dict[str, Any]:
        names = ("from_logits", "name", "dtype")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_augreg")
class FunctionLoss(keras.losses.Loss):
    """The loss of each example by a function, as `keras.Model.compile` takes.

    Args:
        fn: Function of (labels, outputs).
        name: Name of the loss. Defaults to that of the function.
        **kwargs: Passed to `keras.losses.Loss`.

    Call arguments: Those of `fn`; one output for each example may have labels
    of shape (batch,).

    Example:
    >>> loss = FunctionLoss(lambda y, x: keras.ops.abs(y - x)[:, 0])
    >>> float(loss(np.array([2.0]), np.zeros((1, 1), "float32")))
    2.0
    """

    def __init__(
        self, fn: Callable, name: str | None = None, **kwargs: Any
    ) -> None:
        name = name or getattr(fn, "__name__", "function_loss")
        super().__init__(name=name, **kwargs)
        self.fn = fn

    def call(self, y_true: Any, y_pred: Any) -> Any:
        if y_pred.shape[-1] == 1 and len(y_true.shape) < len(y_pred.shape):
            y_true = ops.expand_dims(y_true, axis=-1)
        return self.fn(y_true, y_pred)

    def get_config(self) -> dict[str, Any]:
        fn = keras.saving.serialize_keras_object(self.fn)
        return {**super().get_config(), "fn": fn}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FunctionLoss:
        fn = keras.saving.deserialize_keras_object(config["fn"])
        return cls(**{**config, "fn": fn})


# Besides the losses with an argument `from_logits`.
_OF_PROBABILITIES = (
    keras.losses.KLDivergence,
    keras.losses.CategoricalGeneralizedCrossEntropy,
    keras.losses.Dice,
    keras.losses.Tversky,
)


# Losses that compare one of several classes with the others.
AMONG_CLASSES = (
    SoftmaxCrossentropy,
    keras.losses.CategoricalCrossentropy,
    keras.losses.CategoricalFocalCrossentropy,
    keras.losses.CategoricalGeneralizedCrossEntropy,
    keras.losses.KLDivergence,
    keras.losses.SparseCategoricalCrossentropy,
)


def check_takes_columns(loss: Any) -> None:
    """Raises a `ValueError` if a loss takes no probabilities as labels."""
    if isinstance(loss, keras.losses.SparseCategoricalCrossentropy):
        raise ValueError(
            "The recipe's augmentation makes probabilities of labels, and "
            f"{type(loss).__name__} expects numbers of classes. Pass "
            "loss='softmax', or keras.losses.CategoricalCrossentropy("
            "from_logits=True)."
        )


def takes_probabilities(loss: Any) -> bool:
    """Whether a loss expects probabilities instead of logits or values."""
    logits = getattr(loss, "from_logits", None)
    return logits is False or isinstance(loss, _OF_PROBABILITIES)


def of_classes(loss: Any) -> bool:
    """Whether a loss compares classes, so that there is an accuracy."""
    return hasattr(loss, "from_logits") or takes_probabilities(loss)


def as_loss(loss: Any, label_smoothing: float = 0.0) -> keras.losses.Loss:
    """The loss that a name, function or `keras.losses.Loss` stands for."""
    if loss == "sigmoid":
        return SigmoidCrossentropy(label_smoothing)
    if loss == "softmax":
        return SoftmaxCrossentropy(label_smoothing)
    if label_smoothing:
        raise ValueError(
            "`label_smoothing` is for the losses 'sigmoid' and 'softmax'. Give "
            f"it to the loss itself. Received: loss={loss!r}"
        )
    message = (
        "`loss` must be 'sigmoid', 'softmax' or a loss as Keras takes it: a "
        "`keras.losses.Loss`, its name, such as 'mse', or a function. "
        f"Received: loss={loss!r}"
    )
    if isinstance(loss, str):
        try:
            loss = keras.losses.get(loss)
        except ValueError:
            raise ValueError(message) from None
    if isinstance(loss, type) and issubclass(loss, keras.losses.Loss):
        return loss()
    if isinstance(loss, keras.losses.Loss):
        return loss
    if not callable(loss):
        raise ValueError(message)
    # Of a function of Keras, the class, which says what it expects.
    name = getattr(loss, "__name__", "").replace("_", "").lower()
    if loss is getattr(keras.losses, getattr(loss, "__name__", ""), None):
        for known in vars(keras.losses).values():
            if isinstance(known, type) and known.__name__.lower() == name:
                return known()
    return FunctionLoss(loss)


def as_metrics(metrics: Any, loss: Any, from_logits: bool) -> list[Any] | None:
    """Metrics as `keras.Model.compile` takes them, for any kind of labels."""
    if metrics is None:
        return None
    return [
        Accuracy(from_logits, name=metric)
        if metric in ("accuracy", "acc") and of_classes(loss)
        else metric
        for metric in keras.tree.flatten(metrics)
    ]


def _hits(y_true: Any, y_pred: Any, threshold: float) -> Any:
    labels = soft_labels(y_true, y_pred.shape[-1], y_pred.dtype)
    decided = ops.max(y_pred, axis=-1) > threshold
    highest = ops.max(labels, axis=-1)
    if labels.shape[-1] == 1:
        return ops.equal(decided, highest > 0.5)
    chosen = ops.argmax(y_pred, axis=-1, keepdims=True)
    chosen = ops.take_along_axis(labels, chosen, axis=-1)[..., 0]
    return ops.where(
        highest > 0, ops.equal(chosen, highest), ops.logical_not(decided)
    )
