r"""Runs the paper's study on your own data: a grid of trainings, one table.

    python recipes/sweep.py --dataset=FOLDER --workdir=runs/sweep

trains ViT-S/32 and ViT-Ti/16 with four recipes on a tenth and on all of the
images of FOLDER (or any source of `data.load`): 16 cells. Other grids are
JSON files (docs/study.md):

    python recipes/sweep.py --grid=tests/benchmarks/study_grid.json

After a kill, the same command resumes; failed cells are tried again. For an
array of jobs, or several machines that share a directory:

    python recipes/sweep.py --grid=FILE --shard=$SLURM_ARRAY_TASK_ID/16

--workdir gets `results.csv` (and `.parquet`), with the columns of the
release's `index.csv`, and `figures/`; whether the paper's findings hold comes
last. Hardware: any. Duration: each cell's line tells the time left.
docs/study.md has a run with its duration and results. The last line on stdout
is JSON; the exit status is 1 if a cell failed.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import arguments
import keras
import matplotlib  # noqa: F401 (for the figures: fail now, not at the end)
import pandas  # noqa: F401
from absl import app, flags

import keras_augreg
from keras_augreg import study
from keras_augreg.recipe import PRETRAINING_RESOLUTION as RESOLUTION

_GRID = flags.DEFINE_string("grid", None, "JSON file, see docs/study.md.")
_DATASET = flags.DEFINE_string("dataset", "digits", "Without --grid.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", RESOLUTION, "Without --grid.")
_EPOCHS = flags.DEFINE_float("epochs", 30, "Without --grid.")
_SHARD = flags.DEFINE_string("shard", "0/1", "INDEX/COUNT, from 0.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 1000, "Steps, at most.")
_AUGMENT_ON = flags.DEFINE_enum(
    "augment_on", "device", ["device", "host"], "On a CPU, host is faster."
)
_DISTRIBUTE = flags.DEFINE_string("distribute", "auto", "See `distribute`.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/sweep", "Output folder.")


def default_grid() -> study.Grid:
    """Two models of similar speed, AugReg or not, with little or much data."""
    return study.Grid(
        datasets=(study.Source(_DATASET.value),),
        models=("ViT_S32", "ViT_Ti16"),
        recipes=tuple(
            keras_augreg.AugReg(level, rate, rate)
            for level in ("none", "medium1")
            for rate in (0.0, 0.1)
        ),
        fractions=(0.1, 1.0),
        epochs=(_EPOCHS.value,),
        image_size=_IMAGE_SIZE.value,
    )


def main(argv: list[str]) -> None:
    """Runs the cells; writes the table and the figures."""
    del argv
    shard = re.fullmatch(r"(\d+)/(\d+)", _SHARD.value)
    if shard is None:
        raise app.UsageError(
            "--shard must be INDEX/COUNT, for example 0/16. Received: "
            f"{_SHARD.value!r}"
        )
    cells = default_grid().cells()
    if _GRID.value:
        cells = study.read_cells(_GRID.value)
    with keras_augreg.distribute(_DISTRIBUTE.value) as devices:
        if devices.shard[1] > 1:
            raise app.UsageError(
                "A sweep runs in one process on each machine: start it "
                "without the variables of a cluster, and with --shard."
            )
        summary = study.run(
            cells,
            _WORKDIR.value,
            functools.partial(
                study.train,
                save_every=_SAVE_EVERY.value,
                augment_on=_AUGMENT_ON.value,
                verbose="auto" if sys.stderr.isatty() else 0,
            ),
            shard=(int(shard[1]), int(shard[2])),
            report=functools.partial(print, file=sys.stderr, flush=True),
        )
    table = study.read(summary.path)
    figures = study.render(table, summary.path.with_name("figures"))
    verdicts = list(map(str, study.verdicts(table, _WORKDIR.value)))
    print(*verdicts, sep="\n", file=sys.stderr)
    result = {
        "done": summary.done,
        "failed": summary.failed,
        "waiting": summary.waiting,
        "table": str(summary.path),
        "figures": [str(path) for path in figures],
        "verdicts": verdicts,
        "backend": keras.config.backend(),
    }
    print(json.dumps(result))
    if not summary.complete:
        sys.exit(1)


if __name__ == "__main__":
    arguments.run(main)
