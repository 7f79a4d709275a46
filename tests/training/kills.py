"""Kills a run at random moments, resumes it, compares it with an unbroken one.

    python tests/training/kills.py [--damage] 20 FOLDER \
        recipes/pretrain.py --epochs=2 --save_every=50

runs the script to its end with `--workdir=FOLDER/whole`, then again and
again with `--workdir=FOLDER/killed`, sending SIGKILL at random moments, 20
times; lets it end; and compares the two last checkpoints bit by bit:
weights, seeds, optimizer, moving averages. A run that ended in between is
compared, too, and another one is started. With `--damage`, every other kill
is followed by damage to one or two of the run's files: truncated, emptied, a
flipped bit, a directory or a FIFO in its place. The exit status is 0 if all
are equal.

Each run is a process of its own, forked from this one, which has imported
what scripts need: imports take longer than a tiny run.
"""

import contextlib
import importlib
import os
import pathlib
import random
import runpy
import signal
import sys
import time
import traceback

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
    preload(command[0])
    folder = pathlib.Path(folder)
    whole, killed = folder / "whole", folder / "killed"
    rng = random.Random(0)
    seconds = finish([*command, f"--workdir={whole}"])
    print(f"unbroken: {seconds:.0f} s of CPU time", flush=True)

    count = 0
    while count < int(kills):
        seen = newest(killed)
        pid = start_run([*command, f"--workdir={killed}"])
        moment = rng.uniform(0.05, 1.0) * seconds
        # Most of a tiny run is its start: four times in five after some saves.
        saves, delay = rng.randrange(5) * (rng.random() < 0.8), 0.0
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if saves:
                if newest(killed) != seen:
                    seen, saves = newest(killed), saves - 1
                    delay = time.monotonic() + rng.uniform(0, 0.15)
                due = False
            elif delay:
                due = time.monotonic() > delay
            else:
                due = cpu_seconds(pid) > moment
            if due:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.005)
        if not ended[0]:
            count += 1
            file = newest(killed)
            unfinished = list(killed.rglob("*.tmp"))
            line = f"kill {count}: newest checkpoint {file and file.name}"
            line += ", one half written" if unfinished else ""
            if damages and count % 2 == 0 and killed.exists():
                line += f"; {damage(killed, rng)}"
            print(line, flush=True)
            continue
        if ended[1]:
            sys.exit(f"the run failed with status {ended[1]}")
        print("ended before the kill", flush=True)
        compare(whole, killed)
        killed = killed.with_name(killed.name + "+")
    finish([*command, f"--workdir={killed}"])
    compare(whole, killed)


def preload(script):
    """Imports what the script would, without starting any thread."""
    sys.path.insert(0, str(pathlib.Path(script).parent))
    runpy.run_path(script, run_name="loaded")
    for name in ("jax", "tensorflow", "filelock"):
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def start_run(command):
    """Forks a process that runs the command; returns its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    sys.argv, status = command, 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def finish(command):
    """Runs the command; returns its CPU time in seconds."""
    _, status, used = os.wait4(start_run(command), 0)
    if status:
        sys.exit(f"the run failed with status {status}")
    return used.ru_utime + used.ru_stime


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
