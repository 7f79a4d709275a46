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

# Minutes each. Two workers that take modules in order end together if these
# come first.
LONG = (
    "test_recipes.py", "test_workdir.py", "test_notebooks.py",
    "test_packaging.py", "test_sweep.py", "test_benchmark.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Puts the long modules first, in the order of `LONG`."""
    last = len(LONG)
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, last))
