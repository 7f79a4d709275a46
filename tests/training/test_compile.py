"""compile_pretraining and compile_finetuning."""

import contextlib
import io
import math
import warnings

import keras
import numpy as np
import pytest

from keras_augreg import FeatureExtractor, VisionTransformer, data, training
from keras_augreg.augment import AugRegAugment
from keras_augreg.data.sources import Examples
from keras_augreg.recipe import AugReg
from keras_augreg.training.losses import SoftmaxCrossentropy

CLASSES = 5


def build(**changes):
    keras.utils.set_random_seed(0)
    return VisionTransformer(
        **{
            "patch_size": 8,
            "width": 16,
            "depth": 1,
            "num_heads": 2,
            "mlp_dim": 32,
            "input_shape": (16, 16, 3),
            "classes": CLASSES,
            "seed": 0,
            **changes,
        }
    )


def pretrain(model, recipe="medium1", **changes):
    training.compile_pretraining(
        model,
        AugReg(recipe) if isinstance(recipe, str) else recipe,
        **{"total_steps": 20, "warmup_steps": 5, "seed": 3, **changes},
    )
    return model


def finetune(model, **changes):
    settings = {"total_steps": 20, "warmup_steps": 5, "learning_rate": 0.1}
    training.compile_finetuning(model, **{**settings, **changes})
    return model


def batch(n=16):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, 16, 16, 3)).astype("uint8")
    return images, (np.arange(n) % CLASSES).astype("int32")


def weights(model):
    arrays = []
    for variable in model.trainable_weights:
        array = np.array(keras.ops.convert_to_numpy(variable))
        if variable.path.endswith("qkv_bias"):
            array[1] = 0  # A key's bias has no gradient but rounding noise.
        arrays.append(array)
    return arrays


def assert_close(got, want):
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g, w, rtol=1e-5, atol=1e-6)


def fit(model, n=16, batch_size=8, epochs=2, **kwargs):
    history = model.fit(
        *batch(n),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        **kwargs,
    )
    return history.history


def test_paper_settings():
    model, recipe = build(), AugReg("light1", weight_decay=0.03)
    training.compile_pretraining(model, recipe, total_steps=90_000)
    adam = model.optimizer
    assert (adam.beta_1, adam.beta_2, adam.epsilon) == (0.9, 0.999, 1e-8)
    assert (adam.weight_decay, adam.global_clipnorm) == (0.03, 1.0)
    rates = [
        float(adam._learning_rate(s))
        for s in (0, 5_000, 10_000, 50_000, 90_000)
    ]
    np.testing.assert_allclose(rates, [0, 5e-4, 1e-3, 5e-4, 0], atol=1e-9)
    training.compile_finetuning(model, total_steps=2_500, learning_rate=0.03)
    sgd = model.optimizer
    assert (sgd.momentum, sgd.weight_decay) == (0.9, None)
    assert sgd.global_clipnorm == 1.0
    # 200 steps of warm-up: Table 4 of arXiv 2106.10270v2.
    assert float(sgd._learning_rate(200)) == pytest.approx(0.03)
    assert float(sgd._learning_rate(100)) == pytest.approx(0.015)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_trains_on_logits_whatever_the_activation(loss):
    results = []
    for activation in ("softmax", "sigmoid", None):
        model = build(classifier_activation=activation)
        model = pretrain(model, "none", loss=loss)
        history = fit(model, validation_data=batch())
        results.append((history["loss"] + history["val_loss"], weights(model)))
    for losses, ends in results[1:]:
        np.testing.assert_allclose(losses, results[0][0], rtol=1e-5)
        assert_close(ends, results[0][1])
    model = pretrain(build(), "none")
    # Predictions are still what the classifier says.
    np.testing.assert_allclose(
        model.predict(batch()[0], verbose=0).sum(-1), 1.0, rtol=1e-5
    )


def test_first_loss_and_the_prior_of_a_fresh_head():
    model = pretrain(build(), "none", loss="sigmoid")
    bias = keras.ops.convert_to_numpy(model.get_layer("head").bias)
    np.testing.assert_allclose(bias, -math.log(CLASSES), rtol=1e-6)
    p = 1 / (1 + CLASSES)
    want = -math.log(p) - (CLASSES - 1) * math.log(1 - p)
    got = model.evaluate(*batch(), verbose=0, return_dict=True)["loss"]
    assert got == pytest.approx(want, rel=1e-5)
    # A head that was trained stays.
    pretrained = pretrain(build(), "none", loss="softmax")
    fit(pretrained)
    before = weights(pretrained)
    assert_close(weights(pretrain(pretrained, "none", loss="sigmoid")), before)


@pytest.fixture(scope="module")
def augmenting():
    """Gives one model for each `augment_on`, each time as if just compiled.

    Compiling RandAugment into a training step takes most of a test's time.
    """
    kept = {}

    def give(where):
        if where not in kept:
            model = pretrain(build(), augment_on=where)
            variables = [*model.variables, *model.optimizer.variables]
            start = [keras.ops.convert_to_numpy(v).copy() for v in variables]
            kept[where] = model, variables, start
        model, *states = kept[where]
        for variable, value in zip(*states, strict=True):
            variable.assign(value)
        return model

    return give


def test_augments_on_the_device_by_seed_and_step(augmenting):
    """`fit` sees what the layer makes by hand, and goes on drawing so."""
    model = augmenting("device")
    fit(model, epochs=2)
    layer = AugRegAugment(AugReg("medium1"), CLASSES, seed=3)
    by_hand = pretrain(build(), "none")
    images, labels = batch()
    for step in range(4):
        part = slice(step % 2 * 8, step % 2 * 8 + 8)
        x, y = layer(images[part], labels[part], step=step)
        by_hand.train_on_batch(x, y)
    assert_close(weights(model), weights(by_hand))
    plain = pretrain(build(), "none")
    fit(plain, epochs=2)
    with pytest.raises(AssertionError):
        assert_close(weights(model), weights(plain))


def test_host_augmentation_is_the_device_s(augmenting):
    tf = pytest.importorskip("tensorflow")
    ends = []
    for where in ("device", "host"):
        model = augmenting(where)
        dataset = tf.data.Dataset.from_tensor_slices(batch()).batch(8)
        model.fit(dataset, epochs=2, verbose=0)
        ends.append(weights(model))
    assert_close(*ends)


@pytest.fixture
def photos():
    """`data.load`'s batches of the engine without TensorFlow."""
    images, labels = batch(24)
    source = list(zip(images, labels, strict=True))

    def load(**options):
        options = data.Options(engine="python", **options)
        return data.load(
            source, "all", image_size=16, batch_size=8, training=True,
            class_names=[*"abcde"], options=options,
        )[0]  # fmt: skip

    return load


def test_host_augmentation_without_tensorflow_is_the_device_s(
    photos, augmenting
):
    """Over several passes, from a step on, and in one long pass."""
    ends = {}
    for where in ("device", "host", "auto"):
        train = photos()
        model = augmenting(where)
        model.fit(train, epochs=2, verbose=0)
        model.fit(train.at(6, 20), steps_per_epoch=2, epochs=2, verbose=0)
        assert model._on_host == (where != "device")
        ends[where] = weights(model)
    assert_close(ends["device"], ends["host"])
    assert_close(ends["device"], ends["auto"])


def test_host_augmentation_leaves_out_broken_images(
    photos, augmenting, monkeypatch
):
    """What takes a broken image's place is augmented in that place."""
    picture = Examples.example

    def example(self, number):
        if number in (2, 9):
            raise data.ImageError("broken")
        return picture(self, number)

    monkeypatch.setattr(Examples, "example", example)
    ends = []
    for where in ("device", "host"):
        model = augmenting(where)
        model.fit(photos(on_error="skip"), verbose=0)
        ends.append(weights(model))
    assert_close(*ends)
    model = augmenting("host")
    with pytest.raises(data.ImageError, match="broken"):
        model.fit(photos(), verbose=0)
    weighted = photos(sample_weight=np.ones(24))
    with pytest.raises(ValueError, match="Mixup mixes examples"):
        model.fit(weighted, verbose=0)


def test_auto_augments_a_dataset_on_the_host_of_a_cpu(augmenting):
    """And never twice or not at all, whatever `fit` gets next."""
    tf = pytest.importorskip("tensorflow")
    dataset = tf.data.Dataset.from_tensor_slices(batch()).batch(8)
    ends = []
    for where in ("auto", "device"):
        model = augmenting(where)
        places = []
        for x in (dataset, batch(), dataset):
            arrays = isinstance(x, tuple)
            args = (*x, 8) if arrays else (x,)
            model.fit(*args, shuffle=False, verbose=0)
            places.append(model._on_host)
        model.train_on_batch(*batch(8))
        places.append(model._on_host)
        ends.append(weights(model))
        auto = where == "auto"
        assert places == [auto, False, auto, False]
    assert_close(*ends)


def test_takes_a_loss_and_keras_s_arguments():
    """The same as by name; what is given replaces the default metrics."""
    named, given = build(), build()
    pretrain(named, "none", loss="softmax")
    pretrain(
        given,
        "none",
        loss=SoftmaxCrossentropy(),
        weighted_metrics=[],
        metrics=[],
    )
    histories = [fit(named), fit(given)]
    assert list(histories[1]) == ["loss"]
    assert isinstance(given.evaluate(*batch(), verbose=0), float)
    assert_close(weights(named), weights(given))


def test_soft_and_integer_labels_are_the_same():
    images, labels = batch()
    ends = []
    for y in (labels, np.eye(CLASSES, dtype="float32")[labels]):
        model = pretrain(build(), "none")
        model.fit(images, y, batch_size=8, shuffle=False, verbose=0)
        ends.append(weights(model))
    assert_close(*ends)


def test_accumulation_is_the_larger_batch():
    large = finetune(build(), total_steps=6, warmup_steps=2)
    fit(large, batch_size=16, epochs=4)
    small = finetune(
        build(), total_steps=6, warmup_steps=2, gradient_accumulation_steps=2
    )
    fit(small, batch_size=8, epochs=4)
    assert_close(weights(small), weights(large))


def test_freezing_trains_the_classifier_alone():
    model = finetune(build(), freeze=True)
    before = model.get_weights()
    assert {v.path for v in model.trainable_variables} == {
        "head/kernel",
        "head/bias",
    }
    fit(model)
    changed = [
        v.path
        for v, w in zip(model.weights, before, strict=True)
        if not np.array_equal(keras.ops.convert_to_numpy(v), w)
    ]
    assert changed == ["head/kernel", "head/bias"]
    assert len(finetune(model).trainable_variables) == len(before)


def trained(model):
    return {v.path.split("/")[0] for v in model.trainable_variables}


ALL = {
    "embedding", "posembed_input", "encoderblock_0", "encoderblock_1",
    "encoder_norm", "head",
}  # fmt: skip


@pytest.mark.parametrize(
    ("freeze", "left"),
    [
        (False, ALL),
        (True, {"head"}),
        ("backbone", {"head"}),
        (1, {"encoderblock_1", "encoder_norm", "head"}),
        (2, {"encoder_norm", "head"}),
        (
            ["embedding", "encoderblock_1"],
            ALL - {"embedding", "encoderblock_1"},
        ),
    ],
)
def test_what_is_frozen(tmp_path, freeze, left):
    """Until compiled again, also after saving; the user's choice stays."""
    model = finetune(build(depth=2), freeze=freeze)
    assert trained(model) == left
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert trained(again) == left
    assert trained(finetune(again)) == ALL
    assert trained(pretrain(finetune(again, freeze=freeze), "none")) == ALL

    attention = again.get_layer("encoderblock_0").attention
    attention.trainable = again.get_layer("encoder_norm").trainable = False
    assert trained(finetune(again, freeze=freeze)) == left - {"encoder_norm"}
    assert trained(finetune(again)) == ALL - {"encoder_norm"}
    assert not attention.trainable
    assert trained(pretrain(again, "none")) == ALL - {"encoder_norm"}


@pytest.mark.parametrize("saved", [False, True])
def test_what_the_user_froze_stays_frozen(tmp_path, saved):
    """Also a layer or weight that a compilation had frozen already."""

    def stored(model):
        if not saved:
            return model
        model.save(tmp_path / "model.keras")
        return keras.saving.load_model(tmp_path / "model.keras")

    model = build(depth=2)
    block = model.get_layer("encoderblock_0")
    block.mlp_kernel1.trainable = False
    model = stored(finetune(model, freeze="backbone"))
    assert trained(model) == {"head"}
    block = model.get_layer("encoderblock_0")
    block.attention.trainable = False
    block.norm1.gamma.trainable = False
    model.get_layer("encoderblock_1").trainable = False
    model = stored(finetune(stored(model)))
    assert trained(model) == ALL - {"encoderblock_1"}
    block = model.get_layer("encoderblock_0")
    left = {v.path.split("/", 1)[1] for v in block.trainable_variables}
    assert left == {
        "norm1/beta", "norm2/beta", "norm2/gamma",
        "mlp_bias1", "mlp_kernel2", "mlp_bias2",
    }  # fmt: skip
    finetune(model, freeze=np.int64(1))
    assert trained(model) == {"encoder_norm", "head"}
    model.trainable = True
    assert trained(finetune(model)) == trained(model) == ALL
    assert len(block.trainable_variables) == 12


@pytest.mark.parametrize("freeze", ["head", 0, 2, -1, ["nolayer"], 0.5])
def test_refuses_to_freeze_anything_else(freeze):
    with pytest.raises(ValueError, match="a number of blocks from 1 to 1"):
        finetune(build(), freeze=freeze)


def test_refuses_to_train_nothing():
    for compiled in (finetune, lambda m: pretrain(m, "none")):
        model = build()
        model.trainable = False
        with pytest.raises(ValueError, match="every layer is frozen"):
            compiled(model)


def test_evaluate_returns_what_was_asked_for():
    model = finetune(build())
    loss, accuracy = model.evaluate(*batch(), verbose=0)
    named = model.evaluate(*batch(), verbose=0, return_dict=True)
    assert named == {"loss": loss, "accuracy": accuracy}
    assert model.test_on_batch(*batch()) == pytest.approx([loss, accuracy])
    assert len(model.train_on_batch(*batch())) == 2
    top = keras.metrics.SparseTopKCategoricalAccuracy(5, name="top")
    finetune(model, metrics=[top])
    named = model.evaluate(*batch(), verbose=0, return_dict=True)
    assert set(named) == {"loss", "top"}
    assert named["top"] == 1.0


def test_own_loss_of_a_subclass_is_logged():
    class Distilled(VisionTransformer):
        def compute_loss(self, *args, **kwargs):
            return 0.0 * super().compute_loss(*args, **kwargs) + 7.0

    model = Distilled.from_config(build().get_config())
    history = fit(finetune(model))
    assert history["loss"] == [7.0, 7.0]
    assert model.evaluate(*batch(), verbose=0)[0] == 7.0


@pytest.mark.parametrize("from_logits", [True, False])
@pytest.mark.parametrize(
    ("loss", "activation"),
    [
        (keras.losses.SparseCategoricalCrossentropy, "softmax"),
        (keras.losses.CategoricalCrossentropy, "softmax"),
        (keras.losses.BinaryCrossentropy, "sigmoid"),
    ],
)
def test_losses_get_logits_or_probabilities(loss, activation, from_logits):
    """Labels that the model is sure of have no loss."""
    model = build(classifier_activation=activation)
    head = model.get_layer("head")
    head.kernel.assign(30 * keras.random.normal(head.kernel.shape, seed=0))
    images, _ = batch()
    labels = np.round(model.predict(images, verbose=0))
    if loss is keras.losses.SparseCategoricalCrossentropy:
        labels = labels.argmax(axis=-1)
    finetune(model, loss=loss(from_logits=from_logits))
    value, accuracy = model.evaluate(images, labels, verbose=0)
    assert value < 0.05
    assert accuracy == 1.0
    logits = build(classifier_activation=None)
    if from_logits:
        finetune(logits, loss=loss(from_logits=True))
        return
    with pytest.raises(ValueError, match="Make it with from_logits=True"):
        finetune(logits, loss=loss())


@keras.saving.register_keras_serializable("test_compile")
def sum_of_squares(y_true, y_pred):
    return keras.ops.sum((y_true - y_pred) ** 2, axis=-1)


def sure(**changes):
    """A model with a head that tells images apart, and what it predicts."""
    model = build(**changes)
    head = model.get_layer("head")
    head.kernel.assign(keras.random.normal(head.kernel.shape, seed=0) / 3)
    return model, model.predict(batch()[0], verbose=0)


def asked(labels, predictions):
    """Metrics of Keras, and what they say of predictions."""
    metrics = {
        "bce": keras.metrics.BinaryCrossentropy(name="bce"),
        "auc": keras.metrics.AUC(name="auc", multi_label=True),
        "precision": keras.metrics.Precision(name="precision"),
        "recall": keras.metrics.Recall(name="recall"),
        "half": keras.metrics.BinaryAccuracy(name="half"),
    }
    if predictions.shape[1] > 1:
        metrics["ce"] = keras.metrics.CategoricalCrossentropy(name="ce")
        metrics["top"] = keras.metrics.TopKCategoricalAccuracy(2, name="top")
    want = {}
    for name, metric in metrics.items():
        metric.update_state(labels, predictions)
        want[name] = float(metric.result())
        metric.reset_state()
    return list(metrics.values()), want


@pytest.mark.parametrize(
    ("classes", "activation", "loss"),
    [
        (CLASSES, "softmax", "softmax"),
        (CLASSES, None, "softmax"),
        (CLASSES, "sigmoid", keras.losses.BinaryCrossentropy(from_logits=True)),
        (1, "sigmoid", "sigmoid"),
        (1, None, "sigmoid"),
    ],
)
def test_metrics_get_probabilities_whatever_the_loss_gets(
    classes, activation, loss
):
    """Exactly those that were asked for."""
    model, predictions = sure(classes=classes, classifier_activation=activation)
    images, labels = batch()
    columns = np.eye(CLASSES)[labels] if classes > 1 else labels[:, None] % 2
    if activation is None:
        exact = predictions.astype("float64")
        predictions = np.exp(exact - exact.max(-1, keepdims=True))
        predictions /= predictions.sum(-1, keepdims=True)
        if classes == 1:
            predictions = 1 / (1 + np.exp(-exact))
    metrics, want = asked(columns, predictions.astype("float32"))
    columns = columns.astype("float32")
    logits = keras.metrics.BinaryCrossentropy(from_logits=True, name="logits")
    finetune(model, loss=loss, metrics=metrics, weighted_metrics=[logits])
    got = model.evaluate(images, columns, verbose=0, return_dict=True)
    assert set(got) == {"loss", *want, "logits"}
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    if activation != "softmax" and not (activation is None and classes > 1):
        assert got["logits"] == pytest.approx(want["bce"], rel=1e-4)
    if classes > 1 and loss == "softmax":
        numbers = model.evaluate(images, labels, verbose=0, return_dict=True)
        assert {k: numbers[k] for k in want} == pytest.approx(want, 1e-4)


def test_metrics_by_name_and_none():
    model, _ = sure()
    for metrics in (["accuracy"], ["acc"], []):
        finetune(model, metrics=metrics)
        named = model.evaluate(*batch(), verbose=0, return_dict=True)
        assert set(named) == {"loss", *metrics}
    want = np.mean(
        model.predict(batch()[0], verbose=0).argmax(-1) == batch()[1]
    )
    finetune(model, metrics="accuracy")
    assert model.evaluate(*batch(), verbose=0)[1] == pytest.approx(want)
    with pytest.raises(ValueError, match="AUC was told to expect logits"):
        finetune(
            model,
            loss="categorical_crossentropy",
            metrics=[keras.metrics.AUC(from_logits=True)],
        )


def test_metrics_under_mixup(tmp_path):
    """Labels are mixed in training, and numbers in the validation."""
    model, _ = sure()
    sparse = keras.metrics.SparseCategoricalAccuracy(name="sparse")
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    pretrain(model, loss=loss, metrics=["accuracy", sparse])
    history = fit(model, validation_data=batch())
    assert history["val_accuracy"] == history["val_sparse"]
    assert set(history) == {
        prefix + name
        for prefix in ("", "val_")
        for name in ("loss", "accuracy", "sparse")
    }
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.evaluate(*batch(), verbose=0) == model.evaluate(
        *batch(), verbose=0
    )


@pytest.mark.parametrize(
    "loss", ["mse", "MeanSquaredError", keras.losses.mean_squared_error]
)
def test_losses_of_keras_by_name(loss):
    model = finetune(build(classes=1, classifier_activation=None), loss=loss)
    assert isinstance(model.loss, keras.losses.MeanSquaredError)


def test_a_function_as_loss(tmp_path):
    model = build(classes=1, classifier_activation=None)
    finetune(model, loss=sum_of_squares)
    images, targets = batch()[0], np.linspace(0, 1, 16, dtype="float32")
    want = model.evaluate(images, targets, verbose=0)
    assert want == pytest.approx(np.mean(targets**2), rel=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.evaluate(images, targets, verbose=0) == pytest.approx(want)
    with pytest.raises(ValueError, match=r"expects probabilities.*Build the"):
        finetune(model, loss=keras.losses.KLDivergence())


def test_one_output():
    images, labels = batch()
    labels = labels % 2
    model = build(classes=1, classifier_activation="sigmoid")
    finetune(model, loss="sigmoid", learning_rate=0.01)
    first = model.evaluate(images, labels, verbose=0)
    assert first == pytest.approx([math.log(2), 10 / 16], rel=1e-3)
    model.fit(images, labels, verbose=0)
    column = model.evaluate(images, labels[:, None], verbose=0)
    assert column == model.evaluate(images, labels, verbose=0)
    with pytest.raises(ValueError, match="With one class, softmax"):
        finetune(model)

    regression = build(classes=1, classifier_activation=None)
    finetune(
        regression, loss=keras.losses.MeanSquaredError(), weighted_metrics="mae"
    )
    targets = np.linspace(0, 1, 16, dtype="float32")
    regression.fit(images, targets, verbose=0)
    values = regression.evaluate(images, targets, verbose=0, return_dict=True)
    assert set(values) == {"loss", "mae"}


def test_label_smoothing():
    model = finetune(build(), label_smoothing=0.1)
    assert model.loss.label_smoothing == 0.1
    with pytest.raises(ValueError, match="Give it to the loss itself"):
        finetune(build(), loss=SoftmaxCrossentropy(), label_smoothing=0.1)


def test_own_learning_rates():
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.9)
    model = finetune(build(), learning_rate=decay, total_steps=None)
    fit(model)
    with pytest.raises(ValueError, match="Pass total_steps=None"):
        finetune(build(), learning_rate=decay)
    finetune(model, learning_rate=0.1, total_steps=None)
    halved = keras.callbacks.LearningRateScheduler(lambda _, rate: rate / 2)
    fit(model, callbacks=[halved])
    assert float(model.optimizer.learning_rate) == pytest.approx(0.025)
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.5, patience=1, min_delta=100
    )
    fit(model, epochs=3, callbacks=[plateau])
    assert float(model.optimizer.learning_rate) < 0.025
    training.compile_finetuning(model, total_steps=10)
    for callback in (halved, plateau):
        with pytest.raises(
            ValueError, match="Compile it with total_steps=None"
        ):
            fit(model, callbacks=[callback])
    assert model.optimizer._learning_rate.warmup_target == 0.003


def test_copies_of_a_compiled_model(tmp_path):
    """Saved, or cloned by Keras, they keep everything."""
    model = pretrain(build(class_names=list("abcde")), "light2")
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    expected = model.evaluate(*batch(), verbose=0), fit(model)["loss"]
    for other in (clone, again):
        assert other.class_names == tuple("abcde")
        assert other._options.augment.recipe == AugReg("light2")
        assert other._options.on_logits
        assert_close(other.evaluate(*batch(), verbose=0), expected[0])
        assert_close(fit(other)["loss"], expected[1])


def test_clones_keep_what_was_frozen(tmp_path):
    model = build()
    model.get_layer("encoderblock_0").trainable = False
    model.get_layer("posembed_input").pos_embedding.trainable = False
    finetune(model, freeze="backbone")
    clone = keras.models.clone_model(keras.models.clone_model(model))
    for phase in ("backbone", False):
        for x in (clone, model):
            finetune(x, freeze=phase)
        got, expected = (
            [v.path.split("/", 1)[1] for v in x.trainable_variables]
            for x in (clone, model)
        )
        assert got == expected
    clone.save(tmp_path / "clone.keras")
    again = keras.saving.load_model(tmp_path / "clone.keras")
    assert len(again.trainable_variables) == len(expected)

    model.trainable = False
    assert not keras.models.clone_model(model).trainable_variables


def test_clones_with_other_layers(tmp_path):
    """A changed layer is kept; another graph makes a plain model."""
    model = finetune(build(class_names=list("abcde")))

    def decayed(layer):
        config = layer.get_config()
        if layer.name == "head":
            config["kernel_regularizer"] = keras.regularizers.L2(0.1)
        return layer.__class__.from_config(config)

    clone = keras.models.clone_model(model, clone_function=decayed)
    fit(clone)
    assert len(clone.losses) == 1
    clone.save(tmp_path / "clone.keras")
    assert len(keras.saving.load_model(tmp_path / "clone.keras").losses) == 1

    def other_head(layer):
        if layer.name == "head":
            return keras.layers.Dense(7, name="head")
        return layer.__class__.from_config(layer.get_config())

    plain = keras.models.clone_model(model, clone_function=other_head)
    assert plain.output_shape == (None, 7)
    with pytest.raises(ValueError, match="Compile the clone with Keras's"):
        fit(plain)
    plain.compile("sgd", "sparse_categorical_crossentropy")
    fit(plain)
    again = keras.models.clone_model(plain)
    assert type(again) is type(plain) is not type(model)


def test_jit_compile_is_the_backend_s_choice_again():
    model = finetune(build())
    assert model.get_compile_config()["jit_compile"] == "auto"
    extractor = FeatureExtractor(model)
    extractor.compile("sgd", "mse")
    assert extractor.get_compile_config()["jit_compile"] == "auto"
    finetune(model, jit_compile=False)
    assert model.get_compile_config()["jit_compile"] is False


class OwnStep(VisionTransformer):
    """Trains in a step of its own, as Keras's guides show."""

    def train_step(self, *args):
        *state, (x, y) = args
        if not state:
            y_pred = self(x, training=True)
            loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
            self.metrics[0].update_state(loss)
            return self.compute_metrics(x, y, y_pred)
        ((trainable, others, optimizer, metrics),) = state
        y_pred, others = self.stateless_call(
            trainable, others, x, training=True
        )
        loss = self.compute_loss(x=x, y=y, y_pred=y_pred)
        return {"loss": loss}, (trainable, others, optimizer, metrics)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_a_training_step_of_ones_own_gets_logits(activation):
    loss = "sigmoid" if activation == "sigmoid" else "softmax"
    model = OwnStep(
        4, 8, 1, 2, 8, input_shape=(16, 16, 3), classes=CLASSES,
        classifier_activation=activation,
    )  # fmt: skip
    head = model.get_layer("head").kernel
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    finetune(model, loss=loss)
    x, y = batch()
    expected = model.evaluate(x, y, verbose=0)
    logged = model.fit(x, y, batch_size=len(x), verbose=0).history
    assert logged["loss"] == pytest.approx([expected[0]], rel=1e-5)
    if keras.backend.backend() != "jax":
        assert logged["accuracy"] == pytest.approx([expected[1]])
    if activation == "softmax":
        finetune(model, loss="sigmoid")
        with pytest.raises(ValueError, match="with classifier_activation=None"):
            model.fit(x, y, verbose=0)


def test_weights_that_changed_since_compiling():
    x, y = batch()
    model = finetune(build())
    model.enable_lora(2)
    with pytest.raises(
        ValueError, match=r"or adapted by LoRA since\. Compile it"
    ):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match="Compile it again"):
        model.train_on_batch(x, y)
    finetune(model)
    fit(model)
    model = finetune(build())
    model.get_layer("encoderblock_0").trainable = False
    if keras.backend.backend() == "jax":
        with pytest.raises(ValueError, match="layers were frozen or unfrozen"):
            fit(model)
    else:  # as in Keras
        fit(model)


@pytest.mark.parametrize("classes", [1, CLASSES])
def test_metrics_of_keras_take_numbers_and_columns(classes):
    activation = "sigmoid" if classes == 1 else "softmax"
    model = build(classes=classes, classifier_activation=activation)
    head = model.get_layer("head").kernel
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    m = keras.metrics
    metrics = [
        m.TruePositives(), m.FalseNegatives(), m.PrecisionAtRecall(0.5),
        m.SensitivityAtSpecificity(0.5), m.F1Score("macro"), m.AUC(), m.Hinge(),
        m.CosineSimilarity(), m.R2Score(), m.RootMeanSquaredError(), "mse",
    ]  # fmt: skip
    if classes > 1:
        metrics += [m.CategoricalHinge(), m.OneHotMeanIoU(classes)]
    x, numbers = batch()
    numbers %= classes + (classes == 1)
    columns = np.eye(classes, dtype="float32")[numbers % classes]
    if classes == 1:
        columns = numbers[:, None].astype("float32")
    finetune(model, loss=activation, metrics=metrics)
    got, expected = (
        model.evaluate(x, y, verbose=0) for y in (numbers, columns)
    )
    assert len(got) == 1 + len(metrics)
    assert got == pytest.approx(expected, rel=1e-5)
    plain = keras.Model(model.input, model.output)
    plain.compile(loss="mse", metrics=[type(x).from_config(x.get_config())
                           for x in metrics if x != "mse"])  # fmt: skip
    by_keras = plain.evaluate(x, columns, verbose=0, return_dict=True)
    named = model.evaluate(x, numbers, verbose=0, return_dict=True)
    for name, value in by_keras.items():
        if name != "loss":
            assert named[name] == pytest.approx(value, rel=1e-4), name


def test_labels_of_a_renamed_loss():
    x, y = batch()
    loss = keras.losses.SparseCategoricalCrossentropy(True, name="mine")
    model = finetune(build(), loss=loss)
    with pytest.raises(ValueError, match="example 2 is 5"):
        model.fit(x, y + 3, verbose=0)


@pytest.mark.once
def test_labels_that_are_text():
    x, _ = batch()
    model = finetune(build())
    for names in (np.array(["cat", "dog"] * 8), np.array([b"cat"] * 16, "O")):
        for entry in (model.fit, model.evaluate, model.train_on_batch):
            with pytest.raises(ValueError, match=r"text, .*cat.*class_names"):
                entry(x, names)


def test_one_class_is_no_choice():
    binary = {"classes": 1, "classifier_activation": "sigmoid"}
    for given, loss in (
        ({"classes": 1}, "sigmoid"),
        ({"classes": 1}, "binary_crossentropy"),
        (binary, "softmax"),
        (binary, "categorical_crossentropy"),
        (binary, "sparse_categorical_crossentropy"),
        (binary, "kl_divergence"),
    ):
        with pytest.raises(ValueError, match="With one class, softmax always"):
            finetune(build(**given), loss=loss)


def test_wrong_arguments_of_compile():
    model = build()
    for arguments, message in (
        ({"learning_rate": -1.0}, "above 0 or a keras.*=-1.0"),
        ({"learning_rate": float("nan")}, "above 0 or a"),
        ({"learning_rate": "0.1"}, "above 0 or a"),
        ({"learning_rate": None}, "above 0 or a"),
        ({"learning_rate": lambda step: 0.1}, "above 0 or a"),
        ({"total_steps": True}, "an integer of at least 1.*=True"),
        ({"total_steps": "10"}, "an integer of at least 1.*='10'"),
        ({"total_steps": 0}, "an integer of at least 1.*=0"),
    ):
        with pytest.raises(ValueError, match=message):
            training.compile_finetuning(
                model, **{"total_steps": 9, **arguments}
            )
    for name in ("optimizer", "weight_decay", "epochs"):
        with pytest.raises(TypeError, match=rf"call `model.compile`.*: {name}"):
            finetune(model, **{name: 1})


def test_callbacks_in_a_list_of_keras():
    model = finetune(build())
    callbacks = keras.callbacks.CallbackList(
        [
            keras.callbacks.SwapEMAWeights(),
            keras.callbacks.EarlyStopping("loss", restore_best_weights=True),
        ],
        model=model,
    )
    with pytest.raises(ValueError, match="SwapEMAWeights validates"):
        fit(model, callbacks=callbacks)


def test_half_precision_throughout():
    """Gradients of adapters are float32, those of weights are not."""
    model = build(dtype="bfloat16")
    model.enable_lora(2)
    for compile in (finetune, pretrain):
        compile(model)
        assert np.isfinite(fit(model)["loss"]).all()
    assert model.predict(batch()[0], verbose=0).shape == (16, CLASSES)


def test_labels_of_another_shape(monkeypatch):
    """TensorFlow would trace once for both shapes and know neither rank."""
    # Mixup alone: RandAugment, which takes long to compile, sees no labels.
    monkeypatch.setattr(AugReg, "randaugment", None)
    images, labels = batch()
    soft = np.eye(CLASSES, dtype="float32")[labels]
    model = pretrain(build(), "light2")
    for y in (labels, labels[:, None], soft):
        model.fit(images, y, validation_data=(images, y), verbose=0)
    model = pretrain(build(), "none")
    for y in (labels, labels[:, None], soft, labels):
        model.train_on_batch(images, y)
        model.fit(images, y, validation_data=(images, y), verbose=0)


class Batches(keras.utils.PyDataset):
    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


def test_wrong_images_after_the_first_batch():
    """One error, whatever brings them, before any update with them."""
    model = finetune(build())
    images, labels = batch(4)
    good = images, labels
    larger = np.zeros((4, 32, 32, 3), "uint8"), labels
    before = model.get_weights()

    def batches():
        return iter([good, larger])

    generator = (x for x in batches())
    for entry, updates in (
        (lambda: model.fit(*good, validation_data=larger, verbose=0), 0),
        (lambda: model.predict((x for x, _ in batches()), verbose=0), 0),
        (lambda: model.evaluate(Batches([*batches()]), verbose=0), 0),
        (lambda: FeatureExtractor(model).predict(larger[0], verbose=0), 0),
        (lambda: FeatureExtractor(model)(larger[0]), 0),
        (lambda: model.fit(generator, steps_per_epoch=2, verbose=0), 1),
        (lambda: model.fit(Batches([*batches()]), shuffle=False, verbose=0), 2),
    ):
        with pytest.raises(
            ValueError,
            match=r"\(batch, 16, 16, 3\)\. Received.*input_shape=\(32",
        ):
            entry()
        # Some of the good batches may have been used.
        assert int(model.optimizer.iterations) <= updates
        if not updates:
            for got, want in zip(model.get_weights(), before, strict=True):
                np.testing.assert_array_equal(got, want)


def test_unknown_shapes_of_datasets():
    tf = pytest.importorskip("tensorflow")
    model = finetune(build())
    _, labels = batch(4)
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([(np.zeros((4, 32, 32, 3), "uint8"), labels)]),
        output_signature=(
            tf.TensorSpec(None, "uint8"),
            tf.TensorSpec((None,), "int32"),
        ),
    )
    for entry in (model.fit, model.evaluate):
        with pytest.raises(
            ValueError, match=r"\(batch, 16, 16, 3\)\. Received"
        ):
            entry(dataset, verbose=0)


@pytest.mark.parametrize("soft", [False, True])
def test_refuses_to_train_on_an_empty_batch(soft):
    tf = pytest.importorskip("tensorflow")
    model = finetune(build(), loss="sigmoid" if soft else "softmax")
    images, labels = batch()
    labels = np.eye(CLASSES, dtype="float32")[labels] if soft else labels
    empty = images[:0], labels[:0]

    def batches():
        yield images, labels
        yield empty

    spec = [tf.TensorSpec((None, *x.shape[1:]), x.dtype) for x in empty]
    dataset = tf.data.Dataset.from_generator(
        batches, output_signature=tuple(spec)
    )
    for train, updates in (
        (lambda: model.train_on_batch(*empty), 0),
        (lambda: model.fit(*empty, verbose=0), 0),
        (lambda: model.fit(batches(), steps_per_epoch=2, verbose=0), 1),
        (lambda: model.fit(dataset, verbose=0), 2),
    ):
        with pytest.raises(ValueError, match="one or more images to train on"):
            train()
        assert int(model.optimizer.iterations) <= updates
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_class_weights():
    model, ignoring = finetune(build()), finetune(build())
    images, labels = batch()
    model.fit(
        images[labels < 2],
        labels[labels < 2],
        batch_size=16,
        class_weight={0: 1.0, 1: 0.0},
        shuffle=False,
        verbose=0,
    )
    x, y = images[labels < 2], labels[labels < 2]
    ignoring.fit(
        x,
        y,
        sample_weight=(y == 0).astype("float32"),
        batch_size=16,
        shuffle=False,
        verbose=0,
    )
    assert_close(weights(model), weights(ignoring))


def test_refuses_class_weights_with_mixup():
    with pytest.raises(ValueError, match="mixture has no weight"):
        fit(pretrain(build()), class_weight={0: 2.0})


def test_warns_of_updates_that_change_nothing():
    model = finetune(build(), total_steps=4, warmup_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fit(model, epochs=1)
    with pytest.warns(UserWarning, match="The last 2 updates changed nothing"):
        fit(model, epochs=2)
    before = weights(model)
    with pytest.warns(UserWarning, match="`fit` changes nothing: all `total_"):
        fit(model, epochs=1)
    assert_close(weights(model), before)


@pytest.mark.parametrize("optimizer", ["ours", "keras"])
def test_usable_after_fit_with_averages(tmp_path, optimizer):
    model = finetune(build(), ema_momentum=0.5)
    if optimizer == "keras":
        sgd = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
        model.compile(sgd, SoftmaxCrossentropy(), on_logits=True)
    fit(model)
    images, labels = batch()
    before = model.predict(images, verbose=0)
    model.evaluate(images, labels, verbose=0)
    model.save(tmp_path / "model.keras")
    model.save_weights(tmp_path / "model.weights.h5")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, loaded):
        np.testing.assert_allclose(
            each.predict(images, verbose=0), before, rtol=1e-5
        )
        fit(each)


@pytest.mark.parametrize("swap", [None, True])
def test_early_stopping_restores_what_was_validated(swap):
    rng = np.random.default_rng(1)
    images, labels = batch()
    validation = rng.permutation(images), labels
    model = finetune(build(), ema_momentum=0.9, learning_rate=0.3)
    stop = keras.callbacks.EarlyStopping(
        "val_loss", patience=1, restore_best_weights=True
    )
    callbacks = [keras.callbacks.SwapEMAWeights(True)] * bool(swap) + [stop]
    fit(model, epochs=6, validation_data=validation, callbacks=callbacks)
    got = model.evaluate(*validation, verbose=0, return_dict=True)["loss"]
    assert got == pytest.approx(stop.best, rel=1e-5)


def test_refuses_to_restore_what_was_not_validated():
    stop = keras.callbacks.EarlyStopping("loss", restore_best_weights=True)
    for callbacks in (
        [keras.callbacks.SwapEMAWeights(), stop],
        [stop, keras.callbacks.SwapEMAWeights(swap_on_epoch=True)],
    ):
        with pytest.raises(ValueError, match=r"EarlyStopping.*before it in"):
            fit(finetune(build(), ema_momentum=0.9), callbacks=callbacks)


def test_ema_ends_in_the_model():
    model = finetune(build(), ema_momentum=0.5)
    averages = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            averages.append(weights(self.model))

    fit(model, batch_size=16, epochs=3, callbacks=[Look()])
    want = averages[0]
    for later in averages[1:]:
        want = [0.5 * a + 0.5 * b for a, b in zip(want, later, strict=True)]
    assert_close(weights(model), want)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(policy):
    if (policy, keras.backend.backend()) == ("mixed_float16", "jax"):
        pytest.skip("XLA multiplies no float16 matrices on CPUs")
    model = finetune(build(dtype=policy))
    history = fit(model, epochs=4)
    assert np.isfinite(history["loss"]).all()
    assert history["loss"][-1] < history["loss"][0]
    assert {w.dtype for w in model.weights} == {"float32"}


def test_goes_on_after_save_and_load(tmp_path):
    whole = pretrain(build(), "medium1")
    fit(whole, epochs=4)
    part = pretrain(build(), "medium1")
    fit(part, epochs=2)
    part.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, VisionTransformer)
    fit(loaded, epochs=2)
    assert_close(weights(loaded), weights(whole))


def test_steps_per_execution():
    if keras.backend.backend() == "torch":
        with pytest.raises(ValueError, match="steps_per_execution=2"):
            finetune(build(), steps_per_execution=2)
        return
    one, two = finetune(build()), finetune(build(), steps_per_execution=2)
    fit(one), fit(two)
    assert_close(weights(one), weights(two))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": "most"}, "'sigmoid', 'softmax' or.*loss='most'"),
        ({"loss": 3}, "'sigmoid', 'softmax' or.*loss=3"),
        (
            {"loss": keras.losses.SparseCategoricalCrossentropy(True)},
            "makes probabilities of labels.*Pass loss='softmax'",
        ),
        (
            {"loss": "kl_divergence", "label_smoothing": 0.1},
            "Give it to the loss itself",
        ),
        ({"augment_on": "cloud"}, "'device', 'host'.*augment_on='cloud'"),
        ({"warmup_steps": 30}, "warmup_steps=30, total_steps=20"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        pretrain(build(), **arguments)


def test_refuses_another_dropout_than_the_recipe_s():
    with pytest.raises(ValueError, match=r"dropout=0.1.*a recipe.*dropout=0.0"):
        pretrain(build(dropout=0.1))
    with pytest.raises(
        ValueError, match="Build the model with `recipe=recipe`"
    ):
        pretrain(build(stochastic_depth=0.1))


def test_refuses_to_augment_scaled_images():
    scaled = build(include_preprocessing=False)
    with pytest.raises(ValueError, match="augments pixels from 0 to 255"):
        training.compile_pretraining(scaled, AugReg("light1"), total_steps=10)


def test_refuses_what_is_no_classifier():
    for model in (build(include_top=False), keras.Sequential()):
        with pytest.raises(TypeError, match="model with a classifier"):
            finetune(model)


def test_host_augmentation_needs_a_dataset():
    with pytest.raises(TypeError, match=r"augment_on='host'.*ndarray"):
        fit(pretrain(build(), augment_on="host"))


def test_plain_compile_forgets_logits_and_augmentation():
    model = pretrain(build())
    model.compile("sgd", SoftmaxCrossentropy())
    assert model._options == type(model._options)()


RATES = {"dropout": 0.1, "stochastic_depth": 0.2}


@pytest.mark.parametrize(
    ("policy", "rates"), [("float32", RATES), ("mixed_bfloat16", {})]
)
def test_remat_changes_no_result(policy, rates):
    outcomes = []
    for remat in (False, True):
        model = build(depth=2, dtype=policy, **rates)
        history = fit(pretrain(model, AugReg("none", **rates), remat=remat))
        seeds = model.non_trainable_variables
        outcomes.append(
            [history["loss"], *weights(model), *map(np.array, seeds)]
        )
    if policy == "float32":
        assert_close(*outcomes)
    else:
        np.testing.assert_allclose(outcomes[0][0], outcomes[1][0], rtol=2**-7)


def test_remat_of_frozen_blocks():
    """Blocks that are frozen entirely, or except for the MLP."""
    outcomes = []
    for remat in (False, True):
        for part in (False, True):
            model = build(depth=2)
            model.get_layer("encoderblock_0").attention.trainable = False
            compiled = pretrain if part else finetune
            more = {} if part else {"freeze": True}
            compiled(model, remat=remat, **more)
            history = fit(model)
            outcomes.append([history["loss"], *weights(model)])
    for plain, recomputed in zip(outcomes[:2], outcomes[2:], strict=True):
        assert_close(plain, recomputed)


def test_remat_is_part_of_the_compilation(tmp_path):
    model = pretrain(build(depth=2), remat=True)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        assert each.get_layer("encoderblock_1").remat
    assert not pretrain(model).get_layer("encoderblock_1").remat


def kept_for_the_backward_pass(model):
    """The amount of memory, as each backend reports it."""
    x, y = np.zeros((64, 16, 16, 3), "float32"), np.zeros(64, "int32")
    backend = keras.backend.backend()
    if backend == "jax":
        from jax.ad_checkpoint import print_saved_residuals

        state = [
            [v.value for v in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
            )
        ]

        def loss(trainable, rest):
            out, _ = model.stateless_call(trainable, rest, x, training=True)
            return model.compute_loss(y=y, y_pred=out)

        # Not the memory of the compiled step: XLA's CPU compiler joins the
        # two passes again.
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            print_saved_residuals(loss, *state)
        return printed.getvalue().count("\n")
    if backend == "torch":
        import torch

        sizes = []

        def keep(tensor):
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            model(torch.tensor(x), training=True)
        return sum(sizes)
    import tensorflow as tf

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(y=y, y_pred=model(x, training=True))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    gelus = [
        n
        for n in gradient.get_concrete_function().graph.as_graph_def().node
        if n.op == "Tanh"
    ]
    return -len(gelus)  # computed again: more of them, and fewer kept


def test_remat_keeps_less():
    kept = [
        kept_for_the_backward_pass(
            pretrain(build(depth=4, classifier_activation=None), remat=remat)
        )
        for remat in (False, True)
    ]
    assert kept[1] < kept[0]


def test_padding_is_no_example():
    """Several hosts fill their last batch up with examples of weight 0."""
    model = finetune(build(seed=1))
    head = model.get_layer("head").kernel
    head.assign(np.random.default_rng(0).normal(size=head.shape))
    x, y = batch(16)
    real = (np.arange(16) < 11).astype("float32")
    data = Batches([(x[:8], y[:8], real[:8]), (x[8:], y[8:], real[8:])])
    plain = model.evaluate(x[:11], y[:11], 11, verbose=0)
    own_weights = model.evaluate(data, verbose=0)
    assert own_weights == pytest.approx([plain[0] * 11 / 16, plain[1]], 1e-5)
    data.padded = True  # as what `data.load` returns
    assert model.evaluate(data, verbose=0) == pytest.approx(plain, rel=1e-5)
    seen = []
    evaluates = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(
            model.evaluate(x[:11], y[:11], 11, verbose=0)[0]
        )
    )
    for validation, others in ((data, (x, y)), ((x[:11], y[:11]), (data,))):
        history = model.fit(
            x, y, epochs=2, validation_data=validation, verbose=0,
            callbacks=[evaluates, keras.callbacks.LambdaCallback(
                on_epoch_end=lambda *_, data=others: model.evaluate(
                    *data, verbose=0
                )
            )],
        ).history  # fmt: skip
        assert history["val_loss"] == pytest.approx(seen[-2:], rel=1e-4)


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean"])
def test_padding_with_regularizers_and_reductions(reduction):
    model = build(seed=1)
    head = model.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=head.kernel.shape))
    head.kernel.regularizer = keras.regularizers.L2(0.5)
    loss = keras.losses.SparseCategoricalCrossentropy(
        True, reduction="sum_over_batch_size"
    )
    x, y = batch(8)
    finetune(model, loss=loss)
    plain = model.evaluate(x[:2], y[:2], 2, verbose=0)[0]
    penalty = float(keras.ops.sum(model.losses[0]))
    reduced = {"sum": 2 * (plain - penalty) + penalty}.get(reduction, plain)
    if reduction == "mean":
        reduction = "mean_with_sample_weight"
    loss = keras.losses.SparseCategoricalCrossentropy(True, reduction=reduction)
    finetune(model, loss=loss)
    data = Batches([(x, y, (np.arange(8) < 2).astype("float32"))])
    data.padded = True
    got = model.evaluate(data, verbose=0)[0]
    assert got == pytest.approx(reduced, rel=1e-5)


def test_the_logged_loss_is_what_is_optimized():
    """With regularizers, weights, reductions and own functions, as Keras's."""
    x, y = batch(16)
    weights = np.arange(16) % 3.0
    for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
        model = build(seed=1)
        head = model.get_layer("head")
        values = np.random.default_rng(0).normal(size=head.kernel.shape)
        head.kernel.assign(values)
        head.kernel.regularizer = keras.regularizers.L2(0.5)
        plain = keras.Model(model.input, model.output)
        loss = keras.losses.SparseCategoricalCrossentropy
        plain.compile(loss=loss(reduction=reduction))
        finetune(model, loss=loss(from_logits=True, reduction=reduction))
        for given in (None, weights):
            got, expected = (
                m.evaluate(x, y, 5, sample_weight=given, verbose=0)
                for m in (model, plain)
            )
            assert got[0] == pytest.approx(expected, rel=1e-5)
    model.compute_loss = lambda *args, **kwargs: keras.ops.convert_to_tensor(
        3.0
    )
    model.test_function = None
    assert model.evaluate(x, y, verbose=0)[0] == 3.0
