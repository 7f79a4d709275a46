"""Converted weights in the cache: never other weights than the `.npz` has."""

from __future__ import annotations

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from _checkpoints import (
    HYBRID,
    big_vision,
    hybrid,
    release,
    same,
    tiny,
    weights,
)

import keras_augreg
from keras_augreg import checkpoints
from keras_augreg.checkpoints import converted, files

pytestmark = pytest.mark.once

HERE = pathlib.Path(__file__).parent
NAME = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERAS_AUGREG_CONVERTED", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path):
    np.savez(tmp_path / f"{NAME}.npz", **release())
    return tmp_path / f"{NAME}.npz"


@pytest.fixture
def path(cache):
    return cache / "converted" / f"{NAME}.converted"


@pytest.fixture
def conversions(monkeypatch):
    """The files that were converted."""
    done = []
    real = converted._convert

    def spy(contents):
        done.append(contents.archive.path)
        return real(contents)

    monkeypatch.setattr(converted, "_convert", spy)
    return done


def loaded(source, build=tiny, **kwargs):
    """Weights of a model that were loaded by way of the cache."""
    model = build(**kwargs)
    checkpoints.load(model, converted.open_release(source))
    return weights(model)


def right(source, build=tiny, **kwargs):
    model = build(**kwargs)
    checkpoints.load(model, source)
    return weights(model)


@pytest.mark.parametrize(
    "kwargs", [{}, {"input_shape": (24, 40, 3)}], ids=["own", "other"]
)
def test_the_second_load_converts_nothing(
    cache, source, path, conversions, kwargs
):
    expected = right(source, **kwargs)
    assert same(loaded(source, **kwargs), expected)
    assert path.is_file()
    assert same(loaded(source, **kwargs), expected)
    assert conversions == [source]
    assert sorted(p.suffix for p in path.parent.iterdir()) == [
        ".converted",
        ".lock",
    ]


def test_a_hybrid(cache, tmp_path, conversions):
    source = tmp_path / "hybrid.npz"
    np.savez(source, **release(HYBRID["stages"], grid=(2, 2)))
    kwargs = {"input_shape": (32, 32, 3)}
    for _ in range(2):
        assert same(
            loaded(source, hybrid, **kwargs), right(source, hybrid, **kwargs)
        )
    assert conversions == [source]


def test_a_new_head(cache, source):
    model = tiny(classes=3)
    before = np.array(model.get_layer("head").kernel)
    for _ in range(2):
        checkpoints.load(model, converted.open_release(source), head="new")
    assert np.array_equal(model.get_layer("head").kernel, before)
    with pytest.raises(ValueError, match=f"{NAME}.npz has 5 classes"):
        checkpoints.load(model, converted.open_release(source))


@pytest.mark.parametrize("keep", ["mtime", "size"])
def test_another_file_under_the_name(cache, source, conversions, keep):
    loaded(source)
    before = source.stat()
    arrays = release(seed=1)
    if keep == "mtime":
        del arrays["head/kernel"], arrays["head/bias"]
    np.savez(source, **arrays)
    if keep == "mtime":
        os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
        model = tiny(include_top=False, classes=None)
        checkpoints.load(model, converted.open_release(source))
        other = tiny(include_top=False, classes=None)
        checkpoints.load(other, source)
        assert same(weights(model), weights(other))
    else:
        assert same(loaded(source), right(source))
    assert len(conversions) == 2


def test_a_damaged_file_is_replaced(cache, source, path, conversions):
    expected = right(source)
    loaded(source)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [b"", whole[:8], whole[:-8], whole[:-3], whole + bytes(8)]
    for bit in [*range(0, 256, 5), *rng.integers(0, 8 * len(whole), 50)]:
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        damaged.append(bytes(content))
    for number, content in enumerate(damaged, 2):
        path.write_bytes(content)
        assert same(loaded(source), expected)
        assert path.read_bytes() == whole
        assert len(conversions) == number


def test_turned_off(cache, source, path, monkeypatch):
    monkeypatch.setenv("KERAS_AUGREG_CONVERTED", "0")
    assert same(loaded(source), right(source))
    assert not cache.exists()
    monkeypatch.setenv("KERAS_AUGREG_CONVERTED", "no")
    with pytest.raises(ValueError, match="CONVERTED='no': expected 0 or 1"):
        converted.open_release(source)


def test_a_full_disk(cache, source, path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.warns(UserWarning, match=r"No space left.*Make room"):
            assert same(loaded(source), right(source))
    assert [p.suffix for p in path.parent.iterdir()] == [".lock"]
    loaded(source)
    assert path.is_file()


def test_a_cache_that_cannot_be_written(cache, source):
    cache.write_text("a file, no directory")
    with pytest.warns(UserWarning, match="KERAS_AUGREG_CONVERTED=0"):
        assert same(loaded(source), right(source))


def test_a_hidden_layer_before_the_head_is_not_kept(cache, tmp_path):
    arrays = release()
    arrays["pre_logits/kernel"] = np.zeros((12, 12), "f4")
    arrays["pre_logits/bias"] = np.zeros(12, "f4")
    np.savez(tmp_path / "older.npz", **arrays)
    contents = converted.open_release(tmp_path / "older.npz")
    assert contents.archive.kind == "npz"
    assert not cache.exists()


def test_only_the_release_s_names_are_kept(cache, source, monkeypatch):
    monkeypatch.setattr(files, "fetch", lambda name: source)
    with pytest.raises(ValueError, match="another architecture"):
        keras_augreg.ViT_Ti16(weights=str(source))
    assert not cache.exists()
    with pytest.raises(ValueError, match="another architecture"):
        keras_augreg.ViT_Ti16(weights=NAME)
    assert cache.exists()


CHILD = """
import os, pathlib, sys, time
from keras_augreg.checkpoints import converted

real, fsync = converted._convert, os.fsync
source, log, seconds = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]

def convert(contents):
    words = real(contents)
    with open(log, "a") as file:
        file.write("converted\\n")
    return words

def slow(file):
    time.sleep(float(seconds))
    fsync(file)

converted._convert, os.fsync = convert, slow
contents = converted.open_release(source)
array = contents.archive.read(contents.names["dense/vars/0"])
print(float(array.astype("f8").sum()))
"""


def child(source, log, seconds):
    # Without a backend, which takes seconds to start.
    setup = f"import sys; sys.path.insert(0, {str(HERE)!r})\n"
    setup += "import _child; _child.files()\n"
    return subprocess.Popen(
        [sys.executable, "-c", setup + CHILD, source, log, str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_four_processes_convert_once(cache, source, tmp_path):
    log = tmp_path / "log"
    children = [child(source, log, 0.3) for _ in range(4)]
    sums = [float(process.communicate()[0]) for process in children]
    assert sums == [float(release()["head/kernel"].astype("f8").sum())] * 4
    assert log.read_text() == "converted\n"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_while_writing(cache, source, path, tmp_path, conversions):
    log = tmp_path / "log"
    with child(source, log, 60) as process:
        deadline = time.monotonic() + 30
        while not (part := path.with_name(path.name + ".part")).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert not path.exists()
    assert same(loaded(source), right(source))
    assert conversions == [source]
    assert not part.exists()
    assert same(loaded(source), right(source))
    assert conversions == [source]


def test_a_position_embedding_without_the_class_token(cache, tmp_path):
    # big_vision's dialect, should the bucket ever hold it.
    source = tmp_path / "big_vision.npz"
    np.savez(source, **big_vision(release()))
    for _ in range(2):
        assert same(loaded(source), right(source))
    assert converted.open_release(source).archive.kind == "npz"
    assert not cache.exists()
