"""The notebooks: run from top to bottom without network, on one backend."""

from __future__ import annotations

import os
import pathlib
import re

import nbclient
import nbformat
import pytest

pytestmark = pytest.mark.once

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "notebooks"
NAMES = ["quickstart", "finetune", "checkpoints", "pretrain_tpu", "augreg"]
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
}
PICTURES = {
    "quickstart": 4,
    "finetune": 2,
    "checkpoints": 0,
    "pretrain_tpu": 1,
    "augreg": 2,
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


@pytest.mark.parametrize("name", NAMES)
def test_runs(name, tmp_path, monkeypatch):
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
    nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    assert shown(notebook) == kept  # Otherwise: python docs/execute.py
    outputs = [o for c in notebook.cells for o in c.get("outputs", ())]
    text = "".join(o.get("text", "") for o in outputs)
    assert all(x in text for x in SHOWN[name])
    if name == "finetune":  # What it falls back to must learn something.
        assert float(re.findall("val_accuracy: ([0-9.]+)", text)[-1]) > 0.7
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert len(pictures) == PICTURES[name]
    assert os.listdir(tmp_path) in ([], ["cache"])
