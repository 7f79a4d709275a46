"""Figures show what the results table says."""

from __future__ import annotations

import json

import matplotlib.image
import numpy as np
import pytest

from keras_augreg.study import figures, paper, table

pytestmark = pytest.mark.once


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
    assert index.count(".png") == 9
    assert "Not drawn" not in index
    assert not list(tmp_path.glob(".*"))


def test_the_papers_figures_and_why_two_are_missing(ours):
    printed = paper.published()
    for name, draw in figures.FIGURES.items():
        if name in ("4.2_transfer", "4.2_random_search"):
            with pytest.raises(figures.NotInTableError, match="both trained"):
                draw(printed)
        else:
            assert len(draw(printed)[1]) >= 6


def test_beside_the_paper(tmp_path, monkeypatch, ours):
    few = ("4.2_transfer", "4.5_choice")  # Writing takes long.
    few = {name: figures.FIGURES[name] for name in few}
    monkeypatch.setattr(figures, "FIGURES", few)
    written = figures.render(ours, tmp_path, beside=paper.published())
    assert [path.stem for path in written] == list(few)
    assert (tmp_path / "4.5_choice_beside.png").exists()
    index = (tmp_path / "README.md").read_text()
    row = "| ![4.5_choice](4.5_choice.png) [numbers](4.5_choice.md) | ![4.5_cho"
    assert row in index
    missing = "(4.2_transfer.md) | Not drawn: no data set was both trained on"
    assert missing in index


def test_figure_1_of_a_sweep_and_of_the_paper(ours):
    numbers = figures.data_or_augreg(ours)[1]
    photos = numbers[
        (numbers["panel"] == "photos") & (numbers["name"] == "S/32")
    ].set_index("training images")["accuracy"]
    assert dict(photos) == pytest.approx(
        {"100": 70.5, "100 + AugReg": 60.5, "1000": 70.5, "1000 + AugReg": 60.5}
    )
    numbers = figures.data_or_augreg(paper.published())[1]
    assert set(numbers["name"]) == {"B/32", "B/16", "L/16"}
    assert numbers["accuracy"].tolist()[:2] == [86.15, 84.15]


def test_figure_3_has_seven_models_and_table_5s_means():
    numbers = figures.generality(paper.published())[1]
    numbers = numbers.set_index(["group", "name", "pre-training"])["accuracy"]
    assert len(numbers) == 3 * 7 * 3
    found = numbers["natural", "B/32", "i21k, 13M images, 30 ep"]
    assert found == pytest.approx(89.0, abs=0.05)


def test_figures_4_and_7_show_what_is_printed(ours):
    last = figures.augmentation(paper.published())[1]["reg - noreg"]
    assert sorted(last) == sorted(
        [-2, -4, -4, -2, 2, 2, 2, 0, 2, -3, -4, -3, -2, -1, -1, -1, -1, 0]
        + [-3, -4, -2, -2, -2, 0, -1, 0, 1]
    )
    numbers = figures.regularisation(paper.published())[1]
    numbers = numbers.set_index(["map", "name"])
    row = numbers.loc["i21k, 13M images, 30 epochs", "B/16"]
    assert row.tolist() == [0, -1, -2, -3, -3, -3, -3]
    assert figures.regularisation(ours)[1]["none"].tolist() == pytest.approx(
        [-10.0] * len(figures.regularisation(ours)[1])
    )


def test_figure_5_is_drawn_as_printed():
    figure, numbers = figures.choice(paper.published())
    assert len(numbers) == 9 * 6
    row = numbers[numbers["adapt_ds"] == "Resisc45"].set_index("name")
    assert row.loc["B/16", "difference"] == -3.6
    assert any("shifted by one" in text.get_text() for text in figure.texts)


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


@pytest.mark.parametrize("spelling", ["cifar100", "cifar-100", "CIFAR-100"])
def test_generality_groups_every_spelling_of_a_data_set(spelling):
    row = {
        "name": "S/32", "ds": "i21k", "epochs": 300, "aug": "none", "do": 0.0,
        "final_val": 0.4, "filename": "a", "adapt_ds": spelling,
        "adapt_final_test": 0.9,
    }  # fmt: skip
    numbers = figures.generality(table.read_text(table.to_csv([row]).decode()))
    assert set(numbers[1]["group"]) == {"natural"}


def test_heat_map_is_of_upstream_validation():
    numbers = figures.augmentation(paper.published())[1].set_index(
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
    for name in ("i21k", "imagenet-21k"):
        rows = ours[ours["adapt_ds"].notna()].assign(
            ds=name, adapt_ds="imagenet2012"
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
