"""The model and its builders, in every form the contract promises."""

from __future__ import annotations

import inspect
import json
import os
import pathlib
import pickle
import subprocess
import sys
import textwrap
import warnings

import keras
import numpy as np
import pytest
from _checkpoints import (
    CLASSES,
    SHAPES,
    WIDTH,
    hybrid,
    images,
    make_npz,
    release,
    same,
    sizes,
    tiny,
    weights,
)

import keras_augreg
from keras_augreg import checkpoints
from keras_augreg.checkpoints import convert
from keras_augreg.variants import VARIANTS
from keras_augreg.vit import Attention, Block

BACKEND = keras.backend.backend()

# With 1000 classes at 224 x 224 pixels. The release's own counts, which
# `test_counts_and_shapes_are_the_releases` adds up from its arrays' shapes.
PARAMETERS = {
    "ViT_Ti16": 5_717_416,
    "ViT_Ti32": 6_131_560,
    "ViT_S16": 22_050_664,
    "ViT_S32": 22_878_952,
    "ViT_B8": 86_576_872,
    "ViT_B16": 86_567_656,
    "ViT_B32": 88_224_232,
    "ViT_L16": 304_326_632,
    "ViT_L32": 306_535_400,
    "R_ViT_Ti16": 6_337_704,
    "R26_ViT_S32": 36_431_912,
    "R26_ViT_B32": 101_383_976,
    "R50_ViT_B16": 98_659_112,
    "R50_ViT_L32": 328_994_856,
}
BUILDERS = [name for name in keras_augreg.__all__ if "ViT_" in name]


@pytest.fixture(scope="module")
def ti_16(tmp_path_factory):
    """The first golden checkpoint."""
    path = tmp_path_factory.mktemp("golden") / "Ti_16.npz"
    np.savez(path, **dict(make_npz.arrays("Ti_16", 0, 1000, 224)))
    return path


def predict(model, x):
    return np.asarray(model.predict(x, verbose=0))


def call(model, x, **kwargs):
    return keras.ops.convert_to_numpy(model(x, **kwargs))


def loaded(model, seed=0):
    """A tiny model with a head that is not zero."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        # A gamma of zero, as a new bottleneck has, would hide its unit.
        center = 1.0 if weight.path.endswith("gamma") else 0.0
        weight.assign(center + 0.3 * rng.standard_normal(weight.shape))
    return model


# Sizes, names, signatures and docstrings


@pytest.mark.once
def test_every_builder_is_pinned():
    assert set(BUILDERS) == set(PARAMETERS) == set(VARIANTS)
    assert {v.release for v in VARIANTS.values()} == set(SHAPES)


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_counts_and_shapes_are_the_releases(name):
    """Variables that are never initialised have shapes, but no memory."""
    with keras.StatelessScope(initialize_variables=False):
        model = keras_augreg.VisionTransformer(
            **sizes(release=VARIANTS[name].release)
        )
    keras.utils.clear_session()  # forgets what is to be initialised
    assert model.count_params() == PARAMETERS[name]
    shapes = {
        w.path: tuple(w.shape)
        for w in model.weights
        if "seed_generator" not in w.path
    }
    spec = SHAPES[VARIANTS[name].release]
    assert VARIANTS[name].sizes.stride == spec["stride"]
    tokens = (224 // spec["stride"]) ** 2 + 1
    expected = {
        array: tuple(
            {"classes": 1000, "tokens": tokens}.get(n, n) for n in shape
        )
        for array, shape in spec["arrays"].items()
    }
    total = sum(int(np.prod(shape)) for shape in expected.values())
    assert total == PARAMETERS[name]
    rows = {row[0]: row[1] for row in convert.layout(VARIANTS[name].sizes)}
    assert rows.keys() == shapes.keys()
    sources = [array for row in rows.values() for array in row]
    assert sorted(sources) == sorted(expected)
    for key, arrays in rows.items():
        for array in arrays:
            shape = expected[array]
            if "/gn" in f"/{array}":
                shape = shape[-1:]
            if len(arrays) == 3:
                shape = (*shape[:-2], 3, *shape[-2:])
            assert shapes[key] == shape, key


SIGNATURE = {
    "include_top": True,
    "weights": "augreg-in21k-ft-in1k",
    "input_tensor": None,
    "input_shape": None,
    "pooling": None,
    "classes": None,
    "classifier_activation": "softmax",
    "include_preprocessing": True,
    "recipe": None,
    "dropout": 0.0,
    "stochastic_depth": 0.0,
    "name": None,
    "class_names": None,
    "dynamic_image_size": False,
}
NOT_RELEASED = {"ViT_Ti32", "ViT_L32", "R26_ViT_B32", "R50_ViT_B16"}


@pytest.mark.once
@pytest.mark.parametrize("name", BUILDERS)
def test_signatures_and_docstrings(name):
    builder = getattr(keras_augreg, name)
    parameters = inspect.signature(builder).parameters
    expected = {**SIGNATURE}
    if name in NOT_RELEASED:
        expected["weights"] = None
    assert {k: p.default for k, p in parameters.items()} == expected
    assert list(parameters) == list(SIGNATURE)
    assert all(p.annotation is not p.empty for p in parameters.values())
    assert builder.__name__ == builder.__qualname__ == name
    assert pickle.loads(pickle.dumps(builder)) is builder
    text = inspect.getdoc(builder)
    for part in ("Args:", "Returns:", "Raises:", "Example:", f".{name}("):
        assert part in text
    for parameter in parameters:
        assert f"\n    {parameter}: " in text


def example(text):
    """The code of a docstring's example."""
    code = inspect.cleandoc(text).split("```python\n")[1].split("```")[0]
    return textwrap.dedent(code)


@pytest.mark.parametrize("name", ["VisionTransformer", "ViT_Ti16"])
def test_examples_run(name):
    code = example(getattr(keras_augreg, name).__doc__)
    assert "assert " in code
    exec(code, {})


def test_example_of_load_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("Ti_16.npz", **dict(make_npz.arrays("Ti_16", 0, 3, 224)))
    exec(example(checkpoints.load.__doc__), {"keras_augreg": keras_augreg})


# Inputs and outputs


@pytest.mark.parametrize("make", [tiny, hybrid])
def test_outputs(make):
    side = make().input_shape[1]
    x = images((side, side, 3))
    top = loaded(make())
    body = make(include_top=False)
    for one, other in zip(body.weights, top.weights, strict=False):
        one.assign(other.numpy())
    tokens = predict(body, x)
    assert tokens.shape == (2, 17, WIDTH)

    def pooled(pooling):
        model = make(include_top=False, pooling=pooling)
        for one, other in zip(model.weights, body.weights, strict=True):
            one.assign(other.numpy())
        return predict(model, x)

    # The last block computes only the class token, with the same result.
    close = {"rtol": 0, "atol": 1e-5}
    np.testing.assert_allclose(pooled("token"), tokens[:, 0], **close)
    np.testing.assert_allclose(pooled("avg"), tokens[:, 1:].mean(1), **close)
    np.testing.assert_allclose(pooled("max"), tokens[:, 1:].max(1), **close)
    head = top.get_layer("head")
    np.testing.assert_allclose(
        predict(top, x),
        tokens[:, 0] @ head.kernel.numpy() + head.bias.numpy(),
        **close,
    )
    assert make().get_layer("encoderblock_1").queries == 1
    assert body.get_layer("encoderblock_1").queries is None


def test_classifier_activations():
    x = images()
    scores = predict(loaded(tiny()), x)
    for activation, expected in [
        ("softmax", np.exp(scores) / np.exp(scores).sum(1, keepdims=True)),
        ("sigmoid", 1 / (1 + np.exp(-scores))),
        (None, scores),
    ]:
        model = loaded(tiny(classifier_activation=activation))
        np.testing.assert_allclose(predict(model, x), expected, atol=1e-6)


def test_not_square():
    model = loaded(tiny(input_shape=(8, 20, 3)))
    assert model.patch_grid == (2, 5)
    x = images((8, 20, 3))
    assert predict(model, x).shape == (2, CLASSES)
    # Rows and columns are not mixed up: one patch reaches only one token.
    body = tiny(input_shape=(8, 20, 3), include_top=False, classes=1)
    stem = keras.Model(body.input, body.get_layer("posembed_input").output)
    other = x.copy()
    other[:, 4:8, 12:16] += 1
    moved = np.abs(predict(stem, x) - predict(stem, other)).max((0, 2)) > 0
    assert np.flatnonzero(moved).tolist() == [1 + 1 * 5 + 3]


def scores_and_losses(scales, batch):
    """A tiny model's, with and without preprocessing, before and in `fit`."""
    model = loaded(tiny(include_preprocessing=scales))
    scores = predict(model, batch)
    np.testing.assert_allclose(call(model, batch), scores, atol=1e-6)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    y = np.arange(4)
    first = model.evaluate(batch, y, verbose=0)
    fitted = model.fit(batch, y, epochs=2, verbose=0, shuffle=False)
    return scores, [first, *fitted.history["loss"]]


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3))


@pytest.fixture(scope="module")
def of_scaled_images():
    scaled = keras_augreg.preprocess_input(PIXELS.astype("uint8"))
    return scaled, scores_and_losses(False, scaled)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "int64", "float32"])
def test_pixels_are_scaled(dtype, of_scaled_images):
    x = PIXELS.astype(dtype)
    scaled, expected = of_scaled_images
    np.testing.assert_array_equal(keras_augreg.preprocess_input(x), scaled)
    found = scores_and_losses(True, x)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


def test_preprocessing_is_in_full_precision():
    model = tiny(include_preprocessing=True, dtype="mixed_bfloat16")
    layer = model.get_layer("preprocessing")
    pixels = np.arange(256, dtype="float32").reshape(1, 256)
    np.testing.assert_allclose(
        call(layer, pixels), pixels / 127.5 - 1, rtol=0, atol=1e-6
    )
    assert layer.compute_dtype == "float32"
    assert model.get_layer("encoderblock_0").compute_dtype == "bfloat16"


def test_input_tensors(ti_16):
    x = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), "uint8")
    expected = predict(keras_augreg.ViT_Ti16(weights=ti_16), x)

    for dtype in ("float32", "uint8"):
        plain = keras.Input((224, 224, 3), dtype=dtype)
        model = keras_augreg.ViT_Ti16(weights=ti_16, input_tensor=plain)
        assert model.input is plain
        np.testing.assert_allclose(predict(model, x), expected, atol=1e-6)

    pixels = keras.Input((224, 224, 3))
    derived = keras.layers.Rescaling(1 / 127.5, -1)(pixels)
    model = keras_augreg.ViT_Ti16(
        weights=ti_16, input_tensor=derived, include_preprocessing=False
    )
    assert model.input is pixels
    np.testing.assert_allclose(
        predict(model, x.astype("float32")), expected, atol=1e-5
    )
    with pytest.raises(ValueError, match="`input_tensor` has images of shape"):
        keras_augreg.ViT_Ti16(
            weights=None, input_tensor=plain, input_shape=(32, 32, 3)
        )
    with pytest.raises(ValueError, match="ndarray"):
        keras_augreg.ViT_Ti16(weights=None, input_tensor=x)


def test_integers_need_preprocessing():
    integers = keras.Input((32, 32, 3), dtype="uint8")
    with pytest.raises(ValueError, match="include_preprocessing=True"):
        tiny(input_tensor=integers, include_preprocessing=False)


def test_a_recipe_sets_the_regularisation():
    recipe = keras_augreg.AugReg("medium1", 0.1, 0.1)
    model = keras_augreg.ViT_Ti32(weights=None, classes=2, recipe=recipe)
    assert (model.dropout, model.stochastic_depth) == (0.1, 0.1)
    for more in ({"dropout": 0.1}, {"stochastic_depth": 0.1}):
        with pytest.raises(ValueError, match=r"`recipe` sets.*medium1"):
            keras_augreg.ViT_Ti32(weights=None, recipe=recipe, **more)
    with pytest.raises(TypeError, match="recipe='medium1'"):
        keras_augreg.ViT_Ti32(weights=None, recipe="medium1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (102, 96, 3)}, r"4 pixels.* is \(104, 96, 3\)"),
        ({"input_shape": (16, 18, 3)}, r"possible one is \(16, 16, 3\)"),
        ({"input_shape": (16, 16, 0)}, "height, width, channels"),
        ({"input_shape": (16, 16)}, "height, width, channels"),
        ({"input_shape": 224}, "height, width, channels.*input_shape=224"),
        ({"input_shape": (None, None, 3)}, "fixed height"),
        ({"input_shape": (3, 16, 16)}, "height, width, channels"),
        ({"pooling": "avg"}, "include_top=False"),
        ({"pooling": "min", "include_top": False}, "'min'"),
        ({"pooling": "token", "include_top": False, "class_token": False},
         "no class token"),
        ({"classes": 0}, "classes=0"),
        ({"classes": 2.5}, "classes=2.5"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"stochastic_depth": -0.1}, "stochastic_depth=-0.1"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"depth": 0}, "depth=0"),
        ({"width": "12"}, "'12'"),
    ],
)  # fmt: skip
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_channels_first_is_refused():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ValueError, match=r"channels last.*transpose"):
            tiny()
        with pytest.raises(ValueError, match="channels last"):
            keras_augreg.ViT_Ti16(weights=None)
    finally:
        keras.config.set_image_data_format(before)


# Dropout and stochastic depth


def test_rates_of_the_blocks():
    model = tiny(depth=5, dropout=0.3, stochastic_depth=0.2)
    blocks = [model.get_layer(f"encoderblock_{i}") for i in range(5)]
    rates = [block.stochastic_depth for block in blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])
    assert {block.dropout for block in blocks} == {0.3}
    assert model.get_layer("posembed_input").dropout == 0.3
    one = tiny(depth=1, stochastic_depth=0.2)
    assert one.get_layer("encoderblock_0").stochastic_depth == 0


def test_dropout_only_in_training():
    model = loaded(tiny(dropout=0.5, stochastic_depth=0.5))
    x = images()
    expected = call(loaded(tiny()), x)
    for found in (
        call(model, x),
        call(model, x, training=False),
        predict(model, x),
    ):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    one, other = (call(model, x, training=True) for _ in range(2))
    assert np.abs(one - expected).max() > 0.01
    assert np.abs(one - other).max() > 0.01  # the seeds moved on


def test_seeds():
    x = images()

    def draw(seed, global_seed):
        keras.utils.set_random_seed(global_seed)
        model = loaded(tiny(dropout=0.3, stochastic_depth=0.3, seed=seed))
        return call(model, x, training=True)

    assert np.array_equal(draw(1, 0), draw(1, 5))
    assert not np.array_equal(draw(1, 0), draw(2, 0))
    assert np.array_equal(draw(None, 3), draw(None, 3))
    assert not np.array_equal(draw(None, 3), draw(None, 4))


def test_blocks_draw_for_themselves():
    """Equal seeds in two blocks would drop the same images in both."""
    model = tiny(depth=3, dropout=0.1, seed=0)
    seeds = [tuple(w.numpy()) for w in model.variables if "seed" in w.path]
    assert len(seeds) == len(set(seeds)) == 4


def block(**kwargs):
    layer = Block(2, 16, seed=3, **kwargs)
    layer.build((None, 4, 8))
    for weight in layer.trainable_variables:
        rng = np.random.default_rng(len(weight.shape))
        weight.assign(rng.standard_normal(weight.shape))
    return layer


def test_stochastic_depth_per_image():
    """Each branch is there for an image as a whole, divided by 1 - p."""
    p, n = 0.4, 3000
    x = np.random.default_rng(0).standard_normal((1, 4, 8)).astype("float32")
    x = np.repeat(x, n, 0)
    layer = block(stochastic_depth=p)
    found = call(layer, x, training=True)

    attention = keras.ops.convert_to_numpy(layer.attention(layer.norm1(x[:1])))
    outcomes = []
    for with_attention in (0, 1):
        y = x[:1] + with_attention * attention / (1 - p)
        outcomes += [y, y + call_mlp(layer, y) / (1 - p)]
    distance = np.stack(
        [np.abs(found - y).max((1, 2)) for y in outcomes], axis=1
    )
    assert distance.min(1).max() < 1e-4
    counts = np.bincount(distance.argmin(1), minlength=4) / n
    expected = [p * p, p * (1 - p), (1 - p) * p, (1 - p) ** 2]
    # Five standard deviations of a frequency.
    assert np.abs(counts - expected).max() < 5 * np.sqrt(0.25 / n)


def call_mlp(layer, y):
    """The MLP branch of a block, from what the whole block does without it."""
    zero = [layer.attention.out_kernel, layer.attention.out_bias]
    kept = [w.numpy() for w in zero]
    for w in zero:
        w.assign(np.zeros(w.shape))
    found = call(layer, y, training=False) - y
    for w, value in zip(zero, kept, strict=True):
        w.assign(value)
    return found


def values(x, digits=4):
    """The different numbers in an array, rounded."""
    return set(np.unique(x.astype("float64").round(digits)).tolist())


def test_dropout_sites():
    """Zeros appear after the attention and both layers of the MLP.

    With zero kernels and unit biases each site passes a one on.
    """
    n, p = 4000, 0.25
    x = np.zeros((n, 1, 8), "float32")
    layer = block(dropout=p)
    for weight in layer.trainable_variables:
        weight.assign(np.zeros(weight.shape))
    layer.attention.out_bias.assign(np.ones(8))
    found = call(layer, x, training=True)
    assert values(found) == {0, round(1 / (1 - p), 4)}
    assert abs((found == 0).mean() - p) < 5 * np.sqrt(0.25 / found.size)
    # Dropped entry by entry, not image by image.
    dropped = found[:, 0] == 0
    assert (dropped.any(1) & ~dropped.all(1)).mean() > 0.8

    layer.attention.out_bias.assign(np.zeros(8))
    layer.mlp_bias2.assign(np.ones(8))
    found = call(layer, x, training=True)
    assert values(found) == {0, round(1 / (1 - p), 4)}

    layer.mlp_bias2.assign(np.zeros(8))
    layer.mlp_bias1.assign(np.full(16, 10.0))  # gelu(10) = 10
    layer.mlp_kernel2.assign(np.eye(16, 8))
    found = call(layer, x, training=True)
    scale = 1 / (1 - p)
    assert values(found, 3) == {0, round(10 * scale**2, 3)}
    # Both layers drop: kept by both with (1 - p)^2.
    kept = (found > 0).mean()
    assert abs(kept - (1 - p) ** 2) < 5 * np.sqrt(0.25 / found.size)


def test_position_dropout_and_expectation():
    model = tiny(dropout=0.25, include_top=False)
    layer = model.get_layer("posembed_input")
    x = np.ones((2000, 16, WIDTH), "float32")
    layer.pos_embedding.assign(np.zeros(layer.pos_embedding.shape))
    layer.cls.assign(np.ones(layer.cls.shape))
    found = call(layer, x, training=True)
    assert values(found) == {0, 1.3333}
    assert abs(found.mean() - 1) < 0.005
    # The class token is dropped like the others.
    assert abs((found[:, 0] == 0).mean() - 0.25) < 0.02


def test_attention_weights_are_never_dropped():
    """A block whose output is the mean value stays it under dropout."""
    layer = block(dropout=0.9)
    x = np.random.default_rng(0).standard_normal((2, 4, 8)).astype("float32")
    expected = call(layer.attention, x)
    for _ in range(3):
        found = call(layer.attention, x, training=True)
        np.testing.assert_array_equal(found, expected)


# Precision


@pytest.mark.parametrize(
    "policy",
    [
        "mixed_bfloat16",
        "mixed_float16",
    ],
)
def test_mixed_precision(ti_16, policy):
    """On small images: CPUs multiply float16 slowly."""
    found = []
    for dtype in ("float32", policy):
        model = keras_augreg.VisionTransformer(
            **sizes(release="Ti_16"),
            input_shape=(48, 48, 3),
            classifier_activation=None,
            include_preprocessing=False,
            dtype=dtype,
        )
        checkpoints.load(model, ti_16)
        assert {w.dtype for w in model.trainable_variables} == {"float32"}
        output = keras.backend.standardize_dtype(model.output.dtype)
        assert output == "float32"
        found.append(predict(model, make_npz.images(0, 2, 48)))
        assert found[-1].dtype == np.float32
    rms = np.sqrt(np.mean((found[1] - found[0]) ** 2))
    print(f"{policy} on {BACKEND}: RMS {rms:.1e}, {np.std(found[0]):.2f}")
    # bfloat16 keeps 8 bits, float16 11: 25 layers of rounding errors of
    # 2^-9 and 2^-12 of logits of size 1.
    assert rms < {"mixed_bfloat16": 0.03, "mixed_float16": 0.004}[policy]
    assert rms > 1e-5  # the policy had an effect


def test_softmax_is_in_float32():
    model = tiny(dtype="mixed_float16", classifier_activation="softmax")
    for name in ("head", "predictions"):
        assert model.get_layer(name).compute_dtype == "float32"
    assert model.get_layer("encoderblock_0").compute_dtype == "float16"


# Saving


@pytest.fixture(scope="module", params=["token", "tokens", "hybrid", "gap"])
def kind(request):
    """Models of several forms, images for them, and their outputs."""
    regular = {"dropout": 0.1, "stochastic_depth": 0.2, "seed": 5}
    model = {
        "token": lambda: tiny(**regular, classifier_activation="softmax"),
        "tokens": lambda: tiny(include_top=False, input_shape=(8, 20, 3)),
        "hybrid": lambda: hybrid(**regular),
        "gap": lambda: tiny(class_token=False, stochastic_depth=0.1),
    }[request.param]()
    x = images(model.input_shape[1:])
    return loaded(model), x, predict(model, x)


def test_config_round_trip(kind):
    model, *_ = kind
    config = model.get_config()
    assert set(config) == set(
        inspect.signature(keras_augreg.VisionTransformer).parameters
    ) - {"input_tensor", "recipe"}
    config = json.loads(json.dumps(config))
    other = keras_augreg.VisionTransformer.from_config(config)
    assert other.get_config() == model.get_config()
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(model)
    )
    assert again.get_config() == model.get_config()


@pytest.mark.parametrize("way", ["keras", "h5", "clone", "clone_function"])
def test_saving(kind, tmp_path, way):
    model, x, expected = kind
    if way == "keras":
        model.save(tmp_path / "model.keras")
        other = keras.saving.load_model(tmp_path / "model.keras")
    elif way == "h5":
        model.save_weights(tmp_path / "model.weights.h5")
        other = model.__class__.from_config(model.get_config())
        other.load_weights(tmp_path / "model.weights.h5")
    elif way == "clone":
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
    else:
        seen = []

        def clone(layer):
            seen.append(layer.name)
            return layer.__class__.from_config(layer.get_config())

        other = keras.models.clone_model(model, clone_function=clone)
        other.set_weights(model.get_weights())
        assert "encoderblock_1" in seen
    assert type(other) is type(model)
    assert other.get_config() == model.get_config()
    np.testing.assert_allclose(predict(other, x), expected, atol=1e-6)


def test_says_that_it_keeps_classes(tmp_path):
    """They may be those of another task."""
    build = keras_augreg.ViT_Ti16
    model = build(weights=None, classes=10, input_shape=(32, 32, 3))
    model.class_names = [f"old{i}" for i in range(10)]
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.warns(UserWarning, match=r"10 classes \(old0, .*class_names="):
        kept = build(weights=path, classes=10)
    assert kept.class_names == model.class_names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert build(weights=path).class_names == model.class_names
        assert build(weights=path, classes=9).class_names is None


@pytest.mark.once
@pytest.mark.parametrize("suffix", [".npz", ".keras", ".weights.h5"])
def test_says_that_it_replaces_a_classifier_without_names(tmp_path, suffix):
    build, names = keras_augreg.ViT_Ti16, ["cat", "dog"]
    model = build(weights=None, classes=2, input_shape=(32, 32, 3))
    model.get_layer("head").bias.assign([1.0, 2.0])
    path = tmp_path / f"model{suffix}"
    if suffix == ".npz":
        keras_augreg.checkpoints.to_npz(model, path)
    elif suffix == ".keras":
        model.save(path)
    else:
        model.save_weights(path)
    with pytest.warns(UserWarning, match="not say what its 2 classes.*leave"):
        other = build(weights=path, class_names=names)
    assert not other.get_layer("head").bias.numpy().any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other = build(weights=path)  # as the warning says
        build(weights=path, class_names=["a", "b", "c"])
    other.class_names = names
    assert other.get_layer("head").bias.numpy().tolist() == [1, 2]


@pytest.mark.once
def test_other_classifiers_that_class_names_replace(tmp_path):
    build, names = keras_augreg.ViT_Ti16, ["cat", "dog"]
    model = build(weights=None, classes=2, input_shape=(32, 32, 3))
    # A release's classes are known not to be the user's.
    released = next(iter(keras_augreg.checkpoints.names.table()))
    path = tmp_path / f"{released}.npz"
    keras_augreg.checkpoints.to_npz(model, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(weights=path, class_names=names)
    model.class_names = names[::-1]
    keras_augreg.checkpoints.to_npz(model, path)
    with pytest.warns(UserWarning, match=r"in another order \(dog, cat"):
        build(weights=path, class_names=names)


@pytest.mark.once
def test_hints_at_names():
    for name in ("ViT_Tiny16", "vit_ti16", "vit_tiny_16", "ViTTi16"):
        with pytest.raises(AttributeError, match="Did you mean: 'ViT_Ti16'"):
            getattr(keras_augreg, name)
    with pytest.raises(AttributeError, match=r"'nothing'$"):
        keras_augreg.nothing  # noqa: B018
    with pytest.raises(TypeError, match=r"ViT_Ti16\(\).*called 'classes'"):
        keras_augreg.ViT_Ti16(weights=None, num_classes=3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        keras_augreg.ViT_Ti16(weights=None, nothing=3)
    for name, meant in (
        ("num_labels", "classes"),
        ("n_classes", "classes"),
        ("dropout_rate", "dropout"),
        ("input_size", "input_shape"),
        ("num_channels", "input_shape"),
    ):
        with pytest.raises(TypeError, match=f"{name!r}.*called {meant!r}"):
            keras_augreg.ViT_Ti16(weights=None, **{name: 1})


@pytest.mark.once
def test_the_classifier_is_kept_for_the_same_class_names(tmp_path):
    build = keras_augreg.ViT_Ti16
    names = [f"class{i}" for i in range(10)]
    model = build(weights=None, class_names=names, input_shape=(32, 32, 3))
    assert (model.classes, model.class_names) == (10, tuple(names))
    model.get_layer("head").bias.assign(np.arange(10) + 1.0)
    path = keras_augreg.checkpoints.to_npz(model, tmp_path / "model.npz")
    for received, keeps in (
        (names, True),
        (names[::-1], False),
        ([*names[:9], "other"], False),
        (names[:9], False),
    ):
        other = build(weights=path, class_names=received)
        assert other.class_names == tuple(received)
        assert other.get_layer("head").bias.numpy().any() == keeps
    with pytest.raises(ValueError, match=r"one for each.*classes=9"):
        build(weights=path, class_names=names, classes=9)
    with pytest.raises(ValueError, match="include_top=True"):
        build(weights=path, class_names=names, include_top=False)


def test_weights_move_across_dropout_rates(tmp_path):
    model = loaded(tiny())
    model.save_weights(tmp_path / "model.weights.h5")
    other = tiny(dropout=0.1, stochastic_depth=0.1)
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_array_equal(
        predict(other, images()), predict(model, images())
    )


def test_training_goes_on_after_saving(tmp_path):
    x, y = images(n=4), np.arange(4)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = loaded(tiny())
    model.compile(keras.optimizers.Adam(1e-2), loss)
    model.fit(x, y, epochs=2, verbose=0)
    model.save(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "model.keras")
    one, two = (
        m.fit(x, y, epochs=2, shuffle=False, verbose=0).history["loss"]
        for m in (model, other)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)


# Being part of something


def test_nested():
    backbone = loaded(tiny(include_top=False, pooling="avg"))
    inputs = keras.Input((16, 16, 3))
    model = keras.Model(inputs, keras.layers.Dense(3)(backbone(inputs)))
    x = images()
    dense = model.layers[-1]
    expected = predict(backbone, x) @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(predict(model, x), expected, atol=1e-5)
    model.compile("sgd", "mse")
    before = weights(backbone)
    model.fit(x, np.zeros((2, 3)), verbose=0)
    assert not same(weights(backbone), before)


def test_feature_extraction():
    model = loaded(tiny(include_top=False))
    outputs = [
        model.get_layer(name).output
        for name in ("embedding", "encoderblock_0", "encoder_norm")
    ]
    features = keras.Model(model.input, outputs)
    x = images()
    found = features.predict(x, verbose=0)
    assert [f.shape for f in found] == [(2, 16, 12), (2, 17, 12), (2, 17, 12)]
    np.testing.assert_allclose(found[-1], predict(model, x), atol=1e-6)


def test_frozen_layers_stay():
    model = loaded(tiny(classifier_activation="softmax"))
    for layer in model.layers:
        layer.trainable = layer.name == "head"
    before = weights(model)
    model.compile(keras.optimizers.SGD(1.0), "sparse_categorical_crossentropy")
    model.fit(images(), np.array([0, 1]), verbose=0)
    after = weights(model)
    changed = {k for k in before if not np.array_equal(before[k], after[k])}
    assert changed == {"head/kernel", "head/bias"}


# Training


@pytest.mark.parametrize("make", [tiny, hybrid])
def test_fit_learns(make):
    keras.utils.set_random_seed(0)
    model = make(classifier_activation="softmax", stochastic_depth=0.1)
    x = images(model.input_shape[1:], 8)
    y = np.arange(8) % CLASSES
    model.compile(
        keras.optimizers.Adam(3e-3), "sparse_categorical_crossentropy"
    )
    (first,) = model.fit(x, y, verbose=0).history["loss"]
    assert abs(first - np.log(CLASSES)) < 1e-3  # the head starts at zero
    # In epochs of ten steps, as an epoch costs more time than a step.
    x, y = np.tile(x, (10, 1, 1, 1)), np.tile(y, 10)
    rest = model.fit(
        x, y, epochs=8, batch_size=8, shuffle=False, verbose=0
    ).history["loss"]
    assert rest[-1] < 0.5 * first


def gradients(model, x, y):
    """Gradients of the mean cross-entropy, by the path of each weight."""
    variables = model.trainable_variables

    def loss_of(logits):
        return keras.ops.mean(
            keras.losses.sparse_categorical_crossentropy(
                y, logits, from_logits=True
            )
        )

    if BACKEND == "jax":
        import jax

        def function(values, rest):
            logits, _ = model.stateless_call(values, rest, x)
            return loss_of(logits)

        # Compiled as one: each operation alone takes longer.
        found = jax.jit(jax.grad(function))(
            [v.value for v in variables],
            [v.value for v in model.non_trainable_variables],
        )
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = loss_of(model(x))
        found = tape.gradient(loss, [v.value for v in variables])
    else:
        model.zero_grad()
        loss_of(model(x)).backward()
        found = [v.value.grad for v in variables]
    return {
        v.path: keras.ops.convert_to_numpy(g)
        for v, g in zip(variables, found, strict=True)
    }


@pytest.mark.parametrize("make", [tiny, hybrid])
def test_gradients_flow(make):
    model = loaded(make())
    x = images(model.input_shape[1:])
    for path, gradient in gradients(model, x, np.array([0, 1])).items():
        assert np.isfinite(gradient).all(), path
        assert np.abs(gradient).max() > 0, path


def write_gradients(checkpoint, out):
    """Run in a process of each backend by `test_gradients_of_backends`."""
    model = keras_augreg.ViT_Ti16(
        weights=checkpoint,
        classifier_activation=None,
        include_preprocessing=False,
    )
    found = gradients(model, make_npz.images(0, 2, 224), np.array([3, 700]))
    np.savez(out, **{k.replace("/", "|"): v for k, v in found.items()})


def test_gradients_of_backends(ti_16, tmp_path):
    """One gradient on the golden checkpoint, tensor by tensor.

    The keys' biases are left out: they move all scores of a query alike,
    softmax does not see that, and their gradient is zero but for rounding.
    """
    if BACKEND != "jax":
        pytest.skip("compares all backends; runs with JAX")
    found = {}
    here = pathlib.Path(__file__).parent
    for backend in ("jax", "tensorflow", "torch"):
        pytest.importorskip(backend)
        out = tmp_path / f"{backend}.npz"
        code = (
            "import sys, test_models\n"
            "test_models.write_gradients(*sys.argv[1:])"
        )
        subprocess.run(
            [sys.executable, "-c", code, ti_16, out],
            env={
                **os.environ,
                "KERAS_BACKEND": backend,
                "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)]),
            },
            check=True,
            timeout=300,
        )
        found[backend] = dict(np.load(out))
    worst = 0
    for name, expected in found["jax"].items():
        for backend in ("tensorflow", "torch"):
            one, other = expected, found[backend][name]
            if name.endswith("qkv_bias"):
                one, other = one[[0, 2]], other[[0, 2]]
            error = np.linalg.norm(one - other) / np.linalg.norm(one)
            assert error < 1e-4, (backend, name)
            worst = max(worst, error)
    print(f"largest relative L2 difference of a gradient: {worst:.1e}")


# Compilers and export


def test_compiled_by_the_backend():
    model = loaded(tiny())
    x = images()
    expected = call(model, x)
    if BACKEND == "jax":
        import jax

        values = [v.value for v in model.trainable_variables]
        rest = [v.value for v in model.non_trainable_variables]
        found, _ = jax.jit(model.stateless_call)(values, rest, x)
    elif BACKEND == "tensorflow":
        import tensorflow as tf

        found = tf.function(model)(x)
    else:
        import torch

        model.eval()
        with torch.no_grad():
            found = torch.compile(model)(torch.tensor(x))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(found), expected, atol=1e-5
    )


def test_remat_scope():
    """Recomputing activations changes no number, with dropout neither."""
    x, y = images(), np.array([0, 1])
    losses = []
    for mode in (None, "full"):
        with keras.RematScope(mode=mode):
            model = loaded(tiny(dropout=0.1, stochastic_depth=0.1, seed=0))
        model.compile(
            keras.optimizers.SGD(0.1),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        history = model.fit(x, y, epochs=3, shuffle=False, verbose=0).history
        losses.append(history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_remat_scope_recomputes_blocks():
    with keras.RematScope():
        model = tiny()
    block = model.get_layer("encoderblock_0")
    assert block.rematerialized_call(block.call) != block.call
    block = tiny().get_layer("encoderblock_0")
    assert block.rematerialized_call(block.call) == block.call


@pytest.mark.parametrize("make", [tiny, hybrid])
def test_export_saved_model(tmp_path, make):
    if BACKEND == "torch":
        pytest.skip("Keras exports no TF SavedModel from PyTorch")
    tf = pytest.importorskip("tensorflow")
    model = loaded(make())
    model.export(tmp_path / "model", format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "model"))
    for n in (1, 3):
        x = images(model.input_shape[1:], n)
        np.testing.assert_allclose(
            served.serve(x).numpy(), predict(model, x), atol=1e-5
        )


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's tracer")
def test_attention_can_be_traced():
    import torch

    layer = Attention(3)
    layer.build((None, 5, 12))
    traced = torch.jit.trace(layer, torch.randn(2, 5, 12))
    other = torch.randn(3, 5, 12)
    torch.testing.assert_close(traced(other), layer(other))


@pytest.mark.xfail(
    BACKEND == "torch",
    strict=True,
    raises=RuntimeError,
    reason="Keras 3.15.1's own LayerNormalization does not export either: "
    "torch.onnx wants its width as a constant",
)
@pytest.mark.parametrize("make", [tiny, hybrid])
def test_export_onnx(tmp_path, make):
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    converter = {
        "jax": "jax2onnx", "tensorflow": "tf2onnx", "torch": "onnxscript",
    }  # fmt: skip
    pytest.importorskip(converter[BACKEND])
    model = loaded(make())
    x = images(model.input_shape[1:], 1)
    path = str(tmp_path / "model.onnx")
    model.export(path, format="onnx", verbose=False)  # Never called.
    expected = predict(model, x)
    session = runtime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_same_every_time(tmp_path):
    model = loaded(tiny())
    x = images()
    one = predict(model, x)
    assert all(np.array_equal(predict(model, x), one) for _ in range(3))
    np.savez(tmp_path / "tiny.npz", **release())
    checkpoints.load(model, tmp_path / "tiny.npz")
    again = tiny()
    checkpoints.load(again, tmp_path / "tiny.npz")
    assert np.array_equal(predict(model, x), predict(again, x))


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ViT_Tiny16", "Did you mean: 'ViT_Ti16'"),
        ("vit_base_patch16_224", "Did you mean: 'ViT_B16'"),
        ("ViT_H14", "The architectures are: R26_ViT_B32"),
        ("vit_small", "The architectures are: R26_ViT_B32"),
    ],
)
def test_near_names(name, hint):
    with pytest.raises(AttributeError, match=hint):
        getattr(keras_augreg, name)
    with pytest.raises(ImportError, match=hint):
        exec(f"from keras_augreg import {name}")
    assert not hasattr(keras_augreg, name)


@pytest.mark.once
def test_arguments_of_other_libraries():
    with pytest.raises(TypeError, match="called 'classes'"):
        keras_augreg.VisionTransformer(16, 8, 1, 1, 8, num_classes=3)


@pytest.mark.once
def test_kept_classes_are_said(tmp_path):
    sizes = {"weights": None, "classes": 10, "input_shape": (32, 32, 3)}
    file = tmp_path / "model.keras"
    keras_augreg.ViT_Ti32(**sizes).save(file)
    with pytest.warns(UserWarning, match=r"of 10 classes \(without names\)"):
        keras_augreg.ViT_Ti32(weights=file, classes=10)


@pytest.mark.once
def test_load_brings_the_names(tmp_path):
    sizes = {
        "patch_size": 8, "width": 8, "depth": 1, "num_heads": 1, "mlp_dim": 8,
        "input_shape": (8, 8, 3), "classes": 2,
    }  # fmt: skip
    file = tmp_path / "model.keras"
    build = keras_augreg.VisionTransformer
    build(**sizes, class_names=["cat", "dog"]).save(file)
    model = build(**sizes)
    keras_augreg.checkpoints.load(model, file)
    assert model.class_names == ("cat", "dog")
    model.class_names = ["dog", "cat"]
    with pytest.raises(ValueError, match="of other classes"):
        keras_augreg.checkpoints.load(model, file)
    keras_augreg.checkpoints.load(model, file, head="new")
    assert model.class_names == ("dog", "cat")
