"""The README's journey: every script of `recipes/`, end to end, real data."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import PIL.Image
import pytest
import skimage.data

import keras_augreg  # noqa: F401 (its classes must be known to load a model)

ROOT = pathlib.Path(__file__).parents[1]
SMALL = ["--image_size=32", "--batch_size=32"]


def run(script, *arguments, cwd, expect=0):
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes" / script), *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-4000:]
    if expect:
        return done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """A folder with crops of four photos, and a model trained on digits."""
    folder = tmp_path_factory.mktemp("journey")
    rng = np.random.default_rng(0)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        side = min(photo.shape[:2]) * 2 // 3
        for split, count in (("train", 12), ("test", 4)):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                top, left = (
                    rng.integers(0, photo.shape[axis] - side) for axis in (0, 1)
                )
                crop = photo[top : top + side, left : left + side]
                suffix = "png" if i % 4 == 0 else "jpg"
                PIL.Image.fromarray(crop).resize((80, 80)).save(
                    place / f"{i}.{suffix}"
                )
    result = run(
        "pretrain.py",
        *SMALL,
        "--epochs=1",
        f"--workdir={folder / 'digits'}",
        cwd=folder,
    )
    return folder, result


def test_pretrain(journey):
    folder, result = journey
    assert result["model"] == "ViT_Ti16"
    assert result["dataset"] == "digits"
    assert 0 <= result["test_accuracy"] <= 1
    model = keras.saving.load_model(folder / "digits" / "model.keras")
    assert model.output_shape == (None, 10)
    with PIL.Image.open(folder / "digits" / "predictions.png") as picture:
        assert min(picture.size) > 300


def test_finetune_what_pretrain_saved_then_evaluate(journey):
    folder, _ = journey
    result = run(
        "finetune.py",
        *SMALL,
        "--dataset=photos",
        "--weights=digits/model.keras",
        "--steps=12",
        "--learning_rate=0.03",
        "--workdir=photos-model",
        cwd=folder,
    )
    assert 0 <= result["test_accuracy"] <= 1
    assert (folder / "photos-model" / "predictions.png").exists()
    evaluated = run(
        "evaluate.py",
        *SMALL,
        "--dataset=photos",
        "--weights=photos-model/model.keras",
        "--workdir=evaluation",
        cwd=folder,
    )
    assert evaluated["top1"] == pytest.approx(result["test_accuracy"])


def test_finetune_says_what_is_wrong(journey):
    folder, _ = journey
    message = run(
        "finetune.py",
        *SMALL,
        "--dataset=photos",
        "--weights=nowhere.npz",
        cwd=folder,
        expect=1,
    )
    assert "nowhere.npz" in message


@pytest.mark.large
def test_main_job_reaches_96_percent(tmp_path):
    """The README's first command, with its defaults."""
    result = run("pretrain.py", cwd=tmp_path)
    assert result["test_accuracy"] >= 0.96
