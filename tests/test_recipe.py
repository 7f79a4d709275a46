"""The recipes, against the sources they are read from."""

import json

import pytest

from keras_augreg.recipe import AugReg

pytestmark = pytest.mark.once

# RANDAUG_DEF and MIXUP_DEF of big_vision's vit_i1k.py, in the names of the
# paper, with the release's names from vit_jax's index.csv.
TABLE = [
    ("none", "none", None, 0.0),
    ("light1", "light0", (2, 0), 0.0),
    ("light2", "light1", (2, 10), 0.2),
    ("medium1", "medium1", (2, 15), 0.2),
    ("medium2", "medium2", (2, 15), 0.5),
    ("heavy1", "strong1", (2, 20), 0.5),
    ("heavy2", "strong2", (2, 20), 0.8),
]


@pytest.mark.parametrize(("level", "release", "randaugment", "mixup"), TABLE)
def test_levels(level, release, randaugment, mixup):
    recipe = AugReg(level)
    assert recipe.randaugment == randaugment
    assert recipe.mixup == mixup
    assert recipe.release_augment == release
    name = f"B_16-i21k-300ep-lr_0.001-aug_{release}-wd_0.03-do_0.1-sd_0.1"
    assert AugReg.from_checkpoint(name) == AugReg(level, 0.1, 0.1, 0.03)


@pytest.mark.parametrize("short", ["light", "medium", "heavy"])
def test_short_names(short):
    assert AugReg(short) == AugReg(short + "1")
    assert AugReg(short).augment == short + "1"


def test_grid():
    grid = AugReg.grid()
    assert len(grid) == len(set(grid)) == 28
    assert {r.augment for r in grid} == {row[0] for row in TABLE}
    assert {(r.dropout, r.stochastic_depth) for r in grid} == {
        (0.0, 0.0),
        (0.1, 0.1),
    }
    assert {r.weight_decay for r in grid} == {0.1, 0.03}


def test_str_reads_like_the_paper_and_has_both_names():
    assert str(AugReg("light2", 0.1, 0.1, 0.03)) == (
        "light2 (light1 in the release's file names): RandAugment l=2, m=10, "
        "Mixup p=0.2; dropout 0.1, stochastic depth 0.1; weight decay 0.03"
    )
    assert str(AugReg("none")) == (
        "none: no RandAugment, no Mixup; dropout 0, stochastic depth 0; "
        "weight decay 0.1"
    )


@pytest.mark.parametrize("recipe", AugReg.grid(), ids=str)
def test_json_round_trip(recipe):
    assert AugReg.from_json(recipe.to_json()) == recipe


def test_both_names_of_a_level():
    labels = [AugReg(row[0]).label for row in TABLE]
    assert labels == [
        "none", "light1 (light0)", "light2 (light1)", "medium1", "medium2",
        "heavy1 (strong1)", "heavy2 (strong2)",
    ]  # fmt: skip


def test_json_is_plain_and_defaults_may_be_left_out():
    assert json.loads(AugReg("heavy").to_json()) == {
        "augment": "heavy1",
        "dropout": 0.0,
        "stochastic_depth": 0.0,
        "weight_decay": 0.1,
    }
    assert AugReg.from_json('{"augment": "medium"}') == AugReg("medium1")


# The README of google-research/vision_transformer, and the notebook for B/8.
BEST = [
    "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0",
    "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0",
    "S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0",
    "R50_L_32-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.1-sd_0.1",
    "R26_S_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0",
    "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0",
    "B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0",
    "S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0",
    "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0",
    "B_8-i21k-300ep-lr_0.001-aug_medium2-wd_0.1-do_0.0-sd_0.0",
]


@pytest.mark.parametrize("name", BEST)
def test_recommended_on_i21k_is_the_best_checkpoints_recipe(name):
    variant = name.split("-")[0]
    assert AugReg.recommended(variant, "i21k") == AugReg.from_checkpoint(name)


# `aug_setting` of big_vision's vit_i1k.py.
@pytest.mark.parametrize(
    ("variant", "level"),
    [
        ("Ti/16", "light1"),
        ("S/32", "medium1"),
        ("S/16", "medium2"),
        ("B/32", "medium2"),
        ("B/16", "medium2"),
        ("L/16", "medium2"),
    ],
)
def test_recommended_on_i1k_is_the_configs_level(variant, level):
    assert AugReg.recommended(variant, "i1k").augment == level


@pytest.mark.parametrize("name", ["R26_ViT_S32", "R26_S_32", "R26+S/32"])
def test_recommended_knows_every_way_to_name_a_variant(name):
    expected = AugReg("light2", 0.0, 0.0, 0.1)
    assert AugReg.recommended(name, "i21k") == expected
    assert AugReg.recommended(name, "imagenet21k") == expected


def test_of_a_fine_tuned_file():
    path = (
        "gs://vit_models/augreg/S_16-i1k-300ep-lr_0.001-aug_medium2-wd_0.1-"
        "do_0.0-sd_0.0--imagenet2012-steps_20k-lr_0.01-res_224.npz"
    )
    assert AugReg.from_checkpoint(path) == AugReg("medium2")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AugReg("strong1"), "file names means 'heavy1'"),
        (lambda: AugReg("weak"), "Unknown `augment` 'weak'. Expected one of"),
        (lambda: AugReg("none", dropout=1.0), r"`dropout` must be in \[0, 1\)"),
        (
            lambda: AugReg("none", stochastic_depth=-0.1),
            r"`stochastic_depth` must be in \[0, 1\)",
        ),
        (lambda: AugReg("none", weight_decay=-1), "must be at least 0"),
        (lambda: AugReg.from_json("[1]"), "Expected a JSON object with"),
        (lambda: AugReg.from_json('{"mixup": 1}'), "only augment is required"),
        (
            lambda: AugReg.from_checkpoint("B_16-i21k"),
            "Expected the name of an AugReg checkpoint",
        ),
        (
            lambda: AugReg.from_checkpoint("-aug_heavy1-wd_0.1-do_0.0-sd_0.0"),
            "LEVEL is one of none, light0",
        ),
        (lambda: AugReg.recommended("B/16", "cifar"), "dataset='cifar'"),
        (lambda: AugReg.recommended("G/14", "i1k"), "no architecture 'G/14'"),
        (
            lambda: AugReg.recommended("L/32", "i21k"),
            "no recipe for L/32 on i21k, only for: R_Ti_16, Ti_16",
        ),
        (
            lambda: AugReg.recommended("L/16", "i21k_30"),
            r"pass 'i21k'.*best\('L/16', 'i21k_30'\)",
        ),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()
