"""What metrics get of a model that is trained on logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_augreg.augment.arrays import soft_labels


def takes_logits(metric: Any) -> bool:
    """Whether a metric was told that outputs are logits."""
    for name in ("from_logits", "_from_logits"):  # the latter: AUC
        if hasattr(metric, name):
            return bool(getattr(metric, name))
    function = getattr(metric, "_fn", metric)  # of a `MeanMetricWrapper`
    told = {
        **getattr(function, "keywords", {}),
        **getattr(metric, "_fn_kwargs", {}),
    }
    logits = getattr(function, "from_logits", False)
    return bool(told.get("from_logits", logits))


# Keras's metrics that compare numbers or whatever comes, as those with
# "Sparse" in their names and those of users do; the others compare columns.
_NOT_OF_COLUMNS = (
    "Accuracy", "BinaryIoU", "IoU", "Mean", "MeanIoU", "MeanMetricWrapper",
    "Metric", "Sum",
)  # fmt: skip


def _compares_columns(metric: Any) -> bool:
    """Whether a metric of Keras expects a column of labels for each output."""
    kind: Any = next(
        base
        for base in type(metric).__mro__
        if base.__module__.startswith("keras.")
    )
    if type(metric).update_state is not kind.update_state:
        return False  # It may convert them itself.
    if kind is keras.metrics.MeanMetricWrapper:  # of a loss, such as "mse"
        kind = metric._fn
    name = getattr(kind, "__name__", "")
    return (
        getattr(kind, "__module__", "").startswith("keras.")
        and "sparse" not in name.lower()
        and name not in _NOT_OF_COLUMNS
    )


def _labels_for(metric: Any, y: Any, classes: int) -> Any:
    """Labels as a metric expects them: numbers, or columns for classes."""
    if not hasattr(y, "shape"):
        return y
    columns = len(y.shape) == 2 and y.shape[1] == classes
    if columns and classes > 1 and type(metric).__name__.startswith("Sparse"):
        return keras.ops.argmax(y, axis=-1)
    if columns or not _compares_columns(metric):
        return y
    if classes == 1:
        return keras.ops.reshape(y, (-1, 1))
    return soft_labels(y, classes)


def of_columns(loss: Any) -> bool:
    """Whether a loss takes each output for the logit of a yes or no."""
    return type(loss).__name__.startswith(("Sigmoid", "Binary"))


def probabilities(logits: Any, activation: Any, loss: Any) -> Any:
    """Applies an activation to logits, or without any, the loss's own."""
    softmax, sigmoid = keras.activations.softmax, keras.activations.sigmoid
    if activation in (None, keras.activations.linear):
        activation = sigmoid if of_columns(loss) else softmax
    if activation is softmax and logits.shape[-1] == 1:
        activation = sigmoid  # The softmax of one output is always 1.
    # A copy, because Keras on TensorFlow remembers the logits of an activation
    # and computes any cross-entropy from them.
    return keras.ops.copy(activation(logits))


def update_metrics(
    compiled: Any,
    y: Any,
    logits: Any,
    predictions: Callable[[], Any],
    sample_weight: Any,
) -> None:
    """Gives each compiled metric the labels and outputs that it expects."""
    if not compiled.built:
        compiled.build(y, logits)
    outputs = None  # computed if a metric needs them
    # Of each kind a list of one: of the model's only output.
    for (metrics,), weights in (
        (compiled._flat_metrics, None),
        (compiled._flat_weighted_metrics, sample_weight),
    ):
        for metric in getattr(metrics, "metrics", ()):
            labels = _labels_for(metric, y, logits.shape[-1])
            if takes_logits(metric):
                metric.update_state(labels, logits, sample_weight=weights)
                continue
            outputs = predictions() if outputs is None else outputs
            metric.update_state(labels, outputs, sample_weight=weights)
