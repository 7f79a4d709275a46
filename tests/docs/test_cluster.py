"""The scripts for clusters, with stand-ins for the clusters' commands."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import time

import pytest

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "guides" / "cluster"
ARGUMENTS = ["--model=ViT_S16", "--workdir=/shared/my run"]
# Two tasks, of which each says what it would run.
SRUN = """
export SLURM_NTASKS=2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@"; done
"""
PYTHON = """
printf '%s\\n' "${RANK-} ${LOCAL_RANK-} ${WORLD_SIZE-} ${MASTER_ADDR-}" \
    "$KERAS_BACKEND" "$@" > task$SLURM_PROCID
"""
# A task that needs a moment for its checkpoint.
SLOW = """
sleep 60 &
trap "kill $!; sleep 0.3; exit 143" TERM
touch started
wait
"""
SAY = 'printf "%s\\n" "$@" >> "$(basename "$0")".said\n'
HOSTS = 'printf "%s\\n" "$@" >> scontrol.said; printf "node1\\nnode2\\n"\n'


def start(script, tmp_path, commands, arguments=ARGUMENTS, **variables):
    """Starts a script with stand-ins for commands, in a folder."""
    place = tmp_path / "bin"
    place.mkdir(exist_ok=True)
    for name, content in commands.items():
        (place / name).write_text(f"#!/bin/bash\n{content}")
        (place / name).chmod(0o755)
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("SLURM", "KERAS"))
    }
    path = f"{place}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(FOLDER / script), *arguments],
        cwd=tmp_path,
        env={**kept, "PATH": path, **variables},
        stderr=subprocess.PIPE,
        text=True,
    )


def finished(process):
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


def test_all_scripts_are_tested():
    assert {p.name for p in FOLDER.iterdir()} == {
        "slurm.sh", "tpu_vm.sh", "tpu_gke.sh",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_slurm_starts_a_process_for_each_gpu(backend, tmp_path):
    given = {} if backend == "jax" else {"KERAS_BACKEND": "torch"}
    commands = {"srun": SRUN, "python": PYTHON, "scontrol": HOSTS}
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]"}
    process = start("slurm.sh", tmp_path, commands, **job, **given)
    assert finished(process) == (0, "")
    for i in range(2):
        ranks = f"{i} {i} 2 node1" if backend == "torch" else "   "
        assert (tmp_path / f"task{i}").read_text().splitlines() == [
            ranks, backend, "recipes/pretrain.py", *ARGUMENTS,
        ]  # fmt: skip
    if backend == "torch":
        said = (tmp_path / "scontrol.said").read_text().split()
        assert said == ["show", "hostnames", "node[1-2]"]


@pytest.mark.parametrize("signalled", [True, False])
def test_slurm_queues_an_interrupted_run_again(signalled, tmp_path):
    commands = {"srun": SLOW if signalled else "exit 3", "scontrol": SAY}
    process = start("slurm.sh", tmp_path, commands, SLURM_JOB_ID="7")
    if signalled:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    assert finished(process)[0] == (143 if signalled else 3)
    said = tmp_path / "scontrol.said"
    assert said.exists() == signalled
    if signalled:
        assert said.read_text().split() == ["requeue", "7"]


@pytest.mark.parametrize("state", ["", "READY", "PREEMPTED"])
def test_tpu_vms_are_made_when_needed(state, tmp_path):
    gcloud = f"{SAY}[ $4 = describe ] && echo {state}; exit 0\n"
    names = {"NAME": "vit", "ZONE": "us-west4-a", "TYPE": "v5litepod-64"}
    process = start("tpu_vm.sh", tmp_path, {"gcloud": gcloud}, **names)
    assert finished(process) == (0, "")
    said = (tmp_path / "gcloud.said").read_text()
    done = re.findall(r"^compute\ntpus\ntpu-vm\n(\w+)\nvit$", said, re.M)
    before = {"": ["create"], "READY": [], "PREEMPTED": ["delete", "create"]}
    assert done == ["describe", *before[state], "ssh"]
    assert said.count("--zone=us-west4-a") == len(done)
    assert ("--accelerator-type=v5litepod-64" in said) == ("create" in done)
    assert "--worker=all" in said
    runs_our_command(said)


def runs_our_command(said):
    """The command for each host, as its shell would read it."""
    command = said[said.index("--command=") + len("--command=") :]
    assert subprocess.run(["bash", "-n", "-c", command]).returncode == 0
    words = shlex.split(command)
    at = words.index("pretrain")
    assert words[at - 3 :] == [
        "python", "-m", "keras_augreg", "pretrain", *ARGUMENTS,
    ]  # fmt: skip
    (package,) = [w for w in words if "keras_augreg[" in w]
    assert "[jax,tpu,data,gcs] @ git+https://" in package


def test_gke_gets_one_workload(tmp_path):
    names = {"CLUSTER": "pods", "NAME": "vit", "TYPE": "v5litepod-64"}
    process = start("tpu_gke.sh", tmp_path, {"xpk": SAY}, **names)
    assert finished(process) == (0, "")
    said = (tmp_path / "xpk.said").read_text()
    assert said.startswith("workload\ncreate\n--cluster=pods\n--workload=vit")
    assert "--tpu-type=v5litepod-64" in said
    runs_our_command(said)


@pytest.mark.parametrize("script", ["tpu_vm.sh", "tpu_gke.sh"])
def test_missing_names_are_asked_for(script, tmp_path):
    process = start(script, tmp_path, {"gcloud": SAY, "xpk": SAY}, NAME="vit")
    status, errors = finished(process)
    assert status
    assert re.search("CLUSTER: of xpk|ZONE: parameter", errors)
    assert not [*tmp_path.glob("*.said")]
