"""Tables and figures: what they show is what the table says."""

from __future__ import annotations

import json
import sys

import matplotlib.image
import numpy as np
import pandas
import pytest
from _checkpoints import INDEX_HEADER

from keras_augreg.checkpoints.names import table as release
from keras_augreg.recipe import AugReg
from keras_augreg.study import figures, table
from keras_augreg.study.grid import Grid, Source, Transfer
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once


def sweep_table():
    """A small study with made-up figures: two models, transfer, seeds."""
    grid = Grid(
        datasets=(Source("digits"), Source("photos")),
        models=(VARIANTS["ViT_S32"], VARIANTS["ViT_Ti16"]),
        recipes=(AugReg("none"), AugReg("medium1"), AugReg("none", 0.1, 0.1)),
        fractions=(0.1, 1.0),
        epochs=(10.0, 40.0),
        seeds=(0, 1),
        transfers=(Transfer(Source("photos"), (10,), (0.01, 0.03)),),
    )
    rows = []
    for cell in grid.cells():
        row = cell.row()
        good = 0.5 + 0.2 * (row["aug"] == "none") - row["do"]
        row |= {
            "final_val": good,
            "final_test": good + 0.01 * row["seed"],
            "infer_samples_per_sec": 400.0 if row["name"] == "S/32" else 100.0,
            "num_examples": round(1000 * row["fraction"]),
            "train_seconds": row["epochs"],
            "status": "done",
        }
        if "adapt_ds" in row:
            # The best fine-tuned is not the best upstream.
            row["adapt_final_val"] = 1 - good + row["adapt_lr"]
            row["adapt_final_test"] = 0.9 - 0.1 * good
            row["adapt_seconds"] = 0.5
        rows.append(row)
    return table.read_text(table.to_csv(rows).decode())


@pytest.fixture(scope="module")
def ours():
    return sweep_table()


def test_columns_begin_with_those_of_the_index():
    assert list(table.COLUMNS)[: len(INDEX_HEADER)] == INDEX_HEADER


def test_our_table_and_the_index_can_be_joined(tmp_path, ours):
    """Recipes are spelled alike; numbers are numbers."""
    name = "S_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
    line = dict.fromkeys(INDEX_HEADER, "") | {
        "name": "S/32", "ds": "i21k", "epochs": 300, "lr": 0.001,
        "aug": "medium1", "wd": 0.1, "do": 0.0, "sd": 0.0, "final_val": 0.4,
        "filename": name,
    }  # fmt: skip
    path = tmp_path / "index.csv"
    pandas.DataFrame([line]).to_csv(path, index=False)
    index = table.read(path)
    joined = ours.merge(
        index, on=["name", "lr", "aug", "wd", "do", "sd"], suffixes=("", "_")
    )
    assert len(joined) == 2 * 2 * 2 * 2 * 3
    assert set(joined["filename_"]) == {name}
    both = pandas.concat([ours, index], ignore_index=True)
    assert list(both.columns) == list(table.COLUMNS)


def test_csv_and_parquet_hold_the_same(tmp_path, ours):
    rows = [
        {k: v for k, v in row.items() if not pandas.isna(v)}
        for row in ours.to_dict("records")
    ]
    for row in rows:
        for key in row.keys() & {"seed", "num_examples", "adapt_steps",
                                 "adapt_resolution", "resolution",
                                 "batch_size"}:  # fmt: skip
            row[key] = int(row[key])
    (tmp_path / "a.csv").write_bytes(table.to_csv(rows))
    (tmp_path / "a.parquet").write_bytes(table.to_parquet(rows))
    pandas.testing.assert_frame_equal(
        table.read(tmp_path / "a.csv"),
        table.read(tmp_path / "a.parquet"),
        check_dtype=False,
    )


def test_published_figures_are_those_of_the_readme():
    """The paper's table 3 at 384 px is the README's, in the release's table."""
    paper = table.published()
    rows = paper[(paper["ds"] == "i21k") & (paper["adapt_resolution"] == 384)]
    rows = rows.set_index("name")
    compared = 0
    for name, row in release().items():
        if "readme" in row["sources"] and row["adapt_final_test"]:
            model = VARIANTS[row["variant"]].paper_name
            ours = rows.loc[model]
            accuracy = float(row["adapt_final_test"])
            assert ours["adapt_final_test"] == pytest.approx(accuracy, abs=5e-5)
            speed = float(row["infer_samples_per_sec"])
            assert ours["infer_samples_per_sec"] == round(speed), name
            compared += 1
    assert compared == 9


def test_published_heat_map_agrees_with_its_own_last_column():
    """Figure 4 prints best regularised minus best unregularised too."""
    printed = {
        "i1k": [-2, -4, -4, -2, 2, 2, 2, 0, 2],
        "i21k_30": [-3, -4, -3, -2, -1, -1, -1, -1, 0],
        "i21k": [-3, -4, -2, -2, -2, 0, -1, 0, 1],
    }
    models = ["R+Ti/16", "Ti/16", "S/32", "S/16", "B/32", "R26+S/32", "B/16",
              "L/16", "R50+L/32"]  # fmt: skip
    paper = table.published().dropna(subset=["final_val"])
    best = 100 * paper.groupby(["ds", "name", "do"])["final_val"].max()
    assert len(paper) == 3 * 9 * 14
    for ds, differences in printed.items():
        for model, difference in zip(models, differences, strict=True):
            ours = best[ds, model, 0.1] - best[ds, model, 0.0]
            assert abs(ours - difference) < 1.5  # Each figure is rounded.


def test_all_figures_of_a_sweep(tmp_path, ours):
    written = figures.render(ours, tmp_path)
    assert [path.stem for path in written] == list(figures.FIGURES)
    for path in written:
        image = matplotlib.image.imread(path)
        assert min(image.shape[:2]) > 250
        assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 50
        assert path.with_suffix(".svg").stat().st_size > 5000
        assert path.with_suffix(".md").read_text().count("|") > 20
    index = (tmp_path / "README.md").read_text()
    assert index.count(".png") == 2 * 6
    assert "Not drawn" not in index
    assert not list(tmp_path.glob(".*"))


def test_figures_of_the_paper_and_why_two_are_missing(tmp_path, monkeypatch):
    paper = table.published()
    names = ("4.2_transfer", "4.5_choice", "4.6_throughput")
    few = {name: figures.FIGURES[name] for name in names}
    for name in sorted(figures.FIGURES.keys() - few.keys()):
        assert len(figures.FIGURES[name](paper)[1]) > 20
    monkeypatch.setattr(figures, "FIGURES", few)  # Writing takes long.
    written = figures.render(paper, tmp_path)
    assert [path.stem[:3] for path in written] == ["4.6"]
    index = (tmp_path / "README.md").read_text()
    assert "Not drawn: no data set was both trained on" in index
    assert "Not drawn: no two pre-trained models" in index


def test_data_size_shows_the_best_recipe_and_the_mean_over_seeds(ours):
    numbers = figures.data_size(ours)[1]
    assert len(numbers) == 2 * 2 * 2 * 2 * 2
    none = numbers[numbers["recipe"] == "none"]
    assert none["accuracy"].to_numpy() == pytest.approx(70.5)
    # medium1 (50%) against dropout without augmentation (60%).
    other = numbers[numbers["recipe"] == "AugReg"]
    assert other["accuracy"].to_numpy() == pytest.approx(60.5)
    assert set(numbers["seen"]) == {1000, 4000, 10_000, 40_000}


def test_transfer_compares_cost_and_accuracy(ours):
    numbers = figures.transfer(ours)[1]
    assert set(numbers["target"]) == {"photos"}
    scratch = numbers[numbers["how"] == "scratch"]
    tuned = numbers[numbers["how"] == "transfer"]
    assert set(scratch["ds"]) == {"photos"}
    assert set(tuned["ds"]) == {"digits"}  # Not photos on photos.
    assert set(scratch["seconds, median"]) == {10.0, 40.0}
    assert set(tuned["seconds, median"]) == {0.5}
    assert tuned["accuracy, best"].max() == pytest.approx(85.0)


def test_transfer_of_the_index_counts_forward_passes():
    row = {
        "name": "S/32", "ds": "i1k", "epochs": 300, "aug": "none", "do": 0.0,
        "final_val": 0.7, "final_test": 0.7, "infer_samples_per_sec": 1000,
        "filename": "a",
    }  # fmt: skip
    tuned = row | {
        "ds": "i21k", "filename": "b", "adapt_ds": "imagenet2012",
        "adapt_steps": 20_000, "adapt_final_test": 0.8,
    }  # fmt: skip
    rows = table.read_text(table.to_csv([row, tuned]).decode())
    numbers = figures.transfer(rows)[1].set_index("how")
    seconds = numbers["seconds, median"]
    assert seconds["scratch"] == pytest.approx(300 * 1.28e6 / 1000)
    assert seconds["transfer"] == pytest.approx(20_000 * 512 / 1000)


def test_heat_map_is_of_upstream_validation():
    numbers = figures.augmentation(table.published())[1].set_index(
        ["map", "name"]
    )
    row = numbers.loc["i21k, 13M images, 300 epochs", "B/16"]
    assert row["none, 0"] == 43
    assert row["medium1, 0"] == 51
    assert row["heavy2 (strong2), 0.1"] == 48


def test_choice_by_upstream_against_best_of_all(ours):
    numbers = figures.choice(ours)[1]
    # Upstream prefers none, fine-tuning the other: 0.83 against 0.85.
    assert numbers["best upstream"].to_numpy() == pytest.approx(83.0)
    assert numbers["best of all"].to_numpy() == pytest.approx(85.0)
    assert numbers["difference"].to_numpy() == pytest.approx(-2.0)


def test_choice_warns_of_minival(ours):
    rows = ours[ours["adapt_ds"].notna()].assign(
        ds="i21k", adapt_ds="imagenet2012"
    )
    texts = [text.get_text() for text in figures.choice(rows)[0].texts]
    assert any("ImageNetV2" in text for text in texts)
    texts = [text.get_text() for text in figures.choice(ours)[0].texts]
    assert not any("ImageNetV2" in text for text in texts)


def test_throughput_of_a_benchmark(tmp_path, ours):
    rows = [
        {"model": "ViT_S32", "images_per_second": 12.5},
        {"model": "ViT_Ti16", "images_per_second": 10},
        {"model": "ViT_B16", "images_per_second": 5},
    ]
    numbers = figures.throughput(ours, rows)[1]
    speeds = numbers.groupby("name")["infer_samples_per_sec"].unique()
    assert {k: list(v) for k, v in speeds.items()} == {
        "S/32": [12.5],
        "Ti/16": [10],
    }
    with pytest.raises(figures.NotInTableError, match="no two models"):
        figures.throughput(ours, rows[:1])
    training = {"model": "ViT_S32", "images_per_second": 1, "task": "train"}
    again = figures.throughput(ours, [*rows, training])[1]
    assert again.equals(numbers)
    with pytest.raises(ValueError, match="several rows of 'ViT_S32'"):
        figures.throughput(ours, [*rows, rows[0]])
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps([{"model": "ViT_S32", "speed": 1}]))
    with pytest.raises(ValueError, match="has `model` and `images_per_second`"):
        figures.render(ours, tmp_path, benchmark=path)


def test_failed_cells_are_not_drawn(ours):
    failed = ours.assign(status="failed")
    for draw in figures.FIGURES.values():
        with pytest.raises(figures.NotInTableError):
            draw(failed)


def test_a_file_that_is_no_table(tmp_path):
    (tmp_path / "x.csv").write_text("name,ds\nB/16,i1k\n")
    with pytest.raises(ValueError, match="lacks the columns aug, filename"):
        table.read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("pandas", lambda ours: table.published()),
        ("matplotlib.figure", figures.choice),
    ],
)
def test_without_the_extra(monkeypatch, ours, package, call):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"keras_augreg\[study\]"):
        call(ours)


def test_no_parquet_without_pyarrow(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert table.to_parquet([]) is None
