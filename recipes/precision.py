"""Which dtype policy a script trains with."""

from __future__ import annotations

import keras

from keras_augreg import distribution


def choose(dtype: str) -> str:
    """Sets the global dtype policy, prints and returns it.

    "auto" is mixed_bfloat16 on TPUs and on GPUs that have it, mixed_float16
    (Keras then scales the loss) on older GPUs such as the T4, and float32 on
    CPUs. Call it after `distribute`, which starts the devices.
    """
    if dtype == "auto":
        kind, capability = accelerator()
        # NVIDIA's compute capability: 7.5 is the T4, 8.0 the A100. Other
        # makers' GPUs have none here; those that frameworks support have
        # bfloat16.
        modern = kind == "tpu" or capability is None or capability >= 8
        dtype = f"mixed_{'bfloat16' if modern else 'float16'}"
        if kind == "cpu":
            dtype = "float32"
        print(f"Trains in {dtype} on a {kind.upper()}; --dtype chooses.")
    keras.config.set_dtype_policy(dtype)
    return dtype


def accelerator() -> tuple[str, float | None]:
    """("cpu", "gpu" or "tpu", compute capability of NVIDIA's GPUs)."""
    kind = distribution.platform()
    if kind != "gpu":
        return "tpu" if kind == "tpu" else "cpu", None
    find = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    try:
        return kind, float(find[keras.config.backend()]())
    except ValueError:
        return kind, None


def _jax() -> str:
    import jax

    return getattr(jax.local_devices()[0], "compute_capability", "")


def _tensorflow() -> str:
    import tensorflow as tf

    gpu = tf.config.list_physical_devices("GPU")[0]
    details = tf.config.experimental.get_device_details(gpu)
    return ".".join(map(str, details.get("compute_capability", ())))


def _torch() -> str:
    import torch

    if torch.version.hip:
        return ""
    return ".".join(map(str, torch.cuda.get_device_capability()))
