r"""Measures models on this machine: images/s, latency, memory, FLOP/s.

    python recipes/benchmark.py --models=ViT_S16,ViT_B16 \
        --backends=jax,torch --dtypes=float32,mixed_bfloat16 --tasks=infer,train

Each row is measured in a process of its own, without reading or augmenting
images; `keras_augreg.benchmark.measure` documents the figures. --workdir gets
`benchmark.json` (which `keras_augreg.study` reads), `benchmark.md` and
`benchmark.png`; the last line on stdout is JSON.

Hardware: any. Duration: about half a minute a row on two CPU cores. Numbers:
docs/performance.md.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import arguments
from absl import flags

from keras_augreg import benchmark, visualize
from keras_augreg.atomic import as_path, replacing
from keras_augreg.output import markdown_table
from keras_augreg.recipe import PRETRAINING_RESOLUTION as RESOLUTION

_MODELS = flags.DEFINE_list("models", "ViT_S16", "As 'B/16' or 'ViT_B16'.")
_BACKENDS = flags.DEFINE_list("backends", None, "KERAS_BACKEND by default.")
_DTYPES = flags.DEFINE_list("dtypes", "float32", "Names of dtype policies.")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", "16", "Images in a step.")
_IMAGE_SIZES = flags.DEFINE_list(
    "image_sizes", str(RESOLUTION), "Sides in pixels."
)
_TASKS = flags.DEFINE_list("tasks", "infer", "infer, train or both.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "For each measurement.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/benchmark", "Output folder.")
_ROW = flags.DEFINE_string("row", None, "For internal use.")

COLUMNS = {
    "images_per_second": "images/s",
    "latency_ms": "latency at batch 1, ms",
    "memory_mib": "peak memory, MiB",
    "first_call_s": "build and first call, s",
    "gflops": "GFLOP/s",
    "share": "share of a matrix product",
}


def main(argv: list[str]) -> None:
    """Measures each row in a new process and writes the table."""
    del argv
    if _ROW.value:
        print(json.dumps(benchmark.measure(**json.loads(_ROW.value))))
        return
    keys = ("task", "model", "image_size", "batch_size", "dtype")
    combinations = itertools.product(
        _BACKENDS.value or [os.environ["KERAS_BACKEND"]],
        _TASKS.value,
        _MODELS.value,
        map(int, _IMAGE_SIZES.value),
        map(int, _BATCH_SIZES.value),
        _DTYPES.value,
    )
    workdir = as_path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    rows, failed = [], []
    for backend, *values in combinations:
        row = dict(zip(keys, values, strict=True), seconds=_SECONDS.value)
        done = subprocess.run(
            [sys.executable, __file__, f"--row={json.dumps(row)}"],
            env={**os.environ, "KERAS_BACKEND": backend},
            stdout=subprocess.PIPE,
            check=False,
            text=True,
        )
        if done.returncode:  # Its message is on stderr.
            failed.append({"backend": backend, **row})
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], file=sys.stderr)
        with replacing(workdir / "benchmark.json") as file:
            file.write(json.dumps(rows, indent=1).encode())
    if rows:
        figure = visualize.plot_benchmark(rows)
        with replacing(workdir / "benchmark.png") as file:
            figure.savefig(file, format="png", dpi=120)
    named = ("backend", *keys)
    text = markdown_table(
        [*named, *COLUMNS.values()],
        ([row[key] for key in (*named, *COLUMNS)] for row in rows),
    )
    with replacing(workdir / "benchmark.md") as file:
        file.write(text.encode())
    print(text, file=sys.stderr)
    result = {"rows": len(rows), "failed": failed, "workdir": str(workdir)}
    print(json.dumps(result))
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    arguments.run(main)
