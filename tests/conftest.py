"""Settings of all test modules.

`KERAS_BACKEND` chooses the backend. `.ci/run` runs the suite on TensorFlow,
PyTorch and JAX.
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

# Those that take longest come first, so that two workers that take modules in
# order finish at about the same time.
LONG = (
    "test_recipes.py", "test_models.py", "test_compile.py", "test_workdir.py",
    "test_notebooks.py", "test_packaging.py", "test_golden.py",
    "test_sweep.py", "test_routes.py", "test_benchmark.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Puts the long modules first, in the order of `LONG`."""
    last = len(LONG)
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, last))
