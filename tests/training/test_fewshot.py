import keras
import numpy as np
import pytest

import keras_augreg
from keras_augreg.training.fewshot import (
    FewShot,
    features_model,
    fewshot_accuracy,
)


def blobs(n, seed, size=6):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centres = np.random.default_rng(0).normal(size=(3, size))
    return centres[labels] + 0.5 * rng.normal(size=(n, size)), labels


@pytest.mark.once
@pytest.mark.parametrize("size", [6, 60])
def test_is_scikit_learn_s_ridge(size):
    """With more features than examples, and with fewer."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y = blobs(30, 1, size)
    test_x, test_y = blobs(300, 2, size)
    mean, deviation = x.mean(0), x.std(0) + 1e-5

    def with_constant(x):
        return np.c_[(x - mean) / deviation, np.full(len(x), 100.0)]

    ridge = linear_model.Ridge(alpha=3.0, fit_intercept=False)
    ridge.fit(with_constant(x), 2 * np.eye(3)[y] - 1)
    want = np.mean(ridge.predict(with_constant(test_x)).argmax(1) == test_y)
    got = fewshot_accuracy(x, y, test_x, test_y, shots=10, l2=3.0)
    assert 0.5 < got == want


@pytest.mark.once
def test_takes_so_many_of_each_class():
    x, y = blobs(300, 1)
    test_x, test_y = blobs(300, 2)
    args = (x, y, test_x, test_y)
    one, again, many = (fewshot_accuracy(*args, shots=s) for s in (1, 1, 50))
    assert one == again < many
    assert len({fewshot_accuracy(*args, shots=1, seed=s) for s in range(5)}) > 1


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shots": 11}, "needs 11 examples. Class 0 has 10"),
        ({"shots": 0}, "shots=0"),
        ({"l2": 0.0}, "l2=0.0"),
    ],
)
def test_refuses(arguments, message):
    x, y = blobs(30, 1)
    with pytest.raises(ValueError, match=message):
        fewshot_accuracy(x, y, x, y, **arguments)


def weights(variable):
    return keras.ops.convert_to_numpy(variable)


def softmax(x):
    x = np.exp(x - x.max(axis=1, keepdims=True))
    return x / x.sum(axis=1, keepdims=True)


def photos():
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3))
    return images.astype("uint8"), np.arange(20) % 5


def test_callback_logs_it(tiny_model):
    images, labels = photos()
    padded = np.concatenate([images[12:], images[:2]])
    batches = [
        (images[:12], labels[:12]),
        (padded, np.r_[labels[12:], 0, 0], np.r_[np.ones(8), 0, 0]),
    ]
    tiny_model.compile("sgd", "sparse_categorical_crossentropy")
    callback = FewShot(batches, batches, 2, every=2)
    history = tiny_model.fit(
        images, labels, epochs=4, callbacks=[callback], verbose=0
    )
    logged = history.history["fewshot_2"]
    assert len(logged) == 2
    x = features_model(tiny_model).predict(images, verbose=0)
    assert x.shape == (20, 16)
    first = x[:10], labels[:10]  # two of each class
    assert logged[1] == fewshot_accuracy(*first, x, labels, shots=2)
    # The features are what the classifier reads.
    head = tiny_model.get_layer("head")
    head.kernel.assign(np.random.default_rng(1).normal(size=(16, 5)))
    np.testing.assert_allclose(
        softmax(x @ weights(head.kernel) + weights(head.bias)),
        tiny_model.predict(images, verbose=0),
        atol=1e-5,
    )


def test_callback_compiles_once(tiny_model):
    images, labels = photos()
    callback = FewShot([(images, labels)], [(images, labels)], shots=4)
    tiny_model.compile("sgd", "sparse_categorical_crossentropy")
    functions = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            functions.append(callback._body.predict_function)

    tiny_model.fit(
        images, labels, epochs=3, callbacks=[callback, Look()], verbose=0
    )
    assert functions[0] is not None
    assert functions[0] is functions[1] is functions[2]
    other = keras.models.clone_model(tiny_model)
    callback.set_model(other)
    callback.on_epoch_end(0)
    assert callback._body.get_layer("embedding") is other.get_layer("embedding")


def test_callback_refuses_too_few_examples(tiny_model):
    images, labels = photos()
    callback = FewShot([(images, labels)], [(images, labels)], shots=5)
    tiny_model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"needs 5 examples\. Class 0 has 4"):
        tiny_model.fit(images, labels, callbacks=[callback], verbose=0)


def test_callback_takes_what_fit_takes(tiny_model):
    images, labels = photos()
    plain = FewShot([(images, labels)], [(images, labels)], shots=2)
    found = []
    named = [({"image": images}, labels[:, None])]
    for callback in (plain, keras_augreg.training.FewShot(named, named, 2)):
        callback.set_model(tiny_model)
        callback.on_epoch_end(0, logs := {})
        found.append(logs["fewshot_2"])
    assert found[0] == found[1]
    one_hot = [(images, np.eye(5)[labels])]
    callback = FewShot(one_hot, one_hot, shots=2)
    callback.set_model(tiny_model)
    with pytest.raises(ValueError, match=r"one integer label.*\(20, 5\)"):
        callback.on_epoch_end(0)
