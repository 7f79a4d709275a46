"""The house of DESIGN.md, and what `import keras_augreg` costs."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import keras
import pytest

import keras_augreg

ROOT = pathlib.Path(__file__).parents[1]

# Contracts of pyproject.toml.
FLOORS = "Imports go down the house only"
CYCLE = "No cycle inside a package"
DOOR = "No module imports the package's front door"
BACKEND = "The model side imports no backend"


def lint_imports(root):
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "from importlinter.cli import lint_imports_command as c; c()",
            "--no-cache",
        ],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.once
def test_contracts_are_kept():
    code, output = lint_imports(ROOT)
    assert code == 0, output
    assert " 0 broken" in output


@pytest.mark.once
@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"variants.py": "from keras_augreg import labels"}, FLOORS),
        ({"recipe.py": "def f(): import keras_augreg.labels"}, FLOORS),
        ({"new.py": ""}, FLOORS),
        ({"vit.py": "from keras_augreg import labels"}, FLOORS),
        (
            {
                "augment/ops.py": "import keras_augreg.augment.mixup",
                "augment/mixup.py": "from . import ops",
            },
            CYCLE,
        ),
        ({"labels.py": "import keras_augreg"}, DOOR),
        ({"labels.py": "def f(): import tensorflow"}, BACKEND),
        ({"projection.py": "import jax.numpy"}, BACKEND),
        ({"training.py": "import tensorflow_datasets"}, BACKEND),
    ],
)
def test_contracts_can_break(tmp_path, files, broken):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    house = {"__init__.py": "", "labels.py": "", "augment/__init__.py": ""}
    for name, text in (house | files).items():
        file = tmp_path / "keras_augreg" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    code, output = lint_imports(tmp_path)
    assert code == 1, output
    verdict = [x for x in output.splitlines() if " BROKEN" in x]
    assert len(verdict) == 1, output
    assert verdict[0].startswith(broken)


def brought_and_added(script):
    """Top-level modules that keras brings, then those that a script adds."""
    done = subprocess.run(
        [
            *(sys.executable, "-c"),
            "import json, sys, keras, numpy\n"
            "top = lambda: {m.split('.')[0] for m in sys.modules}\n"
            f"before = top()\n{script}\n"
            "print(json.dumps([sorted(before), sorted(top() - before)]))",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    brought, added = json.loads(done.stdout.splitlines()[-1])
    return set(brought), set(added)


def test_import_brings_nothing_but_keras_and_numpy():
    brought, added = brought_and_added("import keras_augreg")
    assert added - sys.stdlib_module_names == {"keras_augreg"}
    if keras.backend.backend() == "jax":
        assert not {"tensorflow", "tensorflow_datasets", "torch"} & brought


def test_front_door_shows_public_names():
    shown = set(dir(keras_augreg))
    assert {"data", "study", "training", "visualize", "ViT_B16"} <= shown
    assert shown == {*keras_augreg.__all__, "__version__"}
    for name in shown:
        assert getattr(keras_augreg, name)


@pytest.mark.once
@pytest.mark.parametrize(
    ("missing", "expected"),
    [
        (
            ["tensorflow"],
            "is tensorflow, .* Installed: jax, torch. Set KERAS_B",
        ),
        (["jax", "torch"], "is jax, .*Set KERAS_BACKEND=tensorflow in"),
        (["jax", "tensorflow", "torch"], "is torch, .*Install one of jax"),
    ],
)
def test_backend_that_is_not_installed(missing, expected):
    code = f"import sys\nfor m in {missing}: sys.modules[m] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "import keras_augreg"],
        env={**os.environ, "KERAS_BACKEND": missing[-1 if missing[2:] else 0]},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    last = done.stderr.splitlines()[-1]
    assert re.search(f"^ModuleNotFoundError: Keras's backend {expected}", last)
    assert len(done.stderr.splitlines()) < 8


def test_no_module_imports_another_backend_when_it_is_imported():
    _, added = brought_and_added(
        "import importlib, pkgutil, keras_augreg\n"
        "for module in pkgutil.walk_packages(\n"
        "    keras_augreg.__path__, 'keras_augreg.'):\n"
        "    if not module.name.endswith('.__main__'):\n"
        "        importlib.import_module(module.name)"
    )
    assert "keras_augreg" in added
    assert not {"jax", "tensorflow", "tensorflow_datasets", "torch"} & added
