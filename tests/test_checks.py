"""Checks of labels."""

from __future__ import annotations

import sys

import keras
import numpy as np
import pytest

import keras_augreg
from keras_augreg.checks import check_labels, check_tensorboard


@pytest.mark.once
@pytest.mark.parametrize(
    "labels",
    [
        [0, 1, 4],
        np.array([0, 4], np.uint8),
        np.array([1.0, 2.0]),
        np.array([[0], [4]]),
        np.full((2, 5), 0.2),  # soft labels
        [],
    ],
)
def test_labels_within_the_classes_pass(labels):
    check_labels(labels, 5)


@pytest.mark.once
def test_soft_labels_of_one_class_pass():
    check_labels([[1.0], [0.3]], 1)


@pytest.mark.once
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 7, 9], r"label of example 1 is 7\. .* from 0 to 4, .* 5 classes"),
        ([1, 2, 3, 4, 5], "example 4 is 5.*seem to count from 1: subtract 1"),
        ([0, -1], "example 1 is -1.*-1 means that an example has no label"),
        ([0.5], r"example 0 is 0\.5\. Expected an integer"),
        ([0, np.nan], "example 1 is nan"),
        ([[3], [5]], "example 1 is 5"),
    ],
)
def test_other_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        check_labels(labels, 5)


@pytest.mark.once
def test_the_message_names_the_example():
    with pytest.raises(ValueError, match=r"The label of 'cup/1\.jpg' is 7"):
        check_labels([0, 7], 5, names=["cup/0.jpg", "cup/1.jpg"])


@pytest.mark.once
def test_one_class_is_a_binary_decision():
    check_labels([0, 1, 1], 1)
    with pytest.raises(ValueError, match=r"example 1 is 2\..* from 0 to 1"):
        check_labels([0, 2], 1)


@pytest.mark.once
def test_no_label_may_be_allowed():
    check_labels([0, -1], 5, unlabelled=True)
    with pytest.raises(ValueError, match="is -2"):
        check_labels([0, -2], 5, unlabelled=True)


@pytest.mark.once
def test_tensorboard_of_keras_needs_tensorflow(tmp_path, monkeypatch):
    callbacks = [
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.TensorBoard(tmp_path),
    ]
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ImportError, match=r"pip install tensorflow.*--tensorb"):
        check_tensorboard(callbacks)
    check_tensorboard(callbacks[:1])
    monkeypatch.undo()
    pytest.importorskip("tensorflow")
    check_tensorboard(callbacks)


def compiled_model(classes=5, **changes):
    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32,
        input_shape=(16, 16, 3), classes=classes,
        classifier_activation="sigmoid" if classes == 1 else "softmax",
    )  # fmt: skip
    keras_augreg.compile_finetuning(
        model,
        **{"total_steps": 100, "learning_rate": 0.01, "warmup_steps": 1},
        **changes,
    )
    return model


X = np.zeros((4, 16, 16, 3), "uint8")
GOOD, WRONG = np.array([0, 1, 2, 3]), np.array([0, 1, 7, 2])


def test_fit_refuses_labels_beyond_the_classes():
    model = compiled_model()
    tensor = keras.ops.convert_to_tensor(WRONG)
    for call in (
        lambda: model.fit(X, WRONG),
        lambda: model.fit(x=X, y=WRONG[:, None]),
        lambda: model.fit(X, tensor),
        lambda: model.fit(X, GOOD, validation_data=(X, WRONG)),
        lambda: model.train_on_batch(X, WRONG),
        lambda: model.test_on_batch(X, WRONG),
        lambda: model.evaluate(X, WRONG),
        lambda: model.evaluate(X, y=WRONG),
    ):
        with pytest.raises(ValueError, match="label of example 2 is 7"):
            call()
    assert model.optimizer.iterations == 0
    model.fit(X, GOOD, validation_data=(X, GOOD), verbose=0)
    model.evaluate(X, np.array([0, -1, 2, 3]), verbose=0)


def tf_data(*columns):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(columns).batch(4)


def unknown_shapes(x, y):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_generator(
        lambda: iter([(x, y)]),
        output_signature=(
            tf.TensorSpec((None, 16, 16, 3), x.dtype),
            tf.TensorSpec(None, y.dtype),
        ),
    )


def loader(x, y, **options):
    torch = pytest.importorskip("torch")
    examples = torch.utils.data.TensorDataset(torch.tensor(x), torch.tensor(y))
    return torch.utils.data.DataLoader(examples, 4, **options)


def stream(x, y):
    torch = pytest.importorskip("torch")

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return zip(x, y, strict=True)

    return torch.utils.data.DataLoader(Stream(), 4)


class Batches(keras.utils.PyDataset):
    def __init__(self, *columns):
        super().__init__()
        self.columns = columns

    def __len__(self):
        return 1

    def __getitem__(self, i):
        return self.columns


KINDS = {
    "tf.data": tf_data,
    "tf.data of floats": lambda x, y: tf_data(x.astype("float32"), y),
    "tf.data of float labels": lambda x, y: tf_data(x, y.astype("float32")),
    "tf.data of columns": lambda x, y: tf_data(x, y[:, None]),
    "tf.data with weights": lambda x, y: tf_data(x, y, np.ones(4)),
    "tf.data of unknown shapes": unknown_shapes,
    "DataLoader": loader,
    "DataLoader with workers": lambda x, y: loader(x, y, num_workers=1),
    "DataLoader of a stream": stream,
    "generator": lambda x, y: (batch for batch in [(x, y)] * 2),
    "PyDataset": Batches,
}


@pytest.mark.parametrize("kind", KINDS)
def test_fit_refuses_them_in_every_kind_of_data(kind):
    if "workers" in kind and keras.backend.backend() != "torch":
        pytest.skip("a fork of JAX's or TensorFlow's threads may deadlock")
    if "unknown" in kind and keras.backend.backend() == "tensorflow":
        pytest.skip("the losses need to know the rank of labels")
    model, make = compiled_model(), KINDS[kind]
    options = {"steps_per_epoch": 1, "validation_steps": 1, "verbose": 0}
    if "Loader" in kind:  # Keras takes all of it.
        options = {"verbose": 0}
    for call in (
        lambda: model.fit(make(X, WRONG), **options),
        lambda: model.fit(
            make(X, GOOD), validation_data=make(X, WRONG), **options
        ),
        lambda: model.evaluate(make(X, WRONG), verbose=0),
    ):
        with pytest.raises(ValueError, match="label of example 2 is 7") as seen:
            call()
        if "workers" not in kind:
            assert str(seen.value).startswith("The label of example 2 is 7")
    model.fit(make(X, GOOD), validation_data=make(X, GOOD), **options)


def test_fit_refuses_them_in_a_later_batch():
    model = compiled_model()
    with pytest.raises(ValueError, match="label of example 2 is 7"):
        model.fit(((X, y) for y in (GOOD, WRONG)), verbose=0)


def test_fit_leaves_soft_labels_to_the_loss():
    model, soft = compiled_model(), np.full((4, 5), 0.2, "float32")
    model.fit(X, soft, verbose=0)
    model.fit(tf_data(X, soft), verbose=0)
    one = compiled_model(classes=1, loss="sigmoid")
    one.fit(tf_data(X, np.ones((4, 1), "float32")), verbose=0)


class Broken:
    """Raises at one of its batches, of four, in the given pass."""

    def __init__(self, error, at):
        self.error, self.at = error, at

    def __call__(self, *_):
        for i in range(4):
            if i == self.at:
                raise self.error
            yield X, GOOD


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("steps", [1, 2])
def test_usable_after_any_error(tmp_path, kind, steps):
    """Keras on JAX lost the weights after an error in a step's data."""
    if keras.backend.backend() != "jax":
        pytest.skip("only JAX takes weights away; TensorFlow renames errors")
    error = kind("broken")

    def fail(*_, **__):
        raise error

    model = compiled_model(ema_momentum=0.9, steps_per_execution=steps)
    callback = keras.callbacks.LambdaCallback
    good = {"epochs": 2, "verbose": 0, "steps_per_epoch": 4}
    calls = [
        lambda: model.fit(
            X, GOOD, verbose=0, callbacks=[callback(on_train_batch_end=fail)]
        ),
        lambda: model.fit(
            X,
            GOOD,
            validation_data=(X, GOOD),
            verbose=0,
            callbacks=[callback(on_epoch_end=fail)],
        ),
    ]
    for at in (1, 2, 3):
        data = Broken(error, at)
        calls += [
            lambda data=data: model.fit(data(), **good),
            lambda data=data: model.fit(
                X, GOOD, validation_data=data(), verbose=0
            ),
            lambda data=data: model.evaluate(data(), verbose=0),
            lambda data=data: model.predict(data(), verbose=0),
        ]
    for call in calls:
        with pytest.raises(kind, match="broken"):
            call()
        model.predict(X, verbose=0)
        assert all(np.isfinite(w).all() for w in model.get_weights())
        model.fit(X, GOOD, validation_data=(X, GOOD), verbose=0)
    model.save(tmp_path / "model.keras")
    with pytest.raises(TypeError):
        model.train_on_batch(X, GOOD, sample_weight="none")
    model.train_on_batch(X, GOOD)


def test_fit_takes_its_arguments_by_position():
    model = compiled_model()
    with pytest.raises(ValueError, match="label of example 2 is 7"):
        model.fit(X, GOOD, 4, 1, 0, None, 0.0, (X, WRONG))
    counted = []
    count = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: counted.append(1)
    )
    model.fit(X, GOOD, 4, 2, 0, [count])
    assert counted == [1, 1]


def test_refuses_them_in_a_later_batch_of_a_sequence():
    class Sequence(Batches):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return X, (GOOD, WRONG)[i]

    for workers in (1, 2):
        data = Sequence()
        data.workers = workers
        with pytest.raises(ValueError, match="label of example 2 is 7"):
            compiled_model().fit(data, verbose=0, shuffle=False)


@pytest.mark.parametrize("make", [tf_data, Batches])
def test_skips_sets_whose_engine_has_checked_them(make):
    data = make(X, GOOD)
    data.checked_classes = 5
    model = compiled_model()
    with model._batches_checked(data) as same:
        assert same is data
    data.checked_classes = 6
    with model._batches_checked(data) as other:
        assert other is not data


def test_keras_s_own_sparse_loss_is_checked_too():
    model = compiled_model()
    for loss in (
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
    ):
        model.compile("sgd", loss)
        for call in (model.fit, model.evaluate):
            with pytest.raises(ValueError, match="label of example 2 is 7"):
                call(tf_data(X, WRONG), verbose=0)
    ignoring = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    model.compile("sgd", ignoring)
    model.fit(X, np.array([0, -1, 2, 3]), verbose=0)
