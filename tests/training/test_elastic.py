"""Runs that go on with other devices, hosts and backends."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from keras_augreg.training import rundir, storage

pytestmark = pytest.mark.once

RUN = pathlib.Path(__file__).with_name("_run.py")


def start(workdir, *options, devices=1, **environment):
    flag = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, RUN, f"--workdir={workdir}", *options],
        env={**os.environ, "XLA_FLAGS": flag, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments, **keywords):
    with start(*arguments, **keywords) as process:
        errors = process.stderr.read()
    assert process.returncode == 0, errors


def several(count, workdir, *options):
    """Processes of JAX with two devices each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    return [
        start(
            workdir,
            *options,
            devices=2,
            KERAS_DISTRIBUTION_JOB_ADDRESSES=address,
            KERAS_DISTRIBUTION_NUM_PROCESSES=str(count),
            KERAS_DISTRIBUTION_PROCESS_ID=str(i),
        )
        for i in range(count)
    ]


def losses(workdir):
    return [line["loss"] for line in rundir.read_log(workdir / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, "--recipe=light1")
    return folder


def test_other_devices_and_another_backend(whole, tmp_path):
    """The same data, draws and schedule."""
    recipe = "--recipe=light1"
    run(tmp_path, recipe, "--until=4", "--distribute=data", devices=8)
    run(tmp_path, recipe, "--until=10", "--distribute=fsdp", devices=4)
    run(tmp_path, recipe, "--until=16")
    run(tmp_path, recipe, KERAS_BACKEND="torch")
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    kinds = [p.suffix for p in storage.checkpoints(tmp_path / "checkpoints")]
    assert kinds == ["", "", ".npz"]
