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


# Metrics that compare columns; others with "Sparse" in their names take
# numbers of classes, and functions of users whatever comes.
_OF_COLUMNS = (
    keras.metrics.AUC,
    keras.metrics.BinaryAccuracy,
    keras.metrics.BinaryCrossentropy,
    keras.metrics.CategoricalAccuracy,
    keras.metrics.CategoricalCrossentropy,
    keras.metrics.FBetaScore,
    keras.metrics.KLDivergence,
    keras.metrics.Precision,
    keras.metrics.Recall,
    keras.metrics.TopKCategoricalAccuracy,
)


def _labels_for(metric: Any, y: Any, classes: int) -> Any:
    """Labels as a metric expects them: numbers, or columns for classes."""
    if classes == 1 or not hasattr(y, "shape"):
        return y
    columns = len(y.shape) == 2 and y.shape[1] == classes
    if columns and type(metric).__name__.startswith("Sparse"):
        return keras.ops.argmax(y, axis=-1)
    if not columns and isinstance(metric, _OF_COLUMNS):
        return soft_labels(y, classes)
    return y


def probabilities(logits: Any, activation: Any, loss: Any) -> Any:
    """Applies an activation to logits, or without any, the loss's own."""
    softmax, sigmoid = keras.activations.softmax, keras.activations.sigmoid
    if activation in (None, keras.activations.linear):
        binary = type(loss).__name__.startswith(("Sigmoid", "Binary"))
        activation = sigmoid if binary else softmax
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
