"""Runs the cells of a study, on one machine or many, and collects them.

A working directory holds

    cells/NAME.json    one record for each cell; nothing else is the truth
    runs/NAME/         its training; `model.npz` of a pre-training
    results.csv        all records as a table (`results.parquet` with pyarrow)

Every file appears as a whole, by renaming. A record is written by the one
process whose share the cell is in, so that nothing is locked, which network
file systems do badly. In the end the table is written again until the records
do not change meanwhile: the last process that ends leaves a complete one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from keras_augreg.study import table
from keras_augreg.study.grid import Cell, Finetuning, Pretraining

# Seconds between two writings of the table while cells are running.
TABLE_EVERY = 60.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a call of `run` leaves.

    Args:
        done: Cells of this share that have a result.
        failed: Name -> error of those that failed in this call.
        waiting: Names of fine-tunings whose pre-training failed.
        path: The table, `results.csv`.
    """

    done: int
    failed: dict[str, str]
    waiting: list[str]
    path: pathlib.Path

    @property
    def complete(self) -> bool:
        """Whether every cell of this share has a result."""
        return not self.failed and not self.waiting


def run(
    cells: Sequence[Cell],
    workdir: str | os.PathLike[str],
    train: Callable[[Cell, pathlib.Path], dict[str, Any]],
    *,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[str], object] = print,
) -> Summary:
    """Runs the cells that have no result yet.

    Killed at any moment, the same call goes on: cells with a result are not
    run again, the one in the middle goes on from its last checkpoint. A cell
    that fails is recorded with its error, the others run, and the next call
    tries it again; cells that were begun most often come last, so that one
    which brings down the whole process does not keep others from running.

    Args:
        cells: Of `Grid.cells` or `read_cells`.
        workdir: Made if there is none. Several machines may share it, each
            with its own shard.
        train: Runs one cell in its folder: `keras_augreg.study.cell.train`.
            Its result are columns of the table.
        shard: (number from 0, number of shards): this process runs every
            so-manieth pre-training and its fine-tunings. Two processes with
            the same one would do the same work twice.
        report: Called with a line for each cell, with the time left.

    Returns:
        What was done and what was not.

    Raises:
        ValueError: If `shard` is not as above, or a record is damaged.

    Example:
    ```python
    from keras_augreg.study import grid, sweep, training

    cells = grid.read_cells("grid.json")
    assert sweep.run(cells, "runs/sweep", training.train).complete
    ```
    """
    number, count = shard
    if not 0 <= number < count:
        raise ValueError(
            "`shard` is (number from 0, number of shards). Received: "
            f"shard={shard}"
        )
    root = pathlib.Path(workdir)
    (root / "cells").mkdir(parents=True, exist_ok=True)
    mine = _share(cells, number, count)
    records = {cell.name: _read(root, cell.name) for cell in mine}
    pending = [c for c in mine if records[c.name].get("status") != "done"]
    # Stable: a fine-tuning stays behind its pre-training.
    pending.sort(key=lambda cell: _attempts(records, cell))
    report(f"{len(mine) - len(pending)} of {len(mine)} cells were done before")
    failed: dict[str, str] = {}
    waiting: list[str] = []
    began = written = time.monotonic()
    worked = 0.0
    left = sum(map(work, pending))
    for i, cell in enumerate(pending, 1):
        left -= work(cell)
        if not _ready(root, cell):
            waiting.append(cell.name)
            report(f"[{i}/{len(pending)}] waits for its model: {cell.name}")
            continue
        start = time.monotonic()
        record = _attempt(root, cell, train)
        worked += work(cell)
        if record["status"] == "failed":
            failed[cell.name] = record["error"]
        now = time.monotonic()
        accuracy = record.get("adapt_final_test", record.get("final_test"))
        outcome = record["status"]
        if accuracy is not None:
            outcome = f"test accuracy {accuracy:.3f}"
        report(
            f"[{i}/{len(pending)}] {cell.name}: {outcome}, "
            f"{now - start:.0f} s; "
            f"{_clock(left * (now - began) / worked)} left"
        )
        if now - written > TABLE_EVERY:
            _tabulate(root)  # Once: others may be writing all the time.
            written = now
    for name, error in failed.items():
        report(f"FAILED {name}: {error}")
    done = len(mine) - len(failed) - len(waiting)
    return Summary(done, failed, waiting, collect(root))


def collect(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the table of all records, those of other shards included.

    Args:
        workdir: Of `run`.

    Returns:
        The path of `results.csv`; `results.parquet` is beside it if pyarrow
        is installed.

    Raises:
        ValueError: If a record is damaged.
    """
    root = pathlib.Path(workdir)
    while _tabulate(root) != _state(root):
        pass  # Another shard's record came meanwhile; its table may be older.
    return root / "results.csv"


def work(cell: Cell) -> float:
    """How long a cell takes, compared with others: for the time left.

    Multiply-adds of the blocks, forward, for each image; the number of
    training images is not known here, and the fraction stands for it.
    """
    sizes = cell.model.sizes
    tokens = (cell.image_size // sizes.stride) ** 2 + 1
    blocks = sizes.depth * tokens * sizes.width**2
    if isinstance(cell, Pretraining):
        return cell.epochs * cell.fraction * 1000 * blocks
    return float(cell.steps * cell.batch_size * blocks)


def _tabulate(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Writes the table once; the state of the records that are in it."""
    state = _state(root)
    rows = [_read(root, name) for name in sorted(state)]
    rows = [{k: r[k] for k in table.COLUMNS if k in r} for r in rows]
    parquet = table.to_parquet(rows)
    if parquet is not None:
        table.write(root / "results.parquet", parquet)
    table.write(root / "results.csv", table.to_csv(rows))
    return state


def _share(cells: Sequence[Cell], number: int, count: int) -> list[Cell]:
    """A shard's cells: a fine-tuning is where its pre-training is."""
    shards: dict[str, int] = {}
    for cell in cells:
        shards.setdefault(_root_name(cell), len(shards))
    return [c for c in cells if shards[_root_name(c)] % count == number]


def _root_name(cell: Cell) -> str:
    if isinstance(cell, Finetuning) and isinstance(cell.upstream, Pretraining):
        return cell.upstream.name
    return cell.name


def _attempts(records: dict[str, dict[str, Any]], cell: Cell) -> int:
    """How often a cell, or what it waits for, was begun in vain."""
    names = {cell.name, _root_name(cell)}
    return max(
        records[name].get("attempts", 0)
        for name in names
        if records[name].get("status") != "done"
    )


def _ready(root: pathlib.Path, cell: Cell) -> bool:
    """Whether there is what a cell starts from."""
    upstream = _root_name(cell)
    return upstream == cell.name or (
        _read(root, upstream).get("status") == "done"
    )


def _attempt(
    root: pathlib.Path,
    cell: Cell,
    train: Callable[[Cell, pathlib.Path], dict[str, Any]],
) -> dict[str, Any]:
    """Runs one cell; its record tells how that went."""
    folder = root / "runs" / cell.name
    record = {
        **cell.row(),
        "status": "running",
        "attempts": _read(root, cell.name).get("attempts", 0) + 1,
    }
    _record(root, cell, record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        result = train(cell, folder)
        if isinstance(cell, Finetuning) and isinstance(
            cell.upstream, Pretraining
        ):
            upstream = _read(root, cell.upstream.name)
            result = {**upstream, **record, **result}
        record = {**record, **result, "status": "done"}
    except Exception as error:
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    _record(root, cell, record)
    if record["status"] == "done":
        # What only an unfinished cell needs.
        if (folder / "checkpoints").exists():
            shutil.rmtree(folder / "checkpoints")
        (folder / "best.npz").unlink(missing_ok=True)
    return record


def _record(root: pathlib.Path, cell: Cell, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1) + "\n"
    table.write(root / "cells" / f"{cell.name}.json", text.encode())


def _read(root: pathlib.Path, name: str) -> dict[str, Any]:
    """A cell's record, empty without one."""
    path = root / "cells" / f"{name}.json"
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ValueError(
            f"The record {path} is damaged ({error}). Delete it: the cell "
            "will be run again."
        ) from error
    return dict(record)


def _state(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    """What changes whenever a record does."""
    state = {}
    for path in (root / "cells").glob("*.json"):
        found = path.stat()
        state[path.stem] = (found.st_mtime_ns, found.st_ino)
    return state


def _clock(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
