"""LoRA and quantization of a block's kernels."""

import subprocess
import sys

import keras
import numpy as np
import pytest
from _checkpoints import images, same, tiny, weights
from test_golden import (
    BY_RELEASE,
    TOLERANCE,
    check,
    check_clear_predictions,
    first_entry,
    inputs,
    write,
)

import keras_augreg
from keras_augreg import checkpoints
from keras_augreg.projection import projections
from keras_augreg.training import compile_finetuning

BACKEND = keras.backend.backend()
ALL = ("qkv", "out", "mlp1", "mlp2")


def build(**arguments):
    """A model with the same weights on every backend."""
    model = tiny(**arguments)
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) > 1:
            axes = 2 if weight.name == "out_kernel" else 1
            fan_in = np.prod(weight.shape[:axes])
            weight.assign(rng.normal(size=weight.shape) / fan_in**0.5)
    return model


def adapted(**arguments):
    """The same with adapters that have learned something."""
    model = build(**arguments)
    model.enable_lora(3, alpha=6)
    rng = np.random.default_rng(2)
    for weight in model.weights:
        if weight.name == "lora_kernel_b":
            weight.assign(rng.normal(0, 0.1, weight.shape))
    return model


def logits(model):
    """Eagerly, except on JAX, which would compile every operation."""
    run = model.predict_on_batch if BACKEND == "jax" else model
    return keras.ops.convert_to_numpy(run(images())).astype("float32")


def train(model, run_eagerly=BACKEND == "tensorflow"):
    model.compile("sgd", "mse", run_eagerly=run_eagerly)
    model.fit(images(), np.zeros((2, 5)), verbose=0)


def test_only_adapters_and_head_train():
    model = build()
    before = logits(model)
    model.enable_lora(2)
    np.testing.assert_array_equal(logits(model), before)
    trained = {
        *(f"{n}/lora_kernel_{ab}" for n in projections(model) for ab in "ab"
          if not n.startswith("embedding")),
        "head/kernel", "head/bias",
    }  # fmt: skip
    keras_augreg.compile_finetuning(
        model, total_steps=2, learning_rate=0.1, warmup_steps=0, remat=True
    )
    assert {v.path for v in model.trainable_variables} == trained
    before = weights(model)
    model.fit(images(), np.array([0, 1]), epochs=2, verbose=0)
    after = weights(model)
    changed = {k for k in after if not np.array_equal(before[k], after[k])}
    assert changed == trained
    model.trainable = True
    keras_augreg.compile_finetuning(
        model, total_steps=1, learning_rate=0.1, freeze=True
    )
    assert {v.path for v in model.trainable_variables} == {
        "head/kernel",
        "head/bias",
    }


def test_adapters_after_a_linear_probe():
    """What `compile_finetuning` froze for the probe stays frozen."""
    model = build()
    keras_augreg.compile_finetuning(
        model, total_steps=2, learning_rate=0.01, freeze="backbone"
    )
    model.enable_lora(2)
    keras_augreg.compile_finetuning(model, total_steps=2, learning_rate=0.01)
    trained = {v.path.split("/")[-1] for v in model.trainable_variables}
    assert trained == {"lora_kernel_a", "lora_kernel_b", "kernel", "bias"}
    assert model.get_layer("embedding").trainable_variables == []


def test_adapters_in_files(tmp_path):
    """In Keras's, ours and the release's, and in clones; merged."""
    model = adapted()
    expected = logits(model)
    assert np.abs(expected - logits(build())).max() > 0.1
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(logits(again), expected)
    assert len(again.trainable_variables) == len(model.trainable_variables)
    clone = keras.models.clone_model(model)
    assert len(clone.trainable_variables) == len(model.trainable_variables)
    clone.set_weights(model.get_weights())
    np.testing.assert_array_equal(logits(clone), expected)

    path = model.save_lora_weights(tmp_path / "a.safetensors")
    other = build()
    other.enable_lora(3, alpha=6)
    other.load_lora_weights(path)
    np.testing.assert_allclose(logits(other), expected, atol=2e-5)
    shared = [p.name for p in tmp_path.iterdir()]
    assert sorted(shared) == ["a.keras", "a.safetensors"]

    checkpoints.to_npz(model, tmp_path / "a.npz")
    plain = build()
    checkpoints.load(plain, tmp_path / "a.npz")
    np.testing.assert_allclose(logits(plain), expected, atol=2e-5)
    model.merge_lora()
    np.testing.assert_allclose(logits(model), expected, atol=2e-5)
    assert [w.path for w in model.weights] == [w.path for w in plain.weights]
    model.enable_lora(1, targets="qkv")  # Now it can be done again.

    model.save_weights(tmp_path / "a.weights.h5")
    with pytest.raises(ValueError, match=r"lora_kernel_a.*the model.*none"):
        plain.load_weights(tmp_path / "a.weights.h5")


def test_adapters_of_a_frozen_model():
    model = build()
    model.trainable = False
    model.enable_lora(np.int64(2), "qkv")
    names = {v.path.split("/")[-2] for v in model.trainable_variables}
    assert names == {"qkv"}


@pytest.mark.once
def test_files_of_adapters_name_the_classes(tmp_path):
    names = list("abcde")
    model = adapted(class_names=names)
    path = model.save_lora_weights(tmp_path / "a.safetensors")
    for own in (names, None):
        other = build(class_names=own)
        other.enable_lora(3, alpha=6)
        other.load_lora_weights(path)
    other.class_names = names[::-1]
    with pytest.raises(ValueError, match=r"in another order.*'e', 'd', 'c'"):
        other.load_lora_weights(path)


@pytest.mark.once
def test_saved_adapters_and_integers_are_no_weights(tmp_path):
    """Of another model: they are loaded as a whole."""
    path = tmp_path / "model.keras"
    model = adapted()
    model.save(path)
    with pytest.raises(ValueError, match="or save it after merge_lora"):
        checkpoints.load(build(), path)
    model.merge_lora()
    model.quantize("int8")
    model.save(path)
    with pytest.raises(ValueError, match=r"with keras.saving.load_model"):
        checkpoints.load(build(), path)


def test_bfloat16():
    model = build(dtype="mixed_bfloat16")
    before = logits(model)
    model.enable_lora(2, targets=["qkv", "mlp2"])
    np.testing.assert_array_equal(logits(model), before)
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    names = {v.path.split("/")[-2] for v in model.trainable_variables}
    assert names == {"qkv", "mlp2", "head"}
    train(model)
    assert np.abs(logits(model) - before).max() > 0


def test_other_adapters_are_refused(tmp_path):
    model = adapted()
    path = model.save_lora_weights(tmp_path / "a.safetensors")
    for change, message in {
        (2, ALL, 6): r"lora_A.weight: \(3, 12\) in the file, \(2, 12\) in the",
        (3, ("qkv",), 6): r"attn.proj.lora_A.weight: .* in the file, not in",
        (3, ALL, 3): "lora_alpha: 6 in the file, 3 in the model",
    }.items():
        rank, targets, alpha = change
        other = build()
        other.enable_lora(rank, targets, alpha)
        before = weights(other)
        with pytest.raises(ValueError, match=message):
            other.load_lora_weights(path)
        assert same(weights(other), before)
    with pytest.raises(ValueError, match="no adapters"):
        build().load_lora_weights(path)
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        model.save_lora_weights(tmp_path / "a.npz")
    with pytest.raises(FileNotFoundError, match="No such file"):
        model.load_lora_weights(tmp_path / "b.safetensors")


@pytest.mark.once
def test_wrong_arguments():
    model = build()
    for arguments, message in {
        (0,): "`rank` must be an integer from 1 to .* 12. Received: rank=0",
        (13,): "Received: rank=13",
        (2.0,): "Received: rank=2.0",
        (True,): "Received: rank=True",
        (2, None): "one or more of qkv, out, mlp1, mlp2.*targets=None",
        (2, "query"): "one or more of qkv, out, mlp1, mlp2.*'query'",
        (2, ()): r"Received: targets=\(\)",
        (2, "qkv", 0): "`alpha` must be a number above 0. Received: alpha=0",
    }.items():
        with pytest.raises(ValueError, match=message):
            model.enable_lora(*arguments)
    for method in (model.merge_lora, lambda: checkpoints.to_peft(model, "a")):
        with pytest.raises(ValueError, match="has no adapters"):
            method()
    model.enable_lora(2, "qkv")
    with pytest.raises(ValueError, match=r"already enabled on .*qkv.* rank 2"):
        model.enable_lora(2, "out")
    with pytest.raises(ValueError, match="no LoRA for kernels in float8"):
        model.quantize("float8")
    gptq = keras.quantizers.GPTQConfig(dataset=["text"], tokenizer=str.split)
    with pytest.raises(ValueError, match="one of 'int8', 'int4', 'float8'"):
        model.quantize(config=gptq)
    with pytest.raises(ValueError, match=r"`filters` matches none.*'query'"):
        model.quantize("int8", filters="query")
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"is quantized \(int8\)"):
        model.merge_lora()
    with pytest.raises(ValueError, match="already quantized"):
        model.quantize("int8")
    model = build()
    model.quantize("float8")
    with pytest.raises(ValueError, match="no LoRA for kernels in float8"):
        model.enable_lora(2)


@pytest.mark.parametrize(
    ("mode", "tolerance"), [("int8", 0.05), ("int4", 0.5), ("float8", 0.5)]
)
def test_quantized(tmp_path, mode, tolerance, recwarn):
    """With adapters where Keras has them; trained, saved and loaded."""
    model = build() if mode == "float8" else adapted()
    expected = logits(model)
    model.quantize(mode)
    assert not [w for w in recwarn if "quantize" in str(w.message)]
    found = logits(model)
    error = np.sqrt(np.mean((found - expected) ** 2)) / expected.std()
    print(f"{mode}: relative RMS error {error:.3f}")
    assert 0 < error < tolerance
    if mode != "float8":
        kernels = {
            w.path: w.dtype for w in model.weights if w.path.endswith("kernel")
        }
        assert len(kernels) == 2 + 4 * 2  # patches, head, and two blocks
        assert {*kernels.values()} == {"int8"}
        trained = {v.path.split("/")[-1] for v in model.trainable_variables}
        assert trained == {"lora_kernel_a", "lora_kernel_b", "bias"}
    # Keras's gradients of float8 need a graph.
    train(model, BACKEND == "tensorflow" and mode != "float8")
    trained = logits(model)
    assert np.abs(trained - found).max() > 0
    if mode == "int8":  # The head's bias is trained, too.
        file = model.save_lora_weights(tmp_path / "a.safetensors")
        head = model.get_layer("head")
        bias = keras.ops.convert_to_numpy(head.bias)
        head.bias.assign(bias + 1)
        model.load_lora_weights(file)
        np.testing.assert_array_equal(head.bias, bias)
        with pytest.raises(ValueError, match="peft keeps the head as a whole"):
            checkpoints.to_peft(model, tmp_path / "peft")
        with pytest.raises(ValueError, match="is quantized"):
            checkpoints.load(model, tmp_path / "no.npz")
    model.save(tmp_path / "a.keras")
    again = keras.saving.load_model(tmp_path / "a.keras")
    np.testing.assert_array_equal(logits(again), trained)


@pytest.mark.parametrize("mode", ["int8", "int4"])
def test_training_needs_a_classifier_that_can_learn(mode):
    model = tiny()
    model.enable_lora(2)
    model.quantize(mode)
    with pytest.raises(ValueError, match="new, all zeros, and quantized"):
        compile_finetuning(model, total_steps=9, warmup_steps=1)
    trained = build()
    trained.quantize(mode)
    trained.enable_lora(2)
    compile_finetuning(trained, total_steps=9, warmup_steps=1)


def test_parts_are_quantized_by_name():
    model = build()
    model.quantize("int8", filters="^(qkv|mlp)")
    modes = {
        name: projection.quantization_mode
        for name, projection in projections(model).items()
    }
    assert modes["encoderblock_1/attention/qkv"] == "int8"
    assert modes["encoderblock_1/attention/out"] is None
    assert modes["embedding/projection"] is None


def test_int8_of_a_golden_checkpoint(tmp_path):
    """docs/guides/lora_int8.md states the errors of larger models."""
    entry = first_entry("Ti_16")
    model = getattr(keras_augreg, BY_RELEASE["Ti_16"].name)(
        weights=write(entry, tmp_path / "a.npz"),
        classifier_activation=None,
        include_preprocessing=False,
    )
    exact = model.predict(inputs(entry), verbose=0)
    check(exact, entry, TOLERANCE)
    model.quantize("int8")
    found = model.predict(inputs(entry), verbose=0)
    difference = found[:, :8] - np.array(entry["logits_first8"])
    assert 0 < np.sqrt(np.mean(difference**2)) < 0.04
    assert 0.01 < np.sqrt(np.mean((found - exact) ** 2)) < 0.03
    check_clear_predictions(exact, found, 0.03, entry)


@pytest.mark.once
def test_a_fresh_process_loads_it(tmp_path):
    model = adapted()
    model.quantize("int8")
    model.save(tmp_path / "a.keras")
    np.save(tmp_path / "a.npy", logits(model))
    code = (
        "import keras, numpy as np, keras_augreg, test_projection as t\n"
        "model = keras.saving.load_model('a.keras')\n"
        "np.testing.assert_array_equal(t.logits(model), np.load('a.npy'))\n"
    )
    paths = [p for p in sys.path if p]
    code = f"import sys; sys.path[:0] = {paths}\n{code}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


def test_int8_in_onnx(tmp_path):
    if BACKEND != "tensorflow":
        pytest.skip("of int8 products, tf2onnx makes MatMulInteger")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = adapted()
    model.quantize("int8")
    model.export(tmp_path / "a.onnx", format="onnx", verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images()})
    np.testing.assert_allclose(found, logits(model), atol=1e-4)
