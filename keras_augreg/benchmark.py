"""Measures what a model costs here: images/s, latency, memory, FLOP/s.

`recipes/benchmark.py` measures each row in a process of its own.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_augreg import models
from keras_augreg.describe import describe
from keras_augreg.distribution import on_cpu, platform
from keras_augreg.recipe import AugReg
from keras_augreg.training import compile_pretraining
from keras_augreg.variants import find
from keras_augreg.vision_transformer import DEFAULT_CLASSES, DEFAULT_RESOLUTION

TASKS = ("infer", "train")
# Sides of the matrix products that set the FLOP/s to compare with; each is
# twice the one before, and the largest reach the device's full speed.
SMALLEST, LARGEST_CPU, LARGEST_ACCELERATOR = 128, 2048, 8192
# Each figure is the median of this many measurements.
REPEATS = 3


class SameBatch(keras.utils.PyDataset):
    """Repeats a batch `count` times, for `fit`, `evaluate` and `predict`."""

    def __init__(self, batch: tuple[Any, ...], count: int) -> None:
        super().__init__()
        self._batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return self._batch


def measure(
    model: str,
    *,
    task: str = "infer",
    image_size: int = DEFAULT_RESOLUTION,
    batch_size: int = 16,
    dtype: str = "float32",
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Measures a model on the backend in use.

    "infer" is `predict`; "train" is `fit` after `compile_pretraining` (recipe
    `none`, softmax loss). The uint8 batches are in memory.

    Args:
        model: Any spelling of an architecture: `"ViT_S16"`, `"S/16"`.
        task: `"infer"` or `"train"`.
        image_size: Side of the images in pixels.
        batch_size: Images in a step.
        dtype: Name of a dtype policy, for example `"mixed_bfloat16"`.
        seconds: Approximate time for each figure.

    Returns:
        A dictionary of the arguments, `"backend"` and the figures:

        - `"images_per_second"`;
        - `"latency_ms"`: milliseconds for a batch of one image (`None` in
          training);
        - `"memory_mib"`: the accelerator's peak, or on a CPU the process's;
        - `"first_call_s"`: seconds to build and compile;
        - `"gflops"`: 10^9 floating-point operations per second (a training
          step counts as three forward passes);
        - `"share"`: that divided by the speed of a matrix product of the same
          dtype (with sides up to 2048 on a CPU, 8192 on an accelerator),
          measured alternately in the same process.

    Raises:
        ValueError: If there is no such model or task.

    Example:
    >>> row = keras_augreg.benchmark.measure("ViT_Ti16", batch_size=8)
    >>> row["images_per_second"]
    """
    model = find(model).name
    if task not in TASKS:
        raise ValueError(
            f"`task` must be 'infer' or 'train'. Received: task={task!r}"
        )
    start = time.perf_counter()
    net = _build(model, task, image_size, dtype)
    flops = describe(net).flops * (3 if task == "train" else 1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, *net.image_shape), "uint8")
    labels = rng.integers(0, DEFAULT_CLASSES, batch_size, "int32")

    def run(count: int) -> None:
        if task == "train":
            batches = SameBatch((images, labels), count)
            net.fit(batches, verbose=0, shuffle=False)
        else:
            net.predict(SameBatch((images,), count), verbose=0)

    def run_single(count: int) -> None:
        for _ in range(count):
            net.predict_on_batch(images[:1])

    run(1)
    first_call = time.perf_counter() - start
    latency = None
    if task == "infer":
        run_single(1)
        latency = 1e3 / _per_second(run_single, seconds / 3)
    # Alternately, as the machine's speed drifts. The peak of memory is read
    # before the first matrix product can raise it.
    rates = [batch_size * _per_second(run, seconds)]
    memory = _peak_memory()
    product, operations = _fastest_product(dtype, seconds / 3)
    products = [operations * _per_second(product, seconds / 3)]
    rates.append(batch_size * _per_second(run, seconds))
    products.append(operations * _per_second(product, seconds / 3))
    rate = statistics.mean(rates)
    return {
        "model": model, "task": task, "image_size": image_size,
        "batch_size": batch_size, "backend": keras.config.backend(),
        "dtype": dtype, "images_per_second": rate, "latency_ms": latency,
        "memory_mib": memory / 2**20, "first_call_s": first_call,
        "gflops": rate * flops / 1e9,
        "share": rate * flops / statistics.mean(products),
    }  # fmt: skip


def _build(model: str, task: str, image_size: int, dtype: str) -> Any:
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    shape = (image_size, image_size, 3)
    try:
        net = getattr(models, model)(
            weights=None, classes=DEFAULT_CLASSES, input_shape=shape
        )
    finally:
        keras.config.set_dtype_policy(policy)
    if task == "train":
        recipe = AugReg("none")
        compile_pretraining(
            net, recipe, total_steps=10_000, warmup_steps=10, loss="softmax"
        )
    return net


def _per_second(run: Callable[[int], None], seconds: float) -> float:
    """Median number of iterations per second of `run(count)`.

    `count` grows until the overhead of a call, such as `fit`'s, is small.
    """
    count, target = 1, seconds / REPEATS
    run(count)
    while (spent := _seconds(run, count)) < target / 2:
        count = max(2 * count, min(10 * count, int(count * target / spent)))
    times = [_seconds(run, count) for _ in range(REPEATS)]
    return count / statistics.median(times)


def _seconds(run: Callable[[int], None], count: int) -> float:
    start = time.perf_counter()
    run(count)
    return time.perf_counter() - start


def _fastest_product(
    policy: str, seconds: float
) -> tuple[Callable[[int], None], int]:
    """The fastest square matrix product, for `_per_second`, and its FLOPs."""
    dtype = keras.dtype_policies.get(policy).compute_dtype

    def multiply(side: int) -> Callable[[int], None]:
        left = keras.random.normal((side, side), 0.0, side**-0.5, seed=0)
        left = ops.cast(left, dtype)

        def run(count: int) -> None:
            product = left
            for _ in range(count):
                product = ops.matmul(left, product)
            # Waits for the device.
            ops.convert_to_numpy(ops.cast(product[:1, :1], "float32"))

        return run

    largest = LARGEST_CPU if on_cpu() else LARGEST_ACCELERATOR
    side, best = SMALLEST, 0.0
    while side <= largest:
        run, operations = multiply(side), 2 * side**3
        run(1)
        spent = _seconds(run, 1)
        if operations / spent > best:
            best, fastest = operations / spent, (run, operations)
        # The next side takes eight times as long: minutes in PyTorch's half
        # precision on a CPU without AVX-512.
        if 8 * spent > seconds:
            break
        side *= 2
    return fastest


def _peak_memory() -> float:
    """Bytes: the accelerator's peak, or the process's on a CPU."""
    backend = keras.config.backend()
    if platform() not in ("gpu", "tpu"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if backend == "jax":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
