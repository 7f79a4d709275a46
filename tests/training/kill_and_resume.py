"""Kills a run at random moments, resumes it, compares it with one left alone.

    python tests/training/kill_and_resume.py 20 FOLDER \
        python recipes/pretrain.py --epochs=2 --save_every=50

runs the command to its end with `--workdir=FOLDER/whole`, then again and
again with `--workdir=FOLDER/killed`, sending SIGKILL after a random time, 20
times; lets it end; and compares the two last checkpoints bit by bit: weights,
seeds, optimizer, moving averages. The exit status is 0 if they are equal.
"""

import pathlib
import random
import subprocess
import sys
import time

import numpy as np


def newest(workdir):
    files = sorted((workdir / "checkpoints").glob("*.npz"))
    return files[-1] if files else None


def main(kills, folder, *command):
    folder = pathlib.Path(folder)
    whole, killed = folder / "whole", folder / "killed"
    rng = random.Random(0)
    start = time.monotonic()
    subprocess.run([*command, f"--workdir={whole}"], check=True)
    seconds = time.monotonic() - start
    print(f"left alone: {seconds:.0f} s, {newest(whole).name}", flush=True)

    count = 0
    while count < int(kills):
        process = subprocess.Popen([*command, f"--workdir={killed}"])
        try:
            status = process.wait(rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            count += 1
            file = newest(killed)
            unfinished = list(killed.rglob("*.tmp"))
            print(
                f"kill {count}: newest checkpoint {file and file.name}"
                + (", one half written" if unfinished else ""),
                flush=True,
            )
            continue
        if status:
            sys.exit(f"the run failed with status {status}")
        print("ended before the kill: beginning again", flush=True)
        killed = killed.with_name(killed.name + "+")
    subprocess.run([*command, f"--workdir={killed}"], check=True)

    with np.load(newest(whole)) as want, np.load(newest(killed)) as got:
        if want.files != got.files:
            sys.exit("the checkpoints hold other arrays")
        unequal = [
            key
            for key in want.files
            if want[key].tobytes() != got[key].tobytes()
        ]
        print(f"{len(want.files)} arrays compared, {len(unequal)} differ")
    if unequal:
        sys.exit("\n".join(["not equal:", *unequal]))


if __name__ == "__main__":
    main(*sys.argv[1:])
