"""`keras_augreg.export`: exported files compute what the model computes."""

from __future__ import annotations

import importlib.util
import json

import keras
import numpy as np
import pytest
from _checkpoints import CLASSES, tiny

import keras_augreg
from keras_augreg import serving

BACKEND = keras.backend.backend()
NAMES = [f"class {i}, Übung" for i in range(CLASSES)]
# What each backend converts, and each format is converted by at least one.
CONVERTED = {
    "jax": [
        pytest.param(
            "", marks=pytest.mark.skip("PyTorch or TensorFlow does it")
        )
    ],
    "tensorflow": ["tf_saved_model", "onnx", "litert", "openvino"],
    "torch": ["torch", "onnx"],
}[BACKEND]


def random(model):
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(0.3 * rng.standard_normal(weight.shape))
    return model


def pixels(model, n):
    shape = (n, *model.image_shape)
    return np.random.default_rng(n).integers(0, 256, shape, dtype="uint8")


def run_saved_model(path, x):
    import tensorflow as tf

    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    (scores,) = served(image=tf.constant(x)).values()
    return scores.numpy()


def run_onnx(path, x):
    import onnxruntime

    return onnxruntime.InferenceSession(str(path)).run(None, {"image": x})[0]


def run_litert(path, x):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path))
    (image,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(image["index"], x.shape)
    (scores,) = interpreter.get_signature_runner()(image=x).values()
    return scores


def run_openvino(path, x):
    import openvino

    model = openvino.compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    (scores,) = model({"image": x}).values()
    return scores


def run_torch(path, x):
    import torch

    return torch.export.load(path).module()(torch.tensor(x)).detach().numpy()


RUN = {
    "tf_saved_model": run_saved_model,
    "onnx": run_onnx,
    "litert": run_litert,
    "openvino": run_openvino,
    "torch": run_torch,
}


def difference(file, format, model):
    """The largest between the outputs, for batches of two sizes."""
    worst = 0
    for n in (1, 3):
        x = pixels(model, n)
        scaled = x
        if not model.include_preprocessing:
            scaled = keras_augreg.preprocess_input(x)
        expected = model.predict(scaled, verbose=0)
        assert np.ptp(expected) > 0.1
        found = RUN[format](file, x)
        assert found.shape == expected.shape
        worst = max(worst, np.abs(found - expected).max())
    return worst


@pytest.fixture(scope="module")
def model():
    return random(tiny(depth=1, class_names=NAMES))


@pytest.mark.parametrize("format", CONVERTED)
def test_conversion(format, tmp_path):
    """What the other process does; `benchmarks/exports.py` tries more."""
    model, mixed = (
        tiny(depth=1, class_names=NAMES, dtype=dtype)
        for dtype in ("float32", "mixed_bfloat16")
    )
    for each in (model, mixed):
        each.enable_lora(2)  # It is merged.
        each.trainable = True
    mixed.set_weights(random(model).get_weights())
    mixed.save(tmp_path / "model.keras")  # It is exported in float32.
    folder = tmp_path / "served"
    serving.convert(str(tmp_path / "model.keras"), str(folder), format)
    file = folder / serving.FORMATS[format][0]
    assert difference(file, format, model) < 1e-5


@pytest.mark.parametrize("format", CONVERTED[:1])
def test_conversion_of_a_model_around_any_size(format, tmp_path):
    """That does not scale them: what is exported does."""
    inner = random(tiny(depth=1, dynamic_image_size=True))
    images = keras.Input((None, None, 3))
    keras.Model(images, inner(images)).save(tmp_path / "model.keras")
    folder = tmp_path / "served"
    serving.convert(str(tmp_path / "model.keras"), str(folder), format)
    file = folder / serving.FORMATS[format][0]
    assert difference(file, format, inner) < 1e-5


@pytest.mark.parametrize(
    "format",
    {"tensorflow": ["onnx", "litert", "openvino"], "torch": ["torch"]}.get(
        BACKEND, CONVERTED
    ),
)
def test_conversion_of_int8(format, tmp_path):
    """Also of adapters; `benchmarks/exports.py` tries other modes."""
    model = random(tiny(depth=1))
    model.quantize("int8")
    model.enable_lora(2)
    random(model).save(tmp_path / "model.keras")
    folder = tmp_path / "served"
    serving.convert(str(tmp_path / "model.keras"), str(folder), format)
    file = folder / serving.FORMATS[format][0]
    assert difference(file, format, model) < 1e-5


def copied(source, folder, format, by):
    """Stands for the other process."""
    folder.mkdir()
    (folder / "model.onnx").write_bytes(source.read_bytes())


def test_folder(model, tmp_path, monkeypatch):
    """The whole way with another backend: docs/guides/serve.md, in CI."""
    monkeypatch.setattr(serving, "_run", copied)
    folder = tmp_path / "new" / "served"
    file = keras_augreg.export(model, folder, format="onnx")
    assert file == folder / "model.onnx"
    names = folder / "class_names.json"
    assert set(folder.iterdir()) == {file, names}
    assert json.loads(names.read_text(encoding="utf-8")) == NAMES
    assert list(folder.parent.iterdir()) == [folder]


def test_class_names(model, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "_run", copied)
    imagenet = tiny(depth=1, classes=1000)
    imagenet.save(tmp_path / "model.keras")
    keras_augreg.export(tmp_path / "model.keras", tmp_path / "a", "onnx")
    names = json.loads((tmp_path / "a" / "class_names.json").read_text())
    assert len(names) == 1000
    assert names[0] == "tench, Tinca tinca"
    for name, other in {
        "unnamed": tiny(depth=1),
        "features": tiny(depth=1, include_top=False, pooling="token"),
    }.items():
        keras_augreg.export(other, tmp_path / name, "onnx")
        assert [f.name for f in (tmp_path / name).iterdir()] == ["model.onnx"]
    around = keras.Sequential([keras.Input(model.input_shape[1:]), model])
    keras_augreg.export(around, tmp_path / "around", "onnx")
    names = (tmp_path / "around" / "class_names.json").read_text("utf-8")
    assert json.loads(names) == NAMES


def test_refusals(model, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="one of tf_saved_model, onnx, litert"):
        keras_augreg.export(model, tmp_path / "a", format="tflite")
    with pytest.raises(FileExistsError, match="Delete it, or export to"):
        keras_augreg.export(model, tmp_path, format="torch")
    dense = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="a model of images"):
        keras_augreg.export(dense, tmp_path / "a", format="torch")
    inputs = keras.Input((None, None, 3))
    any_size = keras.Model(
        inputs, keras.layers.GlobalAveragePooling2D()(inputs)
    )
    with pytest.raises(ValueError, match="images' height and width must be kn"):
        keras_augreg.export(any_size, tmp_path / "a", format="torch")
    small = tiny(depth=1)
    small.quantize("float8")
    with pytest.raises(
        ValueError,
        match=r"'litert' of a model in float8.* to tf_saved_model or onnx "
        "or torch, or before model.quantize",
    ):
        keras_augreg.export(small, tmp_path / "a", format="litert")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ImportError,
        match="pip install torch onnx onnxscript or pip install tensorflow",
    ):
        keras_augreg.export(model, tmp_path / "a", format="onnx")
    assert not list(tmp_path.iterdir())


def test_what_is_installed_decides(monkeypatch):
    installed = {"tensorflow", "torch", "tf2onnx"}
    find = dict.fromkeys(installed, True).get
    monkeypatch.setattr(importlib.util, "find_spec", find)
    assert serving._converter("onnx", set()).imports[0] == "tensorflow"
    assert serving._converter("onnx", {"int8"}).imports[0] == "tensorflow"
    assert serving._converter("torch", {"int8"}).imports[0] == "torch"
    with pytest.raises(ImportError, match="pip install tensorflow openvino"):
        serving._converter("openvino", set())
    with pytest.raises(
        ImportError, match="of a model in float8 needs pip install torch onnx o"
    ):
        serving._converter("onnx", {"float8"})


@pytest.mark.once
def test_a_failure_shows_its_reason_and_leaves_nothing(
    model, tmp_path, monkeypatch
):
    nothing = serving.Converter(("nothing",), "nothing", ())
    monkeypatch.setattr(serving, "_converter", lambda *_: nothing)
    with pytest.raises(RuntimeError, match=r"(?s)nothing failed .*ValueError"):
        keras_augreg.export(model, tmp_path / "a", format="torch")
    assert not list(tmp_path.iterdir())
