"""The house of DESIGN.md, and what `import keras_augreg` costs."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import pytest

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


def test_contracts_are_kept():
    code, output = lint_imports(ROOT)
    assert code == 0, output
    assert " 0 broken" in output


@pytest.mark.parametrize(
    ("files", "broken"),
    [
        ({"variants.py": "from keras_augreg import labels"}, FLOORS),
        ({"recipe.py": "def f(): import keras_augreg.labels"}, FLOORS),
        ({"new.py": ""}, FLOORS),
        ({"vit.py": "from keras_augreg import labels"}, FLOORS),
        (
            {
                "augment/__init__.py": "",
                "augment/ops.py": "import keras_augreg.augment.mixup",
                "augment/mixup.py": "from . import ops",
            },
            CYCLE,
        ),
        ({"labels.py": "import keras_augreg"}, DOOR),
        ({"labels.py": "def f(): import tensorflow"}, BACKEND),
        ({"vit.py": "import jax.numpy"}, BACKEND),
        ({"training.py": "import tensorflow_datasets"}, BACKEND),
    ],
)
def test_contracts_can_break(tmp_path, files, broken):
    package = tmp_path / "keras_augreg"
    shutil.copytree(ROOT / "keras_augreg", package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    code, output = lint_imports(tmp_path)
    assert code == 1, output
    verdict = [x for x in output.splitlines() if x.endswith(" BROKEN")]
    assert len(verdict) == 1, output
    assert verdict[0].startswith(broken)


def added_packages(backend):
    """Top-level packages that keras brings, then those that we add."""
    script = (
        "import json, sys, keras\n"
        "top = lambda: {m.split('.')[0] for m in sys.modules}\n"
        "before = top()\n"
        "import keras_augreg\n"
        "print(json.dumps([sorted(before), sorted(top() - before)]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_import_brings_nothing_but_keras_and_numpy():
    brought, added = added_packages(keras.backend.backend())
    # absl and numpy come with keras.
    assert {"keras", "numpy"} <= set(brought)
    assert set(added) - sys.stdlib_module_names == {"keras_augreg"}
    if keras.backend.backend() == "jax":
        assert not {"tensorflow", "tensorflow_datasets", "torch"} & set(brought)
