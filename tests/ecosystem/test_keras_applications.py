"""What `keras.applications` and KerasHub's backbones promise, kept here.

The table of docs/guides/migrating.md names what is refused on purpose.
"""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pytest

import keras_augreg
from keras_augreg.variants import VARIANTS

SIZES = {
    "patch_size": 8,
    "width": 16,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 24,
    "input_shape": (16, 16, 3),
}
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), "uint8")


@pytest.fixture(scope="module")
def backbone():
    return keras_augreg.VisionTransformer(**SIZES, include_top=False)


def test_builders_have_the_applications_arguments():
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    for name in VARIANTS:
        ours = inspect.signature(getattr(keras_augreg, name)).parameters
        assert set(theirs) <= set(ours), name


def test_with_and_without_the_top():
    build = keras_augreg.ViT_Ti32
    shape = (32, 32, 3)
    assert build(input_shape=shape).output_shape == (None, 1000)
    assert build(input_shape=shape, classes=7).output_shape == (None, 7)
    for pooling, output in (
        (None, (None, 2, 192)),
        ("token", (None, 192)),
        ("avg", (None, 192)),
        ("max", (None, 192)),
    ):
        model = build(input_shape=shape, include_top=False, pooling=pooling)
        assert model.output_shape == output
    tensor = keras.Input(shape)
    model = build(input_tensor=tensor, name="mine")
    assert (model.name, model.input) == ("mine", tensor)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "imagenet"}, "augreg-in21k"),
        ({"weights": "unknown.npz"}, "unknown"),
        ({"input_shape": (3, 32, 32)}, "channels"),
        ({"pooling": "sum", "include_top": False}, "pooling"),
        ({"num_classes": 3}, "classes"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)) as error:
        keras_augreg.ViT_Ti32(**{"input_shape": (32, 32, 3), **arguments})
    assert message in str(error.value)


def test_a_backbone_serializes(backbone, tmp_path):
    config = keras.saving.serialize_keras_object(backbone)
    text = json.dumps(config)
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert json.dumps(keras.saving.serialize_keras_object(again)) == text
    expected = backbone.predict(IMAGES, verbose=0)
    backbone.save(tmp_path / "model.keras")
    backbone.save_weights(tmp_path / "a.weights.h5")
    again.load_weights(tmp_path / "a.weights.h5")
    clone = keras.models.clone_model(backbone)
    clone.set_weights(backbone.get_weights())
    for model in (
        again,
        clone,
        keras.saving.load_model(tmp_path / "model.keras"),
    ):
        np.testing.assert_allclose(
            model.predict(IMAGES, verbose=0), expected, atol=1e-6
        )


def test_names_and_calls(backbone):
    names = [layer.name for layer in backbone.layers]
    paths = [weight.path for weight in backbone.weights]
    for each in (names, paths):
        assert len(set(each)) == len(each)
    assert backbone.count_params() == sum(
        np.prod(w.shape) for w in backbone.weights
    )
    symbolic = backbone(keras.Input((16, 16, 3)))
    assert symbolic.shape == backbone.compute_output_shape((None, 16, 16, 3))
    outer = keras.Sequential([backbone, keras.layers.Dense(2)])
    assert outer(IMAGES).shape[-1] == 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16", "float64"])
def test_every_layer_has_the_policy(policy):
    model = keras_augreg.VisionTransformer(**SIZES, dtype=policy)
    wanted = keras.DTypePolicy(policy)
    for layer in model._flatten_layers(include_self=False):
        if layer.name == "head":  # Probabilities are float32.
            assert layer.compute_dtype in ("float32", wanted.compute_dtype)
        elif layer.weights:
            assert layer.compute_dtype == wanted.compute_dtype, layer.path
            assert layer.variable_dtype == wanted.variable_dtype, layer.path
    again = type(model).from_config(model.get_config())
    dtypes = [[w.dtype for w in m.weights] for m in (model, again)]
    assert dtypes[0] == dtypes[1]
