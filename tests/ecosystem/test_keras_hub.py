"""What KerasHub's tests ask of its image classifiers and vision backbones.

Other than there, the model scales its images itself, and `quantize` comes
after building: docs/guides/migrating.md names what is refused on purpose.
"""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pytest

import keras_augreg
from keras_augreg.initialization import zero_weights

SIZES = {
    "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24,
    "input_shape": (16, 16, 3),
}  # fmt: skip
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), "uint8")
LABELS = np.array([0, 1, 2, 2, 1])
WEIGHTS = np.array([1, 0.5, 2, 0, 1], "float32")


@pytest.fixture(autouse=True)
def _no_random_weights():
    """Tests draw their own, or need none: JAX compiles a draw per shape."""
    with zero_weights():
        yield


def classifier(**changes):
    return keras_augreg.VisionTransformer(**SIZES | {"classes": 3} | changes)


def backbone(**changes):
    return classifier(**{"classes": None, "include_top": False} | changes)


def randomized(model):
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.weights])
    return model


def compile_plainly(model):
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"])


def compile_as_the_study(model):
    keras_augreg.compile_finetuning(
        model, total_steps=None, learning_rate=0.1, metrics=["accuracy"]
    )


def predict(model, images=IMAGES, **options):
    return model.predict(images, verbose=0, **options)


def assert_same(actual, expected):
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=1e-5)


def reloaded(model, folder):
    model.save(folder / "model.keras")
    return keras.saving.load_model(folder / "model.keras")


class Batches(keras.utils.PyDataset):
    def __init__(self, *columns):
        super().__init__()
        self.columns = columns

    def __len__(self):
        return -(-len(self.columns[0]) // 2)

    def __getitem__(self, i):
        return tuple(c[2 * i : 2 * i + 2] for c in self.columns)


def tf_data(*columns):
    tf = pytest.importorskip("tensorflow")
    return tf.data.Dataset.from_tensor_slices(columns).batch(2)


@pytest.mark.parametrize(
    ("way", "columns"),
    [
        (compile_plainly, (IMAGES[:4], LABELS[:4])),
        # The last batch has a single image.
        (compile_as_the_study, (IMAGES, LABELS, WEIGHTS)),
    ],
    ids=["plainly", "weighted"],
)
def test_every_kind_of_data_gives_the_same(way, columns):
    model = randomized(classifier())
    way(model)
    start = model.get_weights()
    outputs = predict(model, columns[0], batch_size=2)
    losses = -np.log(outputs[range(len(outputs)), columns[1]])
    expected = np.mean(losses * dict(enumerate(columns)).get(2, 1.0))
    arrays = dict(zip(("x", "y", "sample_weight"), columns, strict=False))
    trained = []
    for given in (
        arrays | {"batch_size": 2},
        {"x": Batches(*columns)},
        {"x": tf_data(*columns)},
    ):
        assert_same(predict(model, given["x"]), outputs)
        scores = model.evaluate(**given, return_dict=True, verbose=0)
        assert scores["loss"] == pytest.approx(expected, rel=1e-4)
        assert set(scores) == {"loss", "accuracy"}
        model.fit(**given, shuffle=False, verbose=0)
        trained.append(model.get_weights())
        model.set_weights(start)
        for variable in model.optimizer.variables[2:]:  # momenta
            variable.assign(np.zeros(variable.shape))
    assert all((a != b).any() for a, b in zip(start, trained[0], strict=True))
    assert_same(trained[1], trained[0])
    assert_same(trained[2], trained[0])


@pytest.mark.parametrize(
    "method", ["fit", "evaluate", "train_on_batch", "test_on_batch"]
)
def test_training_without_compile_says_so(method):
    with pytest.raises(ValueError, match="You must call `compile"):
        getattr(classifier(), method)(IMAGES, LABELS)


def test_batches_of_any_size():
    for model in (randomized(classifier()), randomized(backbone())):
        expected = predict(model)
        assert_same(predict(model, batch_size=2), expected)
        assert_same(model.predict_on_batch(IMAGES[:1]), expected[:1])


TENSOR = keras.Input((16, 16, 3), dtype="uint8", name="pixels")
OTHERS = {
    "patch_size": 2, "stages": (), "input_shape": (16, 24, 1),
    "include_preprocessing": False, "class_token": False, "dropout": 0.1,
    "stochastic_depth": 0.2, "seed": 3, "name": "mine", "trainable": False,
    "dtype": "mixed_bfloat16", "dynamic_image_size": True,
}  # fmt: skip
HEAD = {"classes": 2, "class_names": ("a", "b"), "classifier_activation": None}


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (classifier, OTHERS | HEAD),
        (backbone, OTHERS | {"pooling": "avg"}),
        (classifier, {"recipe": keras_augreg.AugReg("none", 0.1, 0.2)}),
        (backbone, {"input_tensor": TENSOR}),
    ],
    ids=["classifier", "backbone", "recipe", "tensor"],
)
def test_a_config_is_json_and_holds_every_argument(make, given):
    model = make(**given)
    text = json.dumps(model.get_config())
    config = json.loads(text)
    object_text = json.dumps(keras.saving.serialize_keras_object(model))
    for again in (
        type(model).from_config(model.get_config()),
        type(model).from_config(config),
        keras.saving.deserialize_keras_object(json.loads(object_text)),
    ):
        assert json.dumps(again.get_config()) == text
        assert set(dir(again)) == set(dir(model))
    # A recipe is kept as its rates, and a tensor as "input".
    others = {"recipe", "input_tensor"}
    assert {*inspect.signature(type(model)).parameters} - others <= {*config}
    for name in given.keys() - others - {"dtype"}:
        assert config[name] == json.loads(json.dumps(given[name])), name
    if "recipe" in given:
        assert (again.dropout, again.stochastic_depth) == (0.1, 0.2)
    if "input_tensor" in given:
        assert (again.input.name, again.input.dtype) == ("pixels", "uint8")


@pytest.mark.parametrize("way", [compile_plainly, compile_as_the_study])
def test_a_fitted_model_is_kept_whole(way, tmp_path):
    model = randomized(classifier())
    frozen = model.get_layer("embedding")
    frozen.trainable = False
    before = frozen.get_weights()
    way(model)
    options = {"batch_size": 5, "shuffle": False, "verbose": 0}
    model.fit(IMAGES, LABELS, **options)
    again = reloaded(model, tmp_path)
    fresh = type(model).from_config(model.get_config())
    model.save_weights(tmp_path / "model.weights.h5")
    fresh.load_weights(tmp_path / "model.weights.h5")
    for one in (again, fresh):
        assert type(one) is type(model)
        assert_same(predict(one), predict(model))
        for pair in zip(
            one._flatten_layers(), model._flatten_layers(), strict=True
        ):
            assert pair[0].trainable == pair[1].trainable
    # Momenta, loss and metrics are kept: another epoch does the same.
    logs = [m.fit(IMAGES, LABELS, **options).history for m in (model, again)]
    assert logs[0].keys() == logs[1].keys() == {"loss", "accuracy"}
    assert_same(again.get_weights(), model.get_weights())
    np.testing.assert_equal(frozen.get_weights(), before)


def test_a_frozen_backbone_in_another_model(tmp_path):
    inner = randomized(backbone(pooling="token"))
    inner.trainable = False
    before = inner.get_weights()
    head = keras.layers.Dense(3, "softmax")
    model = keras.Sequential([keras.Input((16, 16, 3)), inner, head])
    compile_plainly(model)
    kernel = head.get_weights()[0]
    model.fit(IMAGES, LABELS, verbose=0)
    assert (head.get_weights()[0] != kernel).any()
    np.testing.assert_equal(inner.get_weights(), before)
    again = reloaded(model, tmp_path)
    assert again.layers[0].get_config() == inner.get_config()
    assert len(again.trainable_weights) == len(head.weights)
    assert_same(predict(again), predict(model))


@pytest.mark.parametrize(
    "policy", ["float16", "bfloat16", "mixed_float16", "mixed_bfloat16"]
)
def test_every_layer_has_the_dtype(policy):
    wanted = keras.DTypePolicy(policy)
    for dtype, make, last in (
        # Predictions have the weights' precision under mixed policies.
        (policy, classifier, wanted.variable_dtype),
        (wanted, backbone, wanted.compute_dtype),
    ):
        model = randomized(make(dtype=dtype))
        spec = model.compute_output_spec(keras.KerasTensor(IMAGES.shape))
        assert spec.dtype == last
        assert {w.dtype for w in model.weights} == {wanted.variable_dtype}
        for layer in model._flatten_layers():
            if layer.name in ("head", "predictions"):
                assert layer.compute_dtype == last
            elif layer.name not in ("image", "preprocessing"):  # of pixels
                assert layer.compute_dtype == wanted.compute_dtype, layer.path
    assert np.isfinite(predict(model).astype("float32")).all()


def test_summary_and_number_of_weights():
    model = backbone(depth=2, dropout=0.1)
    # Embedding, class token and positions, blocks, norm.
    assert len(model.trainable_weights) == 2 + 2 + 2 * 12 + 2
    assert not model.non_trainable_weights
    lines = []
    model.summary(print_fn=lines.append)
    text = "\n".join(lines)
    assert all(name in text for name in (model.name, "encoderblock_1"))
    assert f"Total params: {model.count_params():,}" in text
    model.trainable = False
    assert not model.trainable_weights


def test_a_pyramid_of_features(tmp_path):
    model = randomized(backbone(depth=2))
    extractor = keras_augreg.FeatureExtractor(model, [0, -1], grid=True)
    maps = predict(extractor)
    assert [m.shape for m in maps] == [(5, 2, 2, 16)] * 2
    assert_same(predict(reloaded(extractor, tmp_path)), maps)
    assert_same(model.features(IMAGES, [0, -1], grid=True), maps)
    # As with KerasHub's `pyramid_outputs`.
    blocks = {n: model.get_layer(f"encoderblock_{n}").output for n in (0, 1)}
    tokens = predict(keras.Model(model.inputs, blocks))
    for n in blocks:
        assert_same(tokens[n][:, 1:].reshape(maps[n].shape), maps[n])


def test_int8_is_kept(tmp_path):
    model = randomized(classifier())
    before = predict(model)
    model.quantize("int8")
    outputs = predict(model)
    np.testing.assert_allclose(outputs, before, atol=0.1)
    assert (outputs != before).any()
    again = reloaded(model, tmp_path)
    assert_same(predict(again), outputs)
    configs = [json.dumps(m.get_config()) for m in (model, again)]
    assert configs[0] == configs[1]


def test_int8_is_no_dtype_to_build_with():
    policy = keras.dtype_policies.get("int8_from_float32")
    policies = keras.dtype_policies.DTypePolicyMap("float32", {"head": policy})
    for dtype in (policy, policies):
        with pytest.raises(ValueError, match=r"then call model.quantize\(\)"):
            classifier(dtype=dtype)


def test_preprocessing_apart_from_the_model():
    expected = predict(randomized(classifier()))
    model = randomized(classifier(include_preprocessing=False))
    scale = keras_augreg.preprocess_input
    grain = pytest.importorskip("grain")
    (batch,) = grain.MapDataset.source([*IMAGES]).map(scale).batch(5)
    assert isinstance(batch, np.ndarray)  # which its workers can send
    assert_same(predict(model, batch), expected)
    tf = pytest.importorskip("tensorflow")
    images = tf.data.Dataset.from_tensor_slices(IMAGES)
    assert_same(predict(model, images.map(scale).batch(5)), expected)
    assert_same(predict(model, images.batch(5).map(scale)), expected)
