"""The notebooks: run from top to bottom without network, on one backend.

Where the system allows it, their processes have no network at all: `unshare`
leaves them not even 127.0.0.1, so the messages go through sockets in files.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import nbclient
import nbformat
import numpy as np
import pytest
from jupyter_client.manager import AsyncKernelManager

import keras_augreg

pytestmark = pytest.mark.once

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ["quickstart", "finetune", "checkpoints", "pretrain_tpu", "augreg",
         "kaggle"]  # fmt: skip
# Printed by the last cells, or by cells that depend on the network.
SHOWN = {
    "quickstart": [
        "Training a small model",
        "astronaut ",
        "\ncat ",
        "\nespresso ",
    ],
    "finetune": ["using handwritten digits", "Pre-training a small model"],
    "checkpoints": ["model.safetensors"],
    "pretrain_tpu": ["In the end:"],
    "augreg": ["28 recipes in the paper's grid"],
    "kaggle": ["out of fold: ", "id,label\n0,astronaut"],
}
PICTURES = {
    "quickstart": 4,
    "finetune": 2,
    "checkpoints": 0,
    "pretrain_tpu": 1,
    "augreg": 2,
    "kaggle": 1,
}


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [c.source for c in notebook.cells if c.cell_type == "code"]


def shown(notebook):
    """The kinds of data that each cell shows."""
    return [
        [sorted(o.data) for o in c.get("outputs", ()) if "data" in o]
        for c in notebook.cells
    ]


def test_all_notebooks_are_tested():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_form(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    assert [c.execution_count for c in cells] == [*range(1, len(cells) + 1)]
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == PICTURES[name]
    text = "".join(o.get("text", "") for o in outputs)
    assert all(x in text for x in SHOWN[name])
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 500_000
    badges = notebook.cells[0].source
    assert f"blob/main/docs/notebooks/{name}.ipynb" in badges
    assert "colab.research.google.com" in badges
    assert "kaggle.com" in badges


def test_set_up_is_the_same_in_all():
    install = code(read("quickstart"))[0]
    assert len(install.splitlines()) <= 10
    device = code(read("finetune"))[1]
    for name in NAMES:
        cells = code(read(name))
        assert install in cells, name
        assert (device in cells) == (name not in ("quickstart", "checkpoints"))


def test_set_up_runs_on_pytorch():
    """Which has no list of devices in Keras."""
    done = subprocess.run(
        [sys.executable, "-c", code(read("finetune"))[1]],
        env={
            **os.environ,
            "KERAS_BACKEND": "torch",
            "CUDA_VISIBLE_DEVICES": "",
        },
        capture_output=True,
        text=True,
    )
    assert done.stdout == "torch cpu float32\n", done.stderr


def manager(folder):
    """Starts a notebook's process, which has no network where possible."""
    found = AsyncKernelManager(
        kernel_name="python3", transport="ipc", ip=str(folder / "messages")
    )
    unshare = ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") and not subprocess.call([*unshare, "true"]):
        found.kernel_spec.argv = [*unshare, *found.kernel_spec.argv]
    return found


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path_factory, monkeypatch):
    tmp_path = tmp_path_factory.mktemp("work")
    for key, value in {
        "KERAS_BACKEND": "jax",
        "KERAS_AUGREG_CACHE": str(tmp_path / "cache"),
        "KERAS_AUGREG_OFFLINE": "1",
        "PYTHONPATH": str(FOLDER.parents[1]),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("KERAS_AUGREG_MIRROR", raising=False)
    notebook = read(name)
    kept = shown(notebook)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    client = nbclient.NotebookClient(
        notebook,
        timeout=300,
        km=manager(tmp_path_factory.mktemp("sockets")),
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.owns_km = True  # to end the process, too
    client.execute()
    assert shown(notebook) == kept  # Otherwise: python docs/execute.py
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    text = "".join(o.get("text", "") for o in outputs)
    assert all(x in text for x in SHOWN[name])
    if name == "finetune":  # What it falls back to must learn something.
        assert float(re.findall("val_accuracy: ([0-9.]+)", text)[-1]) > 0.7
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == PICTURES[name]
    assert {*os.listdir(tmp_path)} <= {"cache", "submission.csv"}


def test_kaggle_reads_weights_from_a_folder(tmp_path, monkeypatch):
    cells = code(read("kaggle"))
    (source,) = [cell for cell in cells if "def new_model" in cell]
    alias = keras_augreg.checkpoints.resolve("ViT_Ti16", "augreg-in21k")
    released = keras_augreg.ViT_Ti16(weights=None, classes=21_843)
    kernel = released.get_layer("embedding").get_weights()[0]
    keras_augreg.checkpoints.to_npz(released, tmp_path / f"{alias}.npz")
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", "")
    monkeypatch.setenv("KERAS_AUGREG_OFFLINE", "")
    source = source.replace("/kaggle/input/augreg-weights", str(tmp_path))
    scope = {"os": os, "keras_augreg": keras_augreg, "image_size": 32}
    exec(source, scope)
    model = scope["new_model"](["cat", "dog"])
    assert model.class_names == ("cat", "dog")
    np.testing.assert_array_equal(
        model.get_layer("embedding").get_weights()[0], kernel
    )
