"""Kills a run at random moments, resumes it, compares it with an unbroken one.

    python tests/training/kills.py [--damage] 20 FOLDER \
        python recipes/pretrain.py --epochs=2 --save_every=50

runs the command to its end with `--workdir=FOLDER/whole`, then again and
again with `--workdir=FOLDER/killed`, sending SIGKILL after a random time, 20
times; lets it end; and compares the two last checkpoints bit by bit: weights,
seeds, optimizer, moving averages. A run that ended in between is compared,
too, and another one is started. With `--damage`, every other kill is followed
by damage to one or two of the run's files: truncated, emptied, a flipped bit,
a directory or a FIFO in its place. The exit status is 0 if all are equal.
"""

import os
import pathlib
import random
import subprocess
import sys
import time

import numpy as np


def newest(workdir):
    files = sorted((workdir / "checkpoints").glob("*.npz"))
    return files[-1] if files else None


def damage(workdir, rng):
    """Damages the newest checkpoint, and at times another file; says how."""
    files = sorted((workdir / "checkpoints").glob("*.npz"))
    others = [workdir / "best.npz", workdir / "metrics.jsonl", *files[:-1]]
    chosen = [*files[-1:], *rng.sample(others, rng.randrange(2))]
    done = []
    for file in chosen:
        if not file.is_file():
            continue
        kind = rng.choice(["truncated", "emptied", "flipped", "folder", "fifo"])
        if kind == "truncated":
            os.truncate(file, rng.randrange(file.stat().st_size + 1))
        elif kind == "emptied":
            os.truncate(file, 0)
        elif kind == "flipped":
            content = bytearray(file.read_bytes())
            if content:
                content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            file.write_bytes(content)
        else:
            file.unlink()
            (os.mkdir if kind == "folder" else os.mkfifo)(file)
        done.append(f"{file.name} {kind}")
    return ", ".join(done)


def main(*arguments):
    damages = arguments[0] == "--damage"
    kills, folder, *command = arguments[damages:]
    folder = pathlib.Path(folder)
    whole, killed = folder / "whole", folder / "killed"
    rng = random.Random(0)
    start = time.monotonic()
    subprocess.run([*command, f"--workdir={whole}"], check=True)
    seconds = time.monotonic() - start
    print(f"unbroken: {seconds:.0f} s, {newest(whole).name}", flush=True)

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
            line = f"kill {count}: newest checkpoint {file and file.name}"
            line += ", one half written" if unfinished else ""
            if damages and count % 2 == 0 and killed.exists():
                line += f"; {damage(killed, rng)}"
            print(line, flush=True)
            continue
        if status:
            sys.exit(f"the run failed with status {status}")
        print("ended before the kill", flush=True)
        compare(whole, killed)
        killed = killed.with_name(killed.name + "+")
    subprocess.run([*command, f"--workdir={killed}"], check=True)
    compare(whole, killed)


def compare(whole, killed):
    """Ends the program unless the two runs ended bit by bit the same."""
    with np.load(newest(whole)) as want, np.load(newest(killed)) as got:
        if want.files != got.files:
            sys.exit("the checkpoints hold other arrays")
        unequal = [
            key
            for key in want.files
            if want[key].tobytes() != got[key].tobytes()
        ]
        print(
            f"{killed.name}: {len(want.files)} arrays compared, "
            f"{len(unequal)} differ",
            flush=True,
        )
    if unequal:
        sys.exit("\n".join(["not equal:", *unequal]))


if __name__ == "__main__":
    main(*sys.argv[1:])
