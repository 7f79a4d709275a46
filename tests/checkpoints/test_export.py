"""The ways out: what others load, and what they compute with it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import pathlib
import re
import subprocess
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest
from _timm import import_timm

import keras_augreg
from keras_augreg import checkpoints, positions
from keras_augreg.checkpoints import convert, export
from keras_augreg.checkpoints.convert import inspect
from keras_augreg.initialization import zero_weights
from keras_augreg.variants import VARIANTS, find, identify

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
sys.path.append(str(GOLDEN))

import make_npz  # noqa: E402

SHAPES = json.loads(make_npz.SHAPES.read_text())
TINY = {
    "patch_size": 8,
    "width": 64,
    "depth": 2,
    "num_heads": 4,
    "mlp_dim": 96,
    "input_shape": (32, 32, 3),
    "classes": 3,
    "classifier_activation": None,
    "include_preprocessing": False,
}
HYBRID = {"stages": (2, 2, 2, 2), "patch_size": 1, "input_shape": (64, 64, 3)}
NAMES = ("cat", "dog, hound", "Übermaß")
# ViTs of every kind that VisionTransformer makes.
KINDS = {
    "token": {},
    "gap": {"class_token": False},
    "avg": {"include_top": False, "pooling": "avg"},
    "tokens": {"include_top": False},
    "features": {
        "include_top": False,
        "pooling": "token",
        "input_shape": (32, 64, 3),
    },
    "root": {"stages": ()},
    "hybrid": HYBRID,
}


def tiny(seed=0, **arguments):
    """A tiny model with weights of the size that training leaves."""
    with zero_weights():
        model = keras_augreg.VisionTransformer(**TINY | arguments)
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        x = rng.standard_normal(weight.shape, np.float32)
        if "kernel" in weight.name:
            x /= np.sqrt(np.float32(weight.shape[0]))
        else:
            x = 0.1 * x + np.float32(weight.name == "gamma")
        weight.assign(x)
    return model


def pixels(model, count=2):
    height, width, _ = model.image_shape
    rng = np.random.default_rng(1)
    return rng.uniform(-1, 1, (count, height, width, 3)).astype("float32")


def logits(model, images):
    return model.predict(images, verbose=0)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A made-up checkpoint of an architecture in the release's format."""
    folder = tmp_path_factory.mktemp("golden")

    def write(release, classes=1000):
        path = folder / f"{release}.npz"
        if not path.exists():
            np.savez(path, **dict(make_npz.arrays(release, 0, classes, 224)))
        return path

    return write


def builder(release):
    return getattr(keras_augreg, find(release).name)


def assert_same_arrays(path, expected):
    with np.load(path) as found, np.load(expected) as wanted:
        assert sorted(found.files) == sorted(wanted.files)
        for name in wanted.files:
            assert found[name].dtype == wanted[name].dtype == np.float32, name
            assert found[name].shape == wanted[name].shape, name
            assert found[name].tobytes() == wanted[name].tobytes(), name


@pytest.mark.parametrize(
    "release",
    [
        "Ti_16",
        "R_Ti_16",
        pytest.param("R26_S_32", marks=pytest.mark.large),
    ],
)
def test_npz_comes_out_as_it_went_in(golden, tmp_path, release):
    model = builder(release)(weights=golden(release))
    path = keras_augreg.checkpoints.to_npz(model, tmp_path / "out.npz")
    assert path == tmp_path / "out.npz"
    assert_same_arrays(path, golden(release))


@pytest.mark.parametrize("release", SHAPES)
def test_npz_has_the_names_and_shapes_of_the_release(release):
    """One block stands for all: the deeper ones of L take a gigabyte."""
    sizes = find(release).sizes
    side = sizes.stride * 7
    with zero_weights():
        model = keras_augreg.VisionTransformer(
            **dataclasses.asdict(sizes) | {"depth": 1},
            input_shape=(side, side, 3),
            classes=5,
        )
    numbers = {"classes": 5, "tokens": 50}
    expected = {
        name: tuple(numbers.get(n, n) for n in shape)
        for name, shape in SHAPES[release]["arrays"].items()
        if not re.match(r"Transformer/encoderblock_[1-9]", name)
    }
    found = {}
    for row, weight in export._weights(model):
        for name, array in export._release(row, weight).items():
            found[name] = array.shape
    assert found == expected
    names = {name for row in convert.layout(sizes) for name in row[1]}
    assert names == set(SHAPES[release]["arrays"])


@pytest.mark.parametrize("kind", ["token", "gap", "tokens", "hybrid"])
def test_npz_loads_again(tmp_path, kind):
    model, again = tiny(0, **KINDS[kind]), tiny(1, **KINDS[kind])
    keras_augreg.checkpoints.load(
        again, export.to_npz(model, tmp_path / "a.npz")
    )
    for ours, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_array_equal(
            *map(keras.ops.convert_to_numpy, (ours, theirs))
        )


def test_equal_models_give_equal_files(tmp_path):
    for name in "ab":
        export.to_npz(tiny(), tmp_path / f"{name}.npz")
        export.to_timm(tiny(), tmp_path / f"{name}.safetensors")
    for kind in ("npz", "safetensors"):
        a, b = (tmp_path / f"{name}.{kind}" for name in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_bfloat16_comes_out_as_float32(tmp_path):
    path = export.to_npz(tiny(dtype="bfloat16"), tmp_path / "a.npz")
    with np.load(path) as arrays:
        assert {arrays[name].dtype for name in arrays} == {np.dtype("f4")}
        assert arrays["head/kernel"].any()


def test_state_dictionary_is_a_copy():
    model = tiny()
    arrays = export.to_timm(model)
    before = arrays["norm.weight"].copy()
    model.get_layer("encoder_norm").gamma.assign(np.zeros(64))
    np.testing.assert_array_equal(arrays["norm.weight"], before)


def test_safetensors_reads_what_we_write(tmp_path):
    from safetensors import safe_open

    model = tiny()
    model.class_names = NAMES
    arrays = export.to_timm(model, tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "numpy") as file:
        assert set(file.keys()) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(file.get_tensor(name), array)
        data = file.metadata()
    assert data["format"] == "pt"
    assert tuple(json.loads(data["class_names"])) == NAMES


# timm


@pytest.mark.once  # Each backend writes the same arrays, as tested above.
@pytest.mark.parametrize("kind", KINDS)
def test_timm_computes_the_same_from_a_folder(tmp_path, kind):
    timm, torch = import_timm(), pytest.importorskip("torch")
    model = tiny(**KINDS[kind])
    if model.include_top:
        model.class_names = NAMES
    assert export.to_hf(model, tmp_path / "hub" / "mine").is_dir()
    other = timm.create_model(
        f"local-dir:{tmp_path}/hub/mine", pretrained=True
    ).eval()
    images = pixels(model)
    with torch.no_grad():
        theirs = other(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
    difference = np.abs(theirs.numpy() - logits(model, images)).max()
    # Stems: other epsilons in weight standardisation and GroupNorm.
    assert difference < (2e-5 if model.sizes.stages is None else 1e-3)
    if model.include_top:
        assert other.pretrained_cfg["label_names"] == list(NAMES)


@pytest.mark.parametrize(
    ("release", "architecture"),
    [
        ("Ti_16", "vit_tiny_patch16_224"),
        ("R_Ti_16", "vit_tiny_r_s16_p8_224"),
        pytest.param(
            "R26_S_32", "vit_small_r26_s32_224", marks=pytest.mark.large
        ),
    ],
)
def test_timm_gives_our_logits(golden, tmp_path, release, architecture):
    """Within 1e-3 with its exact GELU, up to rounding with ours."""
    timm, torch = import_timm(), pytest.importorskip("torch")
    model = builder(release)(
        weights=golden(release),
        classifier_activation=None,
        include_preprocessing=False,
    )
    export.to_timm(model, tmp_path / "a.safetensors")
    images = make_npz.images(0, 2, 224)
    difference = {}
    for act_layer in ("gelu", "gelu_tanh"):
        other = timm.create_model(
            architecture,
            checkpoint_path=tmp_path / "a.safetensors",
            act_layer=act_layer,
        ).eval()
        with torch.no_grad():
            theirs = other(torch.tensor(images.transpose(0, 3, 1, 2).copy()))
        difference[act_layer] = np.abs(theirs - logits(model, images)).max()
    print(release, difference)
    assert difference["gelu"] < 1e-3
    assert difference["gelu_tanh"] < (2e-5 if release == "Ti_16" else 1e-3)
    assert difference["gelu"] > 1e-4  # so the test can tell them apart


def test_all_timm_architectures_exist():
    timm = import_timm()
    for name in {**export._TIMM, **export._TIMM_HYBRIDS}.values():
        assert timm.is_model(name), name
    assert set(export._TIMM) <= set(VARIANTS)
    stages = {v.sizes.stages for v in VARIANTS.values()} - {None}
    assert stages == set(export._TIMM_HYBRIDS)


def test_folder_says_what_it_holds(tmp_path):
    model = keras_augreg.ViT_Ti32(weights=None, classes=3)
    model.class_names = NAMES
    export.to_hf(model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"{model.count_params():,} parameters" in card
    assert 'keras_augreg.ViT_Ti32(weights="hf://OWNER/NAME")' in card
    assert "cat, dog, hound, Übermaß" in card
    again = keras_augreg.ViT_Ti32(weights=tmp_path / "model.safetensors")
    assert again.class_names == NAMES

    (tmp_path / "README.md").write_text("Mine.")
    model.class_names = None
    export.to_hf(model, tmp_path)
    assert (tmp_path / "README.md").read_text() == "Mine."
    config = json.loads((tmp_path / "config.json").read_text())
    assert "label_names" not in config
    assert config["model_args"]["patch_size"] == 32


# KerasHub


@pytest.mark.parametrize("kind", ["token", "gap", "tokens"])
def test_keras_hub_computes_the_same(kind, tmp_path):
    """But for exact GELU, which is replaced to see that nothing else is."""
    hub = pytest.importorskip("keras_hub")
    model = tiny(**KINDS[kind])
    other = export.to_keras_hub(model)
    images = pixels(model)
    ours = logits(model, images)

    def difference():
        theirs = keras.ops.convert_to_numpy(other(images))
        return np.abs(theirs - ours).max()

    assert 2e-5 < difference() < 1e-3
    backbone = getattr(other, "backbone", other)
    for block in backbone.get_layer("vit_encoder").encoder_layers:
        block.mlp.dense_1.activation = lambda x: keras.ops.gelu(x, True)
    assert difference() < 2e-5
    if model.include_top:
        assert isinstance(other, hub.models.ViTImageClassifier)
        other.save_to_preset(str(tmp_path / "preset"))
        again = hub.models.ImageClassifier.from_preset(str(tmp_path / "preset"))
        raw = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3) % 256
        raw = raw.astype("uint8")
        np.testing.assert_allclose(
            again.predict(raw, verbose=0),
            logits(model, keras_augreg.preprocess_input(raw)),
            atol=1e-3,
        )


def test_keras_hub_gives_our_logits(golden):
    pytest.importorskip("keras_hub")
    model = keras_augreg.ViT_Ti16(
        weights=golden("Ti_16"),
        classifier_activation=None,
        include_preprocessing=False,
    )
    images = make_npz.images(0, 2, 224)
    theirs = keras.ops.convert_to_numpy(export.to_keras_hub(model)(images))
    assert np.abs(theirs - logits(model, images)).max() < 1e-3


def test_keras_hub_has_no_hybrids():
    with pytest.raises(ValueError, match=r"no hybrids.*to_timm"):
        export.to_keras_hub(tiny(**HYBRID))


def test_keras_hub_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    with pytest.raises(ImportError, match="pip install keras-hub"):
        export.to_keras_hub(tiny())


def test_export_imports_no_other_library():
    script = (
        "import sys, keras_augreg.checkpoints.export; "
        "print({'keras_hub', 'timm', 'safetensors'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1:] == ["set()"], done.stderr


# Class names


def save(model, path):
    if path.suffix == ".npz":
        export.to_npz(model, path)
    elif path.suffix == ".safetensors":
        export.to_timm(model, path)
    elif path.suffix == ".h5":
        model.save_weights(path)
    else:
        model.save(path)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras"])
def test_class_names_stay_with_the_model(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    model = keras_augreg.ViT_Ti32(weights=None, classes=3)
    save(model, path)
    assert checkpoints.class_names(path) is None
    model.class_names = list(NAMES)
    save(model, path)
    assert checkpoints.class_names(path) == NAMES
    again = keras_augreg.ViT_Ti32(weights=path)
    assert again.class_names == NAMES
    assert keras_augreg.ViT_Ti32(weights=path, classes=4).class_names is None
    if suffix == ".keras":
        assert keras.saving.load_model(path).class_names == NAMES
    # Their purpose: np.load, and so the original, does not see them.
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            assert set(arrays) == set(SHAPES["Ti_32"]["arrays"])


def test_class_names_of_other_files(tmp_path, golden):
    model = tiny()
    model.class_names = NAMES
    model.save_weights(tmp_path / "a.weights.h5")
    assert checkpoints.class_names(tmp_path / "a.weights.h5") is None
    assert checkpoints.class_names(golden("Ti_16")) is None
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.comment = b"by another program"
    assert checkpoints.class_names(tmp_path / "b.npz") is None
    with pytest.raises(FileNotFoundError):
        checkpoints.class_names(tmp_path / "c.npz")


@pytest.mark.parametrize(
    "names",
    [["a", "b"], "abc", ["a", "b", 3], ["a", "b", "c", "d"]],
)
def test_class_names_are_one_string_for_each_class(names):
    model = tiny()
    with pytest.raises(ValueError, match=r"each of the 3 outputs.*Received"):
        model.class_names = names
    with pytest.raises(ValueError, match="each of the 3 outputs"):
        keras_augreg.VisionTransformer(**TINY, class_names=names)
    assert model.class_names is None


def test_a_model_without_classifier_has_no_class_names():
    with pytest.raises(ValueError, match="each of the 0 outputs"):
        tiny(include_top=False).class_names = NAMES


def test_class_names_that_do_not_fit_an_npz(tmp_path):
    model = tiny()
    model.class_names = ["x" * 22_000] * 3
    with pytest.raises(ValueError, match=r"65,535 bytes.*take 66,0.*to_timm"):
        export.to_npz(model, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())
    export.to_timm(model, tmp_path / "a.safetensors")
    names = checkpoints.class_names(tmp_path / "a.safetensors")
    assert names == model.class_names


def archive_of(suffix, text):
    """A file without arrays whose class names are `text`."""
    file = io.BytesIO()
    if suffix == ".safetensors":
        header = json.dumps({"__metadata__": {"class_names": text}}).encode()
        return len(header).to_bytes(8, "little") + header
    with zipfile.ZipFile(file, "w") as archive:
        if suffix == ".npz":
            archive.comment = b'{"class_names": ' + text.encode() + b"}"
        else:
            archive.writestr(
                "config.json", '{"config": {"class_names": ' + text + "}}"
            )
            h5 = io.BytesIO()
            h5py.File(h5, "w").close()
            archive.writestr("model.weights.h5", h5.getvalue())
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a"', "cannot read"),
        ("3", "its class names are '3'"),
        ('["a", 3]', "expected a list of strings"),
        ("[" * 60_000, "cannot read"),
    ],
    ids=["cut", "number", "mixed", "deep"],
)
def test_hostile_class_names(tmp_path, suffix, text, message):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(archive_of(suffix, text))
    with pytest.raises(ValueError, match=message):
        checkpoints.class_names(path)


def test_a_configuration_of_megabytes_is_not_read(tmp_path):
    path = tmp_path / "a.keras"
    path.write_bytes(archive_of(".keras", "[" + " " * 2**22 + "]"))
    with pytest.raises(ValueError, match=r"config\.json: it claims 4,194,"):
        checkpoints.class_names(path)


# Errors


@pytest.mark.parametrize("way", ["to_npz", "to_timm", "to_hf", "to_keras_hub"])
def test_only_our_models(tmp_path, way):
    arguments = [] if way == "to_keras_hub" else [tmp_path / "a.npz"]
    function = getattr(keras_augreg.checkpoints, way)
    with pytest.raises(ValueError, match=r"Transformer. Received: Dense"):
        function(keras.layers.Dense(1), *arguments)
    inner = tiny(name="inner")
    outer = keras.Sequential([keras.Input((32, 32, 3)), inner])
    with pytest.raises(ValueError, match=r"model.get_layer\('inner'\)"):
        function(outer, *arguments)


def test_the_name_tells_the_format(tmp_path):
    with pytest.raises(ValueError, match=r"must end in .npz.*Received:"):
        export.to_npz(tiny(), tmp_path / "a.safetensors")
    with pytest.raises(
        ValueError, match=r"must end in .safetensors.*Received:"
    ):
        export.to_timm(tiny(), tmp_path / "a.pth")
    with pytest.raises(FileNotFoundError, match=r"folder .* does not exist"):
        export.to_npz(tiny(), tmp_path / "no" / "a.npz")


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(
    "suffix", [".npz", ".safetensors", ".weights.h5", ".keras"]
)
def test_files_state_a_grid_that_is_not_square(tmp_path, suffix, class_token):
    """2 x 8 patches are as many as 4 x 4."""
    kwargs = {"class_token": class_token}
    model = tiny(input_shape=(16, 64, 3), **kwargs)
    path = tmp_path / f"a{suffix}"
    if suffix == ".npz":
        with pytest.warns(UserWarning, match=r"2 x 8 patches.*for a square"):
            save(model, path)
    else:
        save(model, path)
    assert inspect(path).patch_grid == (2, 8)
    arrays = export.to_timm(model)
    other = tiny(1, input_shape=(16, 64, 3), **kwargs)
    checkpoints.load(other, path)
    for name, array in export.to_timm(other).items():
        np.testing.assert_array_equal(array, arrays[name])
    for shape, grid in [((32, 128, 3), (4, 16)), ((32, 32, 3), (4, 4))]:
        other = tiny(input_shape=shape, **kwargs)
        checkpoints.load(other, path)
        np.testing.assert_array_equal(
            export.to_timm(other)["pos_embed"],
            positions.resample_positions(
                arrays["pos_embed"], (2, 8), grid, int(class_token)
            ),
        )


def test_keras_itself_refuses_another_grid(tmp_path):
    path = tmp_path / "a.weights.h5"
    tiny(input_shape=(16, 64, 3)).save_weights(path)
    again = tiny(1, input_shape=(16, 64, 3))
    again.load_weights(path)
    with pytest.raises(ValueError, match=r"2 x 8 patches, the model 4 x 4"):
        tiny().load_weights(path)


def state_grid(path, grid):
    """Writes a grid into a file that states 2 x 8."""
    if path.suffix == ".h5":
        with h5py.File(path, "r+") as file:
            name = "layers/position_embedding/vars/patch_grid"
            del file[name]
            file[name] = grid
        return
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            np.savez(path, **{**arrays, "patch_grid": grid})
        return
    content = path.read_bytes()
    old, new = b"[2, 8]", json.dumps(grid).encode()
    assert content.count(old) == 1
    length = int.from_bytes(content[:8], "little") + len(new) - len(old)
    content = content[8:].replace(old, new)
    path.write_bytes(length.to_bytes(8, "little") + content)


@pytest.mark.filterwarnings("ignore:.*for a square")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".weights.h5"])
@pytest.mark.parametrize(
    "grid", [[4, 2], [16], [-2, -8], [2.0, 8.0], [1] * 99, 16]
)
def test_an_impossible_grid(tmp_path, suffix, grid):
    path = tmp_path / f"a{suffix}"
    save(tiny(input_shape=(16, 64, 3)), path)
    state_grid(path, grid)
    with pytest.raises(ValueError, match=r"a\..*its patch grid is .*xport"):
        inspect(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".weights.h5"])
def test_an_unknown_grid(tmp_path, suffix):
    """No statement: a square if it can be one, otherwise an error."""
    path = tmp_path / f"a{suffix}"
    save(tiny(input_shape=(16, 40, 3)), path)  # 2 x 5 patches
    if suffix == ".safetensors":
        arrays = export.to_timm(tiny(input_shape=(16, 40, 3)))
        export.write_safetensors(path, arrays, {})
    else:
        with h5py.File(path, "r+") as file:
            del file["layers/position_embedding/vars/patch_grid"]
    assert inspect(path).patch_grid is None
    for shape in [(16, 40, 3), (32, 32, 3)]:
        model = tiny(1, input_shape=shape)
        with pytest.raises(ValueError, match=r"no square grid.*Export it"):
            checkpoints.load(model, path)


def test_timm_has_no_such_stem(tmp_path):
    model = tiny(stages=(1, 1), patch_size=4)
    with pytest.raises(ValueError, match=r"stages=\(1, 1\), only with \(\)"):
        export.to_hf(model, tmp_path / "a")
    assert not list(tmp_path.iterdir())
    name = "patch_embed.backbone.stages.1.blocks.0.conv1.weight"
    assert export.to_timm(model)[name].shape == (128, 256, 1, 1)


def test_integer_weights_are_refused(tmp_path):
    model = tiny()
    model.get_layer("head").quantize("int8")
    with pytest.raises(ValueError, match=r"int8.*before model.quantize"):
        export.to_npz(model, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.npz", "a.safetensors"])
def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch, name):
    path = tmp_path / name
    save(tiny(0), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save(tiny(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_identify():
    for variant in VARIANTS.values():
        assert identify(variant.sizes) is variant
    assert identify(tiny().sizes) is None
