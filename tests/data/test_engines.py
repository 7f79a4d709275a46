"""Both engines: the same batches, restart, weights, broken files, errors."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import pickle
import subprocess
import sys
import time

import _photos
import keras
import numpy as np
import PIL.Image
import pytest
from _photos import (
    CLASSES,
    encode,
    find,
    largest_difference,
    photo,
    write_folder,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from keras_augreg import data
from keras_augreg.data import decode, engine_tensorflow
from keras_augreg.data.decode import SMALLER_SIDE, Cropping
from keras_augreg.data.order import Order, draws

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)

tf = pytest.importorskip("tensorflow")

ENGINES = ("tensorflow", "python")
SIZE = {"image_size": (24, 32), "batch_size": 4}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("photos"))


def load(source, split="train", training=True, **options):
    arguments = {"training": training, **SIZE, **options}
    return _photos.load(source, split, **arguments)


def read(dataset):
    return [tuple(np.asarray(part) for part in batch) for batch in dataset]


def labels_of(dataset):
    return [batch[1].tolist() for batch in read(dataset)]


def assert_equal(ours, theirs, tolerance=0):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b)
        assert a[0].dtype == b[0].dtype == np.uint8
        assert largest_difference(a[0], b[0]) <= tolerance
        for x, y in zip(a[1:], b[1:], strict=True):
            assert x.dtype == y.dtype
            np.testing.assert_array_equal(x, y)


# --- two engines, one result


@pytest.mark.parametrize(
    ("training", "crop"),
    [
        (True, "inception"),
        (True, "resize_small"),
        (True, "resize"),
        (False, "resize_small"),
        (False, "resize"),
    ],
)
def test_engines_agree_to_within_one_grey_level(photos, training, crop):
    both = [
        load(photos, training=training, crop=crop, engine=engine)[0]
        for engine in ENGINES
    ]
    for _ in range(2):
        assert_equal(*map(read, both), tolerance=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_data_sets_say_for_how_many_classes_labels_are_checked(photos, engine):
    dataset, info = load(photos, engine=engine)
    for ours in (dataset, dataset.at(1), dataset.sharded(0, 2)):
        assert ours.checked_classes == info.num_classes == 3


@pytest.mark.parametrize("crop", ["inception", "resize_small", "resize"])
def test_tensorflows_route_is_tensorflows_plain_operations(tmp_path, crop):
    # A box of many times the result's pixels, one of few, and no JPEG file.
    shapes = {"large.jpg": (400, 300), "small.jpg": (52, 41), "p.png": (66, 45)}
    names = sorted(shapes)
    (tmp_path / "cup").mkdir()
    for name, shape in shapes.items():
        kind = "PNG" if name.endswith("png") else "JPEG"
        content = encode(photo("coffee", shape), kind)
        (tmp_path / "cup" / name).write_bytes(content)
    dataset, _ = load(
        tmp_path, "all", crop=crop, batch_size=3, engine="tensorflow"
    )
    order = Order(3, 3, training=True, seed=0)
    cropping = Cropping((24, 32), crop, True, True, round(24 * SMALLER_SIDE))
    kinds, flips = set(), set()
    for epoch in range(8):
        ((images, _),) = read(dataset)
        for i, number in enumerate(order.batch(epoch).numbers):
            content = (tmp_path / "cup" / names[number]).read_bytes()
            image = tf.io.decode_image(content, 3)
            if names[number].endswith("jpg"):
                image = tf.io.decode_jpeg(
                    content, 3, dct_method="INTEGER_ACCURATE"
                )
            window = cropping.window(*image.shape[:2], draws(0, epoch, i))
            y, x, h, w = window.box
            box = image[y : y + h, x : x + w]
            expected = tf.image.resize(box, window.size, cropping.method)
            y, x = window.corner
            expected = expected[y : y + 24, x : x + 32]
            expected = tf.cast(expected, tf.uint8)
            if window.flip:
                expected = tf.reverse(expected, [1])
            np.testing.assert_array_equal(images[i], expected)
            small = h * w <= engine_tensorflow.SMALL * np.prod(window.size)
            kinds.add((names[number], bool(small)))
            flips.add(window.flip)
    assert {("large.jpg", False), ("small.jpg", True)} < kinds
    assert flips == {True, False}


def test_large_pictures_are_not_kept_side_by_side(tmp_path, monkeypatch):
    # Pixels in the pipeline are at most `SMALL` times those that leave it; a
    # JPEG file's bytes are small anyway.
    sizes = []
    real = engine_tensorflow._prepare

    def spy(*args):
        result = real(*args)
        sizes.append(len(result[0]))
        return result

    monkeypatch.setattr(engine_tensorflow, "_prepare", spy)
    (tmp_path / "cup").mkdir()
    for i, side in enumerate((40, 90, 400)):
        path = tmp_path / "cup" / f"{i}.png"
        path.write_bytes(encode(photo("coffee", (side, side)), "PNG"))
    for training, crop in ((True, "inception"), (False, "resize_small")):
        options = {"training": training, "crop": crop, "batch_size": 3}
        both = [
            load(tmp_path, "all", engine=engine, **options)[0]
            for engine in ENGINES
        ]
        for _ in range(3):
            assert_equal(*map(read, both), tolerance=1)
    assert 24 * 32 * 3 < max(sizes) <= engine_tensorflow.SMALL * 27 * 36 * 3


def test_engines_agree_on_every_kind_of_file(tmp_path):
    image = photo("chelsea", (96, 72))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    clear = image.copy()
    clear.putalpha(77)
    files = {
        "grey.jpg": encode(image.convert("L")),
        "cmyk.jpg": encode(image.convert("CMYK")),
        "rotated.jpg": encode(image, exif=exif),
        "progressive.jpeg": encode(image, progressive=True),
        "clear.png": encode(clear, "PNG"),
        "deep.png": encode(
            PIL.Image.fromarray(np.full((72, 96), 40_000, np.uint16)), "PNG"
        ),
        "moving.gif": encode(image, "GIF"),
        "x.WEBP": encode(image, "WEBP"),
        "x.bmp": encode(image, "BMP"),
        "dot.png": encode(image.resize((1, 1)), "PNG"),
        "dot.jpg": encode(image.resize((1, 1))),
    }
    (tmp_path / "cat").mkdir()
    for name, content in files.items():
        (tmp_path / "cat" / name).write_bytes(content)
    for training in (True, False):
        both = [
            load(tmp_path, "all", training, batch_size=11, engine=engine)[0]
            for engine in ENGINES
        ]
        assert both[0].cardinality() == both[1].cardinality() == 1
        assert_equal(*map(read, both), tolerance=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_evaluation_is_the_folder_in_order(photos, engine):
    dataset, info = load(photos, "test", False, crop="resize", engine=engine)
    images = np.concatenate([batch[0] for batch in read(dataset)])
    assert (
        np.concatenate(labels_of(dataset)).tolist()
        == [0] * 6 + [1] * 6 + [2] * 6
    )
    assert info.class_names == list(CLASSES)
    assert (info.num_classes, info.num_examples) == (3, 18)
    assert info.engine == engine
    assert info.skipped is None
    first = PIL.Image.open(photos / "test" / "astronaut" / "02.png")
    expected = tf.cast(tf.image.resize(np.asarray(first), (24, 32)), tf.uint8)
    assert largest_difference(images[2], expected) <= 1


# --- order and restart


@pytest.mark.parametrize("engine", ENGINES)
def test_a_seeded_run_repeats_itself_and_epochs_differ(photos, engine):
    runs = []
    for _ in range(2):
        # Global seeds change nothing.
        keras.utils.set_random_seed(len(runs))
        dataset, _ = load(photos, engine=engine, seed=3)
        runs.append(read(dataset) + read(dataset))
    assert_equal(*runs)
    assert not np.array_equal(runs[0][0][0], runs[0][4][0])
    other, _ = load(photos, engine=engine, seed=4)
    assert not np.array_equal(read(other)[0][0], runs[0][0][0])


@pytest.fixture(scope="module")
def whole_runs(photos):
    """Three epochs of four steps each, by engine."""
    return {
        e: read(load(photos, engine=e, seed=5)[0].at(0, 12)) for e in ENGINES
    }


@pytest.mark.parametrize("engine", ENGINES)
@settings(
    max_examples=6,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(start=st.integers(0, 11), steps=st.integers(1, 6))
def test_a_run_goes_on_with_the_batch_that_comes_next(
    photos, whole_runs, engine, start, steps
):
    rest = load(photos, engine=engine, seed=5)[0].at(start, steps)
    passes = []
    while len(passes) < 12 - start:
        assert int(rest.cardinality()) == steps
        passes += read(rest)
    assert_equal(passes[: 12 - start], whole_runs[engine][start:])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pass_that_was_left_begins_again(photos, engine):
    dataset, _ = load(photos, engine=engine)
    first = read(dataset)
    second = read(dataset)
    dataset, _ = load(photos, engine=engine)
    for batch in dataset:
        assert_equal([tuple(map(np.asarray, batch))], first[:1])
        break
    assert_equal(read(dataset), first)
    assert_equal(read(dataset), second)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pass_left_before_its_last_batch_is_not_complete(photos, engine):
    dataset, _ = load(photos, engine=engine)
    first = read(dataset)
    dataset, _ = load(photos, engine=engine)
    batches = iter(dataset)
    for _ in range(len(first) - 1):
        next(batches)
    time.sleep(0.5)  # Nothing that reads ahead may count.
    del batches
    assert_equal(read(dataset), first)


@pytest.mark.parametrize("engine", ENGINES)
def test_looking_at_a_batch_does_not_change_those_of_fit(photos, engine):
    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                next(iter(self.data))

    class Note(keras.layers.Layer):
        def call(self, x, training=False):
            if training:
                self.seen.append(np.asarray(x).tobytes())
            return keras.ops.cast(x, "float32")

    seen = []
    for look in (False, True):
        dataset, _ = load(photos, engine=engine, one_hot=True)
        callback, layer = Look(), Note()
        callback.data, layer.seen = dataset, []
        model = keras.Sequential(
            [
                keras.Input((24, 32, 3)),
                layer,
                keras.layers.Flatten(),
                keras.layers.Dense(3),
            ]
        )
        model.compile("sgd", "mse", run_eagerly=True)
        model.fit(
            dataset,
            epochs=2,
            verbose=0,
            callbacks=[callback] if look else [],
        )
        seen.append(layer.seen)
    assert seen[0] == seen[1]
    assert len(set(seen[0])) == 8  # Two epochs.


def test_workers_get_all_batches(photos):
    dataset, _ = load(photos, engine="python", batch_size=1)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        threaded = list(pool.map(dataset.__getitem__, range(len(dataset))))
    expected = read(load(photos, engine="python", batch_size=1)[0])
    keys = [{batch[0].tobytes() for batch in b} for b in (threaded, expected)]
    assert keys[0] == keys[1]
    assert len(keys[0]) == 18
    # Of a training set, they would change the order.
    train, _ = load(photos, engine="python")
    with pytest.raises(
        ValueError, match=r"Received: 4 workers\. Leave it at 1"
    ):
        train.workers = 4


def test_a_pass_that_threads_share_counts_once(photos):
    train, _ = load(photos, engine="python")
    expected = read(train.at(2 * len(train)))
    for _ in range(2):
        assert train.num_batches == len(train)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            list(pool.map(train.__getitem__, range(len(train))))
    assert_equal(read(train), expected)


def test_fit_may_shuffle_the_indices(photos):
    dataset, _ = load(photos, engine="python")
    expected = read(dataset)
    again, _ = load(photos, engine="python")
    assert again.num_batches == len(again) == 4
    got = [again[i] for i in (2, 0, 3, 1)]
    assert_equal(got, expected)
    with pytest.raises(IndexError, match="Batch 4 of a data set with 4"):
        again[4]


@pytest.mark.parametrize("engine", ENGINES)
def test_hosts_read_slices_of_the_same_batches(photos, engine):
    for training in (True, False):
        whole, _ = load(
            photos, training=training, batch_size=8, engine=engine, pad=True
        )
        parts = [
            load(
                photos,
                training=training,
                batch_size=8,
                engine=engine,
            )[0].sharded(i, 2)
            for i in range(2)
        ]
        joined = [
            tuple(np.concatenate(columns) for columns in zip(*two, strict=True))
            for two in zip(*map(read, parts), strict=True)
        ]
        assert_equal(joined, read(whole))


# --- labels and weights


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_counts_every_example_once(photos, engine):
    dataset, _ = load(
        photos, "test", False, batch_size=8, pad=True, engine=engine
    )
    batches = read(dataset)
    assert int(dataset.cardinality()) == len(batches) == 3
    assert {batch[0].shape for batch in batches} == {(8, 24, 32, 3)}
    weights = np.concatenate([batch[2] for batch in batches])
    assert weights.tolist() == [1.0] * 18 + [0.0] * 6
    labels = np.concatenate([batch[1] for batch in batches])
    assert labels[:18].tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert not batches[-1][0][2:].any()


@pytest.mark.parametrize("engine", ENGINES)
def test_padding_is_automatic_where_batches_are_distributed(photos, engine):
    dataset, _ = load(photos, "test", False, engine=engine)
    assert [len(batch) for batch in read(dataset)] == [2] * 5
    devices = keras.distribution.list_devices()[:1]
    distribution = keras.distribution.DataParallel(devices=devices)
    with distribution.scope():
        dataset, _ = load(photos, "test", False, engine=engine)
    assert [len(batch) for batch in read(dataset)] == [3] * 5


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_and_vectors(photos, engine):
    dataset, _ = load(
        photos,
        "test",
        False,
        one_hot=True,
        class_weight=np.array([1.0, 1.0, 3.0]),  # as of scikit-learn
        sample_weight=np.arange(18) / 2,
        engine=engine,
    )
    _, labels, weights = map(np.concatenate, zip(*read(dataset), strict=True))
    classes = np.repeat([0, 1, 2], 6)
    np.testing.assert_array_equal(labels, np.eye(3, dtype="f")[classes])
    assert labels.dtype == weights.dtype == np.float32
    np.testing.assert_array_equal(
        weights, np.arange(18) / 2 * np.where(classes == 2, 3, 1)
    )


def test_balanced_classes():
    dataset, info = load(
        "digits", "train[:10%]", False, class_weight="balanced"
    )
    _, labels, weights = map(np.concatenate, zip(*read(dataset), strict=True))
    total = np.bincount(labels, weights)
    np.testing.assert_allclose(total, info.num_examples / 10, rtol=1e-5)
    with pytest.raises(ValueError, match=r"'balanced'.*'heavy'"):
        load("digits", "train", False, class_weight="heavy")


def test_cached_files_are_read_once(photos, monkeypatch):
    reads = []
    real = data.sources.read_file
    monkeypatch.setattr(
        data.sources, "read_file", lambda *p: reads.append(p) or real(*p)
    )
    dataset, _ = load(photos, "test", False, cache=True, engine="python")
    first = read(dataset)
    assert_equal(read(dataset), first)
    assert len(reads) == 18


# --- broken files


@pytest.fixture
def broken(tmp_path):
    root = write_folder(tmp_path / "broken photos", 4, splits=("train",))
    folder = root / "train" / "coffee"
    whole = encode(photo("coffee", (96, 72)))
    huge = bytearray(whole)
    at = whole.index(b"\xff\xc0") + 5
    huge[at : at + 4] = (30_000).to_bytes(2) * 2
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut short.jpg").write_bytes(whole[:1500])
    (folder / "cut short.png").write_bytes(encode(photo("coffee"), "PNG")[:999])
    (folder / "text.jpg").write_text("no picture")
    (folder / "huge.jpg").write_bytes(huge)
    (folder / "broken link.jpg").symlink_to(root / "nowhere.jpg")
    (folder / "one pixel.png").write_bytes(
        encode(photo("coffee", (1, 1)), "PNG")
    )
    (folder / "line\nbreak 🐈 ü.jpg").write_bytes(whole)
    return root


BROKEN = [
    "broken link.jpg",
    "cut short.jpg",
    "cut short.png",
    "empty.jpg",
    "huge.jpg",
    "text.jpg",
]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_an_error_that_names_it(broken, engine, name):
    folder = broken / "train" / "coffee"
    for other in set(BROKEN) - {name}:
        (folder / other).unlink()
    dataset, _ = load(broken, training=False, engine=engine)
    expected = f"{folder}/{name}"
    with pytest.raises(Exception, match=f"ImageError|{name}") as error:
        read(dataset)
    assert expected in str(error.value)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_line_names_the_broken_file(broken, engine):
    """The output of a script; tf.data prints a page before the message."""
    script = (
        "import sys\n"
        "from keras_augreg import data\n"
        "d, _ = data.load(sys.argv[1], 'train', image_size=8, batch_size=2,"
        " training=False, options=data.Options(engine=sys.argv[2]))\n"
        "print('begin', file=sys.stderr)\n"
        "for batch in d: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(broken), engine],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    lines = done.stderr.partition("begin\n")[2].splitlines()
    lines = [line for line in lines if not line.startswith(("I0", "W0", "I1"))]
    where = 0 if engine == "tensorflow" else -1
    assert "Cannot read" in lines[where]
    assert f"{broken}/train/coffee/broken link.jpg" in lines[where]


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("training", [True, False])
def test_broken_files_can_be_left_out_and_are_counted(
    broken, engine, training, monkeypatch
):
    lines = []
    monkeypatch.setattr(
        "keras_augreg.data.report.logging.warning",
        lambda text, *arguments: lines.append(text % arguments),
    )
    dataset, info = load(
        broken, training=training, batch_size=20, on_error="skip",
        engine=engine,
    )  # fmt: skip
    assert info.num_examples == 20
    for count in (1, 2):
        ((images, labels),) = read(dataset)
        assert info.skipped.names == [f"coffee/{name}" for name in BROKEN]
        assert len(lines) == count
        assert "6 ('coffee/broken link.jpg'" in lines[-1]
        if training:
            assert len(images) == 20
        else:
            assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 6
        # Every picture but the broken ones has something to show.
        assert (images.reshape(len(images), -1).std(axis=1) > 0).sum() >= 12


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_of_one_pass_counts_broken_files_by_epoch(broken, engine):
    dataset, info = load(broken, batch_size=10, on_error="skip", engine=engine)
    dataset = dataset.at(0, 64)
    for step, _ in zip(range(5), dataset, strict=False):
        names = [f"coffee/{name}" for name in BROKEN] if step else []
        assert info.skipped.names == names


@pytest.mark.parametrize("engine", ENGINES)
def test_left_out_images_weigh_nothing_where_batches_are_full(broken, engine):
    dataset, _ = load(
        broken, training=False, on_error="skip", pad=True, engine=engine
    )
    weights = np.concatenate([batch[2] for batch in read(dataset)])
    assert weights.sum() == 14
    assert len(weights) == 20


@pytest.mark.parametrize("engine", ENGINES)
def test_restart_with_broken_files(broken, engine):
    options = {"on_error": "skip", "engine": engine, "batch_size": 10}
    dataset, _ = load(broken, **options)
    assert_equal(read(dataset.at(3, 3)), read(dataset.at(0, 6))[3:])


def torn():
    """A JPEG file that is whole, but for its Huffman tables."""
    whole = bytearray(encode(photo("coffee", (96, 72))))
    tables = whole.index(b"\xff\xc4")
    whole[tables + 5 : tables + 60] = bytes(55)
    return whole


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("good", [0, 4, 7])
def test_batches_of_damaged_files_alone(tmp_path, engine, good):
    (tmp_path / "cup").mkdir()
    for i in range(12):
        content = torn() if i >= good else encode(photo("coffee", (96, 72)))
        (tmp_path / "cup" / f"{i:02}.jpg").write_bytes(content)
    for options in (
        {"training": False},
        {"training": False, "pad": True},
        {"training": False, "batch_size": 5},
        {"training": False, "batch_size": 1},
        {"batch_size": 1 if good == 0 else 4},
    ):
        dataset, _ = load(tmp_path, "all", engine=engine, **options)
        with pytest.raises(Exception, match=r"cup/\d\d\.jpg"):
            read(dataset)
    for training, advice in ((False, "`pad=True` and"), (True, "use larger")):
        options = {"training": training, "batch_size": 1}
        dataset, _ = load(
            tmp_path, "all", engine=engine, on_error="skip", **options
        )
        with pytest.raises(Exception, match=f"No image of a.*jpg.*{advice}"):
            read(dataset)


def test_a_jpeg_file_that_is_damaged_inside(tmp_path):
    (tmp_path / "cup").mkdir()
    (tmp_path / "cup" / "good.jpg").write_bytes(encode(photo("coffee")))
    bad = tmp_path / "cup" / "torn.jpg"
    bad.write_bytes(torn())
    options = {"split": "all", "training": False, "batch_size": 2}
    with pytest.raises(data.ImageError, match=str(bad)):
        read(load(tmp_path, engine="python", **options)[0])
    # Under another exception's type, as everything from inside tf.data.
    for training in (False, True):
        changed = {**options, "training": training}
        with pytest.raises(Exception, match=f"{bad}.*decoder"):
            read(load(tmp_path, engine="tensorflow", **changed)[0])
    for engine in ENGINES:
        dataset, info = load(
            tmp_path, engine=engine, on_error="skip", **options
        )
        assert [len(batch[0]) for batch in read(dataset)] == [1]
        assert info.skipped.names == ["cup/torn.jpg"]


# --- digits and installations without TensorFlow


def test_digits():
    parts = [load("digits", split, False)[1] for split in ("train", "test")]
    assert [info.num_examples for info in parts] == [1438, 359]
    assert parts[0].class_names == list("0123456789")
    dataset, info = load("digits", "all", False, batch_size=1797, image_size=8)
    ((images, labels),) = read(dataset)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    np.testing.assert_array_equal(labels, bunch.target)
    assert images.shape == (1797, 8, 8, 3)
    np.testing.assert_array_equal(images.max(axis=-1), images.min(axis=-1))
    np.testing.assert_allclose(images[..., 0], bunch.images * 15.9375, atol=0.5)
    assert info.engine == "python"


@pytest.mark.parametrize("engine", ENGINES)
def test_digits_are_not_flipped(engine):
    dataset, _ = load("digits", image_size=8, batch_size=64, engine=engine)
    everything, _ = load("digits", "all", False, image_size=8, batch_size=1797)
    ((known, _),) = read(everything)
    known = {image.tobytes() for image in known}
    images = read(dataset)[0][0]
    assert all(image.tobytes() in known for image in images)


def test_splits_by_seed_share_nothing_and_hold_every_class():
    names = {
        split: find("digits", split, split_seed=7).names
        for split in ("train", "test", "all")
    }
    assert not set(names["train"]) & set(names["test"])
    assert set(names["train"]) | set(names["test"]) == set(names["all"])
    other = find("digits", "test", split_seed=8)
    assert other.names != names["test"]
    assert np.unique(other.labels).tolist() == list(range(10))


def test_a_data_set_without_tensorflow(photos, tmp_path):
    # An installation in which TensorFlow cannot be found.
    script = (
        "import sys, json, importlib.util as u\n"
        "real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'tensorflow' else "
        "real(n, *a)\n"
        "sys.modules['tensorflow'] = None\n"
        "import keras; before = set(sys.modules)\n"
        "from keras_augreg import data\n"
        "added = {m.split('.')[0] for m in set(sys.modules) - before}\n"
        "assert not added & {'PIL', 'sklearn', 'tensorflow_datasets'}\n"
        "d, i = data.load(sys.argv[1], 'train', image_size=16, batch_size=4,"
        " training=True)\n"
        "x = next(iter(d))\n"
        "try:\n"
        "    data.load(sys.argv[1], 'train', image_size=16, batch_size=4,"
        " training=True, options=data.Options(engine='tensorflow'))\n"
        "except ImportError as error:\n"
        "    kept = str(error)\n"
        "print(json.dumps([i.engine, x[0].shape, kept]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(photos)],
        cwd=pathlib.Path(__file__).parents[2],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=True,
    )
    engine, shape, error = json.loads(done.stdout.splitlines()[-1])
    assert engine == "python"
    assert shape == [4, 16, 16, 3]
    assert "pip install tensorflow" in error


# --- arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size`.*batch_size=0"),
        ({"batch_size": 2.0}, "`batch_size`.*batch_size=2.0"),
        ({"on_error": "ignore"}, "`on_error` must be one of.*'ignore'"),
        ({"engine": "grain"}, "`engine` must be one of.*'grain'"),
        ({"seed": -1}, "`seed` must be an integer from 0.*seed=-1"),
        ({"split_seed": 2**32}, "`split_seed` must be an integer from 0"),
        ({"seed": None}, "`seed` must be an integer from 0.*seed=None"),
        ({"seed": 3.0}, "`seed` must be an integer from 0.*seed=3.0"),
        ({"shuffle_buffer": 0}, "at least 1.*shuffle_buffer=0"),
        ({"image_size": (8, 8, 3)}, r"`image_size`.*\(8, 8, 3\)"),
        ({"image_size": 0}, "`image_size`.*0"),
        ({"image_size": 24.0}, "`image_size`.*24.0"),
        ({"image_size": "24"}, "`image_size`.*24"),
        ({"crop": "center"}, "`crop` must be one of.*'center'"),
        ({"crop": "inception", "training": False}, "for training only"),
        ({"smaller_side": 40}, "`smaller_side` requires.*inception"),
        ({"crop": "resize", "smaller_side": 40}, "requires.*'resize'"),
        ({"crop": "resize_small", "smaller_side": 20}, "at least the smaller"),
        ({"batch_size": 19}, "has 18 examples, too few for a batch of 19"),
        ({"class_weight": {3: 1.0}}, "classes 0 to 2. Received: 3"),
        ({"sample_weight": [1.0]}, "each of the 18 examples"),
        ({"sample_weight": "weight"}, "each of the 18 examples"),
        ({"sample_weight": [-1.0] * 18}, "at least 0 for each of the 18"),
        ({"class_weight": [1, 1, 1, 2]}, "classes 0 to 2. Received: 3"),
        ({"class_weight": {0: float("nan")}}, "finite numbers of at least 0"),
    ],
)
def test_wrong_arguments(photos, options, message):
    with pytest.raises(ValueError, match=message):
        load(photos, **options)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("training", "method", "arguments", "message"),
    [
        (False, "at", (3,), "`at` is for training data.*step=3"),
        (True, "at", (-1,), "`step` must be .* at least 0.*step=-1"),
        (True, "at", (True,), "`step` must be an integer.*True"),
        (True, "at", (0, 0), "`steps` must be .* at least 1.*steps=0"),
        (True, "at", (0, 2.0), "`steps` must be an integer.*steps=2.0"),
        (True, "sharded", (0, 3), "divisible by.*batch_size=4, shards=3"),
        (True, "sharded", (2, 2), "index from 0 to count - 1.*index=2"),
        (True, "sharded", (0, 2.0), "Received: index=0, count=2.0"),
        (False, "sharded", (0, 2), "batches of one size.*pad=False"),
    ],
)
def test_wrong_steps_and_shards(
    photos, engine, training, method, arguments, message
):
    dataset, _ = load(photos, training=training, pad=False, engine=engine)
    with pytest.raises(ValueError, match=message):
        getattr(dataset, method)(*arguments)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_shard_is_not_sharded_again(photos, engine):
    dataset, _ = load(photos, engine=engine)
    assert len(read(dataset.sharded(0, 1).sharded(1, 2))[0][0]) == 2
    with pytest.raises(ValueError, match=r"are shard \(1, 2\) already"):
        dataset.sharded(1, 2).sharded(0, 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_steps_and_shards_in_either_order(photos, engine):
    dataset, _ = load(photos, engine=engine)
    ours = read(dataset.at(2, 3).sharded(1, 2))
    assert_equal(ours, read(dataset.sharded(1, 2).at(2, 3)))
    whole = read(dataset.at(2, 3))
    assert_equal(ours, [tuple(x[2:] for x in batch) for batch in whole])


@pytest.mark.parametrize("training", [True, False])
def test_pickled_data_go_on_where_they_were(photos, training):
    options = {"cache": True, "on_error": "skip", "engine": "python"}
    dataset, info = load(photos, training=training, **options)
    copy = pickle.loads(pickle.dumps(dataset))
    first, second = read(dataset), read(dataset)
    assert_equal(read(copy), first)
    assert_equal(read(pickle.loads(pickle.dumps(copy))), second)
    assert pickle.loads(pickle.dumps(info)).class_names == info.class_names


def test_digits_can_be_pickled():
    dataset, info = load("digits", engine="python")
    assert_equal(read(pickle.loads(pickle.dumps(dataset))), read(dataset))
    assert pickle.loads(pickle.dumps(info)) == info


def test_what_tensorflow_derives_from_a_data_set(photos):
    dataset, _ = load(photos, engine="tensorflow")
    assert isinstance(dataset, tf.data.Dataset)
    assert len(read(dataset.take(2))) == 2
    assert read(dataset.map(lambda x, y: (y, x)))[0][0].shape == (4,)


def test_options_of_another_type(photos):
    with pytest.raises(TypeError, match=r"data\.Options.*'pad': True"):
        data.load(photos, "train", training=True, options={"pad": True}, **SIZE)


def test_numbers_may_be_numpys(photos):
    seed = np.int64(2**32 - 1)  # In no time.
    ours, _ = load(photos, seed=seed, engine="python")
    theirs, _ = load(photos, seed=int(seed), engine="python")
    assert_equal(read(ours.at(np.int32(2))), read(theirs.at(2)))
    weights = np.arange(18) % 2 == 0
    dataset, _ = load(photos, training=False, sample_weight=weights)
    given = np.concatenate([batch[2] for batch in read(dataset)])
    np.testing.assert_array_equal(given, weights.astype(np.float32))
    for size in (np.int64(8), (np.int32(8), 9)):
        dataset, _ = load(photos, image_size=size, engine="python")
        assert dataset[0][0].shape[:2] == (4, 8)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_broken_file_whose_name_is_no_utf_8(tmp_path, engine):
    root = write_folder(tmp_path, 4)
    name = os.fsdecode(b"caf\xe9.png")
    (root / "test" / "chelsea" / name).write_bytes(b"no picture")
    options = {"training": False, "engine": engine}
    dataset, info = load(root, "test", on_error="skip", **options)
    assert sum(len(batch[1]) for batch in read(dataset)) == 12
    assert info.skipped.names == [f"chelsea/{name}"]
    dataset, _ = load(root, "test", **options)
    with pytest.raises(Exception, match=r"caf\\+udce9.png"):
        read(dataset)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_thin_picture_is_not_enlarged_as_a_whole(tmp_path, kind, monkeypatch):
    (tmp_path / "thread").mkdir()
    for size in ((2, 900), (900, 2), (40, 44)):
        file = tmp_path / "thread" / f"{size[0]}.{kind.lower()}"
        file.write_bytes(encode(photo("coffee", size), kind, quality=100))
    options = {"training": False, "crop": "resize_small", "batch_size": 3}
    sizes = []
    resize = decode.resize_area
    monkeypatch.setattr(
        decode,
        "resize_area",
        lambda *a: sizes.append(a[1:]) or resize(*a),
    )
    both = [
        read(load(tmp_path, "all", engine=engine, **options)[0])
        for engine in ENGINES
    ]
    assert_equal(*both, tolerance=1)
    # 24 x 32 of 37 x 16650 pixels or the like, in both engines.
    large = [s for s in sizes if np.prod(s[0]) > 10_000]
    assert len(large) == 4
    assert {s[2] for s in large} == {(24, 32)}
    # As TensorFlow crops it from the whole.
    name = sorted((tmp_path / "thread").iterdir())[0]
    image = tf.io.decode_image(name.read_bytes(), 3)
    if kind == "JPEG":
        image = tf.io.decode_jpeg(
            name.read_bytes(), 3, dct_method="INTEGER_ACCURATE"
        )
    cropping = Cropping(
        (24, 32), "resize_small", False, False, round(24 * SMALLER_SIDE)
    )
    window = cropping.window(*image.shape[:2], draws(0, 0, 0))
    y, x = window.corner
    whole = tf.image.resize(image, window.size, "area")
    expected = tf.cast(whole[y : y + 24, x : x + 32], tf.uint8)
    assert largest_difference(both[0][0][0][0], expected) <= 1


def test_wrong_sources(photos, tmp_path):
    for source, message in [
        (tmp_path / "nothing", "No folder .*nothing"),
        ("./nothing", "No folder"),
        ("imagenet-21k", "no public TFDS data set: pass `data_dir`"),
    ]:
        with pytest.raises(ValueError, match=message):
            load(source)
    with pytest.raises(ValueError, match="'digits' is split by seed into"):
        load("digits", "validation")
    with pytest.raises(
        ValueError, match=r"no split 'val'.*\['test', 'train'\]"
    ):
        load(photos, "val")
