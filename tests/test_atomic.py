"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from keras_augreg import atomic

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(os.name != "posix", reason="PIDs are looked up"),
]


@pytest.mark.parametrize("name", ["{}.part", "unfinished.{}.keras"])
def test_leftovers_of_dead_processes_are_deleted(tmp_path, name):
    path = tmp_path / "model.keras"
    prefix = "" if name.startswith("unfinished") else f"{path.name}."
    host = socket.gethostname()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as child:
        alive = f"{host}.{child.pid}"
        kept = [alive, f"{host}.x", "elsewhere.999999999", f"{host}.1"]
        for owner in [*kept, f"{host}.99999999"]:
            (tmp_path / f"{prefix}{name.format(owner)}").touch()
        unfinished = None
        if not prefix:
            unfinished = tmp_path / name.format(atomic.owner())
        with atomic.replacing(path, unfinished) as file:
            file.write(b"content")
        child.kill()
    assert path.read_bytes() == b"content"
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {f"{prefix}{name.format(owner)}" for owner in kept} | {
        path.name
    }


def test_an_error_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(TypeError), atomic.replacing(path) as file:
        file.write("not bytes")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"old"
