"""Every dialect of checkpoint files, into models of every form."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from _checkpoints import (
    CLASSES,
    HYBRID,
    WIDTH,
    big_vision,
    forward,
    hybrid,
    images,
    linen,
    make_npz,
    release,
    same,
    timm,
    tiny,
    weights,
)

import keras_augreg
from keras_augreg import checkpoints
from keras_augreg.positions import resample_positions

safetensors = pytest.importorskip("safetensors.numpy")
BACKEND = keras.backend.backend()
STAGES = HYBRID["stages"]
TI_16 = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"


@pytest.fixture
def save(tmp_path):
    """Writes arrays as `.npz`."""

    def write(arrays, name="checkpoint.npz"):
        np.savez(tmp_path / name, **arrays)
        return tmp_path / name

    return write


def logits(model, x=None):
    return np.asarray(
        model.predict(images(model.input_shape[1:]) if x is None else x,
                      verbose=0)
    )  # fmt: skip


def stacked(arrays):
    """The expected weights of a tiny model, from arrays of the release."""
    found = {
        "embedding/kernel": arrays["embedding/kernel"],
        "embedding/bias": arrays["embedding/bias"],
        "posembed_input/pos_embedding": arrays[
            "Transformer/posembed_input/pos_embedding"
        ],
        "posembed_input/cls": arrays["cls"],
        "encoder_norm/gamma": arrays["Transformer/encoder_norm/scale"],
        "encoder_norm/beta": arrays["Transformer/encoder_norm/bias"],
        "head/kernel": arrays["head/kernel"],
        "head/bias": arrays["head/bias"],
    }
    for i in range(2):
        old, new = f"Transformer/encoderblock_{i}", f"encoderblock_{i}"
        attention = f"{old}/MultiHeadDotProductAttention_1"
        found |= {
            f"{new}/norm1/gamma": arrays[f"{old}/LayerNorm_0/scale"],
            f"{new}/norm1/beta": arrays[f"{old}/LayerNorm_0/bias"],
            f"{new}/norm2/gamma": arrays[f"{old}/LayerNorm_2/scale"],
            f"{new}/norm2/beta": arrays[f"{old}/LayerNorm_2/bias"],
            f"{new}/mlp_kernel1": arrays[f"{old}/MlpBlock_3/Dense_0/kernel"],
            f"{new}/mlp_bias1": arrays[f"{old}/MlpBlock_3/Dense_0/bias"],
            f"{new}/mlp_kernel2": arrays[f"{old}/MlpBlock_3/Dense_1/kernel"],
            f"{new}/mlp_bias2": arrays[f"{old}/MlpBlock_3/Dense_1/bias"],
            f"{new}/attention/out_kernel": arrays[f"{attention}/out/kernel"],
            f"{new}/attention/out_bias": arrays[f"{attention}/out/bias"],
            f"{new}/attention/qkv_kernel": np.stack(
                [arrays[f"{attention}/{x}/kernel"] for x in QKV], axis=1
            ),
            f"{new}/attention/qkv_bias": np.stack(
                [arrays[f"{attention}/{x}/bias"] for x in QKV]
            ),
        }
    return found


QKV = ("query", "key", "value")


def without_seeds(model):
    return {
        path: array
        for path, array in weights(model).items()
        if "seed_generator" not in path
    }


def bfloat16(arrays):
    """As NumPy stores bfloat16, and what float32 then remains."""
    raw = {
        name: (array.view("<u4") >> 16).astype("<u2").view("V2")
        for name, array in arrays.items()
    }
    rounded = {
        name: (array.view("<u4") & 0xFFFF0000).view("<f4")
        for name, array in arrays.items()
    }
    return raw, rounded


def test_release_puts_every_array_in_its_place(save):
    arrays = release()
    model = tiny()
    checkpoints.load(model, save(arrays))
    found = without_seeds(model)
    expected = stacked(arrays)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        np.testing.assert_array_equal(found[path], array, err_msg=path)


def test_release_against_numpy(save):
    arrays = release()
    model = tiny()
    checkpoints.load(model, save(arrays))
    expected = forward(linen(arrays), images())
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(logits(model), expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize("make", [tiny, hybrid])
@pytest.mark.parametrize(
    "dialect",
    ["linen", "big_vision", "fortran", "compressed", "float64", "big endian",
     "flat norms", "0 extra"],
)  # fmt: skip
def test_dialects_of_npz(save, tmp_path, make, dialect):
    if make is tiny:
        arrays = release()
    else:
        arrays = release(STAGES)
        assert arrays["gn_root/scale"].shape == (1, 1, 1, 64)
    expected = make()
    checkpoints.load(expected, save(arrays))
    if dialect == "big_vision":
        # Its class token has no position: the release's would get the sum.
        positions = "Transformer/posembed_input/pos_embedding"
        arrays["cls"] = arrays["cls"] + arrays[positions][:, :1]
        other = big_vision(arrays)
        arrays[positions][:, 0] = 0
        checkpoints.load(expected, save(arrays))
    else:
        other = {
            "linen": linen,
            "fortran": lambda a: {
                k: np.asfortranarray(v) for k, v in a.items()
            },
            "float64": lambda a: {k: v.astype("<f8") for k, v in a.items()},
            "big endian": lambda a: {k: v.astype(">f4") for k, v in a.items()},
            "flat norms": lambda a: {
                k: v.reshape(-1) if "gn" in k else v for k, v in a.items()
            },
        }.get(dialect, dict)(arrays)
    path = tmp_path / "other.npz"
    (np.savez_compressed if dialect == "compressed" else np.savez)(
        path, **other
    )
    model = make()
    assert not same(without_seeds(model), without_seeds(expected))
    checkpoints.load(model, path)
    assert same(without_seeds(model), without_seeds(expected))


def test_bfloat16(save):
    raw, rounded = bfloat16(release())
    path = save(raw)
    with np.load(path) as stored:
        assert stored["cls"].dtype == "V2"
    model, expected = tiny(), tiny()
    checkpoints.load(model, path)
    checkpoints.load(expected, save(rounded))
    assert same(without_seeds(model), without_seeds(expected))


def test_no_class_token(save):
    """big_vision's "gap": the mean of the tokens is read."""
    arrays = big_vision(release(), cls=False)
    model = tiny(class_token=False)
    checkpoints.load(model, save(arrays))
    np.testing.assert_allclose(
        logits(model), forward(arrays, images()), rtol=0, atol=3e-6
    )


def test_builder_without_class_token(save):
    arrays = linen(dict(make_npz.arrays("Ti_16", 0, 10, 32)))
    arrays["pos_embedding"] = arrays.pop(
        "Transformer/posembed_input/pos_embedding"
    )[:, 1:]
    del arrays["cls"]
    path = save(arrays)
    model = keras_augreg.ViT_Ti16(
        weights=path, classifier_activation=None, include_preprocessing=False
    )
    assert model.input_shape == (None, 32, 32, 3)
    assert not model.class_token
    x = images((32, 32, 3))
    np.testing.assert_allclose(
        logits(model), forward(arrays, x), rtol=0, atol=2e-5
    )
    with pytest.raises(ValueError, match="no class token"):
        keras_augreg.ViT_Ti16(weights=path, include_top=False, pooling="token")


def test_hidden_layer_is_dropped_with_the_head(save):
    arrays = release()
    path = save(
        {
            **arrays,
            "pre_logits/kernel": np.ones((WIDTH, WIDTH), "float32"),
            "pre_logits/bias": np.ones(WIDTH, "float32"),
        }
    )
    model = tiny()
    before = weights(model)
    with pytest.raises(ValueError, match=r"hidden layer 'pre_logits'"):
        checkpoints.load(model, path)
    assert same(weights(model), before)
    checkpoints.load(model, path, head="new")
    assert not np.asarray(model.get_layer("head").kernel).any()
    body = tiny(include_top=False, classes=1)
    checkpoints.load(body, path)
    np.testing.assert_array_equal(
        body.get_layer("posembed_input").cls.numpy(), arrays["cls"]
    )


@pytest.fixture(scope="module")
def ti_16(tmp_path_factory):
    """A golden file of 32 x 32 pixels, that is 2 x 2 patches."""
    path = tmp_path_factory.mktemp("ti") / "Ti_16.npz"
    np.savez(path, **dict(make_npz.arrays("Ti_16", 3, 10, 32)))
    return path


def test_builder_and_hidden_layer(save):
    path = save(
        {
            **dict(make_npz.arrays("Ti_16", 3, 10, 32)),
            "pre_logits/kernel": np.ones((192, 192), "float32"),
            "pre_logits/bias": np.ones(192, "float32"),
        }
    )
    with pytest.raises(ValueError, match="pre_logits"):
        keras_augreg.ViT_Ti16(weights=path)
    model = keras_augreg.ViT_Ti16(weights=path, classes=3)
    assert model.output_shape == (None, 3)
    assert keras_augreg.ViT_Ti16(weights=path, include_top=False)


def test_builder_keeps_the_head_and_the_resolution(ti_16):
    model = keras_augreg.ViT_Ti16(weights=str(ti_16))
    assert model.input_shape == (None, 32, 32, 3)
    assert model.output_shape == (None, 10)
    with np.load(ti_16) as arrays:
        head = arrays["head/kernel"]
    np.testing.assert_array_equal(model.get_layer("head").kernel.numpy(), head)
    again = keras_augreg.ViT_Ti16(weights=ti_16, classes=10)
    assert same(without_seeds(again), without_seeds(model))


def test_builder_makes_a_new_head(ti_16):
    model = keras_augreg.ViT_Ti16(weights=ti_16, classes=7)
    assert model.output_shape == (None, 7)
    head = model.get_layer("head")
    assert not head.kernel.numpy().any()
    assert not head.bias.numpy().any()
    kept = without_seeds(keras_augreg.ViT_Ti16(weights=ti_16))
    found = without_seeds(model)
    for path in kept:
        if not path.startswith("head/"):
            np.testing.assert_array_equal(found[path], kept[path])


def test_builder_needs_classes_for_a_file_without_head(save):
    arrays = dict(make_npz.arrays("Ti_16", 3, 10, 32))
    del arrays["head/kernel"], arrays["head/bias"]
    path = save(arrays)
    with pytest.raises(ValueError, match=r"no classifier to keep.*classes=N"):
        keras_augreg.ViT_Ti16(weights=path)
    model = keras_augreg.ViT_Ti16(weights=path, classes=4)
    assert model.output_shape == (None, 4)


def test_contradicting_classes(save):
    path = save(release())
    model = tiny(classes=6)
    before = weights(model)
    with pytest.raises(ValueError, match=r"5 classes, the model has 6.*'new'"):
        checkpoints.load(model, path)
    assert same(weights(model), before)
    checkpoints.load(model, path, head="new")
    found = weights(model)
    assert not found["head/kernel"].any()
    assert not np.array_equal(
        found["embedding/kernel"], before["embedding/kernel"]
    )
    with pytest.raises(ValueError, match=r"'keep'.*'new'.*'both'"):
        checkpoints.load(model, path, head="both")


@pytest.mark.parametrize("shape", [(24, 24, 3), (8, 20, 3), (4, 4, 3)])
def test_resampled_to_any_grid(save, shape):
    arrays = release()
    path = save(arrays)
    model = tiny(input_shape=shape)
    checkpoints.load(model, path)
    grid = shape[0] // 4, shape[1] // 4
    assert model.patch_grid == grid
    arrays["Transformer/posembed_input/pos_embedding"] = resample_positions(
        arrays["Transformer/posembed_input/pos_embedding"], (4, 4), grid
    )
    x = images(shape)
    np.testing.assert_allclose(
        logits(model), forward(linen(arrays), x), rtol=0, atol=3e-6
    )


def test_hybrids_resample_too(save):
    path = save(release(STAGES))
    model = hybrid(input_shape=(40, 24, 3))
    checkpoints.load(model, path)
    assert model.patch_grid == (5, 3)
    found = model.get_layer("posembed_input").pos_embedding
    assert tuple(found.shape) == (1, 16, WIDTH)


@pytest.mark.parametrize("make", [tiny, hybrid])
def test_safetensors(save, tmp_path, make):
    arrays = release(None if make is tiny else STAGES)
    expected, model = make(), make()
    checkpoints.load(expected, save(arrays))
    path = tmp_path / "timm.safetensors"
    safetensors.save_file(timm(arrays), path, metadata={"format": "pt"})
    checkpoints.load(model, path)
    assert same(without_seeds(model), without_seeds(expected))
    # Another grid and a new head.
    stride = model.sizes.stride
    model = make(input_shape=(5 * stride, 2 * stride, 3), classes=2)
    checkpoints.load(model, path, head="new")
    assert not model.get_layer("head").kernel.numpy().any()


def test_safetensors_in_bfloat16(save, tmp_path):
    raw, rounded = bfloat16(timm(release()))
    header, data = {}, b""
    for name, array in raw.items():
        content = np.ascontiguousarray(array).tobytes()
        header[name] = {
            "dtype": "BF16",
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    path = tmp_path / "bfloat16.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    other = tmp_path / "float32.safetensors"
    safetensors.save_file(rounded, other)
    model, expected = tiny(), tiny()
    checkpoints.load(model, path)
    checkpoints.load(expected, other)
    assert same(without_seeds(model), without_seeds(expected))


TIMM = {
    "vit_tiny_patch16_224": "ViT_Ti16",
    "vit_small_patch32_224": "ViT_S32",
    "vit_tiny_r_s16_p8_224": "R_ViT_Ti16",
    "vit_small_r26_s32_224": "R26_ViT_S32",
}
MAKE_TIMM = """
import importlib.machinery, sys, unittest.mock
import numpy as np, safetensors.numpy, torch

class Stub:
    # timm imports torchvision, which these models do not need, and which
    # does not import beside every build of torch.
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
    def create_module(self, spec):
        return unittest.mock.MagicMock(__path__=[], __version__="0")
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Stub())
import timm

def standardize(w, *args, **kwargs):
    # With the release's epsilon: timm has 1e-8 inside the root, which moves
    # the logits of R26+S/32 here by 2.4e-5.
    w = w - w.mean(-1, keepdim=True)
    return w / (w.square().mean(-1, keepdim=True).sqrt() + 1e-5)

torch.nn.functional.batch_norm = standardize

x = torch.tensor(np.load("x.npy").transpose(0, 3, 1, 2).copy())
for name in sys.argv[1:]:
    torch.manual_seed(0)
    # The release's GELU; timm's own is the exact one.
    model = timm.create_model(name, num_classes=11, act_layer="gelu_tanh")
    model = model.eval()
    for parameter in model.parameters():
        # No zeros and ones: each array has to show in the logits.
        parameter.data += 0.02 * torch.randn(parameter.shape)
    state = {
        key: np.ascontiguousarray(value.numpy())
        for key, value in model.state_dict().items()
    }
    safetensors.numpy.save_file(state, name + ".safetensors")
    with torch.inference_mode():
        np.save(name + ".npy", model.double()(x.double()).numpy())
"""


@pytest.fixture(scope="module")
def timm_models(tmp_path_factory):
    """Models of timm itself, which the test extra does not install."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    folder = tmp_path_factory.mktemp("timm")
    np.save(folder / "x.npy", images((224, 224, 3), 1))
    command = [sys.executable, "-c", MAKE_TIMM, *TIMM]
    subprocess.run(command, cwd=folder, check=True, timeout=300)
    return folder


@pytest.mark.once  # The backends agree on the golden files.
@pytest.mark.parametrize("name", TIMM)
def test_models_made_by_timm(timm_models, name):
    model = getattr(keras_augreg, TIMM[name])(
        weights=timm_models / f"{name}.safetensors",
        classifier_activation=None,
        include_preprocessing=False,
    )
    assert model.input_shape == (None, 224, 224, 3)
    expected = np.load(timm_models / f"{name}.npy")
    assert np.abs(expected).max() > 0.1
    found = logits(model, images((224, 224, 3), 1))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
@pytest.mark.parametrize("make", [tiny, hybrid])
def test_files_of_keras(save, tmp_path, make, suffix):
    model = make()
    checkpoints.load(model, save(release(None if make is tiny else STAGES)))
    path = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    other = make()
    checkpoints.load(other, path)
    assert same(without_seeds(other), without_seeds(model))

    stride = model.sizes.stride
    other = make(input_shape=(3 * stride, 6 * stride, 3), classes=2)
    checkpoints.load(other, path, head="new")
    positions = "posembed_input/pos_embedding"
    np.testing.assert_array_equal(
        weights(other)[positions],
        resample_positions(weights(model)[positions], (4, 4), (3, 6)),
    )


def test_a_compiled_models_optimizer_is_left_out(tmp_path):
    model = tiny()
    model.compile("adam", "mse")
    model.fit(images(), np.zeros((2, CLASSES)), verbose=0)
    model.save(tmp_path / "trained.keras")
    other = tiny()
    checkpoints.load(other, tmp_path / "trained.keras")
    assert same(without_seeds(other), without_seeds(model))


@pytest.mark.parametrize("suffix", [".weights.h5", ".keras"])
def test_builder_reads_files_of_keras(ti_16, tmp_path, suffix):
    model = keras_augreg.ViT_Ti16(weights=ti_16)
    path = tmp_path / f"model{suffix}"
    (model.save if suffix == ".keras" else model.save_weights)(path)
    other = keras_augreg.ViT_Ti16(weights=str(path))
    assert other.input_shape == (None, 32, 32, 3)
    assert same(without_seeds(other), without_seeds(model))
    other = keras_augreg.ViT_Ti16(
        weights=path, include_top=False, input_shape=(48, 32, 3)
    )
    assert other.output_shape == (None, 7, 192)


def test_saved_from_mixed_precision(tmp_path):
    model = tiny(dtype="mixed_bfloat16")
    model.save_weights(tmp_path / "mixed.weights.h5")
    other = tiny()
    checkpoints.load(other, tmp_path / "mixed.weights.h5")
    for path, array in without_seeds(model).items():
        np.testing.assert_array_equal(array, without_seeds(other)[path])


def test_relative_and_home_paths(ti_16, monkeypatch):
    monkeypatch.chdir(ti_16.parent)
    assert keras_augreg.ViT_Ti16(weights="Ti_16.npz")
    monkeypatch.setenv("HOME", str(ti_16.parent))
    assert keras_augreg.ViT_Ti16(weights="~/Ti_16.npz")


@pytest.mark.parametrize("text", ["none.npz", "./none.npz", "a/none.keras"])
def test_no_such_file(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="none"):
        keras_augreg.ViT_Ti16(weights=text)


@pytest.mark.parametrize(
    "name",
    ["augreg-in21k", TI_16, TI_16 + ".npz"],
    ids=["alias", "name", "npz"],
)
def test_names_resolve_to_the_cache(ti_16, tmp_path, monkeypatch, name):
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path))
    monkeypatch.delenv("KERAS_AUGREG_MIRROR", raising=False)
    monkeypatch.setenv("KERAS_AUGREG_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        keras_augreg.ViT_Ti16(weights=name)
    path = tmp_path / "augreg" / f"{TI_16}.npz"
    for part in [str(path), "KERAS_AUGREG_OFFLINE", "https://storage"]:
        assert part in str(error.value)
    path.parent.mkdir()
    path.write_bytes(ti_16.read_bytes())
    assert keras_augreg.ViT_Ti16(weights=name).output_shape == (None, 10)


def test_a_name_of_another_architecture():
    with pytest.raises(ValueError, match="checkpoint of ViT_Ti16, not of"):
        keras_augreg.ViT_S16(weights=TI_16 + ".npz")


@pytest.mark.parametrize("name", ["augreg-in12k", "Ti_16-i21k", "imagenet"])
def test_unknown_names(name):
    with pytest.raises(
        ValueError, match=r"(?s)Unknown checkpoint.*augreg-in21k"
    ):
        keras_augreg.ViT_Ti16(weights=name)


def test_an_alias_that_the_architecture_lacks():
    with pytest.raises(ValueError, match="Aliases of ViT_L32: in21k"):
        keras_augreg.ViT_L32(weights="augreg-in21k")


def test_checksums_of_npz_are_read(save):
    """A flipped bit inside the numbers is found.

    `.safetensors` and `.weights.h5` have no checksums: there a number that
    changed to another finite number cannot be told from the right one.
    """
    path = save(release())
    with zipfile.ZipFile(path) as file:
        info = file.getinfo("head/kernel.npy")
    content = bytearray(path.read_bytes())
    content[info.header_offset + 300] ^= 1
    path.write_bytes(content)
    model = tiny()
    before = weights(model)
    with pytest.raises(ValueError, match=r"'head/kernel'.*CRC"):
        checkpoints.load(model, path)
    assert same(weights(model), before)
