"""Vision Transformers with the AugReg recipes and checkpoints for Keras 3."""

import dis
import importlib
import importlib.util
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if sys.argv[:1] == ["-m"]:  # `python -m keras_augreg`, as in the scripts
    os.environ.setdefault("KERAS_BACKEND", "jax")

try:
    import keras  # noqa: F401 (before the modules below, which need it)
except ModuleNotFoundError as error:
    _BACKENDS = ("jax", "torch", "tensorflow")
    _missing = (error.name or "").partition(".")[0]
    if _missing not in _BACKENDS:
        raise
    _there = [name for name in _BACKENDS if importlib.util.find_spec(name)]
    _advice = (
        f"Installed: {', '.join(_there)}. Set KERAS_BACKEND={_there[0]} in the "
        "environment before Python starts, or in `os.environ` before Keras is "
        "imported."
        if _there
        else f"Install one of {', '.join(_BACKENDS)}: pip install jax"
    )
    raise ModuleNotFoundError(
        f"Keras's backend is {_missing}, which is not installed. {_advice}",
        name=_missing,
    ) from None

from keras_augreg import augment, checkpoints
from keras_augreg.describe import describe
from keras_augreg.distribution import distribute
from keras_augreg.features import FeatureExtractor
from keras_augreg.labels import decode_predictions
from keras_augreg.models import (
    R26_ViT_B32,
    R26_ViT_S32,
    R50_ViT_B16,
    R50_ViT_L32,
    R_ViT_Ti16,
    ViT_B8,
    ViT_B16,
    ViT_B32,
    ViT_L16,
    ViT_L32,
    ViT_S16,
    ViT_S32,
    ViT_Ti16,
    ViT_Ti32,
)
from keras_augreg.prediction import predict, submission
from keras_augreg.preprocessing import preprocess_input
from keras_augreg.recipe import AugReg
from keras_augreg.serving import export
from keras_augreg.training import compile_finetuning, compile_pretraining
from keras_augreg.variants import match as _match
from keras_augreg.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from keras_augreg import (
        benchmark,
        data,
        flight_check,
        study,
        training,
        visualize,
    )

__version__ = "0.1.0"

__all__ = [
    "AugReg",
    "FeatureExtractor",
    "R26_ViT_B32",
    "R26_ViT_S32",
    "R50_ViT_B16",
    "R50_ViT_L32",
    "R_ViT_Ti16",
    "ViT_B8",
    "ViT_B16",
    "ViT_B32",
    "ViT_L16",
    "ViT_L32",
    "ViT_S16",
    "ViT_S32",
    "ViT_Ti16",
    "ViT_Ti32",
    "VisionTransformer",
    "augment",
    "benchmark",
    "checkpoints",
    "compile_finetuning",
    "compile_pretraining",
    "data",
    "decode_predictions",
    "describe",
    "distribute",
    "export",
    "flight_check",
    "predict",
    "preprocess_input",
    "study",
    "submission",
    "training",
    "visualize",
]

# Imported on first use: most programs that load a model need none.
_LAZY = ("benchmark", "data", "flight_check", "study", "visualize")


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    variant = _match(name)
    hint = f". Did you mean: {variant.name!r}?" if variant else ""
    if not variant and re.match("r[0-9_]*vit|vit", name.lower()):
        builders = (n for n in __all__ if "ViT_" in n)
        hint = f". The architectures are: {', '.join(builders)}"
    message = f"module {__name__!r} has no attribute {name!r}{hint}"
    caller = sys._getframe(1)
    code = caller.f_code.co_code[caller.f_lasti]
    if hint and dis.opname[code] == "IMPORT_FROM":
        # `from keras_augreg import NAME` would drop the message.
        raise ImportError(message, name=__name__)
    raise AttributeError(message)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
