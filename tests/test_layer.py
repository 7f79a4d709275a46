"""The base class of the layers."""

import keras
import pytest

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
