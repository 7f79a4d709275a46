"""The wheel and the sdist: their files, and clean installations of them.

Each installation gets a new virtual environment, for which pip needs the
package index.
"""

from __future__ import annotations

import configparser
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from data import _photos
from golden import make_npz

pytestmark = pytest.mark.venv

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = ROOT / "recipes"

# Run in the clean environment: builds, loads, predicts, saves, reads images.
SCRIPT = """
import importlib.util, json, sys

import keras, numpy as np
import keras_augreg

npz, images, out = sys.argv[1:]
new = keras_augreg.ViT_Ti16(
    weights=None, classes=10, input_shape=(32, 32, 3)
)
# The golden images are in [-1, 1] already.
model = keras_augreg.ViT_Ti16(
    weights=npz, input_shape=(32, 32, 3), include_preprocessing=False
)
x = np.load(images)
y = model.predict(x, verbose=0)
model.save("model.keras")
again = keras.saving.load_model("model.keras").predict(x, verbose=0)
np.save(out, y)
parameters = new.count_params()
new.quantize("int8")
assert new.predict(x, verbose=0).shape == (2, 10)

import pathlib, PIL.Image
from keras_augreg import data

for name in ("a", "b"):
    folder = pathlib.Path("photos", "train", name)
    folder.mkdir(parents=True)
    for i in range(3):
        pixels = np.full((40, 30, 3), 50 * i, np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{i}.png")
read, _ = data.load(
    "photos", "train", image_size=32, batch_size=6, training=True
)
(batch, labels), *_ = read
assert batch.shape == (6, 32, 32, 3) and set(batch.ravel()) == {0, 50, 100}
assert sorted(labels) == [0, 0, 0, 1, 1, 1]

print(json.dumps({
    "file": keras_augreg.__file__,
    "keras": keras.__version__,
    "backend": keras.backend.backend(),
    "parameters": parameters,
    "label": keras_augreg.decode_predictions(np.eye(1, 21843), top=1)[0][0][1],
    "saved": float(abs(again - y).max()),
    "installed": [
        name for name in ("jax", "tensorflow", "torch")
        if importlib.util.find_spec(name)
    ],
    "imported": sorted({"jax", "tensorflow", "torch"} & set(sys.modules)),
}))
"""

# The same, where TPU images end: JAX without TensorFlow. Reads every kind of
# data, trains with augmentation on the device and on the host, resumes.
WITHOUT_TENSORFLOW = """
import importlib.util, json, pathlib, sys

import datasets, keras, numpy as np, PIL.Image
import keras_augreg
from keras_augreg import data, training

pictures = [
    PIL.Image.fromarray(np.full((20, 16, 3), 9 * i + 90 * (i % 2), "uint8"))
    for i in range(12)
]
for i, picture in enumerate(pictures):
    file = pathlib.Path("two", "train", "ab"[i % 2], f"{i}.jpg")
    file.parent.mkdir(parents=True, exist_ok=True)
    picture.save(file)
rows = datasets.Dataset.from_dict(
    {"image": pictures, "label": [i % 2 for i in range(12)]},
    features=datasets.Features({
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=["a", "b"]),
    }),
)
rows.save_to_disk("saved")

def load(source, split="train", classes=2, **arguments):
    batches, info = data.load(
        source, split, image_size=16, batch_size=4, training=True, **arguments
    )
    assert info.engine == "python" and info.num_classes == classes, info
    images, labels = next(iter(batches))
    assert images.shape == (4, 16, 16, 3) and images.dtype == "uint8"
    return batches

load("digits", classes=10)
load(pathlib.Path("two"))
load(rows)
load("saved")
load("small_photos", data_dir=sys.argv[1], classes=3)
load(f"{sys.argv[1]}/small_photos/1.0.0", "test[:50%]", 3)

def compiled(where):
    keras.utils.set_random_seed(0)
    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32,
        input_shape=(16, 16, 3), classes=2,
    )
    keras_augreg.compile_pretraining(
        model, keras_augreg.AugReg("medium1"), total_steps=6, warmup_steps=1,
        augment_on=where, ema_momentum=0.9, seed=0,
    )
    return model

def end(model):
    return np.concatenate([w.ravel() for w in model.get_weights()])

class Stop(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        self.model.stop_training = True

train = load(pathlib.Path("two"))
ends = []
for where, stopped in (("device", 0), ("host", 0), ("host", 1)):
    for callbacks in [[Stop()], []] if stopped else [[]]:
        model = compiled(where)
        training.Workdir(f"runs/{where}{stopped}", {}).fit(
            model, train, total_steps=6, interval=2, callbacks=callbacks,
            verbose=0,
        )
    ends.append(end(model))
names = ("tensorflow", "torch")
print(json.dumps({
    "differences": [float(np.abs(e - ends[0]).max()) for e in ends],
    "installed": [name for name in names if importlib.util.find_spec(name)],
    "imported": sorted({*names} & {*sys.modules}),
}))
"""


def run(*command, **kwargs):
    done = subprocess.run(
        [str(c) for c in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **kwargs,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """(wheel, sdist) of the working tree; the wheel is made from the sdist."""
    root = tmp_path_factory.mktemp("source")
    # A copy, so that nothing left in build/ or *.egg-info comes along.
    for name in (
        *("setup.cfg", "pyproject.toml", "MANIFEST.in"),
        *("README.md", "LICENSE", "CHANGELOG.md"),
    ):
        shutil.copy(ROOT / name, root)
    for name in ("keras_augreg", "recipes", "tests"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, root / name, ignore=ignore)
    run(sys.executable, "-m", "build", root)
    (wheel,) = (root / "dist").glob("*.whl")
    (sdist,) = (root / "dist").glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(checkpoint, images, what this environment predicts from them)."""
    import keras_augreg

    folder = tmp_path_factory.mktemp("checkpoint")
    npz, images = folder / "Ti_16.npz", folder / "images.npy"
    np.savez(npz, **dict(make_npz.arrays("Ti_16", 0, 10, 32)))
    x = make_npz.images(0, 2, 32)
    np.save(images, x)
    model = keras_augreg.ViT_Ti16(
        weights=npz, input_shape=(32, 32, 3), include_preprocessing=False
    )
    return npz, images, model.predict(x, verbose=0)


def source_files():
    """Paths of the files that the package consists of."""
    scripts = {f"keras_augreg/recipes/{f.name}" for f in RECIPES.glob("*.py")}
    return scripts | {
        str(f.relative_to(ROOT))
        for f in (ROOT / "keras_augreg").rglob("*")
        if f.is_file() and f.suffix != ".pyc"
    }


def test_wheel_holds_the_package_and_nothing_else(distributions):
    wheel, _ = distributions
    assert wheel.name.endswith("-py3-none-any.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    info = {n for n in names if ".dist-info/" in n}
    assert names - info == source_files()
    assert "keras_augreg/py.typed" in names
    licences = {n.rsplit("/", 1)[1] for n in info if "/licenses/" in n}
    assert licences == {"LICENSE", "LICENSE-WordNet"}


def test_sdist_holds_the_package_and_no_tests(distributions):
    _, sdist = distributions
    with tarfile.open(sdist) as tar:
        names = {m.name.split("/", 1)[1] for m in tar if m.isfile()}
    source = {
        f.replace("keras_augreg/recipes/", "recipes/") for f in source_files()
    }
    assert source <= names
    assert {"LICENSE", "README.md", "CHANGELOG.md", "setup.cfg"} <= names
    assert not {n for n in names if n.startswith("tests/")}


def lowest(package):
    """The lowest version of a dependency that setup.cfg declares."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    text = "\n".join([config["options"]["install_requires"], extras["jax"]])
    return re.search(rf"^{package}>=([\d.]+)$", text, re.MULTILINE)[1]


@pytest.mark.parametrize(
    ("backend", "kind", "pins"),
    [
        # The oldest versions that setup.cfg declares.
        (
            "jax",
            "wheel",
            [
                *("keras=={keras}", "jax=={jax}", "pillow=={pillow}"),
                "opencv-python-headless=={opencv-python-headless}",
            ],
        ),
        # Named together with the rest, pip takes a CPU build lying on disk.
        ("torch", "wheel", ["torch==2.13.0"]),
        ("jax", "sdist", ["datasets", "scikit-learn"]),
    ],
    ids=["oldest", "torch", "sdist"],
)
def test_clean_installation(
    tmp_path, distributions, checkpoint, backend, kind, pins
):
    versions = {
        name: lowest(name)
        for name in ("keras", "jax", "pillow", "opencv-python-headless")
    }
    pins = [pin.format(**versions) for pin in pins]
    package = distributions[kind == "sdist"]
    # This pip installs into it, and compiles no module that is not imported.
    run(sys.executable, "-m", "venv", "--without-pip", "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python)
    extras = backend if kind == "wheel" else f"{backend},tfds"
    package = f"{package}[{extras}]"
    run(*pip, "install", "-q", "--no-compile", package, *pins)
    run(*pip, "check")

    npz, images, expected = checkpoint
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "KERAS", "COV"))
    }
    output = run(
        *(python, "-c", SCRIPT, npz, images, "out.npy"),
        cwd=tmp_path,
        env=environment | {"KERAS_BACKEND": backend},
    )
    result = json.loads(output.splitlines()[-1])

    assert result["file"].startswith(str(tmp_path))
    assert result["backend"] == backend
    assert result["installed"] == result["imported"] == [backend]
    if kind == "wheel" and backend == "jax":
        assert result["keras"].startswith(versions["keras"])
    assert result["parameters"] == new_parameters()
    assert result["label"] == "organism, being"
    assert result["saved"] < 1e-6
    # The scripts come along.
    command = (python, "-m", "keras_augreg", "predict")
    environment |= {"KERAS_BACKEND": backend}
    said = run(*command, "model.keras", "photos/train/a", cwd=tmp_path,
               env=environment)  # fmt: skip
    assert said.count("photos/train/a/") == 3
    y = np.load(tmp_path / "out.npy")
    assert y.shape == (2, 10)
    np.testing.assert_allclose(y, expected, atol=2e-6)
    if kind == "sdist":
        _photos.build_tfds(tmp_path / "tfds", 4, file_format="array_record")
        command = (python, "-c", WITHOUT_TENSORFLOW, tmp_path / "tfds")
        result = json.loads(
            run(*command, cwd=tmp_path, env=environment).splitlines()[-1]
        )
        assert result["installed"] == result["imported"] == []
        _, host, resumed = result["differences"]
        assert host == resumed < 1e-5


def new_parameters():
    """Number of parameters of ViT-Ti/16 with 10 classes at 32 x 32 pixels."""
    return sum(a.size for _, a in make_npz.arrays("Ti_16", 0, 10, 32))
