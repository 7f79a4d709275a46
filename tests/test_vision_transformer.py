"""Images of any size and any number of channels."""

import subprocess
import sys

import _checkpoints
import keras
import numpy as np
import pytest
from _timm import import_timm

import keras_augreg
from keras_augreg import FeatureExtractor, checkpoints
from keras_augreg.checkpoints.convert import adapt_channels
from keras_augreg.layer import freeze
from keras_augreg.models import _builder
from keras_augreg.variants import VARIANTS

BUILDERS = {"plain": _checkpoints.tiny, "hybrid": _checkpoints.hybrid}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of a tiny ViT, of 4 x 4 patches, and of a hybrid."""
    folder = tmp_path_factory.mktemp("checkpoints")
    np.savez(folder / "plain.npz", **_checkpoints.release())
    np.savez(folder / "hybrid.npz", **_checkpoints.release(stages=(2, 1)))
    return folder


def loaded(folder, kind, **kwargs):
    model = BUILDERS[kind](**kwargs)
    checkpoints.load(model, folder / f"{kind}.npz")
    return model


def logits(model, images):
    return model.predict(images, verbose=0)


def close(found, expected):
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", BUILDERS)
def test_logits_at_any_size_are_those_of_a_model_of_that_size(kind, folder):
    dynamic = loaded(folder, kind, dynamic_image_size=True)
    assert dynamic.input_shape == (None, None, None, 3)
    native = loaded(folder, kind)
    images = _checkpoints.images(native.image_shape)
    np.testing.assert_array_equal(
        logits(dynamic, images), logits(native, images)
    )
    stride = native.sizes.stride
    shape = (8 * stride, 3 * stride, 3)
    images = _checkpoints.images(shape)
    expected = logits(loaded(folder, kind, input_shape=shape), images)
    close(logits(dynamic, images), expected)


def test_half_precision_at_another_size(folder):
    whole = loaded(folder, "plain", dynamic_image_size=True)
    half = loaded(
        folder, "plain", dynamic_image_size=True, dtype="mixed_bfloat16"
    )
    images = _checkpoints.images((8, 20, 3))
    found, expected = (model.features(images, 0) for model in (half, whole))
    np.testing.assert_allclose(found, expected, atol=0.2, rtol=0.05)


def test_model_and_extractor_are_loaded_elsewhere(folder, tmp_path):
    model = loaded(folder, "plain", dynamic_image_size=True)
    keras_augreg.compile_finetuning(model, total_steps=4, learning_rate=0.1)
    positions = model.get_layer("posembed_input").pos_embedding
    before = np.array(keras.ops.convert_to_numpy(positions))
    model.fit(_checkpoints.images((8, 20, 3)), np.array([0, 1]), verbose=0)
    assert (before != keras.ops.convert_to_numpy(positions)).any()
    images = _checkpoints.images((8, 20, 3))
    expected = logits(model, images)
    freeze(model, 1)
    extractor = FeatureExtractor(model, [0, -1], grid=True)
    np.save(tmp_path / "images.npy", images)
    model.save(tmp_path / "model.keras")
    extractor.save(tmp_path / "extractor.keras")
    code = """if True:
        import keras, keras_augreg, numpy as np
        images = np.load("images.npy")
        model = keras.saving.load_model("model.keras")
        np.save("logits", model.predict(images, verbose=0))
        extractor = keras.saving.load_model("extractor.keras")
        np.savez("maps", *extractor.predict(images, verbose=0))
        print(len(extractor.trainable_variables))
    """
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    )
    close(np.load(tmp_path / "logits.npy"), expected)
    with np.load(tmp_path / "maps.npz") as maps:
        for found, made in zip(
            maps.values(), extractor.predict(images, verbose=0), strict=True
        ):
            assert found.shape == (2, 2, 5, 12)
            close(found, made)
    assert int(done.stdout) == len(extractor.trainable_variables) == 12
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        model.export(tmp_path / "exported", verbose=False)
        served = tf.saved_model.load(tmp_path / "exported")
        close(served.serve(images), expected)


@pytest.mark.once
def test_export_through_torch_has_the_native_size(folder, tmp_path):
    torch = pytest.importorskip("torch")
    model = loaded(folder, "plain", dynamic_image_size=True)
    path = keras_augreg.export(model, tmp_path / "served", "torch")
    images = np.zeros((3, 16, 16, 3), "uint8")
    found = torch.export.load(path).module()(torch.tensor(images))
    scaled = keras_augreg.preprocess_input(images)
    close(found.detach().numpy(), logits(model, scaled))


@pytest.mark.once
def test_sizes_that_do_not_fit_are_refused(folder):
    dynamic = loaded(folder, "plain", dynamic_image_size=True)
    for shape in ((18, 16, 3), (16, 18, 3)):
        with pytest.raises(ValueError, match="resize them: 4 divides height"):
            logits(dynamic, _checkpoints.images(shape))
    with pytest.raises(ValueError, match="build the model with input_shape="):
        logits(loaded(folder, "plain"), _checkpoints.images((8, 8, 3)))
    layer = dynamic.get_layer("embedding")
    with pytest.raises(ValueError, match="4 x 4 pixels must fill an image"):
        layer(np.zeros((1, 6, 8, 3), "float32"))
    with pytest.raises(ValueError, match="with a fixed height and width"):
        _checkpoints.tiny(input_shape=(None, None, 3))


@pytest.mark.once
def test_builders_take_an_input_of_any_size(folder, monkeypatch):
    sizes = loaded(folder, "plain").sizes
    variant = VARIANTS["ViT_Ti16"]
    monkeypatch.setitem(
        VARIANTS, "ViT_Ti16", type(variant)(**{**vars(variant), "sizes": sizes})
    )
    inputs = keras.Input((None, None, 4))
    model = _builder("ViT_Ti16")(
        weights=folder / "plain.npz",
        input_tensor=inputs,
        dynamic_image_size=True,
    )
    assert model.image_shape == (16, 16, 4)
    assert model.predict(np.zeros((1, 8, 12, 4)), verbose=0).shape == (1, 5)
    with pytest.raises(TypeError, match="called 'input_shape'"):
        _builder("ViT_Ti16")(in_chans=1)


# Channels


@pytest.mark.parametrize("kind", BUILDERS)
def test_grey_images_give_the_logits_of_their_rgb_form(kind, folder, capsys):
    rgb = loaded(folder, kind)
    assert capsys.readouterr().out == ""
    shape = (*rgb.image_shape[:2], 1)
    grey = loaded(folder, kind, input_shape=shape)
    assert "their sum, as timm does" in capsys.readouterr().out
    images = _checkpoints.images(shape)
    if kind == "plain":  # A standardised kernel does not keep its scale.
        repeated = np.repeat(images, 3, axis=-1)
        close(logits(grey, images), logits(rgb, repeated))


@pytest.mark.once
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
def test_kernels_are_adapted_as_timm_does(channels):
    import_timm()
    import torch
    from timm.models import adapt_input_conv

    kernel = np.random.default_rng(0).normal(size=(2, 2, 3, 5))
    kernel = kernel.astype("float32")
    theirs = adapt_input_conv(
        channels, torch.tensor(kernel.transpose(3, 2, 0, 1))
    )
    found = adapt_channels(kernel, channels)
    close(found, theirs.numpy().transpose(2, 3, 1, 0))


@pytest.mark.once
def test_models_of_thirteen_channels_come_back(folder, tmp_path):
    shape = (16, 16, 13)
    model = loaded(folder, "plain", input_shape=shape)
    again, rgb = _checkpoints.tiny(input_shape=shape), _checkpoints.tiny()
    for form, save in [
        ("npz", checkpoints.to_npz),
        ("safetensors", checkpoints.to_timm),
        ("keras", keras.Model.save),
    ]:
        file = tmp_path / f"model.{form}"
        save(model, file)
        checkpoints.load(again, file)
        for found, expected in zip(
            again.get_weights(), model.get_weights(), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
        with pytest.raises(ValueError, match="images of 13 channels, the mo"):
            checkpoints.load(rgb, file)
    assert keras_augreg.describe(model).input_shape == shape
    assert keras_augreg.describe(model).parameters == model.count_params()


@pytest.mark.once
def test_timm_gets_the_number_of_channels(folder, tmp_path):
    import_timm()
    import timm

    model = loaded(folder, "plain", input_shape=(16, 16, 4))
    checkpoints.to_hf(model, tmp_path / "hub")
    other = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True)
    assert other.patch_embed.proj.in_channels == 4
    assert other.pretrained_cfg["input_size"] == (4, 16, 16)


@pytest.mark.once
def test_channels_of_batches_are_checked():
    model = _checkpoints.tiny(input_shape=(16, 16, 4))
    for channels, hint in [(1, r"repeat\(images, 4"), (3, "takes 4 channels")]:
        with pytest.raises(ValueError, match=hint):
            logits(model, np.zeros((1, 16, 16, channels), "float32"))
    with pytest.raises(ValueError, match="channels last"):
        logits(model, np.zeros((1, 4, 16, 16), "float32"))


@pytest.mark.once
def test_predict_reads_photos_as_grey():
    kwargs = {"include_preprocessing": True, "classifier_activation": "softmax"}
    grey = _checkpoints.tiny(input_shape=(16, 16, 1), **kwargs)
    images = np.zeros((3, 40, 50, 3), "uint8")
    names = {"class_names": list("abcde")}
    grey.class_names = names["class_names"]
    assert len(keras_augreg.predict(grey, images)) == 3
    assert len(keras_augreg.predict(grey, images[:, :16, :16, :1])) == 3
    with pytest.raises(ValueError, match="channels are not resized"):
        keras_augreg.predict(grey, images[..., :1])
    many = _checkpoints.tiny(input_shape=(16, 16, 4), **kwargs, **names)
    with pytest.raises(ValueError, match="images of 4 channels, photos have"):
        keras_augreg.predict(many, images)
    dynamic = _checkpoints.tiny(dynamic_image_size=True, **kwargs, **names)
    assert len(keras_augreg.predict(dynamic, images)) == 3


@pytest.mark.once
def test_pictures_of_models_of_other_channels():
    model = _checkpoints.tiny(input_shape=(16, 16, 4))
    keras_augreg.visualize.plot_filters(model, count=5)
    keras_augreg.visualize.plot_rollout(model, np.zeros((1, 16, 16, 4)))


@pytest.mark.once
def test_an_input_tensor_of_any_size_has_its_channels():
    grey = keras.Input((None, None, 1))
    build = _builder("ViT_Ti32")
    model = build(weights=None, input_tensor=grey, dynamic_image_size=True)
    assert model.image_shape == (224, 224, 1)
    with pytest.raises(ValueError, match="images of 1 channels, `input_shape`"):
        build(
            weights=None,
            input_tensor=grey,
            input_shape=(96, 96, 3),
            dynamic_image_size=True,
        )


@pytest.mark.once
def test_models_are_built_in_floating_point():
    with pytest.raises(ValueError, match=r"then call model\.quantize"):
        _checkpoints.tiny(dtype="int8_from_float32")
    with pytest.raises(ValueError, match="classes"):
        _builder("ViT_Ti32")(weights=None, classes=0)


@pytest.mark.once
def test_class_names_say_how_many_classes():
    sizes = {k: v for k, v in _checkpoints.TINY.items() if k != "classes"}
    build = keras_augreg.VisionTransformer
    model = build(**sizes, class_names=["a", "b"])
    assert (model.classes, model.output_shape) == (2, (None, 2))
    assert build.from_config(model.get_config()).class_names == ("a", "b")
    assert build(**sizes).classes == 1000
    with pytest.raises(ValueError, match=r"one for each.*classes=3"):
        build(**sizes, class_names=["a", "b"], classes=3)
