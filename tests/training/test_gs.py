"""Runs on gs://, served on this machine."""

import json
import os
import pathlib
import sys

import keras
import numpy as np
import PIL.Image
import pytest
from kills import serving

from keras_augreg import atomic, data, study, visualize
from keras_augreg.training import Workdir, rundir, storage

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """What the server keeps: the files of gs://bucket."""
    before = dict(os.environ)
    with serving(tmp_path_factory.mktemp("served")) as folder:
        yield folder
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def model(tiny_model):
    tiny_model.compile("adam", "mse")
    tiny_model.optimizer.build(tiny_model.trainable_variables)
    return tiny_model


def bias(model):
    return keras.ops.convert_to_numpy(model.get_layer("head").bias)


@pytest.mark.parametrize("engine", [storage._Orbax, storage._Npz])
def test_round_trip(bucket, model, engine):
    name = engine.__name__
    run = Workdir(f"gs://bucket/{name}", {"a": 1}, keep=1)
    run._engine = engine()
    for step, value in ((1, 0.7), (2, 0.5), (3, 0.6)):
        model.get_layer("head").bias.assign(np.full(5, value, "float32"))
        run.save(model, step, {"val_accuracy": value})
    again = Workdir(f"gs://bucket/{name}", {"a": 1})
    assert again.restore(model) == 3
    np.testing.assert_array_equal(bias(model), np.float32([0.6] * 5))
    assert again.restore_best(model) == 0.7
    np.testing.assert_array_equal(bias(model), np.float32([0.7] * 5))
    files = storage.checkpoints(again.path / "checkpoints")
    assert [storage.step_of(file) for file in files] == [1, 3]
    assert len(rundir.read_log(again.path / "metrics.jsonl")) == 3
    assert visualize.plot_training(f"gs://bucket/{name}")
    with pytest.raises(ValueError, match="another experiment"):
        Workdir(f"gs://bucket/{name}", {"a": 2})


def test_an_unfinished_checkpoint(bucket, model):
    """Its folder has its final name, but no commit file."""
    run = Workdir("gs://bucket/unfinished", {})
    for step in (1, 2):
        run.save(model, step, {})
    (bucket / "unfinished/checkpoints/0000000002/commit_success.txt").unlink()
    assert run.restore(model) == 1
    storage.clean(run.path / "checkpoints")
    names = [p.name for p in (run.path / "checkpoints").iterdir()]
    assert names == ["0000000001"]
    # The process that was killed had no time to delete it.
    (run.path / "checkpoints/0000000002/half").write_bytes(b"half")
    run.save(model, 2, {})
    assert run.restore(model) == 2


def test_damage(bucket, model):
    run = Workdir("gs://bucket/damaged", {})
    for step in (1, 2):
        run.save(model, step, {})
    folder = bucket / "damaged/checkpoints/0000000002"
    file = max(folder.rglob("*"), key=lambda p: p.is_file() * p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.warns(UserWarning, match="0000000002 is damaged"):
        assert run.restore(model) == 1


def test_the_last_process_has_the_directory(bucket):
    path = atomic.as_path("gs://bucket/claimed")
    with rundir.locked(path) as first:
        first()
        with rundir.locked(path) as second:
            second()
            with pytest.raises(RuntimeError, match=r"now: host .*process"):
                first()
        with pytest.raises(RuntimeError, match="now: unknown"):
            first()
    with rundir.locked(path) as third:
        third()
    assert not (path / "lock.json").exists()


def test_files_appear_whole(bucket, model):
    path = atomic.as_path("gs://bucket/files/model.keras")
    with atomic.replacing(path) as file:
        model.save(file.name)
    assert (bucket / "files/model.keras").stat().st_size > 1000
    before = path.read_bytes()
    with pytest.raises(TypeError), atomic.replacing(path) as file:
        file.write("not bytes")
    assert path.read_bytes() == before


def test_a_bucket_that_cannot_be_used(bucket):
    with pytest.raises(ValueError, match=r"cannot be a run's directory"):
        Workdir("gs://no-such-bucket/run", {})
    path = atomic.as_path("gs://no-such-bucket/run")
    with (
        pytest.raises(ValueError, match=r"cannot be a run's directory"),
        rundir.locked(path),
    ):
        pass


@pytest.mark.parametrize(
    "path", ["s3://bucket/run", pathlib.Path("gs://bucket/run"), "gs://"]
)
def test_other_schemes_are_refused(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="Expected a local path, or gs://BUCK"):
        Workdir(path, {})
    assert not list(tmp_path.iterdir())


def test_a_sweep_needs_a_disk():
    with pytest.raises(ValueError, match="Expected a local path"):
        study.collect("gs://bucket/sweep")


def test_without_the_packages(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ImportError, match="needs etils and gcsfs: pip"):
        Workdir("gs://bucket/run", {})


def test_settings_are_json(bucket):
    Workdir("gs://bucket/settings", {"a": 1})
    text = (bucket / "settings/settings.json").read_text()
    assert json.loads(text) == {"a": 1}


@pytest.fixture(scope="module")
def photos(bucket, tmp_path_factory):
    """Class folders on this machine; gs://bucket/photos has the same."""
    folder = tmp_path_factory.mktemp("photos")
    for split, count in (("train", 4), ("test", 2)):
        for name in ("cat", "dog"):
            inside = folder / split / name
            (inside / "old").mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 256, (9, 8))
                image = PIL.Image.fromarray(pixels.astype("uint8"))
                image.save(inside / ("old" if i else "") / f"{i}.png")
    (folder / "train" / ".ipynb_checkpoints").mkdir()
    (folder / "train" / ".ipynb_checkpoints" / "x.png").write_bytes(b"")
    (folder / "train" / "cat" / "notes.txt").write_text("meow")
    for file in filter(pathlib.Path.is_file, folder.rglob("*")):
        upload(file, folder)
    return folder


def upload(file, folder):
    name = file.relative_to(folder).as_posix()
    atomic.as_path(f"gs://bucket/photos/{name}").write_bytes(file.read_bytes())


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
@pytest.mark.parametrize("split", ["train", "test", "train[50%:]"])
def test_a_folder_of_images(bucket, photos, engine, split):
    if engine == "tensorflow":
        pytest.importorskip("tensorflow")
    given = {
        "image_size": 8, "batch_size": 2, "training": True,
        "options": data.Options(engine=engine),
    }  # fmt: skip
    remote, info = data.load("gs://bucket/photos", split, **given)
    local, same = data.load(photos, split, **given)
    assert info.class_names == same.class_names == ["cat", "dog"]
    assert info.num_examples == same.num_examples
    count = 0
    for got, want in zip(remote, local, strict=False):
        for one, other in zip(got, want, strict=True):
            np.testing.assert_array_equal(one, other)
        count += 1
        if count == 3:
            break
    assert count


def test_a_folder_without_splits(bucket, photos):
    found = data.find("gs://bucket/photos/train", "all")
    same = data.find(photos / "train", "all")
    assert list(found.names) == list(same.names)
    assert data.evaluation_split("gs://bucket/photos/") == ("train", "test")


def test_an_image_that_vanished(bucket, photos):
    dataset, _ = data.load(
        "gs://bucket/photos", "test", image_size=8, batch_size=4,
        training=False, options=data.Options(engine="python"),
    )  # fmt: skip
    atomic.as_path("gs://bucket/photos/test/cat/0.png").unlink()
    with pytest.raises(
        ValueError, match=r"Cannot read .gs://bucket/photos/test/cat/0\.png"
    ):
        next(iter(dataset))
    upload(photos / "test" / "cat" / "0.png", photos)


@pytest.mark.parametrize("name", ["x.csv", "x.tar", "x.tar.gz"])
def test_what_is_read_from_disks_only(bucket, name):
    with pytest.raises(ValueError, match=r"from disks only: copy them here"):
        data.find(f"gs://bucket/{name}", "train")


def test_no_such_data(bucket, photos):
    with pytest.raises(ValueError, match="No folder 'gs://bucket/none'"):
        data.find("gs://bucket/none", "train")
    with pytest.raises(ValueError, match="has no split 'val'"):
        data.find("gs://bucket/photos", "val")
    with pytest.raises(ValueError, match="Expected a local path, or gs://"):
        data.find("s3://bucket/photos", "train")
