import keras
import numpy as np
import optax
import pytest

from keras_augreg.training.schedules import warmup_cosine


@pytest.mark.parametrize("warmup", [0, 5])
def test_is_optax(warmup):
    schedule = warmup_cosine(0.05, total_steps=20, warmup_steps=warmup)
    schedule = keras.optimizers.schedules.deserialize(
        keras.optimizers.schedules.serialize(schedule)
    )
    want = optax.warmup_cosine_decay_schedule(
        0.0 if warmup else 0.05, 0.05, warmup, 20
    )
    np.testing.assert_allclose(
        [float(schedule(step)) for step in range(25)],
        [float(want(step)) for step in range(25)],
        rtol=1e-6,
        atol=1e-9,
    )


@pytest.mark.parametrize(
    ("learning_rate", "total", "warmup", "message"),
    [
        (0.01, 10, 10, "warmup_steps=10, total_steps=10"),
        (0.01, 10, -1, "warmup_steps=-1"),
        (0.0, 10, 1, "learning_rate=0.0"),
    ],
)
def test_refuses(learning_rate, total, warmup, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(learning_rate, total, warmup)


def test_a_number_of_batches_may_be_a_tensor():
    steps = keras.ops.convert_to_tensor(20)
    config = warmup_cosine(0.05, steps, steps // 4).get_config()
    assert config == warmup_cosine(0.05, 20, 5).get_config()
