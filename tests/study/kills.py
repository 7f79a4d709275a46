"""Kills a sweep at random moments and checks that no cell is lost.

    python tests/study/kills.py KILLS FOLDER
    python tests/study/kills.py KILLS FOLDER python recipes/sweep.py ...

runs 960 simulated cells, or the command with `--workdir=FOLDER`; sends SIGKILL
after a random time, KILLS times; then lets it end. Each kill must leave every
record that said "done" unchanged, and in the end the table must have every
cell, done. Otherwise the exit status is 1.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

from test_sweep import GRID, fork

CELLS = dataclasses.replace(GRID, seeds=tuple(range(40))).cells()


def finished(folder):
    """Records of finished cells -> (inode, time)."""
    done = {}
    for path in (folder / "cells").glob("*.json"):
        if json.loads(path.read_text())["status"] == "done":
            found = path.stat()
            done[path.stem] = (found.st_ino, found.st_mtime_ns)
    return done


def run(folder, command, seconds):
    """Starts the sweep, kills it; its exit status if it ended before."""
    if command:
        child = subprocess.Popen(
            [*command, f"--workdir={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).pid
    else:
        child = fork(folder, cells=CELLS)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main(kills, folder, *command):
    folder = pathlib.Path(folder)
    rng = random.Random(0)
    shortest, longest = (6, 30) if command else (0.15, 0.6)
    done = {}
    for kill in range(1, int(kills) + 1):
        status = run(folder, command, rng.uniform(shortest, longest))
        if status is not None:
            print(f"ended with status {status} before kill {kill}")
            break
        after = finished(folder)
        if lost := {k for k in done if after.get(k) != done[k]}:
            sys.exit(f"lost or repeated: {sorted(lost)}")
        done = after
        if command or kill % 20 == 0:
            print(f"kill {kill}: {len(done)} cells done", flush=True)
    status = run(folder, command, 3600)
    after = finished(folder)
    if status or any(after.get(k) != done[k] for k in done):
        sys.exit(f"status {status}, or a cell was lost or repeated")
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if {row["status"] for row in rows} != {"done"} or len(rows) != len(after):
        sys.exit("the table lacks cells")
    if not command and len(rows) != len(CELLS):
        sys.exit(f"{len(rows)} cells instead of {len(CELLS)}")
    begun = sum(int(row["attempts"]) for row in rows)
    print(f"{len(rows)} cells in the table, all done; begun {begun} times")


if __name__ == "__main__":
    main(*sys.argv[1:])
