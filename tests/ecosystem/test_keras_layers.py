"""Keras's own test of a layer, on the layers that take one tensor.

That is all of this package's but `features.Grid`, which takes two.

`run_layer_test` checks configuration, serialization, symbolic and eager calls,
gradients, `fit`, mixed precision, and what the layer claims to have.
"""

from __future__ import annotations

import numpy as np
import pytest
from keras.src import testing

from keras_augreg import preprocessing, resnet, trainstep, vit

# Class, arguments, shape of the input, of the output, and how many weights
# and seed generators it has.
LAYERS = [
    (vit.PatchEmbedding, {"patch_size": 4, "width": 8},
     (2, 8, 12, 3), (2, 6, 8), 2, 0),
    (vit.PositionEmbedding, {"dropout": 0.5}, (2, 6, 8), (2, 7, 8), 2, 1),
    (vit.Attention, {"num_heads": 2, "queries": 1}, (2, 7, 8), (2, 1, 8), 4, 0),
    (vit.Block, {"num_heads": 2, "mlp_dim": 12, "dropout": 0.1,
                 "stochastic_depth": 0.1}, (2, 7, 8), (2, 7, 8), 12, 1),
    (vit.Pool, {"kind": "avg", "class_token": False}, (2, 7, 8), (2, 8), 0, 0),
    (vit.Pool, {"kind": "max"}, (2, 7, 8), (2, 8), 0, 0),
    (resnet.StandardizedConv, {"filters": 4, "kernel_size": 3, "strides": 2},
     (2, 8, 8, 3), (2, 4, 4, 4), 1, 0),
    (vit.LayerNormalization, {}, (2, 6, 8), (2, 6, 8), 2, 0),
    (trainstep.Predictions, {"activation": "softmax"}, (2, 3), (2, 3), 0, 0),
    (preprocessing.Preprocessing, {}, (2, 8, 8, 3), (2, 8, 8, 3), 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "arguments", "images", "expected", "weights", "seeds"),
    LAYERS,
    ids=lambda value: getattr(value, "__name__", None),
)
def test_layer(layer, arguments, images, expected, weights, seeds):
    testing.TestCase().run_layer_test(
        layer,
        arguments,
        input_data=np.random.default_rng(0).random(images, "float32"),
        expected_output_shape=expected,
        expected_num_trainable_weights=weights,
        expected_num_non_trainable_weights=0,
        expected_num_seed_generators=seeds,
        expected_num_losses=0,
        supports_masking=layer
        in (vit.LayerNormalization, trainstep.Predictions),
    )
