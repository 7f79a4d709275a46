#!/usr/bin/env python3
"""Loads thousands of damaged checkpoint files: `--count=5000 --seed=0`.

Each is a sound file of a tiny model with some bytes changed, moved, repeated
or cut off. Either it is refused with a `ValueError` that names it, and the
model stays unchanged, or it loads as finite numbers of the right shapes; from
`.npz` and `.keras`, which have checksums, as the numbers of the sound file. A
file that hangs for 10 s, crashes the process, takes 256 MB or loads in part
ends the run with an error.

Prints one line for each kind, then one for the whole.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import os
import pathlib
import random
import resource
import sys
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import h5py
import keras
import numpy as np
from _checkpoints import tiny, weights
from _hostile import CHECKED, KINDS, attempt, contents, mutate

MOST_SECONDS = 10
MOST_BYTES = 2**28


def peak() -> int:
    """The most memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    faulthandler.enable()
    print(
        f"python {sys.version.split()[0]}, numpy {np.__version__}, keras "
        f"{keras.__version__} on {keras.backend.backend()}, h5py "
        f"{h5py.__version__} (HDF5 {h5py.version.hdf5_version})"
    )
    # 2 x 8 patches: as many as 4 x 4, which a lost grid would give.
    model = tiny(input_shape=(8, 32, 3))
    start = {w.path: w for w in model.weights}
    before = weights(model)
    total: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            sound = contents(kind, model, pathlib.Path(folder))
            path = pathlib.Path(folder) / f"damaged.{kind.split()[0]}"
            path.write_bytes(sound)
            assert attempt(model, path) == "loaded"
            expected = weights(model) if kind in CHECKED else None
            count: collections.Counter[str] = collections.Counter()
            slowest, memory = 0.0, peak()
            for i in range(arguments.count):
                rng = random.Random(f"{arguments.seed} {kind} {i}")
                path.write_bytes(mutate(sound, rng))
                began = time.perf_counter()
                faulthandler.dump_traceback_later(MOST_SECONDS, exit=True)
                try:
                    result = attempt(model, path, expected)
                except BaseException:
                    print(f"FAILED: {kind}, mutation {i}", flush=True)
                    raise
                faulthandler.cancel_dump_traceback_later()
                slowest = max(slowest, time.perf_counter() - began)
                if peak() - memory > MOST_BYTES:
                    raise SystemExit(f"FAILED: memory, {kind}, mutation {i}")
                count[result] += 1
                if result == "loaded":
                    for name, array in before.items():
                        start[name].assign(array)
            total += count
            print(
                f"{kind}: {arguments.count} files, {count['refused']} refused, "
                f"{count['loaded']} loaded as finite numbers, slowest "
                f"{slowest * 1e3:.0f} ms, peak memory "
                f"+{(peak() - memory) / 2**20:.0f} MiB",
                flush=True,
            )
    print(
        f"seed {arguments.seed}: {sum(total.values())} files, no crash, no "
        "other error than ValueError, no model half loaded"
    )


if __name__ == "__main__":
    main()
