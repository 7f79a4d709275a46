"""Memory of a fine-tuning with LoRA; speed and error of int8 on a CPU.

for k in full lora; do python tests/benchmarks/lora_int8.py $k; done
for b in tensorflow jax torch; do
  KERAS_BACKEND=$b python tests/benchmarks/lora_int8.py speed
done
python tests/benchmarks/lora_int8.py error

S/16, 224 px, one thread; random weights, and the golden checkpoints for the
errors. A minute each. Times are taken in turns and given relative to Keras in
float32, as the machine may be busy. The log is logs/lora_int8.txt.
"""

import resource
import statistics
import sys
import tempfile
import time

import keras
import numpy as np

import keras_augreg

BACKEND = keras.backend.backend()


def memory(lora):
    """Three steps of 16 images; the peak is that of the whole process."""
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = keras_augreg.ViT_S16(weights=None, classes=10)
    if lora:
        model.enable_lora(rank=8)
    keras_augreg.compile_finetuning(
        model,
        total_steps=3,
        learning_rate=0.001,
        warmup_steps=0,
    )
    images = np.zeros((48, 224, 224, 3), "uint8")
    model.fit(images, np.zeros(48, int), 16, verbose=0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    state = sum(int(np.prod(v.shape)) * 4 for v in model.optimizer.variables)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    print(
        f"{BACKEND}, {'LoRA of rank 8' if lora else 'full'}: {trained:,} "
        f"trained, optimizer's state {state / 2**20:.1f} MiB, peak "
        f"{peak / 2**10:.0f} MiB, {(peak - start) / 2**10:.0f} above imports"
    )


def quantized(**config):
    keras.utils.set_random_seed(0)
    model = keras_augreg.ViT_S16(weights=None, include_preprocessing=False)
    if config:
        config = keras.quantizers.Int8QuantizationConfig(**config)
        model.quantize("int8", config=config)
    return model


def runtimes(name, model, folder):
    """The model in ONNX Runtime and OpenVINO."""
    import onnxruntime
    import openvino

    path = f"{folder}/{name}.onnx"
    model.export(path, format="onnx", verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options)
    key = session.get_inputs()[0].name
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_NUM_THREADS": 1})
    return {
        f"ONNX Runtime {onnxruntime.__version__}, {name}": lambda x: (
            session.run(None, {key: x})[0]
        ),
        f"OpenVINO {openvino.__version__[:8]}, {name}": lambda x: compiled(x)[
            0
        ],
    }


def speed():
    images = np.random.default_rng(0).uniform(-1, 1, (4, 224, 224, 3))
    images = images.astype("float32")
    models = {
        "float32": quantized(),
        "int8": quantized(activation_quantizer="default"),
        "int8 weights": quantized(activation_quantizer=None),
    }
    routes = {
        f"Keras {keras.__version__}, {name}": model.predict_on_batch
        for name, model in models.items()
    }
    if BACKEND == "tensorflow":
        with tempfile.TemporaryDirectory() as folder:
            for name, model in models.items():
                routes |= runtimes(name, model, folder)
    first, *_ = routes
    expected = np.asarray(routes[first](images))
    times = {name: [] for name in routes}
    for _ in range(6):
        for name, route in routes.items():
            start = time.perf_counter()
            result = np.asarray(route(images))
            times[name].append(time.perf_counter() - start)
            assert result.shape == expected.shape
    base = statistics.median(times[first][1:])
    for name, taken in times.items():
        ratio = statistics.median(taken[1:]) / base
        print(f"{BACKEND}: {name}: {ratio:.2f} of the time", flush=True)


def error():
    sys.path.insert(0, "tests")
    from test_golden import BY_RELEASE, first_entry, inputs, write

    for release in ("Ti_16", "S_16", "S_32", "B_32", "B_16", "R_Ti_16"):
        entry, found = first_entry(release), []
        with tempfile.TemporaryDirectory() as folder:
            write(entry, f"{folder}/a.npz")
            for mode in (None, "int8", "int4"):
                model = getattr(keras_augreg, BY_RELEASE[release].name)(
                    weights=f"{folder}/a.npz",
                    classifier_activation=None,
                    include_preprocessing=False,
                    input_shape=(*[entry["input_resolution"]] * 2, 3),
                )
                if mode:
                    model.quantize(mode)
                found.append(model.predict(inputs(entry), verbose=0))
        text = ""
        for mode, logits in zip(("int8", "int4"), found[1:], strict=True):
            rms = np.sqrt(np.mean((logits - found[0]) ** 2))
            same = (logits.argmax(1) == found[0].argmax(1)).sum()
            text += f"; {mode}: RMS {rms:.3f}, {same} of {len(logits)} same"
        print(f"{release}: logits' deviation {found[0].std():.2f}{text}")


if __name__ == "__main__":
    {
        "full": lambda: memory(False),
        "lora": lambda: memory(True),
        "speed": speed,
        "error": error,
    }[sys.argv[1]]()
