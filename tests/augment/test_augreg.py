"""A recipe's whole augmentation as one layer."""

import keras
import numpy as np
import pytest

from keras_augreg.augment import AugRegAugment, MixUp, RandAugment
from keras_augreg.recipe import AugReg
from keras_augreg.training import losses


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def batch(n=8, classes=5, side=16):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, side, side, 3), dtype="uint8")
    return images, rng.integers(0, classes, n)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("level", ["none", "light1", "medium2"])
def test_augreg_is_randaugment_then_mixup(level, dtype):
    recipe = AugReg(level)
    images, labels = batch()
    images = images.astype(dtype)
    result = AugRegAugment(recipe, 5, seed=3)(images, labels, step=2)
    expected = images
    if recipe.randaugment:
        augment = RandAugment(*recipe.randaugment, seed=3)
        expected = numpy(augment(images, step=2))
    expected = expected.astype("float32")
    one_hot = np.eye(5, dtype="float32")[labels]
    mixed = MixUp(recipe.mixup, seed=3)(expected, one_hot, step=2)
    for x, y in zip(result, mixed, strict=True):
        assert keras.backend.standardize_dtype(x.dtype) == "float32"
        np.testing.assert_allclose(numpy(x), numpy(y), rtol=1e-6, atol=1e-6)


def test_mixing_before_scaling_is_mixing_after_it():
    """Mixup is linear, so the model may scale what is already mixed."""
    images, labels = batch()
    mixed, _ = AugRegAugment(AugReg("heavy2"), 5, seed=3)(
        images, labels, step=0
    )
    drawn = numpy(RandAugment(2, 20, seed=3)(images, step=0))
    scaled = (drawn / 127.5 - 1).astype("float32")
    one_hot = np.eye(5, dtype="float32")[labels]
    expected, _ = MixUp(0.8, seed=3)(scaled, one_hot, step=0)
    mixed = numpy(mixed) / 127.5 - 1
    np.testing.assert_allclose(mixed, numpy(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", ["none", "medium1"])
def test_augreg_in_tf_data_is_the_same(level):
    tf = pytest.importorskip("tensorflow")
    images, labels = batch()
    layer = AugRegAugment(AugReg(level), 5, seed=3)
    expected = [layer(images, labels, step=step) for step in range(2)]
    data = tf.data.Dataset.from_tensors((images, labels)).repeat(2)
    data = data.map(AugRegAugment(AugReg(level), 5, seed=3))
    for result, wanted in zip(data, expected, strict=True):
        for x, y in zip(result, wanted, strict=True):
            np.testing.assert_allclose(x.numpy(), numpy(y), rtol=1e-6)


def test_augreg_label_shapes():
    images, labels = batch()
    layer = AugRegAugment(AugReg("light1"), 5, seed=3)
    expected = np.eye(5)[labels]
    for given in (labels, labels[:, None], expected, expected.astype("int32")):
        result = layer(images, given, step=0)[1]
        np.testing.assert_array_equal(numpy(result), expected)


def test_augreg_without_training_only_casts():
    images, labels = batch()
    layer = AugRegAugment(AugReg("heavy2"), 5, seed=3)
    same, one_hot = layer(images, labels, training=False)
    assert keras.backend.standardize_dtype(same.dtype) == "float32"
    np.testing.assert_array_equal(numpy(same), images)
    np.testing.assert_array_equal(numpy(one_hot), np.eye(5)[labels])


@pytest.mark.parametrize(
    "layer",
    [AugRegAugment(AugReg("heavy2", 0.1), 5, seed=3), MixUp(0.3, seed=1)],
    ids=lambda layer: type(layer).__name__,
)
def test_round_trip_and_symbolic_call(layer):
    config = keras.saving.serialize_keras_object(layer)
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == layer.get_config()
    images = keras.Input((8, 8, 3), dtype="float32")
    if isinstance(layer, AugRegAugment):
        images = keras.Input((8, 8, 3), dtype="uint8")
    x, y = layer(images, keras.Input((5,)))
    assert (x.shape, x.dtype) == ((None, 8, 8, 3), "float32")
    assert (y.shape, y.dtype) == ((None, 5), "float32")


@keras.saving.register_keras_serializable(package="test_augreg")
class Augmented(keras.Sequential):
    """A model whose training step augments, as a trainer would write it."""

    def train_step(self, *arguments):
        *state, (images, labels) = arguments
        step = self.optimizer.iterations
        if state:  # JAX: the iterations are the optimizer's first variable.
            step = state[0][2][0]
        images, labels = self.augment(images, labels, step=step)
        self.seen.append((images.dtype, tuple(labels.shape)))
        return super().train_step(*state, (images, labels))


def tiny_model():
    keras.utils.set_random_seed(0)
    model = Augmented(
        [
            keras.layers.Rescaling(1 / 127.5, -1),
            keras.layers.Flatten(),
            keras.layers.Dense(5),
        ]
    )
    model.build((None, 16, 16, 3))
    model.augment = AugRegAugment(AugReg("medium2"), 5, seed=0)
    model.seen = []
    model.compile(
        keras.optimizers.SGD(1e-3),
        losses.SigmoidCrossentropy(),
        metrics=[losses.Accuracy()],
    )
    return model


def test_inside_fits_compiled_step_and_resumed():
    """Integer labels in, soft labels inside; a resumed run draws alike."""
    images, labels = batch(n=12)
    options = {"batch_size": 4, "verbose": 0, "shuffle": False}
    model = tiny_model()
    history = model.fit(images, labels, epochs=2, **options).history
    assert len(history["loss"]) == 2
    assert np.isfinite(history["loss"]).all()
    assert model.seen
    assert all(shape[-1] == 5 for _, shape in model.seen)
    evaluated = model.evaluate(images, labels, verbose=0)
    assert np.isfinite(evaluated).all()

    first = tiny_model()
    first.fit(images, labels, epochs=1, **options)
    resumed = tiny_model()
    resumed.set_weights(first.get_weights())
    resumed.optimizer.build(resumed.trainable_variables)
    resumed.optimizer.iterations.assign(first.optimizer.iterations)
    resumed.fit(images, labels, epochs=1, **options)
    for x, y in zip(model.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: AugRegAugment("medium1", 5),
            TypeError,
            "`recipe` must be a `keras_augreg.AugReg`",
        ),
        (
            lambda: AugRegAugment(AugReg("none"), 0),
            ValueError,
            "`num_classes` must be at least 1",
        ),
        (
            lambda: AugRegAugment(AugReg("none"), 5)(
                np.zeros((8, 4, 4, 3), "int64"), batch()[1]
            ),
            TypeError,
            "must be uint8 or float",
        ),
        (
            lambda: AugRegAugment(AugReg("none"), 5)(
                np.full((8, 4, 4, 3), -1, "float32"), batch()[1]
            ),
            ValueError,
            r"Augment before scaling to \[-1, 1\]",
        ),
        (
            lambda: AugRegAugment(AugReg("none"), 5)(batch()[0], np.eye(8)),
            ValueError,
            r"Labels must be integers of shape \(batch,\), or one-hot",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
