"""CSV files and DataFrames of images, and folds of any source."""

import csv

import numpy as np
import PIL.Image
import pytest

from keras_augreg import data
from keras_augreg.data import folds, tables
from keras_augreg.data.options import Options

pytestmark = pytest.mark.once

SHADES = {"dark": 0, "grey": 120, "light": 250}


@pytest.fixture
def rows(tmp_path):
    """30 images of three shades by ten patients, and their table's rows."""
    (tmp_path / "images").mkdir()
    rows = []
    for i in range(30):
        label = list(SHADES)[i % 3]
        name = f"{i:02}.jpg" if i % 2 else f"{i:02}.PNG"
        pixels = np.full((8, 8, 3), SHADES[label] + i % 3, "uint8")
        PIL.Image.fromarray(pixels).save(tmp_path / "images" / name)
        name = name if i % 3 else name.split(".")[0]
        rows.append({"id": name, "shade": label, "who": i // 3, "grade": i % 3})
    return rows


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def table(tmp_path, rows):
    return write(tmp_path / "images" / "train.csv", rows)


@pytest.mark.parametrize("engine", ["tensorflow", "python"])
def test_images_come_with_their_labels(table, engine):
    batches, info = data.load(
        str(table),
        "all",
        image_size=8,
        batch_size=10,
        training=False,
        class_weight="balanced",
        options=Options(engine=engine),
    )
    assert info.class_names == ["dark", "grey", "light"]
    assert (info.num_examples, info.steps_per_epoch) == (30, 3)
    for images, labels, _ in batches:
        shades = np.asarray(images).mean(axis=(1, 2, 3))
        wanted = [list(SHADES.values())[i] for i in np.asarray(labels)]
        np.testing.assert_allclose(shades, wanted, atol=4)


def test_a_dataframe_and_numbers_as_labels(rows, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows[4]["grade"], rows[5]["grade"] = 10, 9
    frame = pandas.DataFrame(rows)
    options = Options(image="id", label="grade")
    found = data.find(
        frame, "all", data_dir=tmp_path / "images", options=options
    )
    assert found.class_names == ["0", "1", "2", "9", "10"]
    assert found.names[:2] == ["00.PNG", "01.jpg"]
    assert found.labels[:6].tolist() == [0, 1, 2, 0, 4, 3]
    found = data.find(
        write(tmp_path / "images" / "train.csv", rows), "all", options=options
    )
    assert found.labels[:6].tolist() == [0, 1, 2, 0, 4, 3]


@pytest.mark.parametrize(
    ("grades", "names", "labels"),
    [
        ([0.0, 10.0, 2.0], ["0", "2", "10"], [0, 2, 1]),
        ([0.0, 10.0, 2.5], ["0.0", "10.0", "2.5"], [0, 1, 2]),
        (["1.9", "1.10", "1.0"], ["1.0", "1.10", "1.9"], [2, 1, 0]),
        (["1.0", "x", "2"], ["1.0", "2", "x"], [0, 2, 1]),
        (["cat", " cat", "dog "], ["cat", "dog"], [0, 0, 1]),
    ],
)
def test_files_and_dataframes_have_the_same_labels(
    rows, tmp_path, grades, names, labels
):
    pandas = pytest.importorskip("pandas")
    for i, row in enumerate(rows):
        row["grade"] = grades[i % 3]
    options = Options(label="grade")
    path = write(tmp_path / "images" / "train.csv", rows)
    for source in (path, pandas.DataFrame(rows)):
        found = data.find(source, "all", data_dir=path.parent, options=options)
        assert (found.class_names, found.labels[:3].tolist()) == (names, labels)


def test_labels_of_class_names_and_missing_ones(rows, tmp_path):
    """A missing cell makes floats of pandas's integers."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows)
    frame.loc[5, "grade"] = None
    path = tmp_path / "images" / "train.csv"
    frame.to_csv(path, index=False)
    assert ",1.0\n" in path.read_text()
    for source in (frame, path):
        for names in (None, ["0", "1", "2"], ["2.0", "1.0", "0.0"]):
            found = data.find(
                source, "all", data_dir=path.parent, class_names=names,
                options=Options(label="grade", group="who", folds=2,
                                on_error="skip"),
            )  # fmt: skip
            assert found.class_names == (names or ["0", "1", "2"])
            wanted = [2, 1, 0] if names and names[0] == "2.0" else [0, 1, 2]
            assert found.labels[:3].tolist() == wanted
            assert len(found.left_out) == 1
    names = ["0", "1", "2", "unknown"]
    found = data.find(
        frame, "all", data_dir=path.parent, class_names=names,
        options=Options(label="grade", on_error="skip"),
    )  # fmt: skip
    assert found.labels[:3].tolist() == [0, 1, 2]
    # Versions, of which a part of the images has only whole ones.
    frame["grade"] = 1.0
    frame.to_csv(path, index=False)
    names = ["1.0", "1.10"]
    found = data.find(
        path, "all", class_names=names, options=Options(label="grade")
    )
    assert (found.class_names, {*found.labels}) == (names, {0})


def test_spaces_and_numbers_as_columns(rows, tmp_path):
    pandas = pytest.importorskip("pandas")
    path = tmp_path / "images" / "train.csv"
    lines = [f' {row["id"]} , "{row["shade"]}" ' for row in rows]
    path.write_text("\n".join(["id, shade", *lines]) + "\n")
    spaced = pandas.read_csv(path)
    assert [*spaced] == ["id", " shade"]
    numbered = pandas.DataFrame(rows).rename(columns={"shade": 1, "id": 0})
    for source, options in (
        (path, {"label": "shade"}),
        (path, {"label": " shade"}),
        (spaced, {"label": " shade"}),
        (numbered, {"label": 1, "image": np.int64(0)}),
    ):
        found = data.find(
            source, "all", data_dir=path.parent, options=Options(**options)
        )
        assert found.names[:2] == ["00.PNG", "01.jpg"]
        names = [name.strip('" ') for name in found.class_names]
        assert names == ["dark", "grey", "light"]
    numbered[2] = 1
    several = Options(label=[2])
    found = data.find(numbered, "all", data_dir=path.parent, options=several)
    assert found.class_names == ["2"]
    with pytest.raises(TypeError, match="`label` must be the name of a column"):
        Options(label=0.5)


def test_numbers_that_are_no_classes(rows, tmp_path, caplog):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(rows)
    frame["age"] = np.linspace(-1, 1, 30)
    for column, warned in (("shade", 0), ("grade", 0), ("age", 1)):
        options = Options(label=column)
        for split in ("train", "test"):
            data.find(
                frame, split, data_dir=tmp_path / "images", options=options
            )
        assert len(caplog.messages) == warned
    assert "each of the 30 is a class: '-0." in caplog.messages[0]
    assert "if not, bin them, or name another" in caplog.messages[0]
    assert "classes=1 and classifier_activation=None" in caplog.messages[0]
    # Named by the user, they are classes.
    caplog.clear()
    frame["age"] = [0.5, 1.5] * 15
    data.find(
        frame, "all", data_dir=tmp_path / "images", options=options,
        class_names=["0.5", "1.5"],
    )  # fmt: skip
    assert not caplog.messages


def test_folds_part_the_table(table):
    for group in (None, "who"):
        seen = []
        for fold in range(5):
            options = Options(folds=5, fold=fold, group=group)
            train = data.find(table, "train", options=options)
            held = data.find(table, "validation", options=options)
            assert {*train.names} | {*held.names} == {
                *data.find(table, "all").names
            }
            assert np.bincount(held.labels).tolist() == [2, 2, 2]
            if group:
                patients = [
                    {int(name[:2]) // 3 for name in part.names}
                    for part in (train, held)
                ]
                assert patients[0].isdisjoint(patients[1])
            seen += held.names
        assert len(seen) == len({*seen}) == 30


def test_folds_are_balanced_and_reproducible():
    rng = np.random.default_rng(0)
    labels = rng.choice(4, 500, p=[0.6, 0.25, 0.1, 0.05])
    found = folds.assign(labels, 7, seed=3)
    for label in range(4):
        counts = np.bincount(found[labels == label], minlength=7)
        assert counts.max() - counts.min() <= 1
    counts = np.bincount(found)
    assert counts.max() - counts.min() <= 1
    assert (found == folds.assign(labels, 7, seed=3)).all()
    assert (found != folds.assign(labels, 7, seed=4)).any()


def test_grouped_folds_are_as_balanced_as_sklearns():
    model_selection = pytest.importorskip("sklearn.model_selection")
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 60, 600)
    labels = (groups % 3 + (rng.random(600) < 0.2)) % 3

    def imbalance(found):
        counts = [
            np.bincount(labels[found == f], minlength=3) for f in range(5)
        ]
        return np.std(counts, axis=0).mean()

    ours = folds.assign(labels, 5, 0, list(groups))
    for group in range(60):
        assert len({*ours[groups == group]}) == 1
    theirs = np.zeros(600, int)
    splitter = model_selection.StratifiedGroupKFold(5)
    for fold, (_, held) in enumerate(splitter.split(labels, labels, groups)):
        theirs[held] = fold
    assert imbalance(ours) <= 1.2 * imbalance(theirs)


def test_folds_of_folders_and_digits(tmp_path):
    options = Options(folds=4, fold=1)
    held = data.find("digits", "validation", options=options)
    train = data.find("digits", "train", options=options)
    assert len(held) + len(train) == 1797
    assert len(held) in (449, 450)
    with pytest.raises(ValueError, match='"train", "validation" and "all"'):
        data.find("digits", "test", options=options)
    for name in ("train/a", "train/b", "test/a"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(8):
            (tmp_path / name / f"{i}.png").touch()
    sizes = {
        split: len(data.find(tmp_path, split, options=options))
        for split in ("train", "validation", "test")
    }
    assert sizes == {"train": 12, "validation": 4, "test": 8}
    with pytest.raises(ValueError, match="`group` is a column of a table"):
        data.find(tmp_path, "train", options=Options(folds=2, group="who"))
    with pytest.raises(ValueError, match="Folds are for folders, tables"):
        data.find("cifar10", "train", options=options)


@pytest.mark.parametrize("engine", ["tensorflow", "python"])
def test_columns_of_several_classes(rows, tmp_path, engine):
    for row in rows:
        row |= {"pale": int(row["shade"] != "dark"), "odd": row["who"] % 2}
    path = write(tmp_path / "images" / "train.csv", rows)
    options = Options(label=["odd", "pale"], engine=engine)
    load = {"image_size": 8, "batch_size": 10, "training": False}
    batches, info = data.load(path, "all", options=options, **load)
    assert info.class_names == ["odd", "pale"]
    for images, labels in batches:
        assert np.asarray(labels).dtype == "float32"
        pale = np.asarray(images).mean(axis=(1, 2, 3)) > 50
        np.testing.assert_array_equal(np.asarray(labels)[:, 1], pale)
    # The test set has the same share of each combination.
    held, _ = data.load(path, "test", options=options, **load)
    labels = np.concatenate([np.asarray(batch[1]) for batch in held])
    assert len(labels) == 6
    assert labels[:, 1].sum() == 4
    folds = [
        data.find(path, "validation", options=Options(label=options.label,
                  folds=3, fold=i))
        for i in range(3)
    ]  # fmt: skip
    assert {fold.labels[:, 1].sum() for fold in folds} <= {6, 7, 8}
    assert {fold.labels[:, 0].sum() for fold in folds} <= {4, 5, 6}
    swapped = data.find(path, "all", class_names=["pale", "odd"],
                        options=options)  # fmt: skip
    assert swapped.labels[:3].tolist() == [[0, 0], [1, 0], [1, 0]]
    for names in (["pale", "other"], ["pale"], ["odd", "odd", "pale"]):
        with pytest.raises(ValueError, match="name each column once"):
            data.find(path, "all", class_names=names, options=options)
    with pytest.raises(ValueError, match="vectors of several classes"):
        data.load(path, "all", class_weight="balanced", options=options, **load)
    pandas = pytest.importorskip("pandas")
    with pytest.raises(ValueError, match=r"of 'DataFrame' are vectors of sev"):
        data.load(pandas.DataFrame(rows), "all", class_weight="balanced",
                  data_dir=path.parent, options=options, **load)  # fmt: skip
    with pytest.raises(ValueError, match=r"^'DataFrame' has no split to ev"):
        data.evaluation_split(pandas.DataFrame(rows), "all[:50%]")
    rows[4]["odd"] = "perhaps"
    write(path, rows)
    with pytest.raises(ValueError, match="'perhaps' in the column 'odd', not"):
        data.find(path, "all", options=options)
    with pytest.raises(ValueError, match="`label` is a column of a table"):
        data.find("digits", "all", options=options)


def test_rows_that_are_wrong_are_named(table, rows, tmp_path):
    rows[6]["id"], rows[7]["shade"] = "lost.jpg", ""
    write(table, rows)
    with pytest.raises(ValueError, match=r"Row 7 of .*csv': there is no"):
        data.find(table, "all")
    skipped = data.find(table, "all", options=Options(on_error="skip"))
    assert skipped.left_out == ["lost.jpg", "07.jpg"]
    assert len(skipped) == 28
    rows[6]["id"] = rows[8]["id"]
    write(table, rows)
    with pytest.raises(ValueError, match=r"Row 8 of .*'07.jpg' has the label"):
        data.find(table, "all")
    rows[7]["shade"] = "grey"
    write(table, rows)
    with pytest.raises(ValueError, match=r"2 rows for the image '08.PNG'"):
        data.find(table, "all")
    with pytest.raises(ValueError, match=r"`label` must be a column of .*'id'"):
        data.find(table, "all", options=Options(label="colour"))
    with pytest.raises(ValueError, match="'light', which `class_names` does"):
        data.find(table, "all", class_names=["dark", "grey"])
    with table.open("a") as file:
        file.write("x.jpg,dark\n")
    with pytest.raises(ValueError, match=r"Row 31 of .* has 2 cells, the"):
        data.find(table, "all")
    with pytest.raises(ValueError, match="No such file: "):
        data.find(tmp_path / "none.csv", "all")
    with pytest.raises(ValueError, match="No such folder of images"):
        data.find(table, "all", data_dir=tmp_path / "none")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match="`image` must be a column"):
        data.find(tmp_path / "empty.csv", "all")


@pytest.mark.once
def test_tables_that_cannot_be_read(table, tmp_path):
    other = tmp_path / "other.csv"
    text = table.read_text()
    for content, message in (
        (text.encode("utf-16"), "is not UTF-8 text"),
        (b"id,id\n1,2\n", r"repeats a column\. Received: \['id', 'id'\]"),
    ):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            tables.read(other)
    with pytest.raises(ValueError, match=r"ends in \.csv or \.tsv"):
        tables.read(tmp_path / "sample.zip")
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"id": ["a", None]}, dtype="string")
    assert [tables._text(v) for v in frame["id"]] == ["a", ""]
    frame.columns = ["id"]
    frame = pandas.concat([frame, frame], axis=1)
    with pytest.raises(ValueError, match="repeats a column"):
        tables.read(frame)
    assert tables._classes(["01", "1", "0"]) == ["0", "01", "1"]
    for column in ("image", "label"):
        with pytest.raises(ValueError, match=f"`{column}` is a column of a ta"):
            data.find("digits", "train", options=Options(**{column: "x"}))


def test_wrong_folds():
    for wrong in ({"fold": 1}, {"folds": 3, "fold": 3}, {"group": "who"}):
        with pytest.raises(ValueError, match="`group` require `folds`"):
            Options(**wrong)
    with pytest.raises(ValueError, match="`folds` must be an integer"):
        Options(folds=1)
    with pytest.raises(ValueError, match="3 folds need as many groups"):
        folds.assign(np.zeros(4, int), 3, 0, list("aabb"))
