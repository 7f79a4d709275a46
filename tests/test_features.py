"""Tokens and maps of blocks: against timm, and in the user's hands."""

import pathlib

import _checkpoints
import keras
import numpy as np
import pytest
from _timm import import_timm

import keras_augreg
from keras_augreg import FeatureExtractor, checkpoints
from keras_augreg.layer import freeze
from keras_augreg.projection import projections

IMAGES = _checkpoints.images((16, 24, 3))


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(3)
    return _checkpoints.tiny(input_shape=(16, 24, 3))


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.once
def test_blocks_are_timms(model):
    """`forward_intermediates` of the same weights."""
    import_timm()
    import torch
    from timm.models.vision_transformer import VisionTransformer

    other = VisionTransformer(
        img_size=(16, 24),
        patch_size=4,
        embed_dim=12,
        depth=2,
        num_heads=3,
        mlp_ratio=20 / 12,
        num_classes=5,
        act_layer="gelu_tanh",
    ).eval()
    arrays = checkpoints.to_timm(model)
    other.load_state_dict({k: torch.tensor(v) for k, v in arrays.items()})
    for norm in (False, True):
        with torch.no_grad():
            tokens = other.forward_intermediates(
                torch.tensor(IMAGES.transpose(0, 3, 1, 2)),
                indices=[0, -1],
                norm=norm,
                return_prefix_tokens=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        found = model.features(IMAGES, [0, -1], norm=norm)
        for x, (patches, cls) in zip(found, tokens, strict=True):
            close(x, np.concatenate([cls, patches], axis=1))


def test_last_class_token_is_what_the_classifier_reads(model):
    body = keras.Model(model.input, model.get_layer("pool").output)
    found = model.features(IMAGES, norm=True)
    close(found[:, 0], body.predict(IMAGES, verbose=0))
    image = model.features(IMAGES, norm=True, grid=True)
    close(image, found[:, 1:].reshape(2, 4, 6, 12))
    # The classifier is as before: its last block computes one token.
    assert model.get_layer("encoderblock_1").output.shape == (None, 1, 12)


def test_grad_cam_of_the_guide():
    """Its gradient is that of every backend: a step along it is steep."""
    guide = pathlib.Path(__file__).parents[1] / "docs/guides/features.md"
    section = guide.read_text("utf-8").split("## Grad-CAM")[1]
    code = section.split("```python")[1].split("```")[0]
    keras.utils.set_random_seed(3)
    small = _checkpoints.tiny(input_shape=(16, 24, 3))
    head = small.get_layer("head").kernel
    head.assign(np.random.default_rng(0).standard_normal(head.shape))
    given = {"keras": keras, "np": np, "model": small, "photos": IMAGES}
    exec(code, given)
    score, tokens = given["score"], given["tokens"]
    slope = keras.ops.convert_to_numpy(given["gradient"](score, tokens))
    step = 0.01 * slope / (slope**2).sum()  # The score changes by 0.01.
    steps = map(keras.ops.convert_to_tensor, (tokens - step, tokens + step))
    below, above = (
        float(keras.ops.convert_to_numpy(score(step))) for step in steps
    )
    assert slope.any()
    assert above - below == pytest.approx(0.02, rel=0.02)
    assert given["cam"].any()


def test_config_says_norm(model):
    extractor = FeatureExtractor(model, 0, norm=True)
    again = FeatureExtractor.from_config(extractor.get_config())
    again.set_weights(extractor.get_weights())
    expected = extractor.predict(IMAGES, verbose=0)
    close(again.predict(IMAGES, verbose=0), expected)
    assert np.abs(expected - model.features(IMAGES, 0)).max() > 0.1


def test_stem_gives_maps():
    hybrid = _checkpoints.hybrid(include_preprocessing=True)
    names = ["root", "block2_unit1", "embedding", "posembed_input", -1]
    extractor = FeatureExtractor(hybrid, names, grid=True)
    shapes = [x.shape[1:] for x in extractor.outputs]
    assert shapes == [(8, 8, 64), (4, 4, 512), *[(4, 4, 12)] * 3]
    pixels = np.zeros((1, 32, 32, 3), "uint8")
    assert [x.shape[1:] for x in extractor.predict(pixels)] == shapes


def test_extractor_trains_its_model(model):
    freeze(model, 1)
    extractor = FeatureExtractor(model, -1, grid=True)
    head = keras.layers.Dense(1, name="mask")(extractor.output)
    whole = keras.Model(extractor.input, head)
    whole.compile("sgd", "mse")
    block = model.get_layer("encoderblock_1")
    block.remat = True  # as `compile(remat=True)` sets it
    before = np.array(keras.ops.convert_to_numpy(block.mlp_kernel1))
    whole.fit(IMAGES, np.ones((2, 4, 6, 1)), verbose=0)
    after = keras.ops.convert_to_numpy(block.mlp_kernel1)
    assert (before != after).any()
    block.remat = False
    freeze(model, False)


def test_the_model_survives_a_broken_data_set(model):
    """On JAX, Keras drops the weights while its steps run."""

    def broken():
        yield IMAGES
        raise OSError("a broken image")

    expected = model.predict(IMAGES, verbose=0)
    extractor = FeatureExtractor(model)
    for compute in (extractor.predict, model.features):
        with pytest.raises(OSError, match="a broken image"):
            compute(broken())
    close(model.predict(IMAGES, verbose=0), expected)


def test_adapters_come_and_go():
    """TensorFlow would go on with what it traced before."""
    model = _checkpoints.tiny(input_shape=(16, 24, 3))
    extractor = FeatureExtractor(model)
    found = [extractor.predict(IMAGES, verbose=0)]
    extractor.compile(loss="mse")
    zeros = np.zeros_like(found[0])
    losses = [extractor.evaluate(IMAGES, zeros, verbose=0)]
    model.enable_lora(2)
    for projection in projections(model).values():
        if projection.lora_enabled:
            adapter = projection.lora_kernel_b
            adapter.assign(np.ones(adapter.shape))
    found.append(extractor.predict(IMAGES, verbose=0))
    losses.append(extractor.evaluate(IMAGES, zeros, verbose=0))
    squares = [np.square(x).mean() for x in found]
    np.testing.assert_allclose(losses, squares, rtol=1e-4)
    close(model.features(IMAGES), found[1])
    model.merge_lora()
    found.append(extractor.predict(IMAGES, verbose=0))
    close(model.features(IMAGES), found[2])
    assert np.abs(found[1] - found[0]).max() > 0.1
    close(found[2], found[1])


@pytest.mark.once
def test_maps_have_the_models_precision():
    model = _checkpoints.tiny(dtype="bfloat16", include_preprocessing=False)
    extractor = FeatureExtractor(model, grid=True)
    assert extractor.output.dtype == "bfloat16"
    assert extractor.image_shape == model.image_shape
    assert not extractor.include_preprocessing  # `export` then adds it.


@pytest.mark.once
def test_wrong_blocks_are_refused(model):
    for wrong in (2, -3, "head", "encoder_norm", 1.0, [0, 2]):
        with pytest.raises(ValueError, match="indices from -2 to 1 or names"):
            FeatureExtractor(model, wrong)
    with pytest.raises(ValueError, match="at least one"):
        FeatureExtractor(model, [])
    with pytest.raises(TypeError, match="VisionTransformer"):
        FeatureExtractor(keras.Sequential())
    with pytest.raises(ValueError, match="Expected images of shape"):
        model.features(np.zeros((1, 8, 8, 3), "float32"))


@pytest.mark.once
def test_features_of_lists_and_of_nothing(model):
    expected = model.features(IMAGES)
    close(model.features(list(IMAGES)), expected)
    close(model.features([IMAGES], blocks=np.int64(-1)), expected)
    assert model.features(IMAGES[:0]).shape == (0, *expected.shape[1:])
    both = model.features(IMAGES, blocks=np.array([0, 1]))
    close(both[1], expected)


@pytest.mark.once
def test_features_compile_once(model):
    model.features(IMAGES)
    assert model._extractor.cache_info().currsize > 0
    hits = model._extractor.cache_info().hits
    model.features(IMAGES)
    assert model._extractor.cache_info().hits == hits + 1
    model.get_layer("encoderblock_0").trainable = False
    model.features(IMAGES)
    assert model._extractor.cache_info().hits == hits + 1
    model.trainable = True
    assert keras_augreg.FeatureExtractor is FeatureExtractor
