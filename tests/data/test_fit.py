"""`fit`, `evaluate` and `predict` on every backend, from every source."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from _photos import build_tfds, load, write_folder

SIZE = {"image_size": 16, "batch_size": 8}


def classifier():
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    model.compile(
        keras.optimizers.Adam(3e-3),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        weighted_metrics=["accuracy"],
    )
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"), 12)


def train_and_evaluate(train, test, count, epochs=4):
    model = classifier()
    history = model.fit(train, epochs=epochs, verbose=0)
    assert len(history.history["loss"]) == epochs
    assert history.history["loss"][-1] < history.history["loss"][0]
    results = model.evaluate(test, return_dict=True, verbose=0)
    predictions = model.predict(test, verbose=0)
    assert len(predictions) >= count
    labels = np.concatenate([np.asarray(batch[1]) for batch in test])
    right = (predictions.argmax(-1) == labels)[:count]
    name = next(n for n in results if n.startswith("weighted"))
    assert results[name] == pytest.approx(right.mean(), abs=1e-6)
    # Three photos are easily told apart.
    assert right.mean() > 0.6
    return results


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
@pytest.mark.parametrize("pad", [False, True])
def test_a_folder(photos, engine, pad):
    train, _ = load(photos, "train", training=True, engine=engine, **SIZE)
    test, info = load(
        photos, "test", training=False, pad=pad, engine=engine, **SIZE
    )
    assert info.num_examples == 36
    results = train_and_evaluate(train, test, 36)
    if not pad:
        # Without padding, metrics need no weights.
        assert results["accuracy"] == pytest.approx(
            results["weighted_accuracy"], abs=1e-6
        )


def test_a_tfds_data_set(tmp_path):
    pytest.importorskip("tensorflow_datasets")
    builder = build_tfds(tmp_path)
    train, test = (
        load(builder.data_dir, s, training=s == "train", pad=True, **SIZE)[0]
        for s in ("train", "test")
    )
    train_and_evaluate(train, test, 36)


@pytest.mark.parametrize("kind", ["csv", "DataFrame"])
def test_folds_of_a_table(photos, tmp_path, kind):
    files = sorted((photos / "train").glob("*/*"))
    rows = [(str(f.relative_to(photos)), f.parent.name) for f in files]
    if kind == "csv":
        source = photos / "train.csv"
        lines = ["id,label", *map(",".join, rows)]
        source.write_text("\n".join(lines))
    else:
        pandas = pytest.importorskip("pandas")
        source = pandas.DataFrame(rows, columns=["id", "label"])
    train, test = (
        load(
            source, split, training=split == "train", data_dir=photos,
            folds=3, engine="python", pad=split != "train", **SIZE,
        )[0]
        for split in ("train", "validation")
    )  # fmt: skip
    train_and_evaluate(train, test, 12, epochs=12)


class Seen(keras.layers.Layer):
    """Notes the batches that a model is trained on."""

    def __init__(self):
        super().__init__()
        self.sums = []

    def call(self, x, training=False):
        if training:
            self.sums.append(np.asarray(keras.ops.sum(x)).item())
        return x


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
def test_fit_gets_the_batches_in_their_order(photos, engine):
    def fresh():
        return load(photos, "train", training=True, engine=engine, **SIZE)[0]

    def sums(batches):
        return [np.asarray(b[0]).astype("float32").sum() for b in batches]

    def seen_by_fit(dataset, **options):
        seen = Seen()
        model = keras.Sequential(
            [keras.Input((16, 16, 3)), seen, keras.layers.Flatten(),
             keras.layers.Dense(3)]
        )  # fmt: skip
        # A compiled step could not record anything.
        model.compile(
            "sgd", "sparse_categorical_crossentropy", run_eagerly=True
        )
        model.fit(dataset, verbose=0, **options)
        return seen.sums

    once = fresh()
    expected = sums(once) + sums(once)
    assert len(set(expected)) == 8
    np.testing.assert_allclose(seen_by_fit(fresh(), epochs=2), expected)
    np.testing.assert_allclose(seen_by_fit(fresh().at(3, 4)), expected[3:7])
    np.testing.assert_allclose(
        seen_by_fit(fresh().at(0, 8), epochs=4, steps_per_epoch=2), expected
    )


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
def test_class_weights_in_fit_and_in_load(photos, engine):
    # Keras takes no class above the highest that is named.
    weights = {0: 5.0, 2: 1.0}
    losses = []
    for in_load, in_fit in ((weights, None), (None, weights)):
        # Keras reads ahead after weighing: not to the end of this pass.
        train, _ = load(
            photos, "train", training=True, engine=engine,
            class_weight=in_load, **SIZE,
        )  # fmt: skip
        train = train.at(0, 500)
        model = classifier()
        done = model.fit(
            train, class_weight=in_fit, steps_per_epoch=4, verbose=0
        )
        losses.append(done.history["loss"][0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_tensorflow_sees_no_gpu_under_another_backend(monkeypatch):
    import tensorflow as tf

    from keras_augreg.data import engine_tensorflow

    hidden = []
    monkeypatch.setattr(
        tf.config, "get_visible_devices", lambda kind: ["GPU:0"]
    )
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda *a: hidden.append(a)
    )
    engine_tensorflow.tensorflow()
    backend = keras.backend.backend()
    assert hidden == ([] if backend == "tensorflow" else [([], "GPU")])
