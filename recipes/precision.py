"""Which dtype policy a script trains with."""

from __future__ import annotations

import keras


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
    find = {"jax": _jax, "tensorflow": _tensorflow, "torch": _torch}
    kind, capability = find[keras.config.backend()]()
    try:
        return kind, float(capability)
    except ValueError:
        return kind, None


def _jax() -> tuple[str, str]:
    import jax

    device = jax.local_devices()[0]
    return device.platform, getattr(device, "compute_capability", "")


def _tensorflow() -> tuple[str, str]:
    import tensorflow as tf

    if tf.config.list_logical_devices("TPU"):
        return "tpu", ""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu", ""
    details = tf.config.experimental.get_device_details(gpus[0])
    return "gpu", ".".join(map(str, details.get("compute_capability", ())))


def _torch() -> tuple[str, str]:
    import torch

    if not torch.cuda.is_available():
        return "cpu", ""
    if torch.version.hip:
        return "gpu", ""
    return "gpu", ".".join(map(str, torch.cuda.get_device_capability()))
