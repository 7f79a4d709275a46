"""Imports timm, or skips."""

from __future__ import annotations

import sys

import pytest


def import_timm():
    """timm, whose import brings torchvision, of which its ViTs use nothing.

    torchvision registers properties of operators that its build for another
    PyTorch (CUDA, while PyTorch is the CPU build) could not load; then they
    are declared here.
    """
    torch = pytest.importorskip("torch")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        pytest.skip("timm needs torchvision")
    except RuntimeError:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor x, Tensor y, float z) -> Tensor")
        import_timm.library = library  # which lives as long as its operators
    return pytest.importorskip("timm")
