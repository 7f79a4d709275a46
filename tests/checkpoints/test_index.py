"""Searching the release, with its index and without."""

from __future__ import annotations

import csv
import doctest
import io
import re
import sys
import types

import pytest
from _checkpoints import INDEX_HEADER
from _server import bucket

from keras_augreg.checkpoints import DownloadError, best, index, names, search
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once


def write_index(pretrained, *, extra=()):
    """An index of some checkpoints: accuracies rise in the rule's order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, INDEX_HEADER, restval="", lineterminator="\n")
    writer.writeheader()
    for rank, name in enumerate(pretrained):
        for position, adapted in enumerate(names.adapted_names(name)):
            writer.writerow(
                {
                    "ds": name.upstream,
                    "best_val": 0.9 - rank / 1000,
                    "final_val": 0.5 + rank / 1000,
                    "final_test": "" if rank else 0.4,
                    "adapt_final_val": 0.8 + position / 1000,
                    "adapt_final_test": 0.7,
                    "filename": str(name),
                    "adapt_filename": str(adapted),
                }
            )
    writer.writerows(extra)
    return text.getvalue()


SOME = [
    name
    for name in names.pretrained_names()
    if name.variant in ("ViT_S16", "ViT_B32") and name.dataset != "i21k_30"
]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """An empty cache, and no network."""
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("KERAS_AUGREG_OFFLINE", "1")
    monkeypatch.delenv("KERAS_AUGREG_MIRROR", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def server(monkeypatch):
    with bucket() as bucket_:
        bucket_.files["/augreg/index.csv"] = write_index(SOME).encode()
        monkeypatch.setenv("KERAS_AUGREG_OFFLINE", "0")
        monkeypatch.setenv("KERAS_AUGREG_MIRROR", bucket_.url)
        yield bucket_


@pytest.fixture
def indexed(cache):
    """The cache, with an index."""
    (cache / "augreg").mkdir(parents=True)
    (cache / "augreg/index.csv").write_text(write_index(SOME))
    return cache / "augreg/index.csv"


def test_offline_all_names_of_the_rule():
    found = search()
    assert len(found) == 9 * 3 * 28 + 2
    assert len(search(dataset="i1k")) == 9 * 28
    assert len(search("ViT_B16")) == 3 * 28
    assert len(search("ViT_L32")) == 0
    assert len(search(resolution=384)) == 9 * 3 * 28 * 34
    assert len(search(adapt_dataset="kitti")) == 758 * 8 + 756 * 8
    assert {row.fields.adapt_dataset for row in found} == {None}


def test_offline_only_names_of_a_source_are_verified():
    for adapt_dataset in (None, *names.ADAPT):
        for row in search(adapt_dataset=adapt_dataset):
            assert row.verified == (row.name in names.table())
            if not row.verified:
                assert row.figures == {}


def test_offline_the_published_figures():
    (row,) = search(
        "ViT_B16",
        dataset="i21k",
        augment="medium1",
        weight_decay=0.1,
        dropout=0.0,
        adapt_dataset="imagenet2012",
        resolution=384,
    )[:1]
    assert row.name.endswith("--imagenet2012-steps_20k-lr_0.03-res_384")
    assert row.seen == ("notebook", "readme")
    assert row.figures == {
        "adapt_final_test": 0.85486,  # 85.49% and 138 images/s in the README
        "infer_samples_per_sec": 137.92,
    }


def test_best_first():
    found = search("R26_ViT_S32", adapt_dataset="oxford_iiit_pet")
    accuracies = [row.figures.get("adapt_final_val", -1) for row in found]
    assert accuracies[0] == 0.967391
    assert accuracies == sorted(accuracies, reverse=True)
    found = search("R26_ViT_S32", adapt_dataset="imagenet2012")
    assert "adapt_final_test" in found[0].figures
    assert [row.verified for row in found] == [True] * 3 + [False] * 333


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("variant", "ViT_B14", "no architecture 'ViT_B14'. Nearest: ViT_B16"),
        ("augment", "light0", "file names means 'light1'"),
        *(
            (argument, value, f"{argument}={value!r}: expected one of ")
            for argument, value in [
                ("dataset", "imagenet"),
                ("release_augment", "heavy1"),
                ("weight_decay", 0.3),
                ("dropout", 0.5),
                ("adapt_dataset", "dogs"),
                ("resolution", 256),
            ]
        ),
    ],
)
def test_bad_filters(argument, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        search(**{argument: value})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"variant": "B_16"}, {"variant": "ViT_B16"}),
        ({"dataset": "imagenet21k"}, {"dataset": "i21k"}),
        ({"dataset": "ImageNet 21k"}, {"dataset": "i21k"}),
        ({"dataset": "imagenet21k_30"}, {"dataset": "i21k_30"}),
        ({"augment": "light"}, {"augment": "light1"}),
        ({"augment": "light2"}, {"release_augment": "light1"}),
        ({"adapt_dataset": "pets"}, {"adapt_dataset": "oxford_iiit_pet"}),
        ({"adapt_dataset": "cifar-100"}, {"adapt_dataset": "cifar100"}),
    ],
)
def test_every_spelling(one, other):
    found = search(**one)
    assert found
    assert found == search(**other)


def test_prints_as_a_table():
    lines = str(search("ViT_B16", dataset="i21k")).splitlines()
    assert lines[0].split() == ["name", "augment", "size_mib", "seen", "in"]
    best_name = names.resolve("ViT_B16", "augreg-in21k")
    assert lines[1].split()[:3] == [best_name, "medium1", "391.0"]
    assert lines[2].endswith("unverified")
    assert lines[-2] == "... and 8 more"
    assert lines[-1] == (
        "28 checkpoints, from the release's rule, without its index"
    )
    assert len(lines) == 23
    assert str(search("ViT_L32")).startswith(
        "name  augment  seen in\n0 checkpoints"
    )


def test_to_pandas(monkeypatch):
    found = search("ViT_B8")
    rows = []
    fake = types.ModuleType("pandas")
    fake.DataFrame = rows.extend
    monkeypatch.setitem(sys.modules, "pandas", fake)
    found.to_pandas()
    assert [row["name"] for row in rows] == [row.name for row in found]
    assert rows[0]["weight_decay"] == 0.1
    assert rows[0]["verified"] is True
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        found.to_pandas()


def test_to_pandas_for_real():
    pandas = pytest.importorskip("pandas")
    frame = search("ViT_S16", adapt_dataset="imagenet2012").to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == 3 * 28 * 4
    assert frame.adapt_final_test.max() == 0.83728


def test_fetched_once_then_cached_then_refreshed(server, cache):
    found = search("ViT_S16", dataset="i21k")
    assert len(found) == 28
    assert found.source == str(cache / "augreg/index.csv")
    assert str(found).endswith(f"28 checkpoints, from {found.source}")
    search("ViT_B32")
    assert len(server.log) == 1
    server.files["/augreg/index.csv"] = write_index(SOME[:5]).encode()
    assert len(search()) == len(SOME)
    assert len(search(refresh=True)) == 5
    assert len(server.log) == 2
    assert len(search()) == 5


def test_a_cut_index_is_not_resumed(server):
    server.faults = [{"cut": 1000}]
    with pytest.warns(UserWarning, match="broke off"):
        search()
    server.files["/augreg/index.csv"] = write_index(SOME[:5]).encode()
    assert len(search()) == 5
    assert server.log == [("/augreg/index.csv", None)] * 2


def test_with_the_index(indexed):
    found = search("ViT_B32", dataset="i1k")
    assert [row.fields for row in found] == SOME[::-1][28:56]
    assert all(row.seen == ("index",) for row in found)
    values = [row.figures["final_val"] for row in found]
    assert values == sorted(values, reverse=True)
    adapted = search("ViT_B32", dataset="i1k", adapt_dataset="kitti")
    assert len(adapted) == 28 * 16
    assert adapted[0].figures["adapt_final_val"] > 0.8
    assert "final_val" in adapted[0].figures
    assert "final_test" not in adapted[0].figures  # an empty cell
    assert search("ViT_L16") == []


def test_a_mirror_directory_may_hold_the_index(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", str(tmp_path))
    assert len(search()) == 758
    with pytest.raises(FileNotFoundError, match=r"search\(refresh=True\)"):
        search(refresh=True)
    (tmp_path / "index.csv").write_text(write_index(SOME))
    assert len(search()) == len(SOME)


def test_a_page_in_the_place_of_the_index(server, indexed):
    """As a portal sends; the index that is there stays."""
    before = indexed.read_bytes()
    server.files["/augreg/index.csv"] = b"<html>Please log in</html>"
    with pytest.raises(DownloadError, match="not the release's index, but b'<"):
        search(refresh=True)
    assert indexed.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "number"])
def test_a_damaged_index(indexed, damage):
    text = write_index(SOME[:2]).rstrip()
    if damage == "cut":
        text = text.rpartition(",")[0].rpartition(",")[0]
    else:
        text = text.replace("0.", "o.")
    indexed.write_text(text)
    with pytest.raises(ValueError, match=r"damaged in line \d.*refresh=True"):
        search()


def test_a_failing_network_is_said(server):
    server.always = {"status": 403}
    with pytest.warns(
        UserWarning, match=r"index cannot be downloaded.*HTTP 403"
    ):
        assert len(search()) == 758
    with pytest.raises(DownloadError, match="HTTP 403"):
        search(refresh=True)
    assert len(server.log) == 2


def test_another_csv_is_refused(indexed):
    indexed.write_text("name,filename\nB/16,x\n")
    with pytest.raises(ValueError, match=r"lacks the columns adapt_filename"):
        search()


def test_names_that_are_not_understood_are_counted(indexed):
    line = {"filename": "B_16-jft", "adapt_filename": "../x"}
    indexed.write_text(write_index(SOME[:2], extra=[line, line]))
    with pytest.warns(
        UserWarning, match=r"left out 4 names .* example 'B_16-jft'"
    ):
        assert len(search()) == 2


def test_best_without_the_index():
    for variant in VARIANTS:
        if "augreg-in21k" in names.aliases(variant):
            name = best(variant)
            assert name == names.resolve(variant, "augreg-in21k")
            assert name in names.table()
        else:
            with pytest.raises(ValueError, match="was not released for"):
                best(variant)
    for arguments in ({"dataset": "i1k"}, {"by": "best_val"}):
        with pytest.raises(FileNotFoundError, match=r"index\.csv is not on"):
            best("ViT_B16", **arguments)


def test_best_with_the_index(indexed):
    i1k = [name for name in SOME if name.pretrained.dataset == "i1k"]
    b32 = [str(name) for name in i1k if name.variant == "ViT_B32"]
    assert best("ViT_B32", "i1k") == b32[-1]
    assert best("ViT_B32", "i1k", by="best_val") == b32[0]
    assert best("B/32", "imagenet21k") == best("ViT_B32") == str(SOME[-1])
    with pytest.raises(ValueError, match="has no final_val of a ViT_L16"):
        best("ViT_L16")
    with pytest.raises(ValueError, match="has no final_test of a ViT_B32"):
        best("ViT_B32", by="final_test")


def test_best_fetches_the_index_if_it_needs_it(server):
    best("ViT_B32")
    assert server.log == []
    best("ViT_B32", "i1k")
    assert len(server.log) == 1
    server.always = {"status": 404}
    (index.files.cache_dir() / "augreg/index.csv").unlink()
    with pytest.raises(DownloadError, match="HTTP 404"):
        best("ViT_B32", "i1k")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("ViT_B14",), "no architecture 'ViT_B14'"),
        (("ViT_B16", "i22k"), "dataset='i22k': expected one of"),
        (("B/16", "i21k", "adapt_final_val"), "by='adapt_final_val': expected"),
    ],
)
def test_best_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        best(*arguments)


def test_docstrings():
    assert doctest.testmod(index).failed == 0
    assert doctest.testmod(index).attempted > 0


def test_lookup_joins_the_table_and_the_index(indexed):
    name = names.resolve("ViT_S16", "augreg-in21k")
    found = index.lookup(f"{name}.npz")
    assert found.name == name
    assert found.figures["size_mib"] == 115
    assert "final_val" in found.figures
    assert "readme" in found.seen
    assert found.seen[-1] == "index"
    # One that this index lacks.
    name = names.resolve("ViT_Ti16", "augreg-in21k")
    assert index.lookup(name).figures == {"size_mib": 37}
