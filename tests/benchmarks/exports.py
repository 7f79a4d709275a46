r"""Exports models to every format and compares outputs.

    python tests/benchmarks/exports.py [KIND ...] \
        > tests/benchmarks/logs/exports.txt

Each line: backend (`KERAS_BACKEND` chooses), kind of model, format, the largest
difference of the outputs for batches of 1 and 3 random images, or the error,
and the seconds. Ten minutes on two cores.
"""

from __future__ import annotations

import importlib.metadata
import pathlib
import sys
import tempfile
import time

MODELS = {
    "plain, logits": ("tiny", {"include_preprocessing": True}),
    "hybrid of scaled images, probabilities": (
        "hybrid",
        {"classifier_activation": "softmax"},
    ),
    "tokens of a model without a class token": (
        "tiny",
        {"class_token": False, "include_top": False},
    ),
    "mixed_float16": ("tiny", {"dtype": "mixed_float16"}),
    "int8": ("tiny", {}),
    "int4": ("tiny", {}),
    "float8": ("tiny", {}),
}
PACKAGES = (
    *("keras", "jax", "tensorflow", "torch", "onnx", "onnxscript"),
    *("onnxruntime", "ai-edge-litert", "openvino"),
)


def main(kinds: list[str]) -> None:
    """Compares with the backend of this process."""
    import _checkpoints
    import keras
    import test_serving

    import keras_augreg
    from keras_augreg.projection import QUANTIZATION_MODES
    from keras_augreg.serving import FORMATS

    for package in PACKAGES:
        print(package, importlib.metadata.version(package))
    for kind in kinds or MODELS:
        builder, options = MODELS[kind]
        model = getattr(_checkpoints, builder)(**options)
        test_serving.random(model)
        if kind in QUANTIZATION_MODES:
            model.quantize(kind)
        for format in FORMATS:
            start = time.perf_counter()
            with tempfile.TemporaryDirectory() as work:
                try:
                    file = keras_augreg.export(model, work + "/a", format)
                    worst = (
                        f"{test_serving.difference(file, format, model):.1e}"
                    )
                except Exception as error:
                    worst = f"{type(error).__name__}: {str(error)[-300:]}"
            seconds = time.perf_counter() - start
            print(keras.backend.backend(), kind, format, worst,
                  f"{seconds:.0f} s", sep=" | ", flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    main(sys.argv[1:])
