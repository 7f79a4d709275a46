"""Bad input: a `ValueError` that names file, array, found and expected.

The model stays as it was, nothing is unpickled, and memory stays bounded.
"""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import random
import re
import struct
import tracemalloc
import zipfile

import h5py
import keras
import numpy as np
import pytest
from _checkpoints import (
    CLASSES,
    HYBRID,
    hybrid,
    make_npz,
    release,
    timm,
    tiny,
    weights,
)
from _hostile import CHECKED, KINDS, attempt, contents, mutate, rewrite

import keras_augreg
from keras_augreg import checkpoints
from keras_augreg.checkpoints.archive import MAX_ARRAY_BYTES

safetensors = pytest.importorskip("safetensors.numpy")

# Files are read with NumPy, and no weight is assigned before all is well.
pytestmark = pytest.mark.once

HEAD = "head/kernel"
MEGABYTE = 2**20


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def sound(model, tmp_path_factory):
    """Sound files, by kind."""
    folder = tmp_path_factory.mktemp("sound")
    return {kind: contents(kind, model, folder) for kind in KINDS}


@pytest.fixture
def refused(model, tmp_path):
    """Asserts that bytes are refused, with what the message has to say."""

    def check(content, *parts, suffix=".npz"):
        path = tmp_path / f"bad{suffix}"
        path.write_bytes(content)
        before = weights(model)
        with pytest.raises(ValueError, match=re.escape(str(path))) as error:
            checkpoints.load(model, path)
        after = weights(model)
        for name, array in before.items():
            assert array.tobytes() == after[name].tobytes(), name
        for part in (str(path), *parts):
            assert part in str(error.value)
        # For people: no traceback of 10,000 numbers.
        assert len(str(error.value)) < 2000
        return str(error.value)

    return check


def npz(arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def changed(name, array):
    return npz({**release(), name: array})


def array_bytes(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


def header(shape, dtype="<f4", version=1, text=None):
    """The header of a `.npy` that may lie."""
    text = text or (
        f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}"
    )
    text = text.encode("latin1") + b"\n"
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text


@pytest.mark.parametrize("name", sorted(release()))
def test_missing_array(refused, name):
    arrays = release()
    del arrays[name]
    # A query, key or value is looked for as what all three are stacked from.
    message = refused(npz(arrays), name)
    assert "missing" in message or "lacks" in message


@pytest.mark.parametrize("name", sorted(release((1,))))
def test_missing_array_of_a_hybrid(tmp_path, name):
    arrays = release((1,))
    del arrays[name]
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    model = hybrid(stages=(1,), input_shape=(16, 16, 3))
    with pytest.raises(ValueError, match=r"bad\.npz") as error:
        checkpoints.load(model, path)
    # Without its kernels a stem is none, or a stage shorter.
    if name in ("conv_root/kernel", "block1/unit1/conv1/kernel"):
        assert "another architecture" in str(error.value)
        assert "stages=" in str(error.value)
    else:
        assert name in str(error.value)


@pytest.mark.parametrize(
    "name", ["momentum", "Transformer/encoderblock_0/LayerNorm_7/scale",
             "block1/unit1/conv1/kernel", "../cls"],
)  # fmt: skip
def test_additional_array(refused, name):
    refused(changed(name, np.zeros(3, "f4")), name, "also holds", "exactly")


def test_an_array_under_two_names(refused):
    name = "Transformer/encoderblock_0/LayerNorm_1/scale"
    refused(
        changed(name, np.zeros(12, "f4")),
        name, name.replace("_1/", "_2/"), "same weight",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (HEAD, (12, 6)), (HEAD, (5, 12)), (HEAD, (60,)), (HEAD, ()),
        ("cls", (12,)), ("cls", (1, 1, 13)), ("head/bias", (1, 5)),
        ("Transformer/encoderblock_1/MlpBlock_3/Dense_0/kernel", (20, 12)),
        ("Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias",
         (4, 3)),
        ("Transformer/posembed_input/pos_embedding", (17, 12)),
        ("Transformer/posembed_input/pos_embedding", (1, 17, 11)),
        ("Transformer/posembed_input/pos_embedding", (2, 17, 12)),
        ("embedding/kernel", (48, 12)),
        ("embedding/bias", (0,)),
    ],
)  # fmt: skip
def test_wrong_shape(refused, name, shape):
    message = refused(changed(name, np.zeros(shape, "f4")), name, str(shape))
    assert "expected" in message


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        (16, ["16", "no square grid", "4 x 4"]),
        (1, ["1 rows", "expected", "one for a patch"]),
        (0, ["0 rows"]),
    ],
)
def test_wrong_number_of_positions(refused, rows, parts):
    name = "Transformer/posembed_input/pos_embedding"
    refused(changed(name, np.zeros((1, rows, 12), "f4")), *parts)


@pytest.mark.parametrize(
    "dtype",
    ["int8", "int32", "int64", "uint16", "bool", "complex64", "complex128",
     "S4", "U2", "V4", "V1", "datetime64[s]", "f4,f4"],
)  # fmt: skip
def test_wrong_dtype(refused, dtype):
    array = np.zeros((12, CLASSES), dtype)
    refused(changed(HEAD, array), HEAD, str(array.dtype), "float32")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_not_finite(refused, value, dtype):
    array = release()[HEAD].astype(dtype)
    array[7, 3] = value
    refused(changed(HEAD, array), HEAD, str(value), "[7, 3]", "finite")


def test_not_finite_in_bfloat16(refused):
    raw = {
        name: (array.view("<u4") >> 16).astype("<u2").view("V2")
        for name, array in release().items()
    }
    raw[HEAD] = np.full((12, CLASSES), 0x7F80, "<u2").view("V2")
    refused(npz(raw), HEAD, "inf")


def test_infinite_as_float32(refused):
    array = release()[HEAD].astype("float64")
    array[0, 0] = 1e300
    refused(changed(HEAD, array), HEAD, "inf")


def test_large_but_finite(model, tmp_path):
    """A sum that overflows does not mean infinite numbers."""
    path = tmp_path / "large.npz"
    path.write_bytes(changed(HEAD, np.full((12, CLASSES), 3e38, "f4")))
    assert attempt(model, path) == "loaded"


@pytest.mark.parametrize("kind", KINDS)
def test_truncated(refused, sound, kind):
    content = sound[kind]
    rng = random.Random(kind)
    cuts = {1, 4, 8, 30, len(content) // 2, len(content) - 1}
    cuts |= {rng.randrange(1, len(content)) for _ in range(15)}
    for cut in cuts:
        refused(content[:cut], suffix=f".{kind.split()[0]}")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".h5", ".keras"])
def test_empty_and_garbage(refused, suffix):
    refused(b"", "empty", suffix=suffix)
    refused(b"<html>404 Not Found</html>" * 99, "cannot read", suffix=suffix)
    refused(random.Random(0).randbytes(5000), "cannot read", suffix=suffix)
    refused(bytes(5000), suffix=suffix)


def test_other_extensions(refused, sound):
    refused(sound["npz"], "'.ckpt'", ".safetensors", suffix=".ckpt")
    refused(sound["npz"], suffix=".safetensors")
    refused(sound["safetensors"], "zip", suffix=".npz")


def test_folder(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file"):
        checkpoints.load(model, tmp_path)


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


def test_nothing_is_unpickled(refused, tmp_path):
    trap = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(_Trap(trap)))
    assert trap.exists()  # the trap works
    trap.unlink()
    array = np.full((12, CLASSES), _Trap(trap), object)
    refused(changed(HEAD, array), HEAD, "pickled", "never")
    refused(pickle.dumps(_Trap(trap)), "zip")
    entry = np.full(3, _Trap(trap), object)
    refused(
        rewrite(npz(release()), **{"extra.npy": array_bytes_of(entry)}),
        "pickled",
    )
    refused(
        rewrite(npz(release()), **{"cls.npy": pickle.dumps(_Trap(trap))}),
        "'cls'",
    )
    assert not trap.exists()


def array_bytes_of(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.fixture
def memory():
    """Asserts that no more than 32 MB are taken."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * MEGABYTE


@pytest.mark.parametrize(
    "shape",
    [
        "(1000000, 1000000)",
        f"({MAX_ARRAY_BYTES},)",
        "(-1, -60)",
        "(-60,)",
        f"(1{'0' * 4000}, 1{'0' * 4000})",
        f"({'1,' * 40})",
        "(True, 60)",
        "(12.0, 5)",
        "12",
    ],
)
def test_absurd_shape(refused, memory, shape):
    data = header(shape) + bytes(4 * 60)
    refused(rewrite(npz(release()), **{"head/kernel.npy": data}), HEAD)


@pytest.mark.parametrize(
    "text",
    ["{" * 9000, "(" * 3000, "-" * 9000 + "1", "[]", "", "{'descr': '<f4'}",
     "__import__('os').system('true')", "{'descr': '<f4', 'fortran_order': 3, "
     "'shape': (12, 5)}", "{'descr': ('<f4', (9, 9)), 'fortran_order': False, "
     "'shape': (12, 5)}", "\0\0"],
)  # fmt: skip
def test_absurd_array_header(refused, memory, text):
    data = header(None, text=text or " ") + bytes(4 * 60)
    refused(rewrite(npz(release()), **{"head/kernel.npy": data}), HEAD)


@pytest.mark.parametrize("version", [0, 2, 3, 255])
def test_array_header_of_four_gigabytes(refused, memory, version):
    """Version 2 has a length of 4 bytes, which NumPy would read at once."""
    data = b"\x93NUMPY" + bytes([version, 0]) + b"\xff\xff\xff\xf0" + bytes(999)
    refused(rewrite(npz(release()), **{"head/kernel.npy": data}), HEAD)


def test_version_2_is_read(model, tmp_path):
    data = header((12, CLASSES), version=2) + release()[HEAD].tobytes()
    path = tmp_path / "version2.npz"
    path.write_bytes(rewrite(npz(release()), **{"head/kernel.npy": data}))
    assert attempt(model, path) == "loaded"


def deflated(name, chunks):
    """An entry that unpacks to far more than it takes."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open(name, "w", force_zip64=True) as entry:
            for chunk in chunks:
                entry.write(chunk)
        for other, array in release().items():
            if f"{other}.npy" != name:
                archive.writestr(f"{other}.npy", array_bytes(array))
    return file.getvalue()


@pytest.mark.parametrize("rows", [50_000_000, 10_000_000])
def test_deflate_bomb(refused, rows):
    """1 MB that unpacks to 1 GB: refused by its shape, unread."""
    chunks = [header((rows, CLASSES)), *[bytes(rows * 4)] * CLASSES]
    content = deflated("head/kernel.npy", chunks)
    del chunks
    assert len(content) < rows * 20 / 900
    tracemalloc.start()
    refused(content, HEAD, str((rows, CLASSES)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * MEGABYTE


def test_deflate_bomb_in_keras(refused):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.weights.h5", bytes(200 * MEGABYTE))
    tracemalloc.start()
    refused(file.getvalue(), "claims 209,715,200 bytes", suffix=".keras")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 32 * MEGABYTE


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression(refused, method):
    """They unpack a block at a time, however large it is."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, array in release().items():
            archive.writestr(f"{name}.npy", array_bytes(array))
    refused(file.getvalue(), "method", "deflate")


def test_lengths_that_lie(refused, sound):
    """The directory promises fewer or more bytes than the entry has."""
    content = sound["npz"]
    size = struct.pack("<I", 128 + 60 * 4)
    directory = content.index(b"PK\x01\x02")
    at = content.index(b"head/kernel.npy", directory)
    assert content[at - 22 : at - 18] == size
    for lie in (128, 128 + 59 * 4, 128 + 61 * 4, 2**31 - 1):
        data = bytearray(content)
        data[at - 22 : at - 18] = struct.pack("<I", lie)
        refused(bytes(data), HEAD)


def test_an_entry_cannot_hide_in_the_comment_of_another(refused):
    """Without the grid, 2 x 8 patches would be taken for 4 x 4."""
    data = bytearray(npz({**release(), "patch_grid": [2, 8]}))
    name = b"head/kernel.npy"
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"patch_grid.npy") - 46)
    assert data[at + 46 : at + 46 + len(name)] == name
    data[at + 32 : at + 34] = (46 + len("patch_grid.npy")).to_bytes(2, "little")
    refused(bytes(data), "head/kernel", "comment")


def test_repeated_entry(refused, sound):
    file = io.BytesIO(sound["npz"])
    with (
        zipfile.ZipFile(file, "a") as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("cls.npy", array_bytes(np.ones((1, 1, 12), "f4")))
    refused(file.getvalue(), "repeated", "'cls.npy'")


def test_entry_that_is_not_an_array(refused, sound):
    refused(rewrite(sound["npz"], **{"README": b"hello"}), "'README'")
    refused(rewrite(sound["npz"], **{"cls.npy": b"hello"}), "'cls'")
    refused(rewrite(sound["npz"], **{"cls.npy": b""}), "'cls'")


def test_encrypted(refused, sound):
    data = bytearray(sound["npz"])
    at = 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        data[at + 8] |= 1
        at += 4
    refused(bytes(data), "password")


@pytest.mark.parametrize("kind", ["npz", "npz compressed", "keras"])
def test_flipped_bits_are_found(refused, sound, kind):
    """Formats with checksums. `.safetensors` and `.weights.h5` have none."""
    content = sound[kind]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = "model.weights.h5" if kind == "keras" else "head/kernel.npy"
        info = archive.getinfo(name)
    start = info.header_offset + 30 + len(name) + 20
    rng = random.Random(kind)
    for _ in range(10):
        data = bytearray(content)
        at = rng.randrange(start, start + info.compress_size - 30)
        data[at] ^= 1 << rng.randrange(8)
        refused(bytes(data), suffix=f".{kind.split()[0]}")


@pytest.mark.parametrize(
    ("model_name", "builder", "found"),
    [
        ("S_32", "ViT_Ti16", "keras_augreg.ViT_S32"),
        ("Ti_32", "ViT_Ti16", "keras_augreg.ViT_Ti32"),
        ("Ti_16", "ViT_S16", "keras_augreg.ViT_Ti16"),
        ("R_Ti_16", "ViT_Ti16", "keras_augreg.R_ViT_Ti16"),
        ("Ti_16", "R_ViT_Ti16", "keras_augreg.ViT_Ti16"),
        ("R26_S_32", "ViT_S32", "keras_augreg.R26_ViT_S32"),
        ("R26_S_32", "R26_ViT_B32", "keras_augreg.R26_ViT_S32"),
    ],
)
def test_another_architecture(tmp_path, model_name, builder, found):
    """Nothing but the headers is read, and no model is built."""
    path = tmp_path / "other.npz"
    np.savez(path, **dict(make_npz.arrays(model_name, 0, 2, 32)))
    with pytest.raises(ValueError, match="another architecture") as error:
        getattr(keras_augreg, builder)(weights=path)
    for part in (str(path), builder, found, "instead of"):
        assert part in str(error.value)


@pytest.mark.parametrize("kind", ["safetensors", "weights.h5", "keras"])
def test_another_architecture_in_other_files(sound, tmp_path, kind):
    path = tmp_path / f"tiny.{kind}"
    path.write_bytes(sound[kind])
    with pytest.raises(ValueError, match="width=12 instead of 192"):
        keras_augreg.ViT_Ti16(weights=path)
    other = tiny(depth=3)
    with pytest.raises(ValueError, match="depth=2 instead of 3"):
        checkpoints.load(other, path)


@pytest.mark.parametrize("suffix", ["weights.h5", "keras"])
def test_another_stem_in_files_of_keras(tmp_path, suffix):
    path = tmp_path / f"hybrid.{suffix}"
    model = hybrid()
    (model.save if suffix == "keras" else model.save_weights)(path)
    other = hybrid(stages=(1, 2))
    with pytest.raises(
        ValueError, match=r"stages=\(2, 1\) instead of \(1, 2\)"
    ):
        checkpoints.load(other, path)
    assert HYBRID["stages"] == (2, 1)


def test_class_token_contradicts(tmp_path):
    path = tmp_path / "token.npz"
    np.savez(path, **release())
    with pytest.raises(ValueError, match="class_token=True"):
        checkpoints.load(tiny(class_token=False), path)


@pytest.mark.parametrize("shape", [(100, 96, 3), (96, 100, 3), (8, 8, 3)])
def test_resolution_that_the_stride_does_not_divide(tmp_path, shape):
    path = tmp_path / "Ti_16.npz"
    np.savez(path, **dict(make_npz.arrays("Ti_16", 0, 2, 32)))
    with pytest.raises(ValueError, match="stride") as error:
        keras_augreg.ViT_Ti16(weights=path, input_shape=shape)
    for part in ("16", str(shape), "near"):
        assert part in str(error.value)


def safetensors_file(entries, data=b"", length=None):
    text = (
        entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    )
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(3,), offsets=(0, 12)):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file({}, length=2**63),
        safetensors_file({}, length=2**64 - 1),
        safetensors_file({}, length=1),
        safetensors_file({}, length=3),
        safetensors_file(b"{'a': 1}"),
        safetensors_file(b"[1, 2]"),
        safetensors_file(b"7"),
        safetensors_file(b"\xff\xfe"),
        safetensors_file(b"[" * 100_000),
        safetensors_file({"a": 1}),
        safetensors_file({"a": {}}),
        safetensors_file({"a": None}),
        safetensors_file({"a": entry("I64", (3,), (0, 24))}, bytes(24)),
        safetensors_file({"a": entry("F8_E4M3", (3,), (0, 3))}, bytes(3)),
        safetensors_file({"a": entry(7)}, bytes(12)),
        safetensors_file({"a": entry([])}, bytes(12)),
        safetensors_file({"a": entry(shape="3")}, bytes(12)),
        safetensors_file({"a": entry(shape=3)}, bytes(12)),
        safetensors_file({"a": entry(shape=(3.0,))}, bytes(12)),
        safetensors_file({"a": entry(shape=(-1, -3))}, bytes(12)),
        safetensors_file({"a": entry(shape=(2**40, 2**40))}, bytes(12)),
        safetensors_file({"a": entry(shape=(10**4000,))}, bytes(12)),
        safetensors_file({"a": entry(offsets=(0, 13))}, bytes(13)),
        safetensors_file({"a": entry(offsets=(1, 13))}, bytes(13)),
        safetensors_file({"a": entry(offsets=(-12, 0))}, bytes(12)),
        safetensors_file({"a": entry(offsets=(0,))}, bytes(12)),
        safetensors_file({"a": entry(offsets="ab")}, bytes(12)),
        safetensors_file({"a": entry()}, bytes(11)),
        safetensors_file({"a": entry()}, bytes(13)),
        safetensors_file({"a": entry(), "b": entry()}, bytes(12)),
        safetensors_file({"a": entry(), "b": entry("F32", (3,), (8, 20))},
                         bytes(20)),
        safetensors_file({"a": entry(), "b": entry("F32", (3,), (16, 28))},
                         bytes(28)),
        safetensors_file({"a": entry(offsets=(0, 1e400))}, bytes(12)),
        safetensors_file({}, b""),
        safetensors_file({"a": entry()}, bytes(12)),
    ],
)  # fmt: skip
def test_hostile_safetensors(refused, memory, content):
    refused(content, suffix=".safetensors")


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("head.weight", np.zeros((12, CLASSES), "f4")),
        ("blocks.0.attn.qkv.weight", np.zeros((36, 11), "f4")),
        ("head.bias", np.zeros(CLASSES, "i8")),
        ("norm.bias", np.full(12, np.nan, "f4")),
        ("fc_norm.weight", np.zeros(12, "f4")),
    ],
)
def test_wrong_arrays_in_safetensors(refused, name, array):
    content = safetensors.save({**timm(release()), name: array})
    refused(content, name, suffix=".safetensors")


@pytest.mark.parametrize(
    "name", ["cls_token", "head.bias", "blocks.1.mlp.fc2.weight", "pos_embed"]
)
def test_missing_arrays_in_safetensors(refused, name):
    arrays = timm(release())
    del arrays[name]
    refused(safetensors.save(arrays), name, suffix=".safetensors")


@pytest.fixture
def edited(sound, tmp_path):
    """A `.weights.h5` after `edit(file)`."""

    def make(edit):
        path = tmp_path / "edited.h5"
        path.write_bytes(sound["weights.h5"])
        with h5py.File(path, "r+") as file:
            edit(file)
        return path.read_bytes()

    return make


def replace(file, name, *args, **kwargs):
    del file[name]
    file.create_dataset(name, *args, **kwargs)


DENSE = "layers/dense/vars/0"


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda f: f.__delitem__(DENSE), ["dense/vars/0"]),
        (lambda f: f.create_dataset("layers/x", data=[1.0]), ["layers/x"[7:]]),
        (lambda f: replace(f, DENSE, data=np.zeros((5, 12), "f4")),
         [DENSE, "(5, 12)", "(12, 5)"]),
        (lambda f: replace(f, DENSE, data=np.zeros((12, 5), "i4")),
         [DENSE, "int32"]),
        (lambda f: replace(f, DENSE, data=["a"]), [DENSE, "object"]),
        (lambda f: replace(f, DENSE, data=h5py.Empty("f4")), [DENSE]),
        (lambda f: replace(f, DENSE, data=np.full((12, 5), np.inf, "f4")),
         [DENSE, "inf"]),
        # 64 TB that take no space in the file.
        (lambda f: replace(f, DENSE, (2**22, 2**22), "f4", chunks=(64, 64)),
         [DENSE, "expected"]),
        (lambda f: replace(f, DENSE, (12, 5), "f4",
                           external=[("/etc/passwd", 0, 240)]),
         [DENSE, "another file"]),
        (lambda f: f.__setitem__(DENSE + "x", h5py.ExternalLink("/a", "b")),
         None),
        (lambda f: f.__delitem__("layers"), ["missing"]),
    ],
)  # fmt: skip
def test_bad_files_of_keras(
    refused, memory, edited, model, tmp_path, edit, parts
):
    content = edited(edit)
    if parts is None:  # a link that is not followed does no harm
        path = tmp_path / "link.h5"
        path.write_bytes(content)
        assert attempt(model, path) == "loaded"
    else:
        refused(content, *parts, suffix=".h5")


def test_keras_file_without_weights(refused):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("config.json", "{}")
    refused(file.getvalue(), "model.weights.h5", suffix=".keras")


def test_another_keras_model(tmp_path):
    path = tmp_path / "dense.weights.h5"
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    other.save_weights(path)
    with pytest.raises(ValueError, match="missing, expected in every"):
        checkpoints.load(tiny(), path)


@pytest.mark.parametrize("kind", KINDS)
def test_mutations(sound, tmp_path, model, kind):
    """40 of each kind; `fuzz.py` does thousands."""
    path = tmp_path / f"damaged.{kind.split()[0]}"
    path.write_bytes(sound[kind])
    assert attempt(model, path) == "loaded"
    expected = weights(model) if kind in CHECKED else None
    results = []
    for i in range(40):
        path.write_bytes(mutate(sound[kind], random.Random(f"{kind} {i}")))
        results.append(attempt(model, path, expected))
    assert "refused" in results


def test_no_file_stays_open(sound, model, tmp_path, refused):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    path = tmp_path / "good.npz"
    path.write_bytes(sound["npz"])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        checkpoints.load(model, path)
        refused(sound["npz"][:-9])
    assert len(os.listdir("/proc/self/fd")) <= before
