r"""What the study's pre-trainings would cost on slices of TPU v5e, calculated.

    python tests/benchmarks/pods.py

prints the tables of docs/guides/pods.md from the compiler's estimates in
logs/tpu_cycles.txt and from the constants below. Nothing was measured on a TPU.
"""

from __future__ import annotations

import json
import os
import pathlib

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras_augreg
from keras_augreg.flight_check import CHIPS
from keras_augreg.output import markdown_table
from keras_augreg.recipe import PRETRAINING_BATCH, pretraining_settings

LOG = pathlib.Path(__file__).parent / "logs" / "tpu_cycles.txt"
MODELS = ("Ti/16", "S/16", "B/16", "L/16")
SLICES = (8, 32, 64, 256)  # chips, of batches of 4,096
IMAGES = {"imagenet-1k": 1_281_167, "imagenet-21k": 13e6}  # section 3.1
# Bytes of an image as JPEG: ILSVRC2012_img_train.tar has 138 GB, the archive
# of ImageNet-21k 1.31 TB for 14.2 million.
BYTES = {"imagenet-1k": 138e9 / 1_281_167, "imagenet-21k": 1.31e12 / 14.2e6}
# docs/performance.md: decoding and cropping, and two operations of RandAugment
# with Mixup, on one core of the machine there.
CORE_SECONDS = 1.09e-3 + 0.35e-3
CHIPS_A_HOST = 8  # docs.cloud.google.com/tpu/docs/v5e: 2x4 has one host
WRITE = 1e9  # bytes a second of one host to storage, an assumption
STATE = 12  # bytes of a weight in float32 and Adam's two moments


def cycles() -> dict[str, float]:
    """Estimated cycles an image, of whole models, by name: the fewest."""
    found = {}
    for line in LOG.read_text().splitlines():
        if line.startswith("{"):
            row = json.loads(line)
            whole = row["blocks"] == (24 if row["model"] == "L/16" else 12)
            if row["peer"] == "keras_augreg" and whole:
                each = row["cycles"] / row.get("images", 128)
                found[row["model"]] = min(found.get(row["model"], each), each)
    return found


def main() -> None:
    """Prints the tables."""
    clock = CHIPS["v5e"].clock
    cost = {name: c / clock for name, c in cycles().items()}
    rows: list[list[object]] = []
    for run in ("i1k-300ep", "i21k-30ep", "i21k-300ep"):
        settings = pretraining_settings(run, None)
        images = IMAGES[settings["dataset"]] * settings["epochs"]
        for model in MODELS:
            hours = images * cost[model] / 3600
            rows.append(
                [run, model, f"{images / PRETRAINING_BATCH:,.0f}",
                 f"{hours:,.0f}", *(f"{hours / n:,.1f}" for n in SLICES)]
            )  # fmt: skip
    head = ["run", "model", "steps", "chip-hours"]
    print(markdown_table([*head, *(f"hours on {n}" for n in SLICES)], rows))
    rows = []
    for model in MODELS:
        speed = 1 / cost[model]
        host = speed * CHIPS_A_HOST
        state = keras_augreg.describe(model).parameters * STATE
        rows.append(
            [model, f"{speed:,.0f}", f"{host:,.0f}",
             *(f"{host * BYTES[name] / 1e6:,.0f}" for name in BYTES),
             f"{host * CORE_SECONDS:,.0f}", f"{state / 1e9:.2f}",
             *(f"{state / WRITE / max(n // CHIPS_A_HOST, 1):.2f}"
               for n in SLICES)]
        )  # fmt: skip
    head = [
        "model", "images/s a chip", "a host", "MB/s a host, i1k", "i21k",
        "cores a host", "state, GB",
        *(f"checkpoint on {n}, s" for n in SLICES),
    ]  # fmt: skip
    print(markdown_table(head, rows))


if __name__ == "__main__":
    main()
