"""Runs the cells of a study on one or more machines and collects them.

A working directory holds

    cells/NAME.json    a record of each cell; the only source of truth
    runs/NAME/         its training; a pre-training leaves `model.npz`
    results.csv        all records as a table (`results.parquet` with pyarrow)

Every file is written under another name and renamed. Each record is written
by one process only, the one whose shard has the cell, as locks are unreliable
on network file systems. At the end, the table is rewritten until no record
changes while it is written: the last process to end leaves a complete table.
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

from keras_augreg.atomic import local_path
from keras_augreg.study import table
from keras_augreg.study.grid import Cell, Finetuning, Pretraining

Train = Callable[[Cell, pathlib.Path], dict[str, Any]]

# While cells run, the table is rewritten at most this often, in seconds.
TABLE_EVERY = 60.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """The outcome of a call of `run`.

    Args:
        done: Number of this shard's cells that have a result.
        failed: Name -> error of the cells that failed in this call.
        waiting: Names of fine-tunings whose pre-training failed.
        path: The table, `results.csv`.
    """

    done: int
    failed: dict[str, str]
    waiting: list[str]
    path: pathlib.Path

    @property
    def complete(self) -> bool:
        """Whether every cell of this shard has a result."""
        return not self.failed and not self.waiting


def run(
    cells: Sequence[Cell],
    workdir: str | os.PathLike[str],
    train: Train,
    *,
    shard: tuple[int, int] = (0, 1),
    report: Callable[[str], object] = print,
) -> Summary:
    """Runs the cells that have no result yet.

    After a kill at any moment, the same call resumes: cells with a result are
    not run again, and the interrupted one continues from its last checkpoint.
    A cell that fails is recorded with its error, the others run, and the next
    call tries it again. Cells that were started most often come last: one
    that brings down the process does not keep others from running.

    Args:
        cells: The cells of `Grid.cells` or `read_cells`.
        workdir: Created if missing. Several machines may share it, each with
            a shard of its own.
        train: Runs one cell in its folder, as `keras_augreg.study.train`
            does, and returns columns of the table.
        shard: (index, count): this process runs every `count`-th
            pre-training, starting at `index`, together with its fine-tunings.
            Two processes with the same shard repeat each other's work.
        report: Called with a line for each cell, with the time left.

    Returns:
        The outcome.

    Raises:
        ValueError: If `shard` is out of range, or a record is damaged.

    Example:
    ```python
    from keras_augreg import study

    cells = study.read_cells("grid.json")
    assert study.run(cells, "runs/sweep", study.train).complete
    ```
    """
    index, count = shard
    if not 0 <= index < count:
        raise ValueError(
            "`shard` must be (index, count) with 0 <= index < count. "
            f"Received: shard={shard}"
        )
    root = local_path(workdir)
    (root / "cells").mkdir(parents=True, exist_ok=True)
    mine = _mine(cells, index, count)
    records = {cell.name: _read(root, cell.name) for cell in mine}
    pending = [c for c in mine if not _done(records[c.name])]
    # Stable: a fine-tuning stays behind its pre-training.
    pending.sort(key=lambda cell: _attempts(records, cell))
    report(f"{len(mine) - len(pending)} of {len(mine)} cells were done before")
    failed: dict[str, str] = {}
    waiting: list[str] = []
    began = written = time.monotonic()
    worked = 0.0
    left = sum(map(work, pending))
    for i, cell in enumerate(pending, 1):
        place = f"[{i}/{len(pending)}]"
        left -= work(cell)
        upstream = _root_name(cell)
        if upstream != cell.name and not _done(_read(root, upstream)):
            waiting.append(cell.name)
            report(f"{place} waits for its model: {cell.name}")
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
            f"{place} {cell.name}: {outcome}, {now - start:.0f} s; "
            f"{_clock(left * (now - began) / worked)} left"
        )
        if now - written > TABLE_EVERY:
            _tabulate(root)  # Not `collect`: others write all the time.
            written = now
    for name, error in failed.items():
        report(f"FAILED {name}: {error}")
    done = len(mine) - len(failed) - len(waiting)
    return Summary(done, failed, waiting, collect(root))


def collect(workdir: str | os.PathLike[str]) -> pathlib.Path:
    """Writes the table of all records, including those of other shards.

    Args:
        workdir: The directory given to `run`.

    Returns:
        The path of `results.csv`; `results.parquet` is beside it if pyarrow
        is installed.

    Raises:
        ValueError: If a record is damaged.
    """
    root = local_path(workdir)
    while _tabulate(root) != _state(root):
        pass  # Another shard's record came; its table may be older.
    return root / "results.csv"


def work(cell: Cell) -> float:
    """Estimates how long a cell takes relative to others, by multiply-adds."""
    sizes = cell.model.sizes
    tokens = (cell.image_size // sizes.stride) ** 2 + 1
    blocks = sizes.depth * tokens * sizes.width**2
    if isinstance(cell, Finetuning):
        return float(cell.steps * cell.batch_size * blocks)
    # Not known here: the number of training images.
    return cell.epochs * cell.fraction * 1000 * blocks


def _tabulate(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Writes the table once; returns the state of the records in it."""
    state = _state(root)
    rows = [_read(root, name) for name in sorted(state)]
    rows = [{k: r[k] for k in table.COLUMNS if k in r} for r in rows]
    if (parquet := table.to_parquet(rows)) is not None:
        table.write(root / "results.parquet", parquet)
    table.write(root / "results.csv", table.to_csv(rows))
    return state


def _mine(cells: Sequence[Cell], index: int, count: int) -> list[Cell]:
    """A shard's cells: a fine-tuning is where its pre-training is."""
    shards: dict[str, int] = {}
    for cell in cells:
        shards.setdefault(_root_name(cell), len(shards))
    return [c for c in cells if shards[_root_name(c)] % count == index]


def _root_name(cell: Cell) -> str:
    if isinstance(cell, Finetuning) and isinstance(cell.upstream, Pretraining):
        return cell.upstream.name
    return cell.name


def _attempts(records: dict[str, dict[str, Any]], cell: Cell) -> int:
    """How often a cell, or its pre-training, was started without a result."""
    both = (records[cell.name], records[_root_name(cell)])
    return max(r.get("attempts", 0) for r in both if not _done(r))


def _done(record: dict[str, Any]) -> bool:
    return record.get("status") == "done"


def _attempt(root: pathlib.Path, cell: Cell, train: Train) -> dict[str, Any]:
    """Runs one cell and records the outcome."""
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
        upstream = {}
        if _root_name(cell) != cell.name:
            upstream = _read(root, _root_name(cell))
        record = {**upstream, **record, **result, "status": "done"}
    except Exception as error:
        record["status"] = "failed"
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc()
    _record(root, cell, record)
    if _done(record):  # Only an unfinished cell needs these.
        # A network's file system may still hold some of its files.
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return record


def _record(root: pathlib.Path, cell: Cell, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1) + "\n"
    table.write(root / "cells" / f"{cell.name}.json", text.encode())


def _read(root: pathlib.Path, name: str) -> dict[str, Any]:
    """A cell's record, empty if there is none."""
    path = root / "cells" / f"{name}.json"
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError(f"not a JSON object: {record!r}")
        return record
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(
            f"The record {path} is damaged ({error}). Delete it: the cell "
            "will be run again."
        ) from error


def _state(root: pathlib.Path) -> dict[str, tuple[int, int]]:
    """Name -> time and inode, which change whenever a record does."""
    files = {p.stem: p.stat() for p in (root / "cells").glob("*.json")}
    return {name: (f.st_mtime_ns, f.st_ino) for name, f in files.items()}


def _clock(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
