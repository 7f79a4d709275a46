"""What a model costs on this machine: images/s, latency, memory, FLOP/s.

`recipes/benchmark.py` measures every row in a process of its own.
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
from keras_augreg.recipe import AugReg
from keras_augreg.training import compile_pretraining
from keras_augreg.variants import VARIANTS

TASKS = ("infer", "train")
CLASSES = 1000
# Sides of the matrix products that FLOP/s are compared with, doubled from the
# smallest on; the largest are large enough to reach the device's speed.
SMALLEST, LARGEST_CPU, LARGEST_ACCELERATOR = 128, 2048, 8192
# Measurements of each figure, whose median counts.
REPEATS = 3


class SameBatch(keras.utils.PyDataset):
    """The same batch again and again, for `fit`, `evaluate` and `predict`.

    Args:
        batch: What each step gets.
        count: How many steps there are.
    """

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
    image_size: int = 224,
    batch_size: int = 16,
    dtype: str = "float32",
    seconds: float = 5.0,
) -> dict[str, Any]:
    """Measures a model on the backend in use.

    "infer" is `predict`, "train" is `fit` as `compile_pretraining` sets it up
    (recipe `none`, softmax loss); uint8 batches are in memory already.

    Args:
        model: Name of a builder, for example `"ViT_S16"`.
        task: `"infer"` or `"train"`.
        image_size: Pixels of a side.
        batch_size: Images of a step.
        dtype: Name of a dtype policy, for example `"mixed_bfloat16"`.
        seconds: About how long each figure is measured.

    Returns:
        A dictionary of the arguments, `"backend"` and the figures:
        `"images_per_second"`; `"latency_ms"` of one image in a batch of its
        own (`None` in training); `"memory_mib"`, the peak of the accelerator,
        of the process on a CPU; `"first_call_s"`, build
        and compilation; `"gflops"`, 10^9 floating-point operations a second
        (a training step counts as three inferences); `"share"` of what a
        matrix product in the same dtype reaches (of up to 2048 rows on a CPU,
        8192 on an accelerator), measured in the same process in turn.

    Raises:
        ValueError: If there is no such model or task.

    Example:
    >>> row = keras_augreg.benchmark.measure("ViT_Ti16", batch_size=8)
    >>> row["images_per_second"]
    """
    if model not in VARIANTS:
        raise ValueError(
            "`model` is the name of a builder, such as 'ViT_S16'. Received: "
            f"model={model!r}"
        )
    if task not in TASKS:
        raise ValueError(
            f"`task` is 'infer' or 'train'. Received: task={task!r}"
        )
    start = time.perf_counter()
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        net: Any = getattr(models, model)(
            weights=None,
            classes=CLASSES,
            input_shape=(image_size, image_size, 3),
        )
    finally:
        keras.config.set_dtype_policy(policy)
    flops = describe(net).flops
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch_size, image_size, image_size, 3))
    images = images.astype("uint8")
    labels = rng.integers(0, CLASSES, batch_size).astype("int32")
    if task == "train":
        flops *= 3
        compile_pretraining(
            net,
            AugReg("none"),
            total_steps=10_000,
            warmup_steps=10,
            loss="softmax",
        )

    def once(count: int) -> None:
        if task == "train":
            net.fit(
                SameBatch((images, labels), count), verbose=0, shuffle=False
            )
        else:
            net.predict(SameBatch((images,), count), verbose=0)

    once(1)
    first_call = time.perf_counter() - start
    latency = None
    if task == "infer":
        net.predict_on_batch(images[:1])
        latency = 1e3 / _per_second(
            lambda count: [
                net.predict_on_batch(images[:1]) for _ in range(count)
            ],
            seconds / 3,
        )
    # In turn, as machines drift; the peak before a matrix can raise it.
    rates: list[float] = []
    products: list[float] = []
    for _ in range(2):
        rates.append(batch_size * _per_second(once, seconds))
        if not products:
            memory = _peak_memory()
            product, operations = _fastest_product(dtype, seconds / 3)
        products.append(operations * _per_second(product, seconds / 3))
    rate = statistics.mean(rates)
    return {
        "model": model,
        "task": task,
        "image_size": image_size,
        "batch_size": batch_size,
        "backend": keras.config.backend(),
        "dtype": dtype,
        "images_per_second": rate,
        "latency_ms": latency,
        "memory_mib": memory / 2**20,
        "first_call_s": first_call,
        "gflops": rate * flops / 1e9,
        "share": rate * flops / statistics.mean(products),
    }


def _per_second(once: Callable[[int], object], seconds: float) -> float:
    """How often `once(count)` does its thing in a second, at its median.

    `count` grows until a call's own cost, such as `fit`'s, is a small part.
    """
    count, target = 1, seconds / REPEATS
    once(count)
    while (spent := _seconds(once, count)) < target / 2:
        count = max(2 * count, min(10 * count, int(count * target / spent)))
    return count / statistics.median(
        _seconds(once, count) for _ in range(REPEATS)
    )


def _seconds(once: Callable[[int], object], count: int) -> float:
    start = time.perf_counter()
    once(count)
    return time.perf_counter() - start


def _accelerated() -> bool:
    if keras.config.backend() == "torch":
        import torch

        return torch.cuda.is_available()
    return not keras.distribution.list_devices()[0].startswith("cpu")


def _fastest_product(
    policy: str, seconds: float
) -> tuple[Callable[[int], object], int]:
    """The backend's fastest matrix product in a dtype, and its FLOPs.

    As `_per_second` takes it.
    """
    dtype = keras.dtype_policies.get(policy).compute_dtype

    def product(side: int) -> Callable[[int], object]:
        left = keras.random.normal((side, side), 0.0, side**-0.5, seed=0)
        left = ops.cast(left, dtype)

        def once(count: int) -> None:
            product = left
            for _ in range(count):
                product = ops.matmul(left, product)
            # Waits for the device.
            ops.convert_to_numpy(ops.cast(product[:1, :1], "float32"))

        return once

    side = SMALLEST
    largest = LARGEST_ACCELERATOR if _accelerated() else LARGEST_CPU
    found = []
    while side <= largest:
        once, operations = product(side), 2 * side**3
        once(1)
        spent = _seconds(once, 1)
        found.append((operations / spent, once, operations))
        # The next one takes eight times as long: minutes in the half
        # precision of PyTorch on a CPU without AVX-512.
        if 8 * spent > seconds:
            break
        side *= 2
    _, once, operations = max(found, key=lambda each: each[0])
    return once, operations


def _peak_memory() -> float:
    """Bytes, of the accelerator where it tells."""
    backend = keras.config.backend()
    if not _accelerated():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if backend == "jax":
        import jax

        return jax.local_devices()[0].memory_stats()["peak_bytes_in_use"]
    if backend == "torch":
        import torch

        return torch.cuda.max_memory_allocated()
    import tensorflow as tf

    return tf.config.experimental.get_memory_info("GPU:0")["peak"]
