"""Tar files in WebDataset's form, read by an index."""

from __future__ import annotations

import functools
import io
import json
import os
import tarfile

import numpy as np
import PIL.Image
import pytest
from _photos import load_small

from keras_augreg import data
from keras_augreg.data import tars

pytestmark = pytest.mark.once

NAMES = ["dark", "grey", "light"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(folder))
    return folder


def photo(i):
    file = io.BytesIO()
    shade = np.full((8, 8, 3), 100 * (i % 3) + i, np.uint8)
    PIL.Image.fromarray(shade).save(file, "PNG")
    return file.getvalue()


def write(path, files):
    """A tar file of (name, content)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def shard(path, numbers, ending="cls", label=lambda i: str(i % 3).encode()):
    files = []
    for i in numbers:
        files += [(f"{i:03}.png", photo(i)), (f"{i:03}.{ending}", label(i))]
        files += [(f"{i:03}.txt", b"a caption")]
    return write(path, files)


load = functools.partial(load_small, batch_size=6)


def check(source, split="all", **arguments):
    batches, info = load(source, split, **arguments)
    seen = []
    for images, labels in batches:
        for image, label in zip(images, labels, strict=True):
            i = int(np.asarray(image)[0, 0, 0])
            assert int(label) == i // 100
            seen.append(i % 100)
    assert len(seen) == info.num_examples
    return sorted(seen), info


@pytest.fixture
def photos(tmp_path):
    for k in range(3):
        shard(tmp_path / "photos" / f"part-{k:04}.tar", range(6 * k, 6 * k + 6))
    return tmp_path / "photos"


def test_a_folder_a_file_and_patterns(photos, monkeypatch):
    assert check(photos)[0] == list(range(18))
    assert check(str(photos / "part-0001.tar"))[0] == list(range(6, 12))
    pattern = str(photos / "part-{0001..0002}.tar")
    assert check(pattern)[0] == list(range(6, 18))
    monkeypatch.chdir(photos)
    seen, info = check("part-*.tar", "train", options={"engine": "python"})
    assert (len(seen), info.num_classes) == (15, 3)
    held, _ = check("part-*.tar", "test")
    assert sorted(seen + held) == list(range(18))
    found = data.find(photos, "all[:50%]")
    assert np.bincount(found.labels).tolist() == [3, 3, 3]
    options = data.Options(exclude=["part-0001.tar/007.png"])
    assert len(data.find(photos, "all", options=options)) == 17
    with pytest.raises(ValueError, match=r"No tar file .*part-9"):
        load(str(photos / "part-9.tar"))


def test_the_index_is_kept_and_follows_the_files(photos, monkeypatch, cache):
    check(photos)
    scanned = []
    scan = tars._scan
    monkeypatch.setattr(
        tars, "_scan", lambda file, *a: scanned.append(file) or scan(file, *a)
    )
    assert len(check(photos)[0]) == 18
    assert not scanned
    changed = shard(photos / "part-0001.tar", range(30, 34))
    os.utime(changed, ns=(1, 1))
    seen, _ = check(photos)
    assert seen == [*range(6), *range(12, 18), *range(30, 34)]
    assert scanned == [str(changed)]
    (photos / tars.INDEX).write_text("{")
    assert check(photos)[0] == seen
    assert len(scanned) == 4
    # Where the folder cannot be written.
    (photos / tars.INDEX).unlink()
    (photos / tars.INDEX).mkdir()
    assert check(photos)[0] == check(photos)[0] == seen
    assert len(scanned) == 7
    assert len([*cache.glob("indexes/*.json")]) == 1


def test_splits_are_in_names_or_folders(tmp_path):
    flat, deep = tmp_path / "flat", tmp_path / "deep"
    for split, numbers in [("train", range(9)), ("val", range(9, 12))]:
        shard(flat / f"photos-{split}-000.tar", numbers)
        shard(deep / split / "000.tar", numbers)
    for folder in (flat, deep):
        assert check(folder, "train")[0] == list(range(9))
        assert check(folder, "val")[0] == [9, 10, 11]
        assert data.evaluation_split(folder) == ("train", "val")
        with pytest.raises(ValueError, match=r"no split 'test'.*\['train', 'v"):
            load(folder, "test")
    shard(flat / "more.tar", range(12, 15))
    with pytest.raises(ValueError, match=r"'val'\]\), and '.*more.tar' has no"):
        load(flat, "train")
    # A folder of classes with an archive in it is none.
    (tmp_path / "classes" / "a").mkdir(parents=True)
    shard(tmp_path / "classes" / "backup.tar", [0])
    assert not tars.are_at(str(tmp_path / "classes"))


def test_every_kind_of_label(tmp_path):
    def found(ending, content, **options):
        path = shard(tmp_path / f"{ending}.tar", range(9), ending, content)
        return data.find(path, "all", options=data.Options(**options))

    text = found("cls", lambda i: NAMES[i % 3].encode() + b"\n")
    assert text.class_names == NAMES
    assert text.labels.tolist() == [i % 3 for i in range(9)]
    named = found(
        "json", lambda i: json.dumps({"label": NAMES[i % 3]}).encode()
    )
    assert named.class_names == NAMES
    keyed = found(
        "json",
        lambda i: json.dumps({"label": 0, "breed": i % 3}).encode(),
        label="breed",
    )
    assert keyed.class_names == ["0", "1", "2"]
    assert keyed.labels.tolist() == [i % 3 for i in range(9)]
    several = found(
        "json", lambda i: json.dumps({"label": [*range(i % 3)]}).encode()
    )
    assert several.labels[2].tolist() == [1, 1]
    with pytest.raises(
        ValueError, match=r"the label of '000.png' in .*Expecting"
    ):
        found("json", lambda i: b"broken")
    with pytest.raises(ValueError, match="No example of the tar files has a l"):
        found("json", lambda i: b"{}")


def test_examples_that_are_not_whole(tmp_path):
    files = [(f"{i}.png", photo(i)) for i in range(4)]
    files += [(f"{i}.cls", str(i % 2).encode()) for i in (0, 1, 2)]
    files += [("5.cls", b"1"), (".hidden", b"x"), ("folder/6.PNG", photo(6)),
              ("folder/6.cls", b"0")]  # fmt: skip
    path = write(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=r"label of a.tar/3.png is None"):
        load(path)
    batches, info = load(path, options={"on_error": "skip"}, batch_size=9)
    ((_, labels),) = batches
    assert np.asarray(labels).tolist() == [0, 1, 0, 0]
    assert info.skipped.names == ["a.tar/3.png", "a.tar/5.cls"]
    two = write(tmp_path / "b.tar", [("1.png", photo(1)), ("1.jpg", photo(1))])
    with pytest.raises(ValueError, match=r"several images: \['png', 'jpg'\]"):
        load(two)
    both = [(f"{i}.{e}", photo(i)) for i in range(2) for e in ("a.png", "png")]
    both += [(f"{i}.cls", f"{i}".encode()) for i in range(2)]
    assert len(load(write(tmp_path / "c.tar", both),
                    options={"image": "a.png"})[0]) == 1  # fmt: skip
    twice = write(tmp_path / "d.tar", [("1.png", photo(1))] * 2)
    with pytest.raises(ValueError, match=r"holds '1.png' twice"):
        load(twice)


def test_damaged_files_are_named(tmp_path):
    path = shard(tmp_path / "photos.tar", range(6))
    whole = path.read_bytes()
    header = whole.index(b"003.png")
    for content in (
        whole[: header + 700],  # in an image
        whole[: header + 100],  # in a header
        whole[:header],  # between two files
        whole[:header] + b"x" * 100 + whole[header + 100 :],
        b"",
        b"not a tar file" * 100,
    ):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"Cannot read the tar file '.*photos.tar'.*trunc"
        ):
            load(path)
    path.write_bytes(whole)
    batches, _ = load(path)
    path.write_bytes(whole[: header + 700])
    with pytest.raises(Exception, match=r"\d.png.* is truncated"):
        list(batches)
    for name in ("a.tar.gz", "a.tgz"):
        with pytest.raises(ValueError, match=r"is compressed.*Decompress it"):
            load(str(tmp_path / name))
