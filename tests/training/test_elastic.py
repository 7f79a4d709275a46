"""Runs that go on with other devices and backends."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from keras_augreg.training import rundir, storage

pytestmark = pytest.mark.once

RUN = pathlib.Path(__file__).with_name("_run.py")


def run(workdir, *options, devices=1, **environment):
    flag = f"--xla_force_host_platform_device_count={devices}"
    subprocess.run(
        [sys.executable, RUN, f"--workdir={workdir}", *options],
        env={**os.environ, "XLA_FLAGS": flag, **environment},
        check=True,
    )


def losses(workdir):
    """Step -> loss; a part of an interval is one, too."""
    lines = rundir.read_log(workdir / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines}


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
    found, wanted = losses(tmp_path), losses(whole)
    assert found.keys() - wanted.keys() == {10}
    np.testing.assert_allclose(
        [found[step] for step in wanted], [*wanted.values()], rtol=1e-4
    )
    kinds = [p.suffix for p in storage.checkpoints(tmp_path / "checkpoints")]
    assert kinds == ["", "", ".npz"]
