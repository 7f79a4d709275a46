"""Names of data sets, and the splits that are used."""

from __future__ import annotations

import sys

import keras
import pytest
from _photos import write_folder

from keras_augreg import data
from keras_augreg.data import locate, tfds

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("pets", "pets"),
        ("oxford_iiit_pet", "pets"),
        ("oxford_flowers102", "flowers"),
        ("imagenet2012", "imagenet-1k"),
        ("cifar100", "cifar-100"),
        ("cifar10", "cifar-10"),
        ("kitti", "kitti-distance"),
        ("vtab_dtd", "vtab-dtd"),
        ("Pets", "pets"),
        ("CIFAR10", "cifar-10"),
    ],
)
def test_every_name_of_a_data_set_reaches_its_row(name, row):
    location = locate.locate(name, None)
    assert location.row is data.DATASETS[row]
    assert (location.path, location.kind) == (data.DATASETS[row].tfds, "tfds")


@pytest.mark.parametrize("name", ["digits", "Digits", "DIGITS"])
def test_bundled_data_in_any_case(name, tmp_path, monkeypatch, caplog):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    location = locate.locate(name, None)
    assert (location.path, location.kind) == ("digits", "bundled")
    assert location.row.crop == "resize"
    (message,) = caplog.messages
    assert f"pathlib.Path({name!r})" in message


@pytest.mark.parametrize("name", ["imagenet-21k", "i21k", "imagenet21k"])
def test_imagenet_21k_is_a_folder_of_the_user(name, tmp_path):
    location = locate.locate(name, tmp_path)
    assert location.row is data.DATASETS["imagenet-21k"]
    assert (location.path, location.kind) == (str(tmp_path), "folder")


def test_other_names_belong_to_tfds():
    location = locate.locate("dtd", None)
    assert (location.path, location.row.crop) == ("dtd", "inception")


def test_a_name_wins_over_a_folder_and_says_so(tmp_path, monkeypatch, caplog):
    (tmp_path / "pets").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate.locate("pets", None).kind == "tfds"
    (message,) = caplog.messages
    assert "'pets' is a data set's name and a folder" in message
    assert "pathlib.Path('pets')" in message


def test_home_directories(tmp_path, monkeypatch):
    root = write_folder(tmp_path / "photos")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert locate.locate("~/photos", None).path == str(root)
    assert locate.locate("i21k", "~/photos").path == str(root)
    with pytest.raises(ValueError, match=r"No folder '/.*nothing"):
        locate.locate("~/nothing", None)


def test_a_source_is_located_once(tmp_path, monkeypatch):
    probes = []
    real = tfds.is_prepared_directory
    monkeypatch.setattr(
        tfds,
        "is_prepared_directory",
        lambda path: probes.append(path) or real(path),
    )
    root = write_folder(tmp_path, 2)
    data.load(root, "train", image_size=8, batch_size=2, training=True)
    assert probes == [str(root)]


@pytest.mark.parametrize("name", ["nofolder", "nofolder/"])
def test_a_mistyped_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_folder").mkdir()
    arguments = {"image_size": 8, "batch_size": 2, "training": True}
    with pytest.raises(ValueError, match=r"[Nn]o folder.*my_folder"):
        data.load(name, "train", **arguments)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    expected = ImportError if name == "nofolder" else ValueError
    with pytest.raises(expected, match=r"^No folder 'nofolder"):
        data.load(name, "train", **arguments)


@pytest.mark.parametrize(
    "name",
    ["my-photos", "my photos", "photos.v2", "photos.zip", "data\\photos"]
    + ["cifar-11", "photos/cats/more", "1photos", "photos*", ""],
)
def test_a_mistyped_folder_that_is_no_name_of_tfds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_photos").mkdir()
    # Nor is TFDS needed to say so.
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r"^No folder '") as seen:
        locate.locate(name, None)
    assert f"{name!r} in {str(tmp_path)!r}. Expected" in str(seen.value)
    near = {"my-photos": "my_photos", "cifar-11": "cifar-10"}.get(name, "")
    assert near in str(seen.value).partition("Nearest names")[2]
    with pytest.raises(ValueError, match=r"^No folder '"):
        data.evaluation_split(name)


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos.zip").touch()
    for name in ("photos.zip", tmp_path / "photos.zip"):
        with pytest.raises(ValueError, match=r"photos\.zip' is a fi.*unpack"):
            locate.locate(name, None)


@pytest.mark.parametrize(
    "name",
    ["dtd", "coil100/test", "mnist:3.*.*", "huggingface:mnist", "Cifar"]
    + ["vtab/a-b.c:1.0.0/x=1,y=2"],
)
def test_what_tfds_takes_for_a_name(name):
    assert locate.locate(name, None).kind == "tfds"


def test_a_paper_data_sets_splits_are_known_without_opening_it(monkeypatch):
    monkeypatch.setattr(tfds, "open_builder", None)
    assert data.evaluation_split("oxford_iiit_pet") == ("train", "test")


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("train", "test", "val"), ("train", "test")),
        (("train", "val"), ("train", "val")),
        (("train", "valid"), ("train", "valid")),
        (("train",), ("train[:90%]", "train[90%:]")),
    ],
)
def test_the_split_to_evaluate_on(tmp_path, splits, expected, caplog):
    root = write_folder(tmp_path, 10, splits=splits)
    assert data.evaluation_split(root) == expected
    said = [m for m in caplog.messages if "for evaluation" in m]
    assert len(said) == (expected[1] != "test")
    train, evaluation = (data.find(root, split) for split in expected)
    if expected[1] == "train[90%:]":
        assert not {*train.names} & {*evaluation.names}


def test_the_split_to_evaluate_on_where_nothing_is_left(tmp_path):
    root = write_folder(tmp_path, 2, splits=("train",))
    with pytest.raises(ValueError, match=r"besides the 'train\[:50%\]'"):
        data.evaluation_split(root, "train[:50%]")
    # Folders without splits, and digits, are split by seed.
    assert data.evaluation_split(root / "train") == ("train", "test")
    assert data.evaluation_split("digits", "train[:50%]") == (
        "train[:50%]",
        "test",
    )
    # The whole holds the test images: not without a word.
    for source in (root / "train", "digits"):
        assert data.evaluation_split(source, "all") == (
            "all[:90%]",
            "all[90%:]",
        )
    assert len(data.find("digits", "all[90%:]")) > 100
    with pytest.raises(ValueError, match=r"besides the 'all\[:50%\]'"):
        data.evaluation_split("digits", "all[:50%]")
    both = write_folder(tmp_path / "both", 2, splits=("train", "test", "val"))
    assert data.evaluation_split(both, "train+test") == ("train+test", "val")
    with pytest.raises(ValueError, match=r"besides the 'train\+val\+test'"):
        data.evaluation_split(both, "train+val+test")
