"""A batch split over devices stays split: what a data-parallel step sends."""

import os
import subprocess
import sys

import keras
import pytest

SCRIPT = """
import re
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from keras_augreg.augment import augreg, randaugment

randaugment._CHUNK_PIXELS = 8 * 32 * 32
augment = augreg._compiled("jax", False, "medium1")
mesh = Mesh(np.array(jax.devices()), ("batch",))
split = NamedSharding(mesh, PartitionSpec("batch"))
whole = NamedSharding(mesh, PartitionSpec())
step = jax.jit(
    lambda *x: augment(*x),
    in_shardings=(split, split, whole, whole), out_shardings=(split, split))
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (32, 32, 32, 3), dtype="uint8")
inputs = images, np.eye(32, dtype="float32"), np.int32(1), np.int32(2)
for x, y in zip(step(*inputs), augment(*inputs), strict=True):
    np.testing.assert_array_equal(x, y)
text = step.lower(*inputs).compile().as_text()
kinds = "all-gather|all-reduce|collective-permute|all-to-all"
for line in text.splitlines():
    if found := re.search(rf"= (\\S+)\\{{.* ({kinds})(-start)?\\(", line):
        print(found[2], found[1])
"""


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="JAX's sharding")
def test_nothing_but_counts_and_an_edge_travels():
    """The histograms' sums, and Mixup's partner at each part's edge."""
    flags = "--xla_force_host_platform_device_count=2"
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(result.stdout.splitlines()) == [
        "all-reduce s32[6144]",
        "all-reduce s32[6144]",
        "collective-permute f32[1,32]",
        "collective-permute u8[1,32,32,3]",
    ]
