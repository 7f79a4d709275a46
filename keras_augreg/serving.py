"""Files that run without Keras: SavedModel, ONNX, LiteRT, OpenVINO, PyTorch."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from typing import Any, NamedTuple

import keras

from keras_augreg.around import class_names, image_shape, takes_scaled
from keras_augreg.atomic import owner
from keras_augreg.labels import class_labels
from keras_augreg.preprocessing import Preprocessing
from keras_augreg.projection import (
    QUANTIZATION_MODES,
    projections,
    quantization_modes,
)


class Converter(NamedTuple):
    """What exports a format: the first import is Keras's backend."""

    imports: tuple[str, ...]  # as Python names them
    install: str  # what pip installs
    # Modes of `quantize` that it can convert; `None` for any.
    modes: tuple[str, ...] | None


_INTEGERS = ("int8", "int4")
_TENSORFLOW = Converter(("tensorflow",), "tensorflow", _INTEGERS)
# format -> (file in the folder, converters by preference). Keras exports some
# of these from JAX too, but not without TensorFlow, or with jax2onnx and the
# 16 packages that it brings. PyTorch does not convert int4 to valid ONNX, and
# makes int8 products of int32, where tf2onnx has a quick MatMulInteger.
FORMATS: dict[str, tuple[str, tuple[Converter, ...]]] = {
    "tf_saved_model": ("", (_TENSORFLOW._replace(modes=None),)),
    "onnx": (
        "model.onnx",
        (
            Converter(
                ("torch", "onnxscript"), "torch onnx onnxscript", ("float8",)
            ),
            Converter(
                ("tensorflow", "tf2onnx"), "tensorflow onnx tf2onnx", _INTEGERS
            ),
        ),
    ),
    "litert": ("model.tflite", (_TENSORFLOW,)),
    "openvino": (
        "model.xml",
        (
            Converter(
                ("tensorflow", "openvino"), "tensorflow openvino", _INTEGERS
            ),
        ),
    ),
    "torch": (
        "model.pt2",
        (Converter(("torch",), "torch", QUANTIZATION_MODES),),
    ),
}
# Formats that have no product of int8 tensors, or compute something else.
WITHOUT_INT8 = ("litert", "openvino")
HALF = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16")


def export(
    model: Any, path: str | os.PathLike[str], format: str
) -> pathlib.Path:
    """Writes a folder with a model that runs without Keras.

    The exported model takes pixels, uint8 (batch, height, width, 3) with a
    batch of any size, scales them itself, and returns what `model` returns,
    computed in float32 also where the model computes in mixed precision.
    The names of its classes are beside it, in order, in `class_names.json`.

    The export runs in a fresh process, on the CPU, with the Keras backend that
    can do it, whatever the backend here is.

    | `format` | file in the folder | needs |
    | --- | --- | --- |
    | `"tf_saved_model"` | the folder itself | TensorFlow |
    | `"onnx"` | `model.onnx` | PyTorch and onnxscript (float8 too), or \
TensorFlow and tf2onnx (int8 and int4 too) |
    | `"litert"` | `model.tflite` | TensorFlow |
    | `"openvino"` | `model.xml`, `model.bin` | TensorFlow and openvino |
    | `"torch"` | `model.pt2` | PyTorch |

    Args:
        model: A model of images, such as a `VisionTransformer`, or the path of
            a `.keras` file. Layers of your own must be importable and
            registered (`keras.saving.register_keras_serializable`).
            One with `dynamic_image_size=True` is written for any size, but
            through PyTorch ("onnx", "torch") for its `image_shape` only.
            Adapters of `enable_lora` are merged, unless it is quantized.
        path: The folder, which must not exist; it appears once it is complete.
        format: One of the above.

    Returns:
        The path of the file in the folder; for a SavedModel, of the folder.

    Raises:
        FileExistsError: If `path` exists.
        ImportError: If what the format needs is not installed.
        RuntimeError: If the other process fails; with its last words.
        ValueError: If `format` is unknown or cannot hold a model quantized
            as this one, or `model` takes no images.

    Example:
    ```python
    import tempfile
    import keras_augreg

    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=1, num_heads=1, mlp_dim=16,
        input_shape=(16, 16, 3), classes=2, class_names=["cat", "dog"],
    )
    folder = tempfile.mkdtemp() + "/served"
    print(keras_augreg.export(model, folder, format="onnx"))
    ```
    """
    if format not in FORMATS:
        raise ValueError(
            f"`format` is one of {', '.join(FORMATS)}. Received: "
            f"format={format!r}"
        )
    path = pathlib.Path(path).expanduser()
    if path.exists():
        raise FileExistsError(
            f"{str(path)!r} exists. Delete it, or export to another folder."
        )
    if isinstance(model, (str, pathlib.Path)):
        file = pathlib.Path(model).expanduser()
        model = keras.saving.load_model(file, compile=False)
    if len(model.input_shape) != 4:
        raise ValueError(
            "Expected a model of images (batch, height, width, 3). Received: "
            f"{model.name!r}, whose input_shape={model.input_shape}"
        )
    converter = _converter(format, set(quantization_modes(model).values()))
    if converter.imports[0] == "torch" and None in model.input_shape[1:]:
        image_shape(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{owner()}.part")
    try:
        with tempfile.TemporaryDirectory() as work:
            source = pathlib.Path(work, "model.keras")
            model.save(source)
            _run(source, unfinished, format, converter)
        if names := _class_names(model):
            with (unfinished / "class_names.json").open(
                "w", encoding="utf-8"
            ) as text:
                json.dump(names, text, indent=0, ensure_ascii=False)
        os.rename(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return path / FORMATS[format][0]


def _converter(format: str, modes: set[str]) -> Converter:
    """The first converter that is installed and converts these modes."""

    def able(name: str) -> list[Converter]:
        return [
            x
            for x in FORMATS[name][1]
            if x.modes is None or modes <= set(x.modes)
        ]

    quantized = f" of a model in {', '.join(sorted(modes))}" if modes else ""
    if not able(format):
        raise ValueError(
            f"No converter writes the format {format!r}{quantized}. Export "
            f"to {' or '.join(filter(able, FORMATS))}, or before "
            "model.quantize()."
        )
    for converter in able(format):
        if all(map(importlib.util.find_spec, converter.imports)):
            return converter
    ways = " or ".join(f"pip install {x.install}" for x in able(format))
    raise ImportError(f"The format {format!r}{quantized} needs {ways}")


def _class_names(model: Any) -> list[str] | None:
    """Names of the outputs, if the model has any or is an ImageNet's."""
    if names := class_names(model):
        return list(names)
    classes = getattr(model, "classes", None)
    return [label for _, label in class_labels(classes or 0)] or None


def _run(
    source: pathlib.Path, folder: pathlib.Path, format: str, by: Converter
) -> None:
    """Runs `convert` in a process with the backend of a converter."""
    call = f"import sys; from {__name__} import convert; convert(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", call, str(source), str(folder), format],
        env={
            **os.environ,
            "KERAS_BACKEND": by.imports[0],
            # What it writes must run without an accelerator, and the process
            # here may hold all its memory.
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(
            f"The export to {format!r} with {by.imports[0]} failed (exit "
            f"status {done.returncode}). Its last words:\n{done.stdout[-2000:]}"
        )


def _keep_outputs(file: str) -> None:
    """Removes results of OpenVINO's that the model does not return.

    It makes one of every shape that no other operation reads. What a function
    of TensorFlow returns is called Identity.
    """
    import openvino

    model = openvino.Core().read_model(file)
    others = [
        result
        for result in model.results
        if not result.get_friendly_name().startswith("Identity")
    ]
    if len(others) == len(model.results):
        raise ValueError(
            "This version of OpenVINO gives results other names than its "
            "2026.4, and those of the model cannot be told from others: "
            f"{[x.get_friendly_name() for x in others]}. Install openvino "
            "2026.4."
        )
    for result in others:
        model.remove_result(result)
    work = pathlib.Path(file).with_name("outputs.xml")
    openvino.serialize(model, work)
    del model  # It maps the file that is replaced.
    for suffix in (".bin", ".xml"):
        os.replace(work.with_suffix(suffix), file[: -len(".xml")] + suffix)


def convert(source: str, folder: str, format: str) -> None:
    """Exports a `.keras` file with this process's backend."""
    model = keras.saving.load_model(source, compile=False)
    for layer in model._flatten_layers():
        # Few programs that run these files compute in mixed precision.
        name = layer.dtype_policy.name  # or "int8_from_mixed_bfloat16"
        base = name.rpartition("_from_")[2]
        if base in HALF:
            policy = keras.dtype_policies.get(
                name.removesuffix(base) + "float32"
            )
            policy._variable_dtype = layer.variable_dtype  # They are cast.
            layer.dtype_policy = policy
        quantizer = getattr(layer, "inputs_quantizer", None)
        if quantizer and format in WITHOUT_INT8:
            # The same whole numbers, in a product of floats.
            quantizer.output_dtype = "float32"
    for projection in projections(model).values():
        if projection.lora_enabled and projection.quantization_mode is None:
            projection.merge_lora()
    shape = model.input_shape
    if keras.backend.backend() == "torch" and None in shape[1:]:
        shape = (None, *image_shape(model))
    images = keras.Input(shape[1:], dtype="uint8", name="image")
    x = Preprocessing()(images) if takes_scaled(model) else images
    # No class of ours: a plain model, whose `__call__` checks nothing.
    served = keras.Model(images, model(x, training=False))
    pathlib.Path(folder).mkdir()
    file = os.path.join(folder, FORMATS[format][0])
    signature = [keras.InputSpec(shape=shape, dtype="uint8", name="image")]
    options = {"input_signature": signature, "verbose": False}
    if format == "openvino":  # It reports every conversion to its authors.
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    if keras.backend.backend() != "torch":
        served.export(file, format=format, **options)
        if format == "openvino":
            _keep_outputs(file)
        return
    import torch

    program = os.path.join(folder, "model.pt2")
    # Keras's own export to ONNX has a batch of 1 or fails (Keras 3.15).
    batch = {0: torch.export.Dim("batch")}
    served.export(program, format="torch", dynamic_shapes=batch, **options)
    if format == "onnx":
        torch.onnx.export(
            torch.export.load(program),
            f=file,
            dynamo=True,
            input_names=["image"],
            external_data=False,
            verbose=False,
        )
        os.remove(program)
