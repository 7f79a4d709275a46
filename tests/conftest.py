"""Settings of all test modules.

`KERAS_BACKEND` chooses the backend. `.ci/run` runs the suite on TensorFlow,
PyTorch and JAX.
"""

from __future__ import annotations

import os
import random

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

import numpy as np
import pytest

# Those that take longest come first, so that two workers that take modules in
# order finish at about the same time.
LONG = (
    "test_recipes.py", "test_models.py", "test_compile.py", "test_workdir.py",
    "test_notebooks.py", "test_packaging.py", "test_golden.py",
    "test_sweep.py", "test_routes.py", "test_benchmark.py",
)  # fmt: skip

# Golden data, and programs that the compiler is asked about: here XLA compiles
# as it does for users. Elsewhere `tests/run.sh` has JAX compile in less time
# (JAX_DISABLE_MOST_OPTIMIZATIONS).
OPTIMIZED = ("test_golden.py", "test_flight_check.py", "augment")


@pytest.fixture(scope="module", autouse=True)
def _optimizations(request):
    """Lets XLA optimize in `OPTIMIZED`, and in the processes they start."""
    option = "JAX_DISABLE_MOST_OPTIMIZATIONS"
    names = {request.path.name, request.path.parent.name}
    if os.environ.get(option) != "1" or not names.intersection(OPTIMIZED):
        yield
        return
    import jax

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(option)
        jax.config.update(option.lower(), False)
        jax.clear_caches()
        yield
        jax.config.update(option.lower(), True)


def _same_numbers():
    """Draws what Keras's layers get as seeds, and NumPy's own, anew."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture(scope="module", autouse=True)
def _same_numbers_in_the_module():
    _same_numbers()


@pytest.fixture(autouse=True)
def _same_numbers_in_the_test():
    """A test passes or fails again as it did before, alone or with others."""
    _same_numbers()


def pytest_collection_modifyitems(items):
    """Puts the long modules first, in the order of `LONG`."""
    last = len(LONG)
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.name, last))
