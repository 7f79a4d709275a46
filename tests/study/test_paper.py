"""The package against the paper: arXiv 2106.10270v2, one case for each fact.

`facts/` holds Figures 4, 5 and 7 and Tables 3 and 5, digit by digit, with
columns and models named as there (three maps or blocks are by pre-training).
"""

from __future__ import annotations

import csv
import pathlib
import re

import pytest

from keras_augreg import describe, recipe
from keras_augreg.checkpoints import names
from keras_augreg.data.datasets import DATASETS
from keras_augreg.dataset_names import CLASSES
from keras_augreg.recipe import AugReg
from keras_augreg.study import search, select
from keras_augreg.study.advice import _LIKE
from keras_augreg.study.paper import published_rows
from keras_augreg.study.table import IMAGES
from keras_augreg.variants import find

pytestmark = pytest.mark.once


def facts(name):
    path = pathlib.Path(__file__).with_name("facts") / f"{name}.csv"
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_settings_of_scripts():
    """Sections 3.3 to 3.5; the recipe is `AugReg.recommended`."""
    for run, epochs in (("i1k-300ep", 300), ("i21k-30ep", 30)):
        assert recipe.pretraining_settings(run, None) == {
            "dataset": f"imagenet-{run.split('-')[0][1:]}",
            "image_size": 224,
            "batch_size": 4096,
            "epochs": epochs,
            "learning_rate": 1e-3,
            "loss": "sigmoid",
        }
    settings = recipe.pretraining_settings("i21k-300ep", "L/16")
    assert (settings["recipe"], settings["epochs"]) == ("heavy1", 300)
    assert (settings["dropout"], settings["weight_decay"]) == (0.0, 0.1)
    with pytest.raises(ValueError, match="from_checkpoint"):
        recipe.pretraining_settings("i21k-30ep", "L/16")
    assert recipe.finetuning_settings("pets-500") == {
        "dataset": "pets",
        "image_size": 224,
        "batch_size": 512,
        "steps": 500,
        "learning_rate": 0.003,
        "momentum_dtype": "bfloat16",
    }
    settings = recipe.finetuning_settings("imagenet-1k-20000")
    assert (settings["steps"], settings["learning_rate"]) == (20_000, 0.01)


# Tables 1 and 2, page 4.


@pytest.mark.parametrize(
    ("model", "width", "depth", "heads", "mlp"),
    [
        ("Ti/16", 192, 12, 3, 768),
        ("S/16", 384, 12, 6, 1536),
        ("S/32", 384, 12, 6, 1536),
        ("B/16", 768, 12, 12, 3072),
        ("B/32", 768, 12, 12, 3072),
        ("L/16", 1024, 24, 16, 4096),
        ("R+Ti/16", 192, 12, 3, 768),
        ("R26+S/32", 384, 12, 6, 1536),
        ("R50+L/32", 1024, 24, 16, 4096),
    ],
)
def test_sizes(model, width, depth, heads, mlp):
    sizes = find(model).sizes
    found = (sizes.width, sizes.depth, sizes.num_heads, sizes.mlp_dim)
    assert found == (width, depth, heads, mlp)


@pytest.mark.parametrize(
    ("model", "stages", "patch"),
    [
        ("R+Ti/16", (), 8),
        ("R26+S/32", (2, 2, 2, 2), 1),
        ("R50+L/32", (3, 4, 6, 3), 1),
    ],
)
def test_hybrids(model, stages, patch):
    assert find(model).sizes.stages == stages
    assert find(model).sizes.patch_size == patch


def test_r_ti_16_has_the_released_codes_stride():
    """Not 3.2's 16: docs/differences.md has both sources."""
    assert find("R+Ti/16").sizes.stride == 32


# Section 3.1, page 3, and Figure 1.


@pytest.mark.parametrize(
    ("dataset", "split", "tfds"),
    [
        ("imagenet-1k", "minival", "train[99%:]"),
        ("cifar-100", "minival", "train[98%:]"),
        ("pets", "minival", "train[90%:]"),
    ],
)
def test_held_out(dataset, split, tfds):
    assert DATASETS[dataset].splits[split] == tfds


@pytest.mark.parametrize(
    ("fact", "ours"),
    [
        (1_000, CLASSES["imagenet-1k"]),
        (37, CLASSES["pets"]),
        (100, CLASSES["cifar-100"]),
        (21_843, CLASSES["imagenet-21k"]),  # "about 21,000"
        ("validation", DATASETS["imagenet-1k"].splits["test"]),
        ("train[60%:80%]", DATASETS["resisc45"].splits["val"]),
        ("train[80%:]", DATASETS["resisc45"].splits["test"]),
        ("validation", DATASETS["kitti-distance"].splits["val"]),
        ("test", DATASETS["kitti-distance"].splits["test"]),
        (13_000_000, IMAGES["i21k_30"]),
        (10_000, recipe.pretraining_warmup(92_700)),  # i1k, 300 epochs
        ("bfloat16", recipe.FINETUNING_MOMENTUM_DTYPE),  # 3.5
        (1_280_000, IMAGES["i1k"]),
        (13_000_000, IMAGES["i21k"]),
        (3_312, _LIKE["pets"]),  # 4.2
        (31_500 * 60 // 100, _LIKE["resisc45"]),  # 3.1: 60% for training
        (60, DATASETS["resisc45"].held_out),
        (4_096, recipe.PRETRAINING_BATCH),  # 3.4
        (10_000, recipe.PRETRAINING_WARMUP),
        (0.001, recipe.PRETRAINING_LEARNING_RATE),  # 3.3
        (1, recipe.CLIP_NORM),  # 3.4 and 3.5
        (224, recipe.PRETRAINING_RESOLUTION),  # 3.5
        ((300,), recipe.PRETRAINING_EPOCHS["i1k"]),
        ((30, 300), recipe.PRETRAINING_EPOCHS["i21k"]),
        (512, recipe.FINETUNING_BATCH),  # 3.5
        ((224, 384), recipe.FINETUNING_RESOLUTIONS),
    ],
)
def test_constants(fact, ours):
    assert ours == fact


# Section 3.3, page 4, and appendix A, page 14.


@pytest.mark.parametrize(
    ("level", "layers", "magnitude", "alpha"),
    [
        ("light1", 2, 0, 0),
        ("light2", 2, 10, 0.2),
        ("medium1", 2, 15, 0.2),
        ("medium2", 2, 15, 0.5),
        ("heavy1", 2, 20, 0.5),
        ("heavy2", 2, 20, 0.8),
        ("medium2x4", 4, 15, 0.5),
        ("heavy2x4", 4, 20, 0.8),
    ],
)
def test_levels(level, layers, magnitude, alpha):
    assert AugReg(level).randaugment == (layers, magnitude)
    assert AugReg(level).mixup == alpha


def test_none():
    assert (AugReg("none").randaugment, AugReg("none").mixup) == (None, 0)


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.2])
def test_appendix_a_trains_with_these_rates(rate):
    assert AugReg("heavy2x4", rate, rate).stochastic_depth == rate


def test_28_recipes():
    found = {
        (r.augment, r.dropout, r.stochastic_depth, r.weight_decay)
        for r in AugReg.grid()
    }
    levels = ("none", "light1", "light2", "medium1", "medium2", "heavy1",
              "heavy2")  # fmt: skip
    assert found == {
        (level, rate, rate, decay)
        for level in levels
        for rate in (0.0, 0.1)
        for decay in (0.1, 0.03)
    }


# Table 4, page 14.


@pytest.mark.parametrize(
    ("dataset", "rates", "steps"),
    [
        ("imagenet-1k", (0.01, 0.03), (20_000,)),
        ("pets", (0.001, 0.003, 0.01), (500, 2_500)),
        ("kitti-distance", (0.001, 0.003, 0.01), (500, 2_500)),
        ("cifar-100", (0.001, 0.003, 0.01), (2_500, 10_000)),
        ("resisc45", (0.001, 0.003, 0.01), (2_500, 10_000)),
    ],
)
def test_finetuning_runs(dataset, rates, steps):
    assert recipe.FINETUNING_RUNS[dataset] == (steps, rates)


@pytest.mark.parametrize(
    ("runs", "count"),
    [
        (recipe.FINETUNING_RUNS, 52),  # Table 4, times two resolutions
        (recipe.RELEASE_FINETUNING_RUNS, 68),  # vit_jax_augreg.ipynb
    ],
)
def test_number_of_finetunings_of_a_model(runs, count):
    found = sum(len(r.steps) * len(r.learning_rates) for r in runs.values())
    assert found * len(recipe.FINETUNING_RESOLUTIONS) == count


def test_the_releases_files_have_the_notebooks_fourth_rate():
    assert names.ADAPT["kitti"].learning_rates == (0.001, 0.003, 0.01, 0.03)


@pytest.mark.parametrize(
    ("steps", "warmup"),
    [
        (500, 100),
        (2_500, 200),
        (10_000, 500),
        (20_000, 500),
        # Ours: a fifth of shorter runs, interpolation in between.
        (0, 0),
        (50, 10),
        (1_500, 150),
        (100_000, 500),
    ],
)
def test_finetuning_warmup(steps, warmup):
    assert recipe.finetuning_warmup(steps) == warmup


# `study.published`: Figures 4 (page 7), 5 (8) and 7 (16), Tables 3 (9), 5 (15).

ROWS = published_rows()
UPSTREAM = {"i1k_300": "i1k", "i21k_300": "i21k"}
COUNTS = {
    "table 1": (4, 4),
    "table 2": (4, 3),
    "figure 4": (7, 27 * (14 + 1)),
    "figure 5": (8, 9 * 6),
    "table 3": (9, 9 * 11 - 6),
    "table 5": (15, 27 * (19 + 3)),
    "table 6": (16, 3 * 6),
    "figure 7": (16, 27 * 7),
}


def printed(where, fact):
    """Column -> the published rows of a line of the facts."""
    dataset = fact.get("pretraining")
    dataset = UPSTREAM.get(dataset, dataset)
    found = {}
    for row in ROWS:
        if (row["where"], row["name"]) != (where, fact["model"]):
            continue
        if dataset in (None, row.get("ds")):
            assert row["column"] not in found
            found[row["column"]] = row
    return found


def test_published_has_every_number_and_its_page():
    found = {}
    for row in ROWS:
        page, count = found.get(row["where"], (row["page"], 0))
        found[row["where"]] = (page, count + 1)
        assert row["page"] == page
    assert found == COUNTS


@pytest.mark.parametrize(
    ("where", "fact"),
    [
        pytest.param(
            where, fact, id=" ".join((where, *list(fact.values())[:2]))
        )
        for where in COUNTS
        if where[-1] in "3457" and where != "table 4"
        for fact in facts(where.replace("ure ", "").replace(" ", ""))
    ],
)
def test_published_digits(where, fact):
    ours = {key: row["value"] for key, row in printed(where, fact).items()}
    ours.pop("reg - noreg", None)
    theirs = {
        key.removeprefix("drawn "): float(value)
        for key, value in fact.items()
        if key not in ("pretraining", "model") and value != "-"
    }
    assert ours == theirs


@pytest.mark.parametrize(
    "fact", facts("fig4"), ids=lambda f: f"{f['pretraining']} {f['model']}"
)
def test_figure_4_is_a_results_table(fact):
    rows = printed("figure 4", fact)
    for level in recipe.LEVELS:
        for suffix, rate in (("", 0.0), ("+reg", 0.1)):
            row = rows[level + suffix]
            assert 100 * row["final_val"] == pytest.approx(row["value"])
            assert (row["do"], row["sd"]) == (rate, rate)
            assert row["aug"] == AugReg(level).release_augment


@pytest.mark.parametrize("fact", facts("table3"), ids=lambda f: f["model"])
def test_table_3_is_a_results_table(fact):
    columns = {"i1k": "i1k300", "i21k_30": "i21k30", "i21k": "i21k300"}
    found = 0
    for row in printed("table 3", fact).values():
        if "adapt_final_test" in row:
            pixels = row["adapt_resolution"]
            assert row["column"] == f"{pixels} {columns[row['ds']]}"
            accuracy = 100 * row["adapt_final_test"]
            assert accuracy == pytest.approx(row["value"], abs=1e-6)
            speed = row["infer_samples_per_sec"]
            assert speed == float(fact[f"{pixels} img/s"])
            found += 1
    assert found == 6


@pytest.mark.parametrize(
    "fact", facts("table5"), ids=lambda f: f"{f['pretraining']} {f['model']}"
)
def test_table_5_has_its_means(fact):
    """None is in another group; tasks and means are rounded to 0.1."""
    groups = {"natural": [], "specialized": [], "structured": []}
    rows = printed("table 5", fact)
    for row in rows.values():
        if "adapt_ds" in row:
            group = groups[select.GROUPS[row["adapt_ds"]]]
            group.append(100 * row["adapt_final_test"])
    assert [len(group) for group in groups.values()] == [7, 4, 8]
    for name, group in groups.items():
        mean = sum(group) / len(group)
        assert mean == pytest.approx(rows[f"{name} mean"]["value"], abs=0.1)


TABLE_6 = ("I21k val", "I1k 0-shot", "Coco I2T", "Coco T2I", "Flickr I2T",
           "Flickr T2I")  # fmt: skip


@pytest.mark.parametrize(
    ("where", "model", "columns", "values"),
    [
        *(("table 1", model, ["params, million"], [count])
          for model, count in
          [("Ti", 5.8), ("S", 22.2), ("B", 86), ("L", 307)]),
        *(("table 2", model, ["params, million"], [count])
          for model, count in
          [("R+Ti/16", 6.4), ("R26+S/32", 36.6), ("R50+L/32", 330)]),
        ("table 6", "B/32 none/0.0", TABLE_6,
         [41.6, 54.9, 33.4, 20.1, 58.1, 39.9]),
        ("table 6", "B/32 heavy2/0.1", TABLE_6,
         [43.5, 57.3, 39.1, 24.4, 62.1, 44.6]),
        ("table 6", "B/32 recommended", TABLE_6,
         [47.7, 60.6, 41.1, 25.5, 65.9, 46.9]),
    ],
)  # fmt: skip
def test_other_tables(where, model, columns, values):
    found = printed(where, {"model": model})
    assert {column: found[column]["value"] for column in columns} == dict(
        zip(columns, values, strict=True)
    )


@pytest.mark.parametrize(
    ("model", "million"),
    [("Ti/16", 5.8), ("S/16", 22.2), ("R+Ti/16", 6.4), ("R26+S/32", 36.6),
     ("R50+L/32", 330.0)],
)  # fmt: skip
def test_printed_parameters_have_a_hidden_layer_in_the_head(model, million):
    """An inference: they are no counts of the released files."""
    width = find(model).sizes.width
    found = describe(model).parameters + width * width + width
    assert round(found / 1e6, 1) == million


# Claims of the captions and of sections 4.4 and 4.5.

DIFFERENCES = {
    "i1k": [-2, -4, -4, -2, 2, 2, 2, 0, 2],
    "i21k_30": [-3, -4, -3, -2, -1, -1, -1, -1, 0],
    "i21k": [-3, -4, -2, -2, -2, 0, -1, 0, 1],
}


@pytest.mark.parametrize("pretraining", DIFFERENCES)
def test_figure_4_has_a_difference_beside_each_row(pretraining):
    rows = [f for f in facts("fig4") if f["pretraining"] == pretraining]
    found = [printed("figure 4", fact)["reg - noreg"]["value"] for fact in rows]
    assert found == DIFFERENCES[pretraining]


BEST = {
    ("i1k_300", "R+Ti/16"): "light1 light2",
    ("i1k_300", "Ti/16"): "light1",
    ("i1k_300", "S/32"): "light2 medium1 medium2",
    ("i1k_300", "S/16"): "medium2",
    ("i1k_300", "B/32"): "medium2+reg",
    ("i1k_300", "R26+S/32"): "medium1+reg medium2+reg",
    ("i1k_300", "B/16"): "medium2+reg",
    ("i1k_300", "L/16"): "medium2+reg",
    ("i1k_300", "R50+L/32"): "medium2+reg",
    ("i21k_300", "R+Ti/16"): "none",
    ("i21k_300", "Ti/16"): "none light1",
    ("i21k_300", "S/32"): "none light1 light2",
    ("i21k_300", "S/16"): "light1 light2 medium1",
    ("i21k_300", "B/32"): "light2",
    ("i21k_300", "R26+S/32"): "light1 light2 none+reg light1+reg",
    ("i21k_300", "B/16"): "medium1",
}


@pytest.mark.parametrize(("pretraining", "model"), BEST)
def test_best_cells_of_figure_4(pretraining, model):
    fact = {"pretraining": pretraining, "model": model}
    values = {
        key: row["value"]
        for key, row in printed("figure 4", fact).items()
        if key != "reg - noreg"
    }
    best = {key for key, v in values.items() if v == max(values.values())}
    assert best == set(BEST[pretraining, model].split())


@pytest.mark.parametrize(
    "pick", [p for p in recipe._PICKS if p[1] != "B_8"], ids=" ".join
)
def test_recommended_recipes_are_at_figure_4s_best(pick):
    """Of B/8, the paper has no row."""
    dataset, variant = pick
    chosen = AugReg.recommended(variant, dataset)
    fact = {
        "pretraining": f"{dataset}_300",
        "model": variant.replace("R_Ti", "R+Ti").replace("_32", "/32")
        .replace("_16", "/16").replace("R26_", "R26+").replace("R50_", "R50+"),
    }  # fmt: skip
    values = {k: r["value"] for k, r in printed("figure 4", fact).items()}
    del values["reg - noreg"]
    key = chosen.augment + ("+reg" if chosen.dropout else "")
    assert values[key] == max(values.values())


@pytest.mark.parametrize(
    "fact", facts("fig7"), ids=lambda f: f"{f['pretraining']} {f['model']}"
)
def test_figure_7_is_figure_4s_difference_to_rounding(fact):
    values = {k: r["value"] for k, r in printed("figure 4", fact).items()}
    for level, row in printed("figure 7", fact).items():
        difference = values[f"{level}+reg"] - values[level]
        assert abs(difference - row["value"]) <= 1


def test_counts_of_figure_5():
    """As `advise`, `rank_checkpoints` and the documentation say."""
    drawn = [
        float(value)
        for fact in facts("fig5")
        for key, value in fact.items()
        if key.startswith("drawn ")
    ]
    assert len(drawn) == 45
    assert sum(v < 0 for v in drawn) == 16
    assert sum(v <= -0.5 for v in drawn) == 8
    assert sum(abs(v) <= 0.4 for v in drawn) == 26
    assert min(drawn) == -3.6
    assert sum(drawn) / 45 == pytest.approx(0.03, abs=0.005)
    root = pathlib.Path(__file__).parents[2]
    for path in ("docs/checkpoints.md", "keras_augreg/study/advice.py",
                 "keras_augreg/study/rank.py"):  # fmt: skip
        text = re.sub(r'["\s]+', " ", (root / path).read_text("utf-8"))
        assert re.search(r"of 45 cases,? 8 lost|; 8 of 45 lost", text), path
        assert "up to 3.6" in text, path


@pytest.mark.parametrize("fact", facts("fig5"), ids=lambda f: f["model"])
def test_figure_5s_labels_are_shifted_by_one(fact):
    """What is drawn as Kitti is Table 3's ImageNet, at 384 px."""
    row = printed("table 3", fact)
    difference = row["384 i21k300"]["value"] - row["384 i21kv2"]["value"]
    drawn = float(fact["drawn Kitti"])
    assert drawn == pytest.approx(difference, abs=0.051)


# Section 4.2.


def test_random_search_draws_as_the_paper():
    assert search.DRAWS == 1000
    assert search.BAND[1] - search.BAND[0] == 90
