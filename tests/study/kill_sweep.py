"""Kills a sweep at random moments, and looks whether a cell was lost.

    python tests/study/kill_sweep.py KILLS FOLDER python recipes/sweep.py ...

runs the command with `--workdir=FOLDER`, sends SIGKILL after a random time,
KILLS times, then lets it end. Then every cell of the table is done, and no
cell was begun again after its record said so.
"""

from __future__ import annotations

import csv
import json
import pathlib
import random
import subprocess
import sys
import time


def finished(folder):
    """Cell -> (inode, time) of the record that says that it is done."""
    done = {}
    for path in (folder / "cells").glob("*.json"):
        if json.loads(path.read_text())["status"] == "done":
            found = path.stat()
            done[path.stem] = (found.st_ino, found.st_mtime_ns)
    return done


def check(before, folder):
    """Every record that was there is there, untouched."""
    after = finished(folder)
    lost = {name for name in before if after.get(name) != before[name]}
    if lost:
        sys.exit(f"lost or repeated: {sorted(lost)}")
    return after


def main(kills, folder, *command):
    folder = pathlib.Path(folder)
    rng = random.Random(0)
    start = time.monotonic()
    done = {}
    for kill in range(1, int(kills) + 1):
        process = subprocess.Popen(
            [*command, f"--workdir={folder}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            status = process.wait(rng.uniform(6, 30))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        else:
            print(f"ended with status {status} before kill {kill}")
            done = check(done, folder)
            break
        done = check(done, folder)
        print(
            f"kill {kill}, {time.monotonic() - start:.0f} s: "
            f"{len(done)} cells done",
            flush=True,
        )
    subprocess.run([*command, f"--workdir={folder}"], check=True)
    done = check(done, folder)
    with open(folder / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    if {row["status"] for row in rows} != {"done"} or len(rows) != len(done):
        sys.exit("the table lacks cells")
    begun = sum(int(row["attempts"]) for row in rows)
    print(f"{len(rows)} cells, each done once, begun {begun} times")


if __name__ == "__main__":
    main(*sys.argv[1:])
