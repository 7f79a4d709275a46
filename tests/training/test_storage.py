"""Checkpoints of a run: whole, or recognised as damaged."""

import io
import os
import sys

import keras
import numpy as np
import pytest

from keras_augreg.training import storage

pytestmark = pytest.mark.once

KEY = "model/0/kernel"
ARRAYS = {KEY: np.arange(6, dtype="float32").reshape(2, 3)}
VARIABLES = {KEY: keras.Variable(ARRAYS[KEY])}
MORE = {
    "half": keras.Variable(np.linspace(0, 1, 7), dtype="bfloat16"),
    "seed": keras.Variable([3, 4], dtype="uint32", trainable=False),
    "on": keras.Variable([True, False], dtype="bool", trainable=False),
    "one": keras.Variable(0.5),
}


def savez(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def with_step(step):
    """A checkpoint whose checksum is right and whose step is not."""
    content = {**ARRAYS, "step": np.asarray(step)}
    return savez(**content, checksum=storage._checksum(content))


def whole():
    return bytearray(with_step(np.int64(7)))


def save(engine, folder, variables=VARIABLES, step=7):
    path = engine.write(folder, step, engine.take(variables))
    engine.wait()
    return path


@pytest.mark.parametrize("engine", [storage._Npz, storage._Orbax])
def test_round_trip(tmp_path, engine):
    variables = VARIABLES | MORE
    path = save(engine(), tmp_path, variables)
    assert storage.checkpoints(tmp_path) == [path]
    for like in (variables, {}):
        arrays = storage.read(path, like)
        assert arrays.pop("step") == 7
        assert sorted(arrays) == sorted(variables)
        for key, variable in variables.items():
            want = np.asarray(variable.value)
            np.testing.assert_array_equal(np.asarray(arrays[key]), want)


@pytest.mark.parametrize("engine", [storage._Npz, storage._Orbax])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(engine, value):
    variables = {**VARIABLES, "bad": keras.Variable([[0.0, value]])}
    with pytest.raises(storage.NotFiniteError, match="bad"):
        engine().take(variables)


def test_checksums_of_numpy_and_jax_agree():
    rng = np.random.default_rng(0)
    for dtype in ("float32", "float16", "int8", "uint32", "bool"):
        array = rng.integers(0, 2, (3, 5, 2)).astype(dtype)
        wanted = storage._digests({"": array})
        assert storage._digests({"": keras.ops.array(array)}) == wanted
        array.reshape(-1).view("uint8")[-1] ^= 1
        assert storage._digests({"": array}) != wanted


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unreadable, EOFError"),
        (b"not a zip", "unreadable"),
        (bytes(whole()[:-100]), "unreadable, BadZipFile"),
        (bytes(whole()[:100]), "unreadable"),
        (savez(step=np.int64(7)), "lacks its checksum"),
        (savez(checksum=np.zeros(32, "uint8")), "lacks its checksum"),
        (savez(**ARRAYS, step=7, checksum=np.zeros(32)), "does not match"),
        (with_step(-1), "its step is array"),
        (with_step([7, 7]), "its step is array"),
        (with_step(7.0), "its step is array"),
        (with_step(2**62), "its name is not its step"),
        (with_step(8), "its name is not its step, 8"),
        (savez(step=np.array({}, dtype=object)), "unreadable, ValueError"),
    ],
)
def test_damage_is_recognised(tmp_path, content, message):
    file = tmp_path / "0000000007.npz"
    file.write_bytes(content)
    with pytest.raises(storage.DamagedError, match=message):
        storage.read(file, {})


def flipped(path, file, places):
    """Flips a byte after the other; returns how often that was recognised."""
    content = file.read_bytes()
    recognised = 0
    for i in places:
        damaged = bytearray(content)
        damaged[i] ^= 0x55
        file.write_bytes(damaged)
        try:
            arrays = storage.read(path, {})
        except storage.DamagedError:
            recognised += 1
        else:
            assert arrays["step"] == 7
            np.testing.assert_array_equal(arrays[KEY], ARRAYS[KEY])
    file.write_bytes(content)
    return recognised


def test_every_flipped_byte_is_harmless_or_recognised(tmp_path):
    """A flipped byte of zip's own bookkeeping may change nothing."""
    file = tmp_path / "0000000007.npz"
    file.write_bytes(whole())
    places = range(0, len(whole()), 3)
    assert flipped(file, file, places) > len(places) / 2


def test_every_flipped_byte_of_orbax_is_harmless_or_recognised(tmp_path):
    """Of a file that is not read again, too."""
    path = save(storage._Orbax(), tmp_path)
    recognised = 0
    for file in sorted(f for f in path.rglob("*") if f.is_file()):
        places = range(0, file.stat().st_size, 17)
        recognised += flipped(path, file, places)
    assert recognised > 20
    assert storage.read(path, {})["step"] == 7


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_neither_directories_nor_fifos_are_opened(tmp_path, make):
    file = tmp_path / "0000000007.npz"
    make(file)
    with pytest.raises(storage.DamagedError, match="not a regular file"):
        storage.read(file, {})
    path = save(storage._Orbax(), tmp_path)
    (path / "_METADATA").unlink()
    make(path / "_METADATA")
    with pytest.raises(storage.DamagedError, match=r"regular|unreadable"):
        storage.read(path, {})
    path.rename(tmp_path / "old")
    make(path)
    with pytest.raises(storage.DamagedError):
        storage.read(path, {})


def test_a_checkpoint_of_another_step(tmp_path):
    path = save(storage._Orbax(), tmp_path)
    with pytest.raises(storage.DamagedError, match="its name is not its step"):
        storage.read(path.rename(tmp_path / "0000000008"), {})


def test_what_unfinished_writes_left_is_deleted(tmp_path):
    path = save(storage._Npz(), tmp_path)
    (tmp_path / "0000000012.tmp").write_bytes(b"half")
    os.mkfifo(tmp_path / "0000000016.tmp")
    (tmp_path / f"0000000013{storage.UNFINISHED}-1" / "d").mkdir(parents=True)
    storage.clean(tmp_path)
    left = {p for p in tmp_path.iterdir() if not p.name.endswith(".damaged")}
    assert left == {path}


def test_without_orbax(tmp_path, monkeypatch):
    path = save(storage._Orbax(), tmp_path)
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    assert isinstance(storage.engine(), storage._Npz)
    with pytest.raises(ImportError, match="pip install orbax-checkpoint"):
        storage.read(path, {})


def test_failures_of_tensorstore_are_os_errors(tmp_path, monkeypatch):
    engine = storage._Orbax()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match=r"Not a directory|cannot be written"):
        save(engine, tmp_path / "file")
