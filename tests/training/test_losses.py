"""Losses and metrics on logits, with integer and soft labels."""

import math

import keras
import numpy as np
import pytest

from keras_augreg.training import losses

LOGITS = np.array([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]], "float32")
SOFT = np.array([[0.7, 0.3, 0.0], [0.0, 0.2, 0.8]], "float32")


def test_sigmoid_loss_sums_over_classes():
    p = 1 / (1 + np.exp(-LOGITS))
    expected = -(SOFT * np.log(p) + (1 - SOFT) * np.log(1 - p)).sum(-1).mean()
    loss = losses.SigmoidCrossentropy()
    assert math.isclose(float(loss(SOFT, LOGITS)), expected, rel_tol=1e-5)


def test_softmax_loss():
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True)
    expected = -(SOFT * np.log(p)).sum(-1).mean()
    loss = losses.SoftmaxCrossentropy()
    assert math.isclose(float(loss(SOFT, LOGITS)), expected, rel_tol=1e-5)


@pytest.mark.parametrize(
    "make",
    [losses.SigmoidCrossentropy, losses.SoftmaxCrossentropy, losses.Accuracy],
)
def test_integers_mean_one_hot(make):
    labels = np.array([2, 1])
    expected = float(make()(np.eye(3)[labels], LOGITS))
    for given in (labels, labels[:, None], labels.astype("float32")):
        assert float(make()(given, LOGITS)) == pytest.approx(expected)
    config = keras.saving.serialize_keras_object(make())
    again = keras.saving.deserialize_keras_object(config)
    assert float(again(labels, LOGITS)) == pytest.approx(expected)


def test_accuracy_of_soft_labels():
    assert float(losses.Accuracy()(SOFT, LOGITS)) == 0.5


def test_refuses_labels_of_another_number_of_classes():
    with pytest.raises(ValueError, match="Labels must be integers of shape"):
        losses.SigmoidCrossentropy()(np.eye(2), LOGITS)


@pytest.mark.parametrize(
    ("ours", "keras_s"),
    [
        (losses.SoftmaxCrossentropy, keras.losses.CategoricalCrossentropy),
        (losses.SigmoidCrossentropy, keras.losses.BinaryCrossentropy),
    ],
)
def test_label_smoothing_is_keras_s(ours, keras_s):
    loss = ours(label_smoothing=0.1)
    expected = float(keras_s(True, label_smoothing=0.1)(SOFT, LOGITS))
    if ours is losses.SigmoidCrossentropy:
        expected *= 3  # a mean over classes there, a sum here
    again = ours.from_config(loss.get_config())
    for one in (loss, again):
        assert float(one(SOFT, LOGITS)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="label_smoothing=1"):
        ours(label_smoothing=1)


def test_accuracy_of_several_labels():
    right = (LOGITS > 0).astype("float32")
    none = np.zeros((2, 3), "float32")
    assert float(losses.Accuracy()(right, LOGITS)) == 1.0
    assert float(losses.Accuracy()(1 - right, LOGITS)) == 0.0
    assert float(losses.Accuracy()(none, LOGITS)) == 0.0
    assert float(losses.Accuracy()(none, none - 1)) == 1.0


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_one_class_is_a_decision(shape):
    labels = np.array([0, 0, 1, 1], "int32").reshape(shape)
    logits = np.array([[-1.0], [2.0], [1.0], [0.2]], "float32")
    assert float(losses.Accuracy()(labels, logits)) == 0.75
    probabilities = 1 / (1 + np.exp(-logits))
    metric = losses.Accuracy(from_logits=False)
    again = losses.Accuracy.from_config(metric.get_config())
    for one in (metric, again):
        assert float(one(labels, probabilities)) == 0.75
    p = probabilities[:, 0]
    expected = -np.log([1 - p[0], 1 - p[1], p[2], p[3]]).mean()
    loss = float(losses.SigmoidCrossentropy()(labels, logits))
    assert loss == pytest.approx(expected, rel=1e-5)
