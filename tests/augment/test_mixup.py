"""Mixup: the share that it draws, and what it mixes."""

import keras
import numpy as np
import pytest

from keras_augreg.augment import MixUp, mixup

BACKEND = keras.backend.backend()
# Shares of seed 7 at steps 0 to 3, for p = 0.2 and 0.8; equal on all backends.
PINNED_SHARES = (
    [0.9955282807350159, 0.7881178855895996, 1.0, 0.9972198009490967],
    [
        0.794354259967804,
        0.5813710689544678,
        0.9991670846939087,
        0.8131512403488159,
    ],
)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def batch(n=8, classes=5, side=16):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, side, side, 3), dtype="uint8")
    return images, rng.integers(0, classes, n)


def shares(p, count):
    def share(step):
        return mixup.draw_share(keras.ops, (7, step), p)

    steps = keras.ops.convert_to_tensor(np.arange(count, dtype="int32"))
    return numpy(keras.ops.vectorized_map(share, steps))


@pytest.mark.skipif(BACKEND != "jax", reason="vectorised best by JAX")
@pytest.mark.parametrize("p", [0.2, 0.5, 0.8, 1.0])
def test_shares_follow_the_folded_beta_distribution(p):
    """Kolmogorov-Smirnov against max(b, 1 - b), b ~ Beta(p, p).

    Up to 0.9999: at p = 0.2 some 3% of the shares are 1 in float32.
    """
    beta = pytest.importorskip("scipy.stats").beta(p, p)
    drawn = shares(p, 4000)
    assert drawn.min() >= 0.5
    assert drawn.max() <= 1
    at = np.linspace(0.5, 0.9999, 500)
    expected = beta.cdf(at) - beta.cdf(1 - at)
    below = np.searchsorted(np.sort(drawn), at, side="right") / len(drawn)
    # The distance that chance exceeds once in 1,000 times.
    assert np.abs(below - expected).max() < 1.95 / len(drawn) ** 0.5


@pytest.mark.parametrize(
    ("p", "expected"), [(0.2, PINNED_SHARES[0]), (0.8, PINNED_SHARES[1])]
)
def test_shares_are_pinned(p, expected):
    drawn = [
        float(
            mixup.draw_share(
                keras.ops,
                [keras.ops.convert_to_tensor(np.int32(x)) for x in (7, step)],
                p,
            )
        )
        for step in range(4)
    ]
    np.testing.assert_allclose(drawn, expected, rtol=2e-6)


def test_mixup_mixes_with_the_example_before():
    images, labels = batch()
    images, labels = (
        images.astype("float32"),
        np.eye(5, dtype="float32")[labels],
    )
    mixed, soft = map(numpy, MixUp(0.8, seed=7)(images, labels, step=0))
    share = np.float32(PINNED_SHARES[1][0])
    for x, result in ((images, mixed), (labels, soft)):
        expected = share * x + (1 - share) * np.roll(x, 1, axis=0)
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def test_mixup_with_p_0_is_the_identity():
    images, labels = np.random.rand(4, 2, 2, 3), np.eye(4)
    for layer, training in ((MixUp(0.0), True), (MixUp(0.5), False)):
        mixed, soft = layer(images, labels, training=training)
        np.testing.assert_allclose(numpy(mixed), images, rtol=1e-6)
        np.testing.assert_array_equal(numpy(soft), labels)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: MixUp(1.5), ValueError, r"`p` must be in \[0, 1\]"),
        (
            lambda: MixUp(0.2)(batch()[0], np.eye(8)),
            TypeError,
            "`images` must be float",
        ),
        (
            lambda: MixUp(0.2)(np.ones((8, 2, 2, 3)), batch()[1]),
            TypeError,
            "`labels` must be float",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
