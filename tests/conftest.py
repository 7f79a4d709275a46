"""What every test module shares.

The backend is the one of `KERAS_BACKEND`; `.ci/run` runs the suite once for
each of JAX, TensorFlow and PyTorch.
"""

from __future__ import annotations

import os

# Before anything imports a backend: a test machine has few cores and no GPU.
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

if os.environ["KERAS_BACKEND"] == "torch":
    # triton, which comes with PyTorch, aborts the process when TensorFlow's
    # copy of LLVM was loaded before its own.
    import contextlib

    with contextlib.suppress(ImportError):
        import triton  # noqa: F401
