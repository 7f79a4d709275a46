"""The KerasCV route, where the extra `keras-cv` is installed."""

import sys

import keras
import numpy as np
import pytest

from keras_augreg.augment import keras_cv_layers
from keras_augreg.recipe import AugReg

on_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="KerasCV runs there"
)


@on_tensorflow
@pytest.mark.parametrize(
    ("level", "names"),
    [
        ("none", []),
        ("light1", ["RandAugment"]),
        ("heavy2", ["RandAugment", "MixUp"]),
    ],
)
def test_layers_in_tf_data(level, names):
    pytest.importorskip("keras_cv")
    tf = pytest.importorskip("tensorflow")
    recipe = AugReg(level)
    layers = keras_cv_layers(recipe, seed=1)
    assert [type(layer).__name__ for layer in layers] == names
    if recipe.randaugment:
        assert layers[0].augmentations_per_image == recipe.randaugment[0]
        assert layers[0].magnitude == recipe.randaugment[1] / 20
        assert layers[0].magnitude_stddev == 0
        assert layers[0].rate == 1
    if recipe.mixup:
        assert layers[1].alpha == recipe.mixup

    def augment(batch):
        for layer in layers:
            batch = layer(batch)
        return batch

    images = np.random.default_rng(0).uniform(0, 255, (4, 16, 16, 3))
    batch = {
        "images": images.astype("float32"),
        "labels": np.eye(4, dtype="float32"),
    }
    result = next(iter(tf.data.Dataset.from_tensors(batch).map(augment)))
    assert result["images"].shape == (4, 16, 16, 3)
    assert np.min(result["images"]) >= 0
    assert np.max(result["images"]) <= 255
    np.testing.assert_allclose(np.sum(result["labels"], -1), 1, rtol=1e-5)


def test_without_keras_cv(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_cv", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_augreg\[keras"):
        keras_cv_layers(AugReg("light1"))
