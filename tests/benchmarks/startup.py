"""Measures how soon a ViT-B/16 answers: import, build, load, first call.

    pip install timm keras-hub kimm
    python tests/benchmarks/startup.py --rounds=5

Each measurement is a new process, and the libraries take turns. "import" comes
after Keras or PyTorch; "load" is everything from a .npz file to a model with
its weights (build, read, assign); "memory" is the process's peak above that of
one that only builds the model. Libraries that are not installed are left out;
KerasHub and kimm do not read .npz files.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from libraries import build, import_timm

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Processes for each measurement.")
_WORKER = flags.DEFINE_list("worker", None, "For internal use.")

BACKENDS = ("jax", "tensorflow", "torch")
PEERS = [
    *(f"keras_augreg:{name}" for name in BACKENDS),
    "timm:torch",
    *(f"keras_hub:{name}" for name in BACKENDS),
    *(f"kimm:{name}" for name in BACKENDS),
]
READS_NPZ = ("keras_augreg", "timm")
# A name of the release, for a file of random weights.
NAME = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"


def load(library, file):
    """Returns a function that runs the library's model on a NumPy batch."""
    if library == "keras_augreg":
        weights = NAME if file else None
        return build(library, "B/16", weights=weights).predict_on_batch
    model = build(library, "B/16")
    if library != "timm":
        return model.predict_on_batch
    import torch

    model.eval()
    if file:
        model.load_pretrained(file)

    def run(images):
        with torch.inference_mode():
            return model(torch.from_numpy(images.transpose(0, 3, 1, 2)))

    return run


def work(library, file):
    """Prints the figures of this process."""
    import numpy as np

    importlib.import_module("torch" if library == "timm" else "keras")
    times = {}
    start = time.perf_counter()
    if library == "timm":
        import_timm()
    else:
        importlib.import_module(library)
    times["import"] = time.perf_counter() - start
    if library == "keras_hub":  # Its sizes are ours: not a part of building.
        importlib.import_module("keras_augreg.variants")
    start = time.perf_counter()
    run = load(library, file)
    times["load" if file else "build"] = time.perf_counter() - start
    times["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    run(np.zeros((1, 224, 224, 3), "float32"))
    times["first call"] = time.perf_counter() - start
    print(json.dumps(times))


def measure(peer, file=""):
    """Returns the figures of a new process."""
    library, _, backend = peer.partition(":")
    folder = str(pathlib.Path(file).parent)
    done = subprocess.run(
        [sys.executable, __file__, f"--worker={library},{file}"],
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "KERAS_AUGREG_MIRROR": folder,
            "KERAS_AUGREG_CACHE": folder,
        },
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{peer}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main(argv):
    """Measures and prints a table, or is the process that is measured."""
    if _WORKER.value:
        work(*_WORKER.value)
        return
    from keras_augreg.output import markdown_table

    peers = [p for p in PEERS if importlib.util.find_spec(p.partition(":")[0])]
    bare = {peer: [] for peer in peers}
    loaded = {peer: [] for peer in peers if peer.startswith(READS_NPZ)}
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, f"{NAME}.npz")
        code = (
            "import sys, keras_augreg as k; "
            "k.checkpoints.to_npz(k.ViT_B16(weights=None), sys.argv[1])"
        )
        subprocess.run([sys.executable, "-c", code, str(file)], check=True)
        print(f"B_16.npz: {file.stat().st_size / 2**20:.0f} MiB")
        for _ in range(_ROUNDS.value):
            for peer in peers:
                bare[peer].append(measure(peer))
                if peer in loaded:
                    loaded[peer].append(measure(peer, str(file)))

    def median(runs, key):
        return statistics.median(run[key] for run in runs) if runs else None

    rows = []
    for peer in peers:
        runs = loaded.get(peer)
        memory = runs and median(runs, "memory") - median(bare[peer], "memory")
        rows.append(
            [
                peer,
                median(bare[peer], "import"),
                median(bare[peer], "build"),
                median(runs, "load"),
                median(bare[peer], "first call"),
                memory,
            ]
        )
    head = ["library", "import, s", "build, s", "load, s", "first call, s"]
    print(markdown_table([*head, "memory, MiB"], rows))


if __name__ == "__main__":
    app.run(main)
