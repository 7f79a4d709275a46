"""The two forms of a block's products (`keras_augreg.vit.products`)."""

import keras
import numpy as np
import pytest

from keras_augreg import VisionTransformer, distribution, vit
from keras_augreg.training import compile_finetuning


def model():
    keras.utils.set_random_seed(0)
    net = VisionTransformer(
        patch_size=4,
        width=48,
        depth=2,
        num_heads=3,
        mlp_dim=64,
        input_shape=(16, 12, 3),
        classes=8,
        classifier_activation=None,
        seed=0,
    )
    rng = np.random.default_rng(0)
    for weight in net.weights:
        noise = 0.1 * rng.normal(size=weight.shape)
        weight.assign(weight + noise.astype("float32"))
    return net


def test_forms_are_equal():
    """Logits, and weights after two steps of training."""
    results = []
    for form in ("flat", "batched"):
        net = model()
        images = np.random.default_rng(1).integers(
            0, 256, (6, *net.image_shape), "uint8"
        )
        with vit.products(form):
            logits = net.predict(images, verbose=0)
            compile_finetuning(net, total_steps=9, learning_rate=0.1)
            net.fit(images, np.arange(6), epochs=2, verbose=0)
        weights = map(keras.ops.convert_to_numpy, net.weights)
        results.append([logits, *weights])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-5)


def test_form_on_cpus():
    assert distribution.platform() == "cpu"
    assert not vit.batched()
    with vit.products("batched"):
        assert vit.batched()
        with vit.products("auto"):
            assert not vit.batched()
    with pytest.raises(ValueError, match=r"`form` must be.*'wide'"):
        vit.products("wide").__enter__()


def test_statistics_of_layer_norm_in_one_pass():
    """Constant tokens have no variance, also where rounding makes it < 0."""
    x = np.full((1, 4, 48), 300.1, "float32")
    x[0, 0] += np.linspace(-1, 1, 48, dtype="float32")
    layer = vit.layer_norm("norm", "float32")
    two = keras.ops.convert_to_numpy(layer(x))
    with vit.products("batched"):
        one = keras.ops.convert_to_numpy(layer(x))
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one[0, 0], two[0, 0], atol=0.1)


def test_layers_say_what_images_they_take():
    """As the layers of a clone or a part of a model, which check nothing."""
    positions = vit.PositionEmbedding(patch_grid=(2, 2))
    positions(np.zeros((1, 4, 8), "float32"))
    with pytest.raises(
        ValueError, match=r"images of 2 x 2 patches, 4 in all\. Received.* 16"
    ):
        positions(np.zeros((1, 16, 8), "float32"))
    patches = vit.PatchEmbedding(8, 4)
    patches(np.zeros((1, 16, 16, 3), "float32"))
    for shape in ((1, 3, 16, 16), (16, 16, 3)):
        with pytest.raises(ValueError, match="width, 3\\), channels last"):
            patches(np.zeros(shape, "float32"))
