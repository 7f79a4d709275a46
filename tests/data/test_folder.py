"""Folders of class folders."""

from __future__ import annotations

import os
import pathlib

import _photos
import keras
import numpy as np
import pytest
from _photos import encode, photo, write_folder

from keras_augreg import data
from keras_augreg.data import locate, tfds
from keras_augreg.data.decode import ImageError, formats

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path, 2)


def find(root, split="train", **options):
    return _photos.find(root, split, **options)


def test_names_are_sorted_and_other_files_are_no_images(root):
    folder = root / "train" / "coffee"
    (folder / "notes.txt").write_text("not an image")
    (folder / ".hidden.jpg").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "x.JPG").write_bytes(encode(photo("coffee")))
    found = find(root)
    assert found.names == [
        "astronaut/00.jpg", "astronaut/01.jpg", "chelsea/00.jpg",
        "chelsea/01.jpg", "coffee/00.jpg", "coffee/01.jpg",
        "coffee/deep/er/x.JPG",
    ]  # fmt: skip
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert found.picture(6).height == 400


def test_a_fifo_is_no_image(root):
    """Opened like a file, it would wait for a writer."""
    os.mkfifo(root / "train" / "coffee" / "x.jpg")
    found = find(root)
    number = found.names.index("coffee/x.jpg")
    with pytest.raises(ImageError, match=r"coffee/x\.jpg.*not a regular file"):
        found.picture(number)


def test_linked_folders_of_a_class_are_read(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "linked.jpg").write_bytes(encode(photo("coffee")))
    folder, before = root / "train" / "coffee", len(find(root))
    (folder / "more").symlink_to(elsewhere)
    # These would have no end.
    (folder / "loop").symlink_to(folder)
    (elsewhere / "up").symlink_to(elsewhere)
    names = find(root).names
    assert len(names) == before + 1
    assert "coffee/more/linked.jpg" in names
    # Two classes that hold each other: every image once in each.
    (folder / "tea").symlink_to(root / "train" / "astronaut")
    (root / "train" / "astronaut" / "coffee").symlink_to(folder)
    names = find(root).names
    assert len(set(names)) == len(names)
    assert sum(name.startswith("coffee/") for name in names) == 2 + 1 + 2


def test_files_that_are_not_read_are_counted(root, caplog):
    folder = root / "train" / "coffee"
    for name in ("a.heic", "b.HEIC", "notes.txt", "deep/c.heic"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (root / "train" / "outside.jpg").write_bytes(encode(photo("coffee")))
    found = find(root)
    assert len(found) == 6
    assert found.unread == {".heic": 3, ".txt": 1}
    (message,) = caplog.messages
    assert "not read: 3 .heic, 1 .txt, 1 images outside the class" in message
    assert str(root / "train") in message
    _, info = data.load(
        root, "train", image_size=8, batch_size=2, training=True
    )
    assert info.unread == {".heic": 3, ".txt": 1}
    assert len(caplog.messages) == 1


def test_a_class_of_other_files_says_which_they_are(root, caplog):
    for file in (root / "train" / "coffee").iterdir():
        file.rename(file.with_suffix(".heic"))
    with pytest.raises(ValueError, match="train/coffee' holds no image"):
        find(root)
    assert "not read: 2 .heic." in caplog.messages[0]


def test_files_that_are_not_read_are_named_once_per_folder(root, caplog):
    for split in ("train", "test"):
        (root / split / "coffee" / "notes.txt").write_text("x")
    for _ in range(2):
        for split in ("train", "test"):
            found = find(root / split, "all")
            assert found.unread == {".txt": 1}
    assert len(caplog.messages) == 2
    for split, message in zip(("train", "test"), caplog.messages, strict=True):
        assert f"{str(root / split)!r} that are not read: 1 .txt." in message


def test_junk_is_neither_a_class_nor_an_error(root, caplog):
    for folder in (root, root / "train", root / "train" / "coffee"):
        (folder / "__MACOSX").mkdir()
        (folder / "__MACOSX" / "x.jpg").write_bytes(b"x")
        for name in ("Thumbs.db", ".DS_Store", "desktop.ini", "._00.jpg"):
            (folder / name).write_bytes(b"x")
    found = find(root)
    assert found.class_names == ["astronaut", "chelsea", "coffee"]
    assert len(found) == 6
    assert found.unread == {}
    assert not caplog.messages


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.tif", "TIFF"),
        ("x.TIFF", "TIFF"),
        ("x.ppm", "PPM"),
        ("x.avif", "AVIF"),
        ("x.jp2", "JPEG2000"),
    ],
)
def test_what_pillow_reads_is_read(root, name, kind):
    if kind not in formats():
        pytest.skip(f"Pillow was built without {kind}")
    image = photo("coffee", (60, 40))
    options = {}
    if kind == "AVIF":
        options = {"quality": 100, "subsampling": "4:4:4"}
    content = encode(image, kind, **options)
    (root / "train" / "coffee" / name).write_bytes(content)
    found = find(root)
    assert found.names[-1] == f"coffee/{name}"
    picture = found.picture(6)
    pixels = picture.pixels((0, 0, picture.height, picture.width))
    # AVIF loses some of the picture.
    assert np.abs(pixels.astype(int) - np.asarray(image)).mean() < 3


def test_a_folder_around_the_folders(tmp_path, caplog):
    outer = tmp_path / "archive"
    write_folder(outer / "photos", 2)
    (outer / "__MACOSX").mkdir()
    for source, split in ((outer, "test"), (outer, "train")):
        assert len(find(source, split)) == 6
    assert f"{str(outer)!r} holds one folder; reading" in caplog.messages[0]
    assert len(find(tmp_path, "test")) == 6  # two folders around them
    (outer / "photos" / "train").rename(tmp_path / "classes")
    outer = tmp_path / "other"
    outer.mkdir()
    (tmp_path / "classes").rename(outer / "classes")
    found = find(outer, "all")
    assert found.class_names == ["astronaut", "chelsea", "coffee"]
    # With `class_names`, it is the class that the user means.
    assert find(outer, "all", class_names=["classes"]).class_names == [
        "classes"
    ]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("side", "small"), [(28, True), (33, False)])
def test_small_pictures_are_not_cropped(
    tmp_path, caplog, side, small, training
):
    write_folder(tmp_path, 4, size=(side, 60))
    (tmp_path / "train" / "coffee" / "00.jpg").write_bytes(b"broken")
    common = {"image_size": 28, "batch_size": 2, "training": training}
    dataset, _ = _photos.load(tmp_path, "train", engine="python", **common)
    expected = "inception" if training else "resize_small"
    assert dataset._cropping.crop == ("resize" if small else expected)
    said = [m for m in caplog.messages if "are small (28 pixels)" in m]
    assert len(said) == small
    dataset, _ = _photos.load(
        tmp_path, "train", engine="python", crop="resize_small", **common
    )
    assert dataset._cropping.crop == "resize_small"


def test_one_class_is_refused(tmp_path):
    (tmp_path / "cup" / "deep").mkdir(parents=True)
    for name in ("0.jpg", "deep/1.jpg"):
        (tmp_path / "cup" / name).write_bytes(encode(photo("coffee")))
    arguments = {"image_size": 8, "batch_size": 1, "training": False}
    with pytest.raises(ValueError, match="images of only one class, 'cup'"):
        data.load(tmp_path, "all", **arguments)
    names = ["cup"]
    _, info = data.load(tmp_path, "all", class_names=names, **arguments)
    assert info.num_examples == 2


def test_an_empty_class_folder(root):
    (root / "train" / "bagel").mkdir()
    with pytest.raises(ValueError, match=r"train/bagel' holds no image"):
        find(root)
    # Then it is not a class in any split.
    for split in ("train", "test"):
        found = find(root, split, on_error="skip")
        assert found.class_names == ["astronaut", "chelsea", "coffee"]
        assert found.left_out == ["bagel/"]
    # Named by the user, it is one.
    names = ["bagel", "coffee", "astronaut", "chelsea"]
    found = find(root, class_names=names)
    assert found.class_names == names
    assert sorted(set(found.labels)) == [1, 2, 3]


def test_a_class_that_train_lacks(root):
    (root / "test" / "tea").mkdir()
    (root / "test" / "tea" / "0.jpg").write_bytes(encode(photo("coffee")))
    with pytest.raises(
        ValueError, match=r"test/tea' is unknown.*no class 'tea"
    ):
        find(root, "test")
    found = find(root, "test", on_error="skip")
    assert found.class_names == ["astronaut", "chelsea", "coffee"]
    assert found.left_out == ["tea/0.jpg"]
    assert len(found) == 6
    with pytest.raises(ValueError, match="`class_names` has no class 'coffee'"):
        find(root, class_names=["astronaut", "chelsea"])


def test_class_folders_are_split_by_seed(root):
    root = root / "train"
    for folder in root.iterdir():
        for i in range(10, 18):
            (folder / f"{i}.jpg").write_bytes(encode(photo("coffee")))
    train, test, both = (find(root, s) for s in ("train", "test", "all"))
    assert sorted(train.names + test.names) == both.names
    assert [test.labels.tolist().count(c) for c in range(3)] == [2, 2, 2]
    assert find(root, "test").names == test.names
    assert find(root, "test", split_seed=1).names != test.names


def test_a_class_of_one_image_is_trained_on(tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "0.jpg").write_bytes(encode(photo("coffee")))
    assert find(tmp_path, "train").names == ["only/0.jpg"]
    assert find(tmp_path, "test").names == []


def test_nothing_to_read(tmp_path):
    (tmp_path / "0.jpg").write_bytes(encode(photo("coffee")))
    with pytest.raises(ValueError, match="holds no images in class folders"):
        find(tmp_path)


def test_an_evaluation_set_alone(tmp_path):
    root = write_folder(tmp_path, 2, splits=("test",))
    (root / "notes").mkdir()  # no picture in it
    found = find(root, "test")
    assert found.class_names == ["astronaut", "chelsea", "coffee"]
    assert len(found) == 6
    names = ["coffee", "astronaut", "chelsea"]
    assert find(root, "test", class_names=names).class_names == names


@pytest.mark.parametrize("folders", [("test",), ("Train", "Test"), ("val",)])
def test_folders_of_splits_are_no_classes(tmp_path, folders):
    root = write_folder(tmp_path, 2, splits=folders)
    with pytest.raises(ValueError, match=r"no split 'train' with class fol"):
        find(root)


def test_a_class_may_be_called_train(root):
    (root / "train").rename(root / "classes")
    root = root / "classes"
    (root / "coffee").rename(root / "train")
    assert find(root, "all").class_names == ["astronaut", "chelsea", "train"]
    assert find(root).class_names == ["astronaut", "chelsea", "train"]


def folders(root, *names):
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(2):
            (root / name / f"{i}.jpg").write_bytes(encode(photo("coffee")))
    return root


INTEL = [
    *("seg_pred/seg_pred", "seg_train/seg_train/a", "seg_train/seg_train/b"),
    *("seg_train/seg_train/c", "seg_test/seg_test/b", "seg_test/seg_test/c"),
]


@pytest.mark.parametrize("outer", ["", "outer"])
def test_names_with_the_name_of_a_split_in_them(tmp_path, outer):
    root = folders(tmp_path / outer, *INTEL)
    for split in ("train", "all", "test"):
        with pytest.raises(ValueError, match=r"seg_tr.*split='seg_train'"):
            find(tmp_path, split)
    found = find(tmp_path, "seg_train")
    assert (found.class_names, len(found)) == (["a", "b", "c"], 6)
    assert found.root == str(root / "seg_train/seg_train")
    # The training split defines the classes, as "train" does.
    found = find(tmp_path, "seg_test")
    assert found.class_names == ["a", "b", "c"]
    assert found.labels.tolist() == [1, 1, 2, 2]
    splits = data.evaluation_split(tmp_path, "seg_train")
    assert splits == ("seg_train", "seg_test")
    names = ["seg_pred", "seg_test", "seg_train"]
    assert find(tmp_path, "all", class_names=names).class_names == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["Train_data/a", "Train_data/b", "Test_data/a", "Test_data/b"],
            r"seem to be splits.*'a', 'b'.*split='Train_data'",
        ),
        (
            ["fold1/a", "fold1/b", "fold2/a", "fold2/b"],
            r"'fold1', 'fold2', which seem.*class_names=\['fold1', 'fold2'\]",
        ),
        (["valset/a", "valset/b", "more"], r"'valset', which.*split='valset'"),
        (
            ["train/train/a", "train/train/b", "train/val/a", "train/val/b"],
            r"/train'\. Found 'train', 'val'.*split='train'",
        ),
        (
            ["cat/train", "cat/test", "dog/train", "dog/test"],
            r"hold splits, 'test', 'train'.*CLASS/SPLIT.*\['cat', 'dog'\]",
        ),
        (
            ["cat", "dog", "pv/cat", "pv/dog"],
            r"/pv' holds folders of the names.*Remove it.*'dog', 'pv'\]",
        ),
        (
            ["train/train", "test/test"],
            r"/train' holds no class folders, but 'train'.*labels\.csv",
        ),
        (
            ["Training/a", "Training/b", "Testing/a", "Testing/b"],
            r"has no split 'train'.*'Testing', 'Training'\]\. Pass one",
        ),
    ],
)
def test_folders_of_classes_are_no_classes(tmp_path, names, message):
    with pytest.raises(ValueError, match=message):
        find(folders(tmp_path, *names))


@pytest.mark.parametrize(
    "names",
    [
        ["cat/2020", "dog/2020"],
        ["cat/2020", "cat/2021", "dog"],
        ["cat/2020", "cat/2021", "dog/2020"],
        ["bullet_train", "test_tube"],
        ["bullet_train/2020", "test_tube/2020"],
    ],
)
def test_classes_may_hold_folders(tmp_path, names):
    found = find(folders(tmp_path, *names), "all")
    assert found.class_names == sorted({n.partition("/")[0] for n in names})
    assert len(found) == 2 * len(names)


def test_a_folder_in_a_split_around_its_classes(tmp_path):
    names = ["train/train/a", "train/train/b", "test/test/a", "test/test/b"]
    folders(tmp_path, *names, "val/b/2020")
    for split, labels in (
        ("train", [0, 0, 1, 1]),
        ("test", [0, 0, 1, 1]),
        ("val", [1, 1]),  # "b" is a class in `train`.
    ):
        found = find(tmp_path, split)
        assert found.class_names == ["a", "b"]
        assert found.labels.tolist() == labels


def test_hidden_folders_hold_no_images(root):
    copies = root / "train" / "coffee" / ".ipynb_checkpoints"
    copies.mkdir()
    (copies / "00-checkpoint.jpg").write_bytes(encode(photo("coffee")))
    assert len(find(root)) == 6


def test_a_folder_that_cannot_be_listed(root, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("coffee"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="train/coffee"):
        find(root)


def test_a_link_to_nothing_in_the_place_of_a_class(root):
    (root / "train" / "tea").symlink_to(root / "elsewhere")
    with pytest.raises(ValueError, match=r"train/tea' is a broken link"):
        find(root)
    assert find(root, on_error="skip").left_out == ["tea"]


def test_a_class_twice(root):
    names = ["chelsea", "coffee", "chelsea", "astronaut"]
    with pytest.raises(
        ValueError, match=r"not repeat a class.*'chelsea', 'coff"
    ):
        find(root, class_names=names)


def test_a_path_is_no_name(root, tmp_path, monkeypatch):
    epath = pytest.importorskip("etils.epath")
    for name in ("digits", "flowers", "cifar10"):
        (root / "train").rename(root / name)
        monkeypatch.chdir(root)
        path = pathlib.Path(name)
        assert find(path, "all").class_names[0] == "astronaut"
        (root / name).rename(root / "train")
    monkeypatch.setattr(tfds, "is_prepared_directory", "gs://b/x".__eq__)
    location = locate.locate(epath.Path("gs://b/x"), None)
    assert (location.path, location.kind) == ("gs://b/x", "tfds")
    # With TFDS's folder, a name is never a path.
    (root / "local").mkdir()
    with pytest.raises(ValueError, match="Unknown source 'local'"):
        find("local", data_dir=tmp_path)
    with pytest.raises(ValueError, match="holds no images"):
        find("./local", data_dir=tmp_path)


def test_excluded_names(root, tmp_path, caplog):
    names = ["coffee/00.jpg", "not/there.jpg"]
    file = tmp_path / "list.txt"
    file.write_text("\n".join(names))
    for exclude in (names, file, str(file)):
        found = find(root, exclude=exclude)
        assert len(found) == 5
        assert "coffee/00.jpg" not in found.names
        assert found.labels.tolist() == [0, 0, 1, 1, 2]
    options = data.Options(exclude=file)
    file.unlink()  # It has been read.
    assert options.excluded == frozenset(names)
    os.mkfifo(file)
    with pytest.raises(OSError, match="not a regular file"):
        find(root, exclude=file)
    assert not caplog.messages
    assert len(find(root, exclude=["/root/coffee/00.jpg"])) == 6
    (message,) = caplog.messages
    assert "None of the 1 names of `exclude` is in this split" in message
    assert "'/root/coffee/00.jpg'" in message


def test_the_release_order_of_imagenet_21k(tmp_path):
    for synset in ("n00005787", "n00004475"):
        (tmp_path / synset).mkdir()
        (tmp_path / synset / "0.jpg").write_bytes(encode(photo("coffee")))
    found = find("imagenet-21k", "all", data_dir=tmp_path)
    assert len(found.class_names) == 21843
    assert found.labels.tolist() == [0, 1]
    assert found.names[0] == "n00004475/0.jpg"


@pytest.mark.parametrize("source", ["digits", "folder", "with splits"])
def test_parts_of_a_split(source, tmp_path):
    if source != "digits":
        write_folder(tmp_path, 9)
        source = tmp_path if source == "with splits" else tmp_path / "train"
    whole = find(source)
    parts = [find(source, f"train[{p}]") for p in (":10%", "10%:50%", "50%:")]
    names = [set(part.names) for part in parts]
    assert set().union(*names) == set(whole.names)
    assert sum(map(len, names)) == len(whole)
    assert find(source, "train[:50%]").names == [
        n for n in whole.names if n in names[0] | names[1]
    ]
    for part, share in zip(parts, (0.1, 0.4, 0.5), strict=True):
        assert part.class_names == whole.class_names
        counts = np.bincount(part.labels, minlength=len(whole.class_names))
        of_all = np.bincount(whole.labels)
        assert np.all(np.abs(counts - share * of_all) < 1)
        assert part.names == [n for n in whole.names if n in set(part.names)]
    # Every class, however small the part.
    assert set(find(source, "train[:1%]").labels) == set(whole.labels)
    assert find(source, "train[:50%]", split_seed=1).names != (
        find(source, "train[:50%]").names
    )


@pytest.mark.parametrize(
    "part",
    [
        *("[:0%]", "[50%:50%]", "[60%:50%]", "[:101%]", "[100%:]", "[:100]"),
        *("[-10%:]", "[:10%", "[10%]", "[:٣%]"),
    ],
)
def test_parts_that_are_none(part, root):
    for source in ("digits", root):
        with pytest.raises(ValueError, match=r"such as 'train\[:10%\]'"):
            find(source, f"train{part}")


def test_a_part_without_examples(root):
    with pytest.raises(ValueError, match="90% to 100% of each class is empty"):
        find(root, "train[90%:]")
