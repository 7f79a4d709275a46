"""Data sets of other libraries, which give any example by its number."""

from __future__ import annotations

import collections
import io
import pickle
import sys
import threading

import numpy as np
import PIL.Image
import pytest
from _photos import load_small as load

from keras_augreg import data
from keras_augreg.data import access

pytestmark = pytest.mark.once

NAMES = ["dark", "grey", "light"]
COUNT = 24


def pixels(i, size=8):
    return np.full((size, size, 3), 100 * (i % 3) + i % 50, np.uint8)


def encoded(i):
    file = io.BytesIO()
    PIL.Image.fromarray(pixels(i)).save(file, "PNG")
    return file.getvalue()


def check(source, split="all", **arguments):
    """Every image comes with its label, whatever the order; returns `info`."""
    batches, info = load(source, split, **arguments)
    seen = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            i = int(np.asarray(image)[0, 0, 0])
            number = int(label)
            assert (i // 100, info.class_names[number]) in [
                (k, name) for k, name in enumerate(NAMES)
            ]
            seen.append(i)
    assert len(seen) == info.num_examples
    return info


class Rows:
    """A data set that counts what is read."""

    def __init__(self, row, count=COUNT):
        self.row, self.count = row, count
        self.read = collections.Counter()
        self.lock = threading.Lock()

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        if not 0 <= i < self.count:
            raise IndexError(i)
        with self.lock:
            self.read[i] += 1
        return self.row(i)


def kinds():
    """What an image can be, and what a label can be."""

    class Tensor(np.ndarray):
        pass

    text = [NAMES[i % 3] for i in range(COUNT)]
    return {
        "bytes": lambda i: {"image": encoded(i), "label": text[i]},
        "array": lambda i: {"image": pixels(i), "label": text[i], "id": i},
        "grey": lambda i: (pixels(i)[..., 0], text[i]),
        "one channel": lambda i: (pixels(i)[..., :1], text[i]),
        "channels first": lambda i: [pixels(i).transpose(2, 0, 1), text[i]],
        "picture": lambda i: (PIL.Image.fromarray(pixels(i)), text[i]),
        "transparent": lambda i: (
            np.dstack([pixels(i), np.full((8, 8), 255, np.uint8)]),
            text[i],
        ),
        "mapping": lambda i: {
            "img": {"bytes": encoded(i), "path": None},
            "class": text[i],
        },
    }


@pytest.mark.parametrize("kind", kinds())
def test_every_kind_of_image(kind):
    info = check(Rows(kinds()[kind]))
    assert info.class_names == NAMES
    assert info.engine == "python"


def test_paths_of_files(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(encoded(i))
    rows = [
        {"image": tmp_path / f"{i}.png", "label": NAMES[i % 3]}
        for i in range(6)
    ]
    assert check(rows).num_examples == 6
    (tmp_path / "4.png").unlink()
    with pytest.raises(data.ImageError, match=r"'examples\[4\]': .*No such"):
        check(rows)
    batches, info = load(rows, options={"on_error": "skip"})
    assert sum(len(labels) for _, labels in batches) == 5
    assert info.skipped.names == ["examples[4]"]


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
def test_order_parts_shards_and_exclusion_are_those_of_folders(engine):
    rows = Rows(lambda i: {"image": encoded(i), "label": i % 3})
    options = {"engine": engine}
    train, info = load(rows, "train", training=True, options=options)
    test, _ = load(rows, "test", options=options)
    assert info.class_names == ["0", "1", "2"]
    assert info.num_examples == 24 - 6
    assert len(next(iter(test))[1]) == 6
    part = data.find(rows, "train[:50%]")
    assert np.bincount(part.labels).tolist() == [3, 3, 3]
    whole = [tuple(map(np.asarray, batch)) for batch in train.at(0, 6)]
    again = load(rows, "train", training=True, options=options)[0]
    rest = [tuple(map(np.asarray, batch)) for batch in again.at(4, 2)]
    for a, b in zip(whole[4:], rest, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
    halves = [next(iter(train.at(0, 1).sharded(i, 2))) for i in (0, 1)]
    images = np.concatenate([np.asarray(half[0]) for half in halves])
    np.testing.assert_array_equal(images, whole[0][0])
    fewer = data.find(
        rows, "all", options=data.Options(exclude=["examples[3]"])
    )
    assert len(fewer) == 23
    fold = data.find(rows, "validation", options=data.Options(folds=4, fold=1))
    assert np.bincount(fold.labels).tolist() == [2, 2, 2]
    restored = pickle.loads(pickle.dumps(data.find([(pixels(1), 1)], "all")))
    assert restored.picture(0).height == 8


def test_each_host_reads_its_share_and_no_more():
    """The input pipeline scales: a host's bytes fall as hosts are added."""
    for hosts in (1, 2, 4, 8):
        times = collections.Counter()
        for host in range(hosts):
            rows = Rows(lambda i: {"image": encoded(i), "label": i % 3}, 64)
            batches, _ = load(rows, training=True, class_names=NAMES,
                              batch_size=16)  # fmt: skip
            rows.read.clear()  # `load` looks at the first item, and at sizes.
            for images, _ in batches.sharded(host, hosts):
                assert len(images) == 16 // hosts
            assert sum(rows.read.values()) == 64 // hosts
            times += rows.read
        assert times == collections.Counter(range(64))


def test_labels_come_with_images_where_reading_all_would_cost():
    rows = Rows(lambda i: {"image": encoded(i), "label": i % 3}, 1000)
    batches, info = load(rows, class_names=NAMES, batch_size=10)
    assert sum(rows.read.values()) < 40
    assert next(iter(batches))[1].tolist() == [i % 3 for i in range(10)]
    assert info.class_names == NAMES
    options = {"sample_weight": np.arange(1000)}
    batches, _ = load(rows, class_names=NAMES, options=options)
    assert next(iter(batches))[2].tolist() == list(range(8))
    # With numbers only, the largest tells how many classes there are.
    assert load(rows)[1].num_classes == 3


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
def test_wrong_labels_are_named(engine):
    def row(i):
        return {"image": encoded(i), "label": 7 if i == 5 else i % 3}

    options = {"engine": engine}
    batches, _ = load(Rows(row), class_names=NAMES, options=options)
    with pytest.raises(Exception, match=r"label of 'examples\[5\]' is 7"):
        list(batches)
    options["on_error"] = "skip"
    batches, info = load(Rows(row), class_names=NAMES, options=options)
    assert sum(len(labels) for _, labels in batches) == 23
    assert info.skipped.names == ["examples[5]"]
    found = [(pixels(i), None if i == 4 else NAMES[i % 3]) for i in range(6)]
    with pytest.raises(ValueError, match=r"examples\[4\] is None, which is"):
        load(found)
    skipped = data.find(found, "all", options=data.Options(on_error="skip"))
    assert skipped.left_out == ["examples[4]"]
    with pytest.raises(ValueError, match=r"'light', which is none of the 2"):
        load(found, class_names=["dark", "grey"])


@pytest.mark.parametrize("engine", ["python", "tensorflow"])
def test_several_classes_for_an_image(engine):
    def row(i):
        return {"image": encoded(i), "label": [i % 3, (i + 1) % 3][: i % 3]}

    for source in (Rows(row), [row(i) for i in range(COUNT)]):
        batches, info = load(source, "all", options={"engine": engine})
        assert info.num_classes == 3
        labels = np.concatenate([np.asarray(y) for _, y, *_ in batches])
        assert labels.sum(axis=1).tolist() == [i % 3 for i in range(COUNT)]
        assert labels[4].tolist() == [0, 1, 0]
    soft = [(pixels(i), np.array([0.25, 0.75])) for i in range(8)]
    batches, _ = load(soft, "train[:50%]", options={"engine": engine})
    assert np.asarray(next(iter(batches))[1])[0].tolist() == [0.25, 0.75]


def test_hugging_faces_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "photo": datasets.Image(),
            "kind": datasets.ClassLabel(names=NAMES),
        }
    )
    whole = datasets.Dataset.from_dict(
        {
            "id": list(range(COUNT)),
            "photo": [PIL.Image.fromarray(pixels(i)) for i in range(COUNT)],
            "kind": [i % 3 for i in range(COUNT)],
        },
        features=features,
    )
    assert check(whole).class_names == NAMES
    found = data.find(whole, "all")
    assert found.labels.tolist() == [i % 3 for i in range(COUNT)]
    assert found.picture(3).data.startswith(b"\x89PNG")  # not decoded yet
    parts = whole.train_test_split(0.25, seed=0)
    assert data.evaluation_split(parts) == ("train", "test")
    assert check(parts, "test").num_examples == 6
    with pytest.raises(ValueError, match=r"has no split 'val'.*\['train', 't"):
        load(parts, "val")
    order = ["light", "dark", "grey"]
    assert check(parts, "train", class_names=order).class_names == order
    # What `save_to_disk` wrote.
    for saved, split, count in [(whole, "all", 24), (parts, "train", 18)]:
        folder = tmp_path / f"{count}"
        saved.save_to_disk(folder)
        assert check(folder, split).num_examples == count
        assert check(str(folder), split).num_examples == count
    (folder / "train" / "state.json").write_text("{")
    with pytest.raises(ValueError, match=r"Cannot read the folder .*save_to_d"):
        load(folder, "train")
    one = whole.select(range(6))
    one.info.splits = None
    with pytest.raises(ValueError, match=r"image.* must be one of \['id', 'ph"):
        load(one, options={"image": "jpeg"})
    shown = whole.with_transform(
        lambda rows: {
            "image": [np.asarray(x) for x in rows["photo"]],
            "kind": rows["kind"],
        }
    )
    options = {"image": "photo"}
    with pytest.raises(
        data.ImageError, match=r"examples\[0\] has no image 'ph"
    ):
        list(load(shown, options=options)[0])
    with pytest.raises(TypeError, match="streaming=True"):
        load(whole.to_iterable_dataset())


def test_a_folder_of_hugging_face_without_its_library(tmp_path, monkeypatch):
    (tmp_path / "dataset_dict.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"):
        load(tmp_path)


def test_torchs_data_sets():
    torch = pytest.importorskip("torch")

    class Photos(torch.utils.data.Dataset):
        classes = NAMES

        def __init__(self, train):
            self.train = train
            self.targets = [i % 3 for i in range(COUNT)]

        def __len__(self):
            return COUNT

        def __getitem__(self, i):
            return PIL.Image.fromarray(pixels(i)), self.targets[i]

    photos = Photos(train=True)
    assert check(photos, "train").num_examples == COUNT
    assert data.evaluation_split(photos) == ("train[:90%]", "train[90%:]")
    with pytest.raises(ValueError, match=r"Photos is the split 'train'\. Pass"):
        load(photos, "test")
    both = {"train": photos, "test": Photos(train=False)}
    assert check(both, "test").num_examples == COUNT
    subset = torch.utils.data.Subset(photos, [1, 4, 2])
    found = data.find(subset, "all")
    assert found.labels.tolist() == [1, 1, 2]
    assert found.class_names == NAMES
    pairs = torch.utils.data.TensorDataset(
        torch.arange(6, dtype=torch.uint8)[:, None, None, None].expand(
            6, 3, 8, 8
        ),
        torch.arange(6) % 2,
    )
    batches, info = load(pairs)
    images, labels = next(iter(batches))
    assert images[:, 0, 0, 0].tolist() == list(range(6))
    assert labels.tolist() == [0, 1] * 3
    assert info.num_classes == 2
    tensors = [(torch.zeros(3, 8, 8), 0) for i in range(2)]
    with pytest.raises(data.ImageError, match=r"array of float32.*ToTensor"):
        load(tensors)


def test_targets_that_items_do_not_have():
    """A subclass or a transform may change the labels of `targets`."""
    rows = Rows(lambda i: (pixels(i), (i + 1) % 3))
    rows.targets = [i % 3 for i in range(COUNT)]
    assert data.find(rows, "all").labels is not None
    labels = np.concatenate([y for _, y in load(rows)[0]])
    assert labels.tolist() == [(i + 1) % 3 for i in range(COUNT)]


def test_grains_data_sets():
    grain = pytest.importorskip("grain")
    rows = [{"image": encoded(i), "label": i % 3} for i in range(COUNT)]
    source = grain.MapDataset.source(rows).map(lambda row: {**row, "more": 1})
    info = load(source, options={"label": "label"})[1]
    assert (info.num_examples, info.num_classes) == (COUNT, 3)
    with pytest.raises(ValueError, match="repeats without end"):
        load(source.repeat())


class Failing(Rows):
    def __getitem__(self, i):
        if i == 3:
            raise RuntimeError("the disk is gone")
        return super().__getitem__(i)


def test_an_item_that_fails_is_named_or_left_out():
    rows = Failing(lambda i: (pixels(i), NAMES[i % 3]))
    options = {"class_names": NAMES}
    batches, _ = load(rows, **options)
    with pytest.raises(
        data.ImageError,
        match=r"Cannot read examples\[3\] of the Failing: RuntimeError: the d",
    ):
        list(batches)
    options["options"] = {"on_error": "skip"}
    for split in ("all", "all[:100%]"):
        batches, info = load(rows, split, **options)
        assert sum(len(labels) for _, labels in batches) == COUNT - 1
        assert info.skipped.names == ["examples[3]"]


def test_sources_that_are_none():
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    for source, kind, message in [
        ((images, labels), ValueError, r"shape \(4, 8, 8, 3\).*`list\(zip\("),
        (b"photos", ValueError, "an item of the bytes, of type int"),
        (iter([]), TypeError, "`source` must be a name, a path, a table, or"),
        (7, TypeError, "Received: int"),
        ([], ValueError, "The list has no examples"),
        ({"all": iter([])}, TypeError, "A split must be an object with"),
        ([{"x": 1, "y": 2}], ValueError, "which of .*'x', 'y'.* is the image"),
        ([{"image": images[0], "x": 1, "y": 2}], ValueError, "is the label"),
        ([(object(), 1)], ValueError, r"image of examples\[0\] is of type obj"),
        ([(images, 1)], ValueError, r"its shape is \(4, 8, 8, 3\)"),
        ([(images[0], 0), (images[1], "a")], ValueError, "of several kinds"),
        ([(images[0], 0)], ValueError, "only one class, '0'"),
        (Failing(lambda i: i[0]), ValueError, "Cannot read the first example"),
    ]:  # fmt: skip
        with pytest.raises(kind, match=f"(?s){message}"):
            load(source)
    pairs = list(zip(images, labels, strict=True))
    with pytest.raises(ValueError, match="`label` names a key, and the items"):
        load(pairs, options={"label": "y"})
    assert load(pairs)[1].num_classes == 4
    assert not access.is_random_access(iter([]))
