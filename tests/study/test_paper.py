"""The package against the paper: arXiv 2106.10270v2, one case for each fact.

`facts/` holds Figure 4 and Tables 3 and 5, digit by digit, with columns and
models named as there (Figure 4's three maps and Table 5's by pre-training).
"""

from __future__ import annotations

import csv
import pathlib

import pytest

from keras_augreg import recipe
from keras_augreg.checkpoints import names
from keras_augreg.data.datasets import DATASETS
from keras_augreg.dataset_names import CLASSES
from keras_augreg.recipe import AugReg
from keras_augreg.study.advice import _LIKE
from keras_augreg.study.table import IMAGES, published_rows
from keras_augreg.variants import find

pytestmark = pytest.mark.once


def facts(name):
    path = pathlib.Path(__file__).with_name("facts") / f"{name}.csv"
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


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


# Figure 4 (page 7), Table 3 (page 9), Table 5 (page 15): `study.published`.

ROWS = published_rows()
UPSTREAM = {"i1k_300": "i1k", "i21k_300": "i21k"}


def test_published_has_no_other_rows():
    assert len(ROWS) == 3 * 9 * 14 + 9 * (3 + 3) + 27 * 3


@pytest.mark.parametrize(
    "fact", facts("fig4"), ids=lambda f: f"{f['pretraining']} {f['model']}"
)
def test_figure_4(fact):
    dataset = UPSTREAM.get(fact["pretraining"], fact["pretraining"])
    rows = {row["filename"]: row for row in ROWS}
    printed, ours = {}, {}
    for level in recipe.LEVELS:
        for suffix, rate in (("", "0.0"), ("+reg", "0.1")):
            release = AugReg(level).release_augment
            row = rows[
                f"figure 4, {fact['model']}, {dataset}, {release}, {rate}"
            ]
            printed[level + suffix] = int(fact[level + suffix])
            ours[level + suffix] = round(100 * float(row["final_val"]), 6)
    assert ours == printed


@pytest.mark.parametrize("fact", facts("table3"), ids=lambda f: f["model"])
def test_table_3(fact):
    columns = {"i1k": "i1k300", "i21k_30": "i21k30", "i21k": "i21k300"}
    found = 0
    for row in ROWS:
        key = (row["name"], row["adapt_ds"])
        if key == (fact["model"], "imagenet2012"):
            pixels, column = row["adapt_resolution"], columns[row["ds"]]
            accuracy = 100 * float(row["adapt_final_test"])
            printed = float(fact[f"{pixels} {column}"])
            assert accuracy == pytest.approx(printed, abs=1e-6)
            speed = float(row["infer_samples_per_sec"])
            assert speed == float(fact[f"{pixels} img/s"])
            found += 1
    assert found == 6


@pytest.mark.parametrize(
    "fact", facts("table5"), ids=lambda f: f"{f['pretraining']} {f['model']}"
)
@pytest.mark.parametrize("group", ["natural", "specialized", "structured"])
def test_means_of_table_5(fact, group):
    (row,) = (
        row
        for row in ROWS
        if row["name"] == fact["model"]
        and row["adapt_ds"] == group
        and row["ds"] == UPSTREAM.get(fact["pretraining"], fact["pretraining"])
    )
    accuracy = 100 * float(row["adapt_final_test"])
    assert accuracy == pytest.approx(float(fact[f"{group} mean"]), abs=1e-6)
