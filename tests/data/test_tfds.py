"""TensorFlow Datasets that its own tools build here; nothing is downloaded."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import shutil

import _photos
import keras
import numpy as np
import pytest
from _photos import CLASSES, encode, find, largest_difference, pictures

from keras_augreg import data
from keras_augreg.data import engine_tensorflow
from keras_augreg.data import tfds as tfds_source

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)

tf = pytest.importorskip("tensorflow")
tfds = pytest.importorskip("tensorflow_datasets")


class LocalPhotos(tfds.core.GeneratorBasedBuilder):
    """23 photos in four files to train on, 7 to test."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=list(CLASSES)),
            "number": tfds.features.Scalar(np.int64),
            "weight": tfds.features.Scalar(np.float32),
            "labels": tfds.features.Sequence(
                tfds.features.ClassLabel(names=list(CLASSES))
            ),
            "objects": tfds.features.Sequence(
                {
                    "type": tfds.features.ClassLabel(num_classes=8),
                    "location": tfds.features.Tensor(
                        shape=(3,), dtype=np.float32
                    ),
                }
            ),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager):
        return {
            "train": self._generate_examples(23),
            "test": self._generate_examples(7),
        }

    def _generate_examples(self, count):
        images = [list(pictures(name, 8)) for name in CLASSES]
        for i in range(count):
            yield (
                i,
                {
                    "image": io.BytesIO(encode(images[i % 3][i // 3])),
                    "label": i % 3,
                    "number": i,
                    "weight": i / 2,
                    "labels": list(range(i % 3)),
                    "objects": [
                        {"type": t, "location": (0, 0, z)}
                        for t, z in OBJECTS[i % len(OBJECTS)]
                    ],
                },
            )


# (type, distance) of the objects, and VTAB's class of the nearest vehicle.
OBJECTS = (
    [(0, 7.0), (1, 30.0)],
    [(2, 8.5)],
    [(3, 1.0), (0, 20.5)],
    [(5, 2.0)],
)
DISTANCES = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    builder = LocalPhotos(data_dir=path)
    config = tfds.download.DownloadConfig(num_shards=4)
    builder.download_and_prepare(download_config=config)
    return path


def load(data_dir, split="train", training=True, **options):
    defaults = {"image_size": (24, 32), "batch_size": 4, "data_dir": data_dir}
    return _photos.load(
        "local_photos", split, training=training, **{**defaults, **options}
    )


def read(dataset):
    return [tuple(np.asarray(part) for part in batch) for batch in dataset]


def key(image):
    return image.tobytes()


@pytest.fixture(scope="module")
def everything(data_dir):
    """The 23 examples, resized, in the order of the files."""
    dataset, _ = load(data_dir, training=False, crop="resize", batch_size=23)
    return read(dataset)[0]


def test_evaluation_reads_what_tfds_reads(data_dir, everything):
    images, labels = everything
    expected = tfds.load("local_photos", split="train", data_dir=data_dir)
    for image, label, example in zip(images, labels, expected, strict=True):
        assert label == example["label"]
        resized = tf.image.resize(example["image"], (24, 32))
        # TFDS decodes with the fast inverse DCT.
        assert largest_difference(image, tf.cast(resized, tf.uint8)) <= 8


def test_info_splits_and_directories(data_dir):
    dataset, info = load(data_dir, "train[:50%]+test")
    assert (info.num_examples, info.num_classes) == (12 + 7, 3)
    assert info.class_names == list(CLASSES)
    assert info.steps_per_epoch == dataset.cardinality() == 4
    directory = data_dir / "local_photos" / "1.0.0"
    _, info = _photos.load(
        directory, "test", image_size=8, batch_size=7, training=False
    )
    assert info.num_examples == 7


@pytest.mark.parametrize("cache", [False, True])
def test_a_run_goes_on_with_the_batch_that_comes_next(data_dir, cache):
    options = {"shuffle_buffer": 7, "cache": cache, "crop": "inception"}
    keras.utils.set_random_seed(1)
    whole = read(load(data_dir, **options)[0].at(0, 15))
    keras.utils.set_random_seed(2)
    epochs, _ = load(data_dir, **options)
    three = read(epochs) + read(epochs) + read(epochs)
    for start in (3, 10):
        rest = read(load(data_dir, **options)[0].at(start, 3))
        for ours, theirs in zip(rest, whole[start:][:3], strict=True):
            assert key(ours[0]) == key(theirs[0])
            assert ours[1].tolist() == theirs[1].tolist()
    assert [key(b[0]) for b in three] == [key(b[0]) for b in whole]
    assert key(whole[0][0]) != key(whole[5][0])
    other = read(load(data_dir, seed=1, **options)[0])
    assert key(other[0][0]) != key(whole[0][0])


@pytest.mark.parametrize("cache", [False, True])
def test_an_epoch_holds_each_example_once(data_dir, everything, cache):
    dataset, _ = load(
        data_dir, crop="resize", flip=False, cache=cache, shuffle_buffer=5
    )
    known = {key(image): i for i, image in enumerate(everything[0])}
    orders = []
    for _ in range(2):
        images = np.concatenate([batch[0] for batch in read(dataset)])
        orders.append([known[key(image)] for image in images])
        assert len(set(orders[-1])) == 20
    assert orders[0] != orders[1]


def test_hosts_have_disjoint_examples_and_equal_steps(data_dir, everything):
    known = {key(image): i for i, image in enumerate(everything[0])}
    for training in (True, False):
        seen = []
        for host in range(3):
            dataset, info = load(
                data_dir,
                training=training,
                crop="resize",
                flip=False if training else None,
                batch_size=6,
            )
            dataset = dataset.sharded(host, 3)
            assert info.num_examples == 23
            batches = read(dataset)
            assert len(batches) == (3 if training else 4)
            assert {len(batch[0]) for batch in batches} == {2}
            for batch in batches:
                keep = [True] * 2 if training else batch[2] == 1
                seen += [known[key(image)] for image in batch[0][keep]]
        assert len(set(seen)) == len(seen) == (18 if training else 23)


def test_more_hosts_than_examples(data_dir):
    seen = []
    for host in range(5):
        dataset, _ = load(data_dir, "train[:2]", False, batch_size=5)
        dataset = dataset.sharded(host, 5)
        ((_, labels, weights),) = read(dataset)
        assert len(labels) == 1
        seen += weights.tolist()
    assert sorted(seen) == [0, 0, 0, 1, 1]


def test_hosts_draw_different_crops(data_dir, monkeypatch):
    drawn = []
    draws = engine_tensorflow.draws
    monkeypatch.setattr(
        engine_tensorflow, "draws", lambda *a: drawn.append(a) or draws(*a)
    )
    for host in (0, 1):
        read(load(data_dir)[0].sharded(host, 2))
    assert len(drawn) == len(set(drawn)) == 20


def test_the_seed_shuffles_files(data_dir, everything):
    known = {key(image): i for i, image in enumerate(everything[0])}
    orders = []
    for seed in (0, 1):
        dataset, _ = load(
            data_dir, crop="resize", flip=False, shuffle_buffer=1, seed=seed
        )
        images = np.concatenate([batch[0] for batch in read(dataset)])
        orders.append([known[key(image)] for image in images])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("training", [True, False])
def test_a_cache_lasts_from_pass_to_pass(data_dir, tmp_path, training):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    dataset, _ = load(copy, training=training, cache=True)
    first = read(dataset)
    for file in copy.glob("**/*.tfrecord*"):
        file.unlink()
    second = read(dataset)
    assert len(first) == len(second)
    same = [key(a[0]) == key(b[0]) for a, b in zip(first, second, strict=True)]
    assert all(same) != training


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("training", [True, False])
def test_a_file_of_records_that_is_lost_or_damaged(
    data_dir, tmp_path, training, on_error
):
    copy = tmp_path / "copy"
    shutil.copytree(data_dir, copy)
    dataset, _ = load(copy, training=training, on_error=on_error)
    file = sorted(copy.glob("**/*train.tfrecord*"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(tf.errors.DataLossError, match="corrupted record"):
        read(dataset)
    file.unlink()
    with pytest.raises(tf.errors.NotFoundError, match=file.name):
        read(dataset)


def test_excluded_examples(data_dir, everything, caplog):
    names = [
        name for name, _ in find(
            "local_photos", "train", data_dir=data_dir
        ).pictures()
    ]  # fmt: skip
    read_config = tfds.ReadConfig(add_tfds_id=True)
    examples = tfds.load(
        "local_photos", split="train", data_dir=data_dir,
        read_config=read_config,
    )  # fmt: skip
    ids = [example["tfds_id"].numpy().decode() for example in examples]
    assert names == ids
    dataset, info = load(
        data_dir, training=False, crop="resize", batch_size=23,
        exclude=[*ids[3:6], ids[20], "elsewhere__3"],
    )  # fmt: skip
    ((images, _),) = read(dataset)
    assert info.num_examples == 19
    kept = np.delete(everything[0], [3, 4, 5, 20], axis=0)
    np.testing.assert_array_equal(images, kept)
    # Others' warnings are about what TFDS itself calls.
    assert not [m for m in caplog.messages if "`exclude`" in m]
    _, info = load(data_dir, training=False, exclude=["elsewhere__3"])
    assert info.num_examples == 23
    (message,) = [m for m in caplog.messages if "`exclude`" in m]
    assert "None of the 1 names of `exclude`" in message


def test_weights_of_examples(data_dir):
    dataset, _ = load(
        data_dir, "test", False, batch_size=7, sample_weight="weight",
        class_weight={0: 2.0},
    )  # fmt: skip
    ((_, labels, weights),) = read(dataset)
    assert sorted(weights.tolist()) == sorted(
        i / 2 * (2 if i % 3 == 0 else 1) for i in range(7)
    )
    assert labels.shape == (7,)


def records(data_dir, **columns):
    builder = tfds.builder("local_photos", data_dir=data_dir)
    row = {"name": "x", "tfds": None, "splits": {}, "num_classes": 0}
    row = data.PaperDataset(**{**row, **columns})
    return tfds_source.open_records(builder.info, "test", row, data.Options())


def parsed(found):
    stream = found._read(tf)
    return [tuple(map(np.asarray, found.parse(r)[1:])) for r, _ in stream]


def test_several_labels_become_a_vector_and_none_weighs_nothing(data_dir):
    found = records(data_dir, label="labels")
    assert found.label_shape == (3,)
    both = parsed(found)
    vectors = sorted(label.tolist() for label, _ in both)
    assert vectors == sorted([[0, 0, 0], [1, 0, 0], [1, 1, 0]] * 2 + [[0] * 3])
    for label, weight in both:
        assert weight == label.max()


def test_the_size_of_small_images_is_in_the_features(data_dir):
    found = records(data_dir)
    assert found.smaller_side() is None
    small = dataclasses.replace(found, image_shape=(28, 30, 1))
    assert small.smaller_side() == 28


def test_kitti_distance(data_dir):
    row = data.DATASETS["kitti-distance"]
    found = records(
        data_dir,
        label=row.label,
        label_features=row.label_features,
        num_classes=row.num_classes,
    )
    labels = sorted(int(label) for label, _ in parsed(found))
    assert labels == sorted(DISTANCES[i % 4] for i in range(7))
    assert found.class_names == ["0", "1", "2", "3"]


def test_broken_records_are_named_or_left_out(tmp_path):
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
    )
    image = encode(next(pictures("coffee", 1)))
    with tf.io.TFRecordWriter(
        str(tmp_path / "torn-train.tfrecord-00000-of-00001")
    ) as writer:
        for content in (image, image[:900], image):
            example = {
                "image": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[content])
                ),
                "label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[1])
                ),
            }
            writer.write(
                tf.train.Example(
                    features=tf.train.Features(feature=example)
                ).SerializeToString()
            )
    split = tfds.core.SplitInfo(
        name="train",
        shard_lengths=[3],
        num_bytes=0,
        filename_template=tfds.core.ShardedFileTemplate(
            dataset_name="torn",
            split="train",
            filetype_suffix="tfrecord",
            data_dir=tmp_path,
        ),
    )
    tfds.folder_dataset.write_metadata(
        data_dir=tmp_path, features=features, split_infos=[split]
    )
    options = {"image_size": 8, "batch_size": 3, "training": False}
    dataset, _ = _photos.load(tmp_path, "train", **options)
    name = "torn-train.tfrecord-00000-of-00001__1"
    with pytest.raises(tf.errors.InvalidArgumentError, match=name):
        read(dataset)
    dataset, info = _photos.load(tmp_path, "train", on_error="skip", **options)
    ((_, labels),) = read(dataset)
    assert labels.tolist() == [1, 1]
    assert info.skipped.names == [name]


def test_wrong_names(data_dir):
    for split in ("validation", "train[:"):
        with pytest.raises(
            ValueError, match=r"(?s)no split '.*\['test', 'train'\]"
        ):
            load(data_dir, split)
    for options, message in [
        ({"sample_weight": "size"}, "has no feature 'size'. It has: "),
        ({"sample_weight": [1.0]}, "be the name of a feature. Received: list"),
        ({"engine": "python"}, 'which engine="python" cannot'),
    ]:
        with pytest.raises(ValueError, match=message):
            load(data_dir, **options)
    with pytest.raises(ValueError, match=r"Nearest names: .*'cifar10'"):
        _photos.load(
            "cifra10", "train", image_size=8, batch_size=1, training=True
        )
    with pytest.raises(ValueError, match="'imagenet-21k' has 21843 classes, b"):
        _photos.load(
            "imagenet-21k",
            "train",
            image_size=8,
            batch_size=1,
            training=True,
            data_dir=data_dir / "local_photos" / "1.0.0",
        )
    with pytest.raises(ValueError, match=r"'number' .* is not a class label"):
        records(data_dir, label="number")


def test_the_rows_of_vectors_take_no_vectors(data_dir, monkeypatch):
    row = data.PaperDataset("several", "local_photos", {}, 3, label="labels")
    monkeypatch.setitem(data.DATASETS, "several", row)
    options = {"image_size": 8, "batch_size": 7, "data_dir": data_dir}
    dataset, _ = _photos.load("several", "test", training=False, **options)
    ((_, labels, weights),) = read(dataset)
    assert labels.shape == (7, 3)
    assert weights.sum() == 4
    with pytest.raises(ValueError, match="vectors of several classes"):
        _photos.load("several", "test", training=True, one_hot=True, **options)


# --- the paper's table


@pytest.mark.parametrize("name", sorted(data.DATASETS))
def test_rows_fit_what_tfds_knows(name, tmp_path):
    row = data.DATASETS[name]
    if row.tfds is None:
        return
    # The builder's code knows features before anything is prepared.
    builder = tfds.builder(row.tfds, data_dir=tmp_path)
    features = builder.info.features
    for feature in row.label_features:
        assert feature in features
    if row.label is None or isinstance(row.label, str):
        _, label = tfds_source._keys(tfds, builder.info, data.Options())
        feature = features[row.label or label]
        feature = getattr(feature, "feature", feature)
        assert feature.num_classes == row.num_classes
    if row.held_out:
        assert any("{p}" in split for split in row.splits.values())


def test_held_out_splits_are_counted_from_the_training_set(
    data_dir, monkeypatch
):
    row = data.datasets._vtab(
        "local", "local_photos", data.datasets._HELD_OUT, 3, held_out=80
    )
    monkeypatch.setitem(data.DATASETS, "local", row)
    counts = {
        split: len(find("local", split, data_dir=data_dir))
        for split in ("train", "val", "trainval", "test", "train[:3]")
    }
    # 80% of 23, rounded down as VTAB does.
    assert counts == {
        "train": 18, "val": 5, "trainval": 23, "test": 7, "train[:3]": 3,
    }  # fmt: skip


def test_a_part_is_of_the_papers_split_not_of_tfds_s(data_dir, monkeypatch):
    row = data.datasets._vtab(
        "local", "local_photos", data.datasets._HELD_OUT, 3, held_out=80
    )
    monkeypatch.setitem(data.DATASETS, "local", row)
    seen = []
    part_of = tfds_source.part_of
    monkeypatch.setattr(
        tfds_source,
        "part_of",
        lambda *a: seen.append(part_of(*a)) or seen[-1],
    )
    counts = [
        len(find("local", split, data_dir=data_dir))
        for split in (
            "train[:50%]", "train[50%:]", "val[40%:]", "train[:9]",
            "train[-2:]", "val[1:3]", "trainval[-10%:]",
            "train[:50%]+val[:1]",
        )
    ]  # fmt: skip
    # TFDS's own train[50%:] would have some of `val`.
    assert seen == [
        "train[0:9]", "train[9:18]", "train[20:23]", "train[0:9]",
        "train[16:18]", "train[19:21]", "train[20:23]",
        "train[0:9]", "train[18:19]",
    ]  # fmt: skip
    assert counts == [9, 9, 3, 9, 2, 2, 3, 10]
    builder = tfds.builder("local_photos", data_dir=data_dir)
    for whole, part, expected in [
        ("train", ":]", "train[0:23]"),
        ("train[80%:]", "20%:80%]", "train[19:22]"),
        ("train[:10]+test[2:]", ":50%]", "train[0:5]+test[2:4]"),
        ("train[:10]+test[2:]", "8:12]", "train[8:10]+test[2:4]"),
        ("train[:10]+test[2:]", "-3:]", "test[4:7]"),
    ]:
        assert part_of(builder, whole, part) == expected
    for split, message in [
        ("test[:10%]", r"\[:10%\] of 'test' is empty"),
        ("val[:6]", r"part of a split.*within 5. Received: \[:6\] of 'train"),
        ("val[3:3]", "within 5. Received"),
        ("val[:110%]", "within 100%. Received"),
        ("val[1:10%]", "within 100%. Received"),
        ("val[0shard]", "part of a split such as"),
    ]:
        with pytest.raises(ValueError, match=message):
            find("local", split, data_dir=data_dir)


def test_what_tfds_imports_to_prepare_a_data_set_is_installed():
    assert tfds.builder_cls("cifar10").code_path.name.endswith(".py")


def test_images_that_are_no_integers(tmp_path):
    class Floats(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(
                    shape=(None, None, 1), dtype=np.float32
                ),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            image = np.ones((4, 4, 1), np.float32)
            yield 0, {"image": image, "label": 1}

    Floats(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(ValueError, match="'image' of 'floats' holds float32"):
        find("floats", "train", data_dir=tmp_path)


def test_examples_without_a_label(tmp_path):
    class Secret(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=2),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"test": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                yield i, {"image": np.zeros((4, 4, 3), np.uint8), "label": -1}

    Secret(data_dir=tmp_path).download_and_prepare()
    common = {
        "image_size": 4, "batch_size": 2, "training": False,
        "data_dir": tmp_path,
    }  # fmt: skip
    dataset, _ = _photos.load("secret", "test", **common)
    assert [batch[1].tolist() for batch in read(dataset)] == [[-1, -1], [-1]]
    dataset, _ = _photos.load("secret", "test", **{**common, "training": True})
    with pytest.raises(Exception, match=r"is -1.*has no label: leave it out"):
        read(dataset)
    for options in ({"one_hot": True}, {"class_weight": {1: 2.0}}):
        dataset, _ = _photos.load("secret", "test", **common, **options)
        with pytest.raises(Exception, match=r"without a label \(-1\)"):
            read(dataset)


def test_labels_beyond_the_classes(data_dir, monkeypatch):
    row = data.PaperDataset(
        "odd", "local_photos", {}, 3,
        label=lambda example: example["number"],
        label_features=("number",),
    )  # fmt: skip
    monkeypatch.setitem(data.DATASETS, "odd", row)
    common = {
        "image_size": 8, "batch_size": 7, "training": False,
        "data_dir": data_dir,
    }  # fmt: skip
    dataset, _ = _photos.load("odd", "test", **common)
    name = r"local_photos-test.tfrecord-00000-of-0000\d__\d"
    with pytest.raises(Exception, match=f"label of '{name}' is .* 0 to 2"):
        read(dataset)
    dataset, info = _photos.load("odd", "test", on_error="skip", **common)
    ((_, labels),) = read(dataset)
    assert sorted(labels.tolist()) == [0, 1, 2]
    assert len(info.skipped.names) == 4


def test_labels_that_vtab_computes():
    clevr = {
        "objects": {
            "size": tf.zeros(5),
            "pixel_coords": tf.constant([[0, 0, 9.2], [0, 0, 8.4]]),
        }
    }
    assert int(data.datasets.clevr_count(clevr)) == 2
    assert int(data.datasets.clevr_distance(clevr)) == 1
    x = {"label_x_position": tf.constant(31, tf.int64)}
    assert int(data.datasets.dsprites_x(x)) == 15
    for orientation, expected in [(0, 0), (2, 0), (3, 1), (39, 15)]:
        example = {"label_orientation": tf.constant(orientation, tf.int64)}
        label = data.datasets.dsprites_orientation(example)
        assert int(label) == expected


@pytest.fixture(scope="module")
def array_records(tmp_path_factory):
    """The same photos as array_record files."""
    pytest.importorskip("array_record")
    path = tmp_path_factory.mktemp("array_record")
    builder = LocalPhotos(data_dir=path, file_format="array_record")
    config = tfds.download.DownloadConfig(num_shards=4)
    builder.download_and_prepare(download_config=config)
    return path


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
def test_array_records_are_read_in_any_order(
    data_dir, array_records, everything, engine
):
    options = {"crop": "resize", "engine": engine}
    dataset, info = load(array_records, training=False, **options)
    assert (info.engine, info.num_examples) == (engine, 23)
    assert info.class_names == list(CLASSES)
    batches = read(dataset)
    images = np.concatenate([batch[0] for batch in batches])
    order = np.argsort([key(image) for image in images])
    theirs = np.argsort([key(image) for image in everything[0]])
    assert largest_difference(images[order], everything[0][theirs]) <= 1
    ours = load(array_records, "train[:10]+test[50%:]", **options)
    assert ours[1].num_examples == 10 + 3
    # In any order, so a host reads its slices, and a run goes on at once.
    whole = read(load(array_records, **options)[0].at(0, 8))
    rest = read(load(array_records, **options)[0].at(6, 2).sharded(1, 2))
    for both, half in zip(whole[6:], rest, strict=True):
        np.testing.assert_array_equal(both[0][2:], half[0])
        np.testing.assert_array_equal(both[1][2:], half[1])


def test_array_records_names_weights_and_labels(array_records, monkeypatch):
    found = find("local_photos", "train", data_dir=array_records)
    assert found.labels is None
    assert (
        found.names[22] == "local_photos-train.array_record-00003-of-00004__5"
    )
    assert len({*found.names}) == 23
    name = found.names[7]
    fewer = find(
        "local_photos", "train", data_dir=array_records, exclude=[name]
    )
    assert len(fewer) == 22
    assert name not in fewer.names
    assert fewer.picture(7).data == found.picture(8).data
    batches, _ = load(
        array_records, "test", False, batch_size=7, sample_weight="weight",
        class_weight="balanced",
    )  # fmt: skip
    ((_, labels, weights),) = read(batches)
    counts = np.bincount(labels)
    assert counts.tolist() == [3, 2, 2]
    ratio = weights * 3 * counts[labels] / 7
    np.testing.assert_allclose(sorted(ratio), np.arange(7) / 2, rtol=1e-6)
    row = data.DATASETS["kitti-distance"]
    row = dataclasses.replace(row, tfds="local_photos", splits={})
    monkeypatch.setitem(data.DATASETS, "kitti-distance", row)
    batches, _ = _photos.load(
        "kitti-distance", "test", image_size=8, batch_size=7, training=False,
        data_dir=array_records,
    )  # fmt: skip
    ((_, labels),) = read(batches)
    assert sorted(labels) == sorted(DISTANCES[i % 4] for i in range(7))
    # Several classes.
    options = {"label": "labels", "image_size": 8, "batch_size": 7}
    for engine in ("python", "tensorflow"):
        batches, _ = load(
            array_records, "test", False, engine=engine, **options
        )
        ((_, labels, weights),) = read(batches)
        assert sorted(labels.sum(axis=1)) == [0, 0, 0, 1, 1, 2, 2]
        np.testing.assert_array_equal(weights, labels.max(axis=1))


def test_the_data_source_of_tfds(array_records):
    source = tfds.data_source(
        "local_photos", split="train", data_dir=array_records
    )
    batches, info = _photos.load(
        source, "train", image_size=8, batch_size=23, training=False
    )
    assert info.class_names == list(CLASSES)
    ((_, labels),) = read(batches)
    assert labels.tolist() == [example["label"] for example in source]
    found = find(source, "train[50%:]")
    assert np.bincount(found.labels).tolist() == [4, 4, 3]


def test_array_records_that_are_damaged(array_records, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(array_records, copy)
    file = sorted(copy.glob("**/*train*"))[1]
    content = bytearray(file.read_bytes())
    content[3000:3400] = bytes(400)
    file.write_bytes(content)
    options = {"training": False, "batch_size": 23, "on_error": "raise"}
    with pytest.raises(
        data.ImageError, match=rf"Cannot read .*{file.name}__\d"
    ):
        read(load(copy, **options)[0])
    options["on_error"] = "skip"
    dataset, info = load(copy, **options)
    assert len(read(dataset)[0][1]) == 23 - len(info.skipped.names) > 10
    file.unlink()
    with pytest.raises(ValueError, match=r"Cannot open .*Prepare the data set"):
        load(copy, **options)


def test_formats_that_cannot_be_read(data_dir, array_records, monkeypatch):
    again = "tfds build local_photos --file_format=array_record"
    missing = set()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec",
        lambda name: None if name in missing else find_spec(name),
    )  # fmt: skip
    missing.add("tensorflow")
    with pytest.raises(ImportError, match=f"only TensorFlow reads.*{again}"):
        load(data_dir)
    assert load(array_records)[1].engine == "python"
    missing.add("array_record")
    with pytest.raises(ImportError, match="pip install array_record"):
        load(array_records)
    missing.clear()
    builder = LocalPhotos(data_dir=data_dir)
    builder.info.set_file_format("riegeli", override=True,
                                 override_if_initialized=True)  # fmt: skip
    with pytest.raises(
        ValueError, match=r"stored as riegeli\. Expected array_"
    ):
        tfds_source._check_format(builder, "x", False, True)
    for option in ("image", "label"):
        with pytest.raises(
            ValueError, match=r"has no feature 'colour'\. It has"
        ):
            load(array_records, **{option: "colour"})
