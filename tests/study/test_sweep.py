"""Sweeps that are killed, shared or fail: no cell is lost or repeated."""

from __future__ import annotations

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest

from keras_augreg.recipe import AugReg
from keras_augreg.study import sweep, table, verdict
from keras_augreg.study.grid import Finetuning, Grid, Source, Transfer
from keras_augreg.variants import VARIANTS, Sizes, Variant

pytestmark = pytest.mark.once

TINY = Variant("tiny_8", "tiny_8", Sizes(8, 16, 1, 2, 32))
GRID = Grid(
    datasets=(Source("digits"),),
    models=(TINY, VARIANTS["ViT_Ti16"]),
    recipes=(AugReg("none"), AugReg("light1", 0.1, 0.1)),
    fractions=(0.5, 1.0),
    seeds=(0, 1),
    transfers=(Transfer(Source("/photos"), (10, 20), (0.01,)),),
)


def pretend(cell, folder):
    """Simulates a run; leaves a file that says that the cell ran to its end."""
    time.sleep(0.01)
    (folder / f"ran.{time.time_ns()}").touch()
    if isinstance(cell, Finetuning):
        return {"adapt_final_val": 0.5, "adapt_final_test": 0.25}
    return {"final_val": 0.5, "final_test": 0.75, "params": 12}


def fork(root, shard=(0, 1), train=pretend, cells=None):
    """Runs the sweep in a forked process, which saves the imports."""
    child = os.fork()
    if child:
        return child
    try:
        cells = cells or GRID.cells()
        sweep.run(cells, root, train, shard=shard, report=str)
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_and_resumed_loses_no_cell_and_repeats_none(tmp_path):
    rng = random.Random(0)
    done = {}
    unfinished = 0
    for _ in range(15):
        child = fork(tmp_path)
        time.sleep(rng.uniform(0.05, 0.12))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        records = {
            path: json.loads(path.read_text())
            for path in (tmp_path / "cells").glob("*.json")
        }
        for path, text in done.items():
            assert path.read_text() == text
        done = {
            path: path.read_text()
            for path, record in records.items()
            if record["status"] == "done"
        }
        unfinished += len(records) - len(done)
    assert len(done) > 0
    assert unfinished  # Some were killed in the middle.
    summary = sweep.run(GRID.cells(), tmp_path, pretend, report=str)
    assert summary.complete
    rows = table.read(summary.path)
    assert len(rows) == len(GRID.cells()) == 48
    assert set(rows["status"]) == {"done"}
    for path, text in done.items():
        assert path.read_text() == text
    # Once to the end, or twice if killed before it was recorded.
    ran = len(list(tmp_path.glob("runs/*/ran.*")))
    assert 48 <= ran <= 48 + 15
    again = sweep.run(GRID.cells(), tmp_path, pytest.fail, report=str)
    assert again.done == 48


def test_two_shards_at_once_never_corrupt_the_table(tmp_path):
    children = [fork(tmp_path, (i, 2)) for i in range(2)]
    seen = set()
    while children:
        for child in list(children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert status == 0
                children.remove(child)
        sweep._tabulate(tmp_path)  # A third writer.
        rows = pandas.read_csv(tmp_path / "results.csv")
        assert list(rows.columns) == list(table.COLUMNS)
        table.read(tmp_path / "results.parquet")
        seen.add(len(rows))
    assert len(seen) > 1  # It grew while it was read.
    rows = table.read(tmp_path / "results.csv")
    assert len(rows) == 48
    assert set(rows["status"]) == {"done"}
    assert rows["adapt_filename"].dropna().is_unique
    assert len(list(tmp_path.glob("runs/*/ran.*"))) == 48
    assert not list(tmp_path.rglob(".*"))  # No temporary file.


def test_the_last_of_two_shards_leaves_the_whole_table(tmp_path, monkeypatch):
    """A record that appears while the table is written gets into it."""
    cells = GRID.cells()
    write = table.write

    def slow_write(path, content):
        write(path, content)
        if path.name == "results.csv" and len(cells) == 48:
            late = cells[0]
            write(
                tmp_path / "cells" / f"{late.name}.json",
                json.dumps({**late.row(), "status": "done"}).encode(),
            )
            monkeypatch.setattr(table, "write", write)

    (tmp_path / "cells").mkdir()
    monkeypatch.setattr(table, "write", slow_write)
    rows = table.read(sweep.collect(tmp_path))
    assert list(rows["filename"]) == [cells[0].name]


def test_shards_are_disjoint_complete_and_keep_what_belongs_together():
    cells = GRID.cells()
    shards = [sweep._mine(cells, i, 3) for i in range(3)]
    names = [cell.name for shard in shards for cell in shard]
    assert sorted(names) == sorted(cell.name for cell in cells)
    for shard in shards:
        own = {cell.name for cell in shard}
        for cell in shard:
            if isinstance(cell, Finetuning):
                assert cell.upstream.name in own


def test_failed_cells_are_recorded_reported_and_tried_again(tmp_path):
    cells = GRID.cells()
    bad = cells[0]

    def fails(cell, folder):
        if cell == bad:
            raise FloatingPointError("the loss is nan")
        return pretend(cell, folder)

    lines = []
    summary = sweep.run(cells, tmp_path, fails, report=lines.append)
    assert not summary.complete
    assert summary.failed == {bad.name: "FloatingPointError: the loss is nan"}
    assert len(summary.waiting) == 2  # Its two fine-tunings.
    assert summary.done == 45
    assert lines[-1] == f"FAILED {bad.name}: {summary.failed[bad.name]}"
    rows = table.read(summary.path).set_index("filename")
    assert rows.loc[bad.name, "error"] == summary.failed[bad.name]
    assert rows.loc[bad.name, "status"] == "failed"
    record = json.loads((tmp_path / f"cells/{bad.name}.json").read_text())
    assert "raise FloatingPointError" in record["traceback"]
    summary = sweep.run(cells, tmp_path, pretend, report=lines.append)
    assert summary.complete
    rows = table.read(summary.path)
    assert set(rows["status"]) == {"done"}
    assert rows["error"].isna().all()
    assert len(list(tmp_path.glob("runs/*/ran.*"))) == 48


def test_a_cell_that_brings_down_the_process_comes_last(tmp_path):
    cells = GRID.cells()
    bad = cells[0].name

    def dies(cell, folder):
        if cell.name == bad:
            os.kill(os.getpid(), signal.SIGKILL)
        return pretend(cell, folder)

    for _ in range(2):
        assert os.waitpid(fork(tmp_path, train=dies), 0)[1] == signal.SIGKILL
    rows = table.read(sweep.collect(tmp_path))
    assert (rows["status"] == "done").sum() == 45
    assert list(rows.query("status != 'done'")["filename"]) == [bad]
    assert list(rows.query("status != 'done'")["attempts"]) == [2]


def test_progress_tells_the_time_left(tmp_path):
    lines = []
    sweep.run(GRID.cells()[:3], tmp_path, pretend, report=lines.append)
    assert lines[0] == "0 of 3 cells were done before"
    assert lines[1].startswith("[1/3] tiny_8-digits-30ep-lr_0.001-aug_none-")
    assert "test accuracy 0.750, 0 s; 0 min left" in lines[1]
    assert sweep._clock(3600 * 26.5) == "26 h 30 min"


def test_messages(tmp_path):
    with pytest.raises(ValueError, match=r"shard=\(2, 2\)"):
        sweep.run(GRID.cells(), tmp_path, pretend, shard=(2, 2))
    name = GRID.cells()[0].name
    (tmp_path / "cells").mkdir(exist_ok=True)
    for content in ("[1]", "null", "{"):
        (tmp_path / f"cells/{name}.json").write_text(content)
        with pytest.raises(ValueError, match=r"is damaged .* Delete it"):
            sweep.run(GRID.cells(), tmp_path, pretend)
    with pytest.raises(ValueError, match=r"is damaged .* Delete it"):
        sweep.run(GRID.cells(), tmp_path, pretend)


def test_a_full_disk_leaves_no_half_written_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = tmp_path / "results.csv"
    path.write_text("before")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        table.write(path, b"after")
    assert [p.name for p in tmp_path.iterdir()] == ["results.csv"]
    assert path.read_text() == "before"


def test_the_command_end_to_end(tmp_path):
    """Real cells, tiny: trained, fine-tuned, drawn; one fails."""
    root = pathlib.Path(__file__).parents[2]
    sizes = {"width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 32}
    grid = {
        "datasets": ["digits"],
        "models": [{"name": "tiny_8", "patch_size": 8, **sizes}],
        "recipes": ["light1"],
        "fractions": [0.1, 0.0001],
        "epochs": [1],
        "image_size": 16,
        "batch_size": 32,
        "transfers": [
            {
                "data": {"source": "digits"},
                "steps": [4],
                "learning_rates": [0.01],
            }
        ],
    }
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    done = subprocess.run(
        [sys.executable, root / "recipes/sweep.py", "--grid=grid.json",
         "--workdir=sweep", "--augment_on=host"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["done"] == 2
    assert (
        len(result["failed"]) == 1
    )  # 10 images are too few for a batch of 32.
    assert all("too few" in error for error in result["failed"].values())
    assert len(result["waiting"]) == 1
    rows = table.read(tmp_path / result["table"])
    good = rows[rows["status"] == "done"]
    assert (good["infer_samples_per_sec"] > 0).all()
    assert good["num_examples"].eq(129).all()
    tuned = good.dropna(subset=["adapt_ds"])
    assert len(tuned) == 1
    assert (
        tuned[["final_val", "adapt_final_test", "adapt_seconds"]]
        .notna()
        .all(axis=None)
    )
    for row in good.itertuples():
        tuned = isinstance(row.adapt_filename, str)
        name = row.adapt_filename if tuned else row.filename
        correct = np.load(tmp_path / "sweep/runs" / name / "correct.npy")
        accuracy = row.adapt_final_test if tuned else row.final_test
        assert (len(correct), correct.mean()) == (359, pytest.approx(accuracy))
    assert len(result["verdicts"]) == len(verdict.STATEMENTS)
    names = [pathlib.Path(path).name for path in result["figures"]]
    assert names == ["4.1_data_size.png"]
