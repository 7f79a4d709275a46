"""Every code block of README, CONTRIBUTING and docs/ runs, or is checked.

The Python blocks of a page run in order, as a reader would run them, but on
small versions of the named architectures, with made-up released files in a
mirror directory, and `fit` stops after one step. In bash blocks every script,
module, flag and extra must exist, and commands without heavy work are run. A
block below a paragraph with "not run in CI: REASON" is only compiled or read.
"""

from __future__ import annotations

import ast
import configparser
import dataclasses
import itertools
import os
import pathlib
import re
import shlex
import subprocess
import sys

import _checkpoints
import keras
import numpy as np
import PIL.Image
import pytest
import skimage.data

import keras_augreg
from keras_augreg import checkpoints, models, study
from keras_augreg.checkpoints import names
from keras_augreg.study import figures
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once

ROOT = pathlib.Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"not run in\s+CI:\s+\w+")
CLASSES = {"i21k": 21843, "i1k": 1000}
# The reader's own data and model, which a page presupposes.
PHOTO = """
import PIL.Image
import skimage.data
PIL.Image.fromarray(skimage.data.chelsea()).save("{}")
"""
GIVEN = {
    "README.md": PHOTO.format("cat.jpg") + PHOTO.format("new.jpg"),
    "augmentation.md": """
import tensorflow as tf
images, labels, iterations, first_step = pixels(8), np.arange(8), 0, 0
dataset = tf.data.Dataset.from_tensors((images, labels))
""",
    "checkpoints.md": """
model = keras_augreg.ViT_Ti16(weights=None, classes=2)
""",
    "data.md": """
model = keras_augreg.ViT_Ti16(weights=None, classes=2)
keras_augreg.compile_finetuning(model, total_steps=500, learning_rate=0.01)
labels = np.eye(1000)[:4]
predictions = np.eye(1000)[[0, 1, 2, 5]]
import tensorflow_datasets as tfds
tfds.dataset_builders.store_as_tfds_dataset(
    "photos", "1.0.0", data_dir="tensorflow_datasets",
    file_format="array_record",
    features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }),
    split_datasets={"train": [
        (i, {"image": x, "label": i % 2}) for i, x in enumerate(pixels(16))
    ]},
)
""",
    "serve.md": PHOTO.format("new.jpg")
    + """
model = keras_augreg.ViT_Ti16(
    weights=None, classes=2, class_names=["cat", "dog"]
)
model.get_layer("head").kernel.assign(np.eye(12, 2))
model.save("photos.keras")
""",
    "kaggle.md": """
import pathlib, shutil
rows = ["id,breed,shoot"]
for kind, split, count in [("train", "train", 8), ("test", "test", 2)]:
    pathlib.Path(f"{kind}_images").mkdir()
    for breed in ("chelsea", "coffee"):
        for i in range(count):
            name = f"{kind}_images/{breed}{i}.jpg"
            shutil.copy(f"photos/{split}/{breed}/{i}.jpg", name)
            if kind == "train":
                rows.append(f"{breed}{i},{breed},{i // 2}")
pathlib.Path("train.csv").write_text("\\n".join(rows))
pathlib.Path("sample_submission.csv").write_text("id,breed\\ncoffee1,?")
""",
    "study.md": """
import json, pathlib, shutil
pathlib.Path("runs/sweep").mkdir(parents=True)
logs = pathlib.Path(keras_augreg.__file__).parents[1] / "tests/benchmarks/logs"
shutil.copy(logs / "sweep_study.csv", "runs/sweep/results.csv")
rows = [{"model": "ViT_S32", "images_per_second": 12.5}]
pathlib.Path("benchmark.json").write_text(json.dumps(rows))
""",
}
# Programs whose arguments are not checked.
KNOWN = {
    *("cd", "export", "git", "source", "ruff", "mypy", "lint-imports"),
    *("mkdocs", "jupyter", "docker", "sbatch", "torchrun"),
}
# Commands that are quick enough to be run.
LIGHT = ("export ", "python -m keras_augreg")


def blocks(page, language):
    """Yields (line, code, whether to run it) for each block of a page."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        if found[1] == language:
            paragraph = text[: found.start()].rstrip().split("\n\n")[-1]
            line = text[: found.start()].count("\n") + 2
            yield line, found[2], not NOT_RUN.search(paragraph)


def pages(language):
    found = [page for page in PAGES if any(blocks(page, language))]
    return [
        pytest.param(page, id=str(page.relative_to(ROOT))) for page in found
    ]


def test_every_block_has_a_language():
    for page in PAGES:
        fences = re.findall(r"^```(\w*)$", page.read_text("utf-8"), re.M)
        assert set(fences[::2]) <= {"python", "bash", "json", "text"}, page
        assert set(fences[1::2]) <= {""}, page


def test_blocks_fit_the_page():
    """The column of text on the site, and a terminal, are 80 wide."""
    wide = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for language in ("python", "bash", "json", "text")
        for _, code, _ in blocks(page, language)
        for line in code.splitlines()
        if len(line) > 80
    ]
    assert not wide


# Python


def small(variant):
    sizes = dataclasses.replace(
        variant.sizes,
        width=_checkpoints.WIDTH,
        depth=_checkpoints.DEPTH,
        num_heads=_checkpoints.HEADS,
        mlp_dim=_checkpoints.MLP,
    )
    return dataclasses.replace(variant, sizes=sizes)


@pytest.fixture(scope="session")
def mirror(tmp_path_factory):
    """Made-up files of the aliases of the plain ViTs, small but complete."""
    folder = tmp_path_factory.mktemp("mirror")
    for variant in VARIANTS.values():
        sizes = variant.sizes
        if sizes.stages is not None:
            continue
        for alias, side in itertools.product(
            {*names.aliases(variant.name)} - {"in21k"}, (224, 384)
        ):
            name = checkpoints.resolve(variant.name, alias, side)
            fields = checkpoints.parse(name)
            side = (fields.adapt_resolution or 224) // sizes.stride
            arrays = _checkpoints.release(
                grid=(side, side),
                classes=CLASSES["i1k" if fields.adapt_dataset else "i21k"],
                patch=sizes.patch_size,
            )
            np.savez(folder / f"{name}.npz", **arrays)
    return folder


@pytest.fixture
def reader(tmp_path, monkeypatch, mirror):
    """A folder of photos, small models, and no network."""
    rng = np.random.default_rng(0)
    for name in ("chelsea", "coffee"):
        photo = getattr(skimage.data, name)()
        for split, count in (("train", 80), ("test", 4)):
            place = tmp_path / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                top, left = rng.integers(0, 200, 2)
                crop = photo[top : top + 100, left : left + 100]
                PIL.Image.fromarray(crop).save(place / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", str(mirror))
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path / "cache"))
    for variant in list(VARIANTS.values()):
        monkeypatch.setitem(VARIANTS, variant.name, small(variant))
        builder = models._builder(variant.name)
        monkeypatch.setattr(keras_augreg, variant.name, builder)
    fit = keras.Model.fit

    def one_step(self, *args, epochs=1, steps_per_epoch=None, **kwargs):
        return fit(self, *args, steps_per_epoch=1, **kwargs)

    monkeypatch.setattr(keras.Model, "fit", one_step)
    few = {"4.1_data_size": figures.FIGURES["4.1_data_size"]}
    monkeypatch.setattr(figures, "FIGURES", few)  # Drawing all takes long.
    policy = keras.config.dtype_policy()
    yield
    keras.config.set_dtype_policy(policy)


def pixels(count):
    return np.zeros((count, 32, 32, 3), "uint8")


def load(image_size):
    return keras_augreg.data.load(
        "photos", "train", image_size=image_size, batch_size=8, training=True
    )


@pytest.mark.parametrize("page", pages("python"))
def test_python_runs(page, reader):
    space = {
        "keras_augreg": keras_augreg,
        "load": load,
        "np": np,
        "pixels": pixels,
    }
    exec(GIVEN.get(page.name, ""), space)
    for line, code, to_run in blocks(page, "python"):
        # A traceback then has the page's own line.
        tree = ast.increment_lineno(ast.parse(code), line - 1)
        compiled = compile(tree, str(page), "exec")
        if to_run:
            exec(compiled, space)


# Grids of the study


@pytest.mark.parametrize("page", pages("json"))
def test_json_is_a_grid(page, tmp_path):
    for _, code, _ in blocks(page, "json"):
        file = tmp_path / "grid.json"
        file.write_text(code, encoding="utf-8")
        assert study.read_cells(file)


# bash


def commands(code):
    """The commands of a block, without comments and input."""
    code = re.sub(r"<<'EOF'\n.*?^EOF$", "", code, flags=re.DOTALL | re.M)
    for line in code.replace("\\\n", " ").splitlines():
        for command in line.split("#")[0].split(" && "):
            if command.strip():
                yield command.strip()


def flags(script):
    """The names of the flags of a script, also those that scripts share."""
    text = script.read_text(encoding="utf-8")
    if "import common" in text:
        text += script.with_name("common.py").read_text(encoding="utf-8")
    return set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))


def extras():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return set(config["options.extras_require"])


def check(command):
    """Fails unless what a command names exists."""
    words = shlex.split(command)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words.pop(0)
    program, *rest = words
    program = program.removeprefix(".venv/bin/")
    if program in ("python", "python3") and rest[0] == "-m":
        path = ROOT / rest[1].replace(".", "/")
        known = rest[1] in ("venv", "pytest")
        assert known or path.is_dir() or path.with_suffix(".py").exists(), (
            command
        )
        files = [ROOT / word for word in rest[2:] if word.endswith(".py")]
        assert all(file.exists() for file in files), command
    elif program in ("python", "python3", "bash"):
        if rest[0] in ("-", "-X", "-c"):
            return
        script = ROOT / rest[0]
        assert script.exists(), command
        if script.parent.name in ("recipes", "benchmarks"):
            used = {w[2:].split("=")[0] for w in rest[1:] if w[:2] == "--"}
            assert used <= flags(script), command
    elif program == "pip":
        for found in re.findall(
            r"(?:\.|keras_augreg)\[([\w,-]+)\]", " ".join(rest)
        ):
            assert set(found.split(",")) <= extras(), command
    else:
        assert program in KNOWN, f"{command}: not known to tests/docs"


@pytest.mark.parametrize("page", pages("bash"))
def test_bash_names_what_exists(page):
    for _, code, _ in blocks(page, "bash"):
        for command in commands(code):
            check(command)


@pytest.mark.parametrize(
    "command",
    [
        "python recipes/nothing.py",
        "python recipes/pretrain.py --nothing=1",
        "python -m keras_augreg.nothing",
        'pip install -e ".[nothing]"',
        "nothing",
    ],
)
def test_bash_check_can_fail(command):
    with pytest.raises(AssertionError):
        check(command)


@pytest.mark.parametrize("page", pages("bash"))
def test_light_bash_runs(page, tmp_path, mirror):
    os.symlink(mirror, tmp_path / "weights")
    environment = {
        **os.environ,
        "KERAS_AUGREG_CACHE": str(tmp_path / "cache"),
        "KERAS_AUGREG_MIRROR": str(mirror),
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    for _, code, to_run in blocks(page, "bash"):
        if to_run and all(c.startswith(LIGHT) for c in commands(code)):
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", code],
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, code + done.stdout + done.stderr
