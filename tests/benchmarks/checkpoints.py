"""Saves and reads the state of a ViT-L/16 with Adam, by Orbax and by NumPy.

    python tests/benchmarks/checkpoints.py FOLDER [MODEL]

FOLDER should be on a disk with 8 GB of room. Each way runs in a process of
its own: random arrays under the names that a run has; one save, during which
a step updates all arrays in place, as training does; one read. "blocks" is
the time in which no step can begin; "memory" the peak of the process above
its arrays. `orbax, arrays of NumPy` is what PyTorch and TensorFlow would do.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import time
import types

os.environ.setdefault("KERAS_BACKEND", "jax")

WAYS = ["npz", "orbax", "orbax, arrays of NumPy"]


def state(name):
    """Arrays of weights, Adam's moments, seeds, as (name, shape)."""
    import keras_augreg

    model = getattr(keras_augreg, name)(weights=None)
    shapes = {
        f"model/{i}/{w.name}": w.shape for i, w in enumerate(model.weights)
    }
    for moment in ("m", "v"):
        for i, w in enumerate(model.trainable_weights):
            shapes[f"optimizer/{i}/{w.name}_{moment}"] = w.shape
    return shapes


def memory(key):
    text = pathlib.Path("/proc/self/status").read_text()
    line = next(x for x in text.splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024 / 1e9


def take(engine, arrays):
    from keras_augreg.training import storage

    if isinstance(engine, storage._Orbax):  # It asks variables for values.
        arrays = {k: types.SimpleNamespace(value=a) for k, a in arrays.items()}
    return engine.take(arrays)


def measure(folder, name, way):
    import jax
    import numpy as np

    from keras_augreg.training import storage

    rng = np.random.default_rng(0)
    arrays = {
        k: rng.standard_normal(shape, "float32")
        for k, shape in state(name).items()
    }
    size = sum(a.nbytes for a in arrays.values()) / 1e9
    if way != WAYS[2]:
        for key in arrays:
            arrays[key] = jax.numpy.array(arrays[key], copy=True)
    step = jax.jit(lambda x: x * 1.01, donate_argnums=0)
    engine = storage._Npz() if way == "npz" else storage._Orbax()

    take(
        engine, arrays
    )  # Compiles what depends on shapes only; a run's first save does.
    before = memory("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # Forgets the peak.
    began, cpu = time.perf_counter(), time.process_time()
    taken = take(engine, arrays)
    path = engine.write(folder, 1, taken)
    blocked, busy = time.perf_counter() - began, time.process_time() - cpu
    del taken
    for key, array in arrays.items():
        if way == WAYS[2]:
            array *= 1.01
        else:
            arrays[key] = step(array)
    engine.wait()
    written = time.perf_counter() - began
    peak = memory("VmHWM") - before
    del arrays
    began = time.perf_counter()
    storage.read(path, {})
    read = time.perf_counter() - began
    used = subprocess.check_output(["du", "-s", "-B1", path]).split()[0]
    print(
        f"{way:>23}: state {size:.2f} GB; blocks {blocked:.2f} s "
        f"({busy:.1f} s of CPU), written after {written:.1f} s; "
        f"memory +{peak:.2f} GB ({peak / size:.2f} of the state); on "
        f"the disk {int(used) / 1e9:.2f} GB; read in {read:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    folder, name, *way = (
        pathlib.Path(sys.argv[1]),
        *(sys.argv[2:] or ["ViT_L16"]),
    )
    if way:
        measure(folder, name, *way)
    else:
        for way in WAYS:
            folder.mkdir(parents=True)
            command = [sys.executable, __file__, folder, name, way]
            subprocess.run(command, check=True)
            shutil.rmtree(folder)
