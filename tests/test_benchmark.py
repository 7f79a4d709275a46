"""recipes/benchmark.py and what it measures with."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

from keras_augreg import benchmark

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "benchmark.py"


def test_script(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), "--models=ViT_Ti32"),
            *("--image_sizes=32", "--batch_sizes=2", "--tasks=infer,train"),
            *("--dtypes=mixed_bfloat16", "--seconds=0.1"),
            f"--workdir={tmp_path}",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["rows"] == 2
    rows = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["task"] for row in rows] == ["infer", "train"]
    for row in rows:
        assert row["backend"] == keras.config.backend()
        assert row["dtype"] == "mixed_bfloat16"
        assert 0 < row["share"] < 1.5
        assert row["images_per_second"] > 0
        assert row["memory_mib"] > 50
    assert rows[0]["latency_ms"] > 0
    assert rows[1]["latency_ms"] is None
    assert "images/s" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_refuses():
    with pytest.raises(ValueError, match="model='S_16'"):
        benchmark.measure("S_16")
    with pytest.raises(ValueError, match="model='VisionTransformer'"):
        benchmark.measure("VisionTransformer")
    with pytest.raises(ValueError, match="task='fly'"):
        benchmark.measure("ViT_S16", task="fly")
