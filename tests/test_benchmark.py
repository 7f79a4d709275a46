"""`keras_augreg.benchmark` and recipes/benchmark.py."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import keras
import pytest

import keras_augreg
from keras_augreg import benchmark
from keras_augreg.variants import VARIANTS

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = ROOT / "recipes" / "benchmark.py"


def run(workdir, *arguments):
    command = [sys.executable, str(SCRIPT), "--models=ViT_Ti32"]
    return subprocess.run(
        [*command, "--seconds=0.1", f"--workdir={workdir}", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def two_blocks():
    """ViT-Ti/32 has two blocks: twelve compile for a minute."""
    variant = VARIANTS["ViT_Ti32"]
    sizes = variant.sizes
    tiny = dataclasses.replace(sizes, depth=2)
    object.__setattr__(variant, "sizes", tiny)
    yield
    object.__setattr__(variant, "sizes", sizes)


@pytest.mark.parametrize("task", ["infer", "train"])
def test_measure(two_blocks, task):
    row = benchmark.measure(
        "Ti/32",
        task=task,
        image_size=32,
        batch_size=2,
        dtype="mixed_bfloat16",
        seconds=0.1,
    )
    assert (row["model"], row["task"]) == ("ViT_Ti32", task)
    assert row["backend"] == keras.config.backend()
    assert row["dtype"] == "mixed_bfloat16"
    assert 0 < row["share"] < 1.5
    flops = keras_augreg.describe("ViT_Ti32", input_shape=(32, 32, 3)).flops
    flops *= 3 if task == "train" else 1
    speed = row["images_per_second"]
    assert row["gflops"] == pytest.approx(speed * flops / 1e9)
    assert row["memory_mib"] > 50
    latency = row["latency_ms"]
    assert latency is None if task == "train" else latency > 0


@pytest.mark.once
def test_script(tmp_path):
    done = run(
        tmp_path,
        *("--image_sizes=33,32", "--batch_sizes=2", "--tasks=infer,train"),
    )
    assert done.returncode == 1
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["rows"] == 2
    assert [row["image_size"] for row in result["failed"]] == [33, 33]
    assert "32 pixels" in done.stderr
    rows = json.loads((tmp_path / "benchmark.json").read_text())
    assert [row["task"] for row in rows] == ["infer", "train"]
    assert {row["image_size"] for row in rows} == {32}
    assert "images/s" in (tmp_path / "benchmark.md").read_text()
    assert (tmp_path / "benchmark.png").stat().st_size > 1000


def test_rates_exclude_the_overhead_of_a_call(monkeypatch):
    now = 0.0

    def once(count):
        nonlocal now
        now += 0.05 + 0.001 * count

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: now)
    # 50 ms are 9% of the half second that a call takes at least.
    assert 900 < benchmark._per_second(once, 3.0) < 1000


def test_refuses():
    with pytest.raises(ValueError, match="architecture 'VisionTransformer'"):
        benchmark.measure("VisionTransformer")
    with pytest.raises(ValueError, match="task='fly'"):
        benchmark.measure("ViT_S16", task="fly")
