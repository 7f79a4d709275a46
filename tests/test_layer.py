"""The base class of the layers."""

import keras
import numpy as np
import pytest
from _checkpoints import images, tiny

from keras_augreg.initialization import zero_weights
from keras_augreg.layer import Layer


class Twice(Layer):
    def __init__(self, a, b=2, **kwargs):
        super().__init__(**kwargs)
        self.a, self.b = a, b


class Once(Twice):
    """A subclass without an own argument."""

    def __init__(self, **kwargs):
        super().__init__(1, **kwargs)


def test_config_holds_the_arguments():
    layer = Twice(1, b=3, name="here", dtype="float16")
    again = Twice.from_config(layer.get_config())
    assert (again.a, again.b, again.name) == (1, 3, "here")
    assert again.compute_dtype == "float16"
    assert Once.from_config(Once().get_config()).a == 1


@pytest.mark.parametrize("zero", [False, True])
def test_weights_are_random_unless_a_checkpoint_fills_them(zero):
    layer = Twice(1)
    if zero:
        with zero_weights():
            weight = layer.weight("kernel", (2, 2), "glorot_uniform")
    else:
        weight = layer.weight("kernel", (2, 2), "glorot_uniform")
    assert bool(keras.ops.any(weight != 0)) is not zero
    assert not keras.ops.any(layer.weight("bias", (2,)) != 0)


def nest(model):
    inputs = keras.Input(model.input_shape[1:])
    return keras.Model(inputs, model(inputs))


def frozen(model):
    model.get_layer("encoderblock_0").trainable = False
    model.get_layer("encoderblock_1").attention.trainable = False


def quantized(model):
    model.quantize("int8")


def adapted(model):
    model.get_layer("head").enable_lora(2, lora_alpha=3)


def changed(model):
    """What Keras keeps of the layers of a functional model, and of parts."""
    block = model.get_layer("encoderblock_0")
    block.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    block.norm1.epsilon = 0.5
    block.mlp_kernel1.trainable = False
    model.get_layer("encoderblock_1").dropout = 0.5
    model.get_layer("encoder_norm").epsilon = 0.25
    head = model.get_layer("head")
    head.kernel_regularizer = keras.regularizers.L2(0.125)
    head.activation = keras.activations.sigmoid


def check_changed(model):
    block = model.get_layer("encoderblock_0")
    assert block.compute_dtype == "bfloat16"
    assert block.norm1.epsilon == 0.5
    assert not block.mlp_kernel1.trainable
    assert model.get_layer("encoderblock_1").dropout == 0.5
    assert model.get_layer("encoder_norm").epsilon == 0.25
    head = model.get_layer("head")
    assert head.activation is keras.activations.sigmoid
    for regularizer in (head.kernel_regularizer, head.kernel.regularizer):
        assert float(regularizer.l2) == 0.125


@pytest.mark.parametrize("change", [frozen, quantized, adapted, changed])
@pytest.mark.parametrize("wrap", [lambda model: model, nest])
def test_state_of_layers_is_saved(tmp_path, change, wrap):
    """Also if the model is a part of another."""
    model = tiny(seed=1)
    head = model.get_layer("head")
    head.kernel.assign(keras.random.normal(head.kernel.shape, seed=0))
    outer = wrap(model)
    change(outer if change is quantized else model)
    outer.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for name in ("trainable_variables", "non_trainable_variables"):
        paths = [
            # Keras numbers the seed generators of a process.
            [v.path for v in getattr(m, name) if "seed_" not in v.path]
            for m in (again, outer)
        ]
        assert paths[0] == paths[1]
    if change is changed:
        check_changed(again if wrap is not nest else again.layers[-1])
        once = type(again).from_config(again.get_config())
        check_changed(once if wrap is not nest else once.layers[-1])
    x = images()
    np.testing.assert_allclose(
        again.predict(x, verbose=0), outer.predict(x, verbose=0), atol=1e-6
    )


def test_the_input_and_policies_of_layers_are_saved(tmp_path):
    image = keras.Input((16, 16, 3), name="photo", dtype="uint8")
    policies = keras.dtype_policies.DTypePolicyMap()
    policies["encoderblock_0"] = keras.DTypePolicy("mixed_bfloat16")
    model = tiny(input_tensor=image, include_preprocessing=True, dtype=policies)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    for each in (model, again):
        assert (each.input.name, each.input.dtype) == ("photo", "uint8")
        assert each.get_layer("encoderblock_0").compute_dtype == "bfloat16"
        assert each.get_layer("encoderblock_1").compute_dtype == "float32"
    assert "input" not in tiny().get_config()
