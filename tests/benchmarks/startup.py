"""How long until a ViT-B/16 answers: import, build, load a .npz, first call.

    python tests/benchmarks/startup.py --rounds=5

Each measurement is a fresh process; the peers take turns. "load" is everything
from the file to a model with its weights: build, read, assign. "memory" is the
process's peak above that of one that only builds the model. Peers that are not
installed are left out; KerasHub and kimm read no .npz.
"""

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

_ROUNDS = flags.DEFINE_integer("rounds", 5, "Processes for each measurement.")
_WORKER = flags.DEFINE_list("worker", None, "Of the script itself.")

PEERS = [
    *(f"keras_augreg:{name}" for name in ("jax", "tensorflow", "torch")),
    "timm:torch",
    *(f"keras_hub:{name}" for name in ("jax", "tensorflow", "torch")),
    *(f"kimm:{name}" for name in ("jax", "tensorflow", "torch")),
]
READS_NPZ = ("keras_augreg", "timm")
# A name of the release, for a file of random weights.
NAME = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"


def build(library, file):
    """Returns what runs the library's model on a NumPy batch."""
    if library == "timm":
        import timm
        import torch

        model = timm.create_model("vit_base_patch16_224").eval()
        if file:
            model.load_pretrained(file)

        def run(x):
            with torch.inference_mode():
                return model(torch.from_numpy(x.transpose(0, 3, 1, 2)))

        return run
    if library == "keras_augreg":
        import keras_augreg

        model = keras_augreg.ViT_B16(weights=file and NAME)
    elif library == "kimm":
        import kimm

        model = kimm.models.VisionTransformerBase16(
            weights=None, input_shape=(224, 224, 3)
        )
    else:
        import keras
        import keras_hub

        body = keras_hub.models.ViTBackbone(
            image_shape=(224, 224, 3),
            patch_size=16,
            num_layers=12,
            num_heads=12,
            hidden_dim=768,
            mlp_dim=3072,
        )
        image = keras.Input((224, 224, 3))
        head = keras.layers.Dense(1000)
        model = keras.Model(image, head(body(image)[:, 0]))
    return model.predict_on_batch


def work(library, file):
    """Prints the figures of this process."""
    import numpy as np

    if library == "timm":
        without_torchvision()
        import torch  # noqa: F401
    else:
        import keras  # noqa: F401
    times = {}
    start = time.perf_counter()
    importlib.import_module(library)
    times["import"] = time.perf_counter() - start
    start = time.perf_counter()
    run = build(library, file or None)
    times["load" if file else "build"] = time.perf_counter() - start
    times["memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    run(np.zeros((1, 224, 224, 3), "float32"))
    times["first call"] = time.perf_counter() - start
    print(json.dumps(times))


def without_torchvision():
    """Lets timm import: its ViT needs none of torchvision."""
    peers = pathlib.Path(__file__).parents[2] / "shared" / "peers"
    if importlib.util.find_spec("torchvision") and peers.exists():
        sys.path.insert(0, str(peers))
        import compare

        compare.stub_torchvision()


def measure(peer, file):
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
    """Measures and prints, or is the process that is measured."""
    if _WORKER.value:
        work(*_WORKER.value)
        return
    peers = [p for p in PEERS if importlib.util.find_spec(p.partition(":")[0])]
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, f"{NAME}.npz")
        subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys, keras_augreg as k; k.checkpoints.to_npz("
                "k.ViT_B16(weights=None), sys.argv[1])",
                str(file),
            ],
            check=True,
        )
        print(f"B_16.npz: {file.stat().st_size / 2**20:.0f} MiB")
        rows = {peer: ([], []) for peer in peers}
        for _ in range(_ROUNDS.value):
            for peer, (bare, loaded) in rows.items():
                bare.append(measure(peer, ""))
                if peer.startswith(READS_NPZ):
                    loaded.append(measure(peer, file))

    def median(runs, key):
        return statistics.median(run[key] for run in runs) if runs else None

    print("| | import, s | build, s | load, s | first call, s | memory, MiB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for peer, (bare, loaded) in rows.items():
        cells = [
            *(median(bare, key) for key in ("import", "build")),
            median(loaded, "load"),
            median(bare, "first call"),
        ]
        text = ["-" if c is None else f"{c:.2f}" for c in cells]
        extra = "-"
        if loaded:
            more = median(loaded, "memory") - median(bare, "memory")
            extra = f"{more:.0f}"
        print("|", " | ".join([peer, *text, extra]), "|")


if __name__ == "__main__":
    app.run(main)
