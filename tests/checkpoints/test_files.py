"""Cache, mirror and offline mode: where files are looked for."""

from __future__ import annotations

import pathlib

import pytest

from keras_augreg.checkpoints import download, files

pytestmark = pytest.mark.once

NAME = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
PATH = f"augreg/{NAME}.npz"
OLDER = "imagenet21k/R50+ViT-B_16"
BUCKET = "https://storage.googleapis.com/vit_models"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and the defaults otherwise."""
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERAS_AUGREG_MIRROR", raising=False)
    monkeypatch.delenv("KERAS_AUGREG_OFFLINE", raising=False)
    return tmp_path / "cache"


def test_defaults(monkeypatch):
    monkeypatch.delenv("KERAS_AUGREG_CACHE")
    assert files.cache_dir() == pathlib.Path.home() / ".cache/keras_augreg"
    assert files.mirror() == BUCKET
    assert not files.offline()
    assert files.url(f"{OLDER}.npz") == f"{BUCKET}/{OLDER}.npz".replace(
        "+", "%2B"
    )


def test_cache(cache):
    assert files.local(PATH) is None
    (cache / PATH).parent.mkdir(parents=True)
    (cache / PATH).write_bytes(b"")
    assert files.local(PATH) == download(NAME) == cache / PATH


def test_a_bucket_as_mirror(monkeypatch):
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", "gs://ours/weights/")
    address = "https://storage.googleapis.com/ours/weights"
    assert files.mirror() == address
    assert files.url("augreg/a.npz") == f"{address}/augreg/a.npz"


@pytest.mark.parametrize("place", ["augreg/", ""])
def test_mirror_directory(monkeypatch, tmp_path, place):
    mirror = tmp_path / "mirror"
    (mirror / "augreg").mkdir(parents=True)
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", str(mirror))
    with pytest.raises(FileNotFoundError, match=f"nor at {mirror}/"):
        download(NAME)
    path = mirror / f"{place}{NAME}.npz"
    path.write_bytes(b"")
    assert download(NAME) == files.local(PATH) == path


def test_older_files_need_their_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", str(tmp_path))
    (tmp_path / "R50+ViT-B_16.npz").write_bytes(b"")
    assert files.local(f"{OLDER}.npz") is None
    (tmp_path / "imagenet21k").mkdir()
    (tmp_path / f"{OLDER}.npz").write_bytes(b"")
    assert files.local(f"{OLDER}.npz") == tmp_path / f"{OLDER}.npz"


def test_offline(monkeypatch, cache):
    monkeypatch.setenv("KERAS_AUGREG_OFFLINE", "1")
    with pytest.raises(FileNotFoundError) as error:
        download(NAME)
    for part in (
        "OFFLINE=1",
        f"not at {cache / PATH}",
        f"python -m keras_augreg.checkpoints {NAME}",
        f"{BUCKET}/{PATH}",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("KERAS_AUGREG_OFFLINE", "yes", "expected 0 or 1"),
        ("KERAS_AUGREG_MIRROR", "/nowhere", "expected a directory, an http"),
        ("KERAS_AUGREG_MIRROR", "ftp://x", "expected a directory, an http"),
    ],
)
def test_bad_settings(monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable}='{value}': {message}"):
        download(NAME)
