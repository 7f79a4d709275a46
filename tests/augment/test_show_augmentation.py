"""The gallery script, from its command to its files."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="nothing to compile there"
)
def test_show_augmentation(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("skimage")
    command = [sys.executable, "recipes/show_augmentation.py", "--size=32"]
    result = subprocess.run(
        [*command, "--dpi=20", f"--output={tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    report = json.loads(result.stdout.splitlines()[-1])
    files = [pathlib.Path(path) for path in report["files"]]
    assert files == [tmp_path / "operations.png", tmp_path / "recipes.png"]
    # 8 operations in two halves, and 8 draws of 7 levels, 1.5 inches each.
    sizes = [image.open(f).size for f in files]
    assert sizes == [(2 * 5 * 30, 8 * 30), (8 * 30, 7 * 30)]
