"""The cells of a grid, and what divides a data set."""

from __future__ import annotations

import dataclasses
import json

import pytest

from keras_augreg.recipe import AugReg
from keras_augreg.study.grid import (
    Finetuning,
    Grid,
    Source,
    Transfer,
    read_cells,
)
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once

RELEASED = "S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0"
FIELDS = {
    "datasets": ["digits"],
    "models": [
        "ViT_S32",
        {
            "name": "mini_8",
            "patch_size": 8,
            "width": 96,
            "depth": 4,
            "num_heads": 3,
            "mlp_dim": 384,
        },
    ],
    "recipes": ["none", {"augment": "medium1", "dropout": 0.1}],
    "fractions": [0.1, 1.0],
    "epochs": [10],
    "seeds": [0, 1],
    "transfers": [
        {"data": "photos", "steps": [10, 20], "learning_rates": [0.01, 0.03]}
    ],
}


def test_every_combination_once():
    cells = Grid.from_json(FIELDS).cells()
    upstream = [c for c in cells if not isinstance(c, Finetuning)]
    assert len(upstream) == 2 * 2 * 2 * 2
    assert len(cells) == len(upstream) * (1 + 2 * 2)
    assert len({cell.name for cell in cells}) == len(cells)
    for i, cell in enumerate(cells):
        if isinstance(cell, Finetuning):
            assert cell.upstream in cells[:i]


def test_a_grid_takes_every_spelling_of_a_model():
    (cell, *same) = Grid(
        datasets=(Source("digits"),),
        models=("S/32", "S_32", VARIANTS["ViT_S32"]),
        recipes=(AugReg("none"),),
    ).cells()
    assert cell.model == VARIANTS["ViT_S32"]
    assert same == [cell, cell]


def test_a_grid_takes_names_of_data_sets_and_recipes():
    named = Grid(datasets=("digits",), models=("S/32",), recipes=("light1",),
                 transfers=(Transfer("photos"),))  # fmt: skip
    assert (
        named.cells()
        == Grid(
            datasets=(Source("digits"),),
            models=(VARIANTS["ViT_S32"],),
            recipes=(AugReg("light1"),),
            transfers=(Transfer(Source("photos")),),
        ).cells()
    )
    with pytest.raises(TypeError, match=r"such as recipes=\('light1',\)"):
        Grid(datasets=("digits",), models=("S/32",), recipes="light1")


def test_the_papers_recipes():
    grid = Grid.from_json({**FIELDS, "recipes": "paper", "transfers": []})
    assert len(grid.cells()) == 2 * 28 * 2 * 2


def test_released_checkpoints_are_fine_tuned():
    grid = Grid(
        checkpoints=(RELEASED,),
        transfers=(Transfer(Source("photos"), (10,), (0.01,)),),
    )
    (cell,) = grid.cells()
    assert cell.model == VARIANTS["ViT_S32"]
    row = cell.row()
    assert row["filename"] == RELEASED
    assert (row["name"], row["ds"], row["aug"], row["wd"]) == (
        "S/32",
        "i21k",
        "none",
        0.1,
    )


def test_names_depend_on_every_setting_but_no_path():
    (cell,) = Grid(
        datasets=(Source("/here/pets", options={"data_dir": "/a"}),),
        models=(VARIANTS["ViT_Ti16"],),
        recipes=(AugReg("light2"),),
    ).cells()
    assert cell.name.startswith(
        "Ti_16-pets-30ep-lr_0.001-aug_light1-wd_0.1-do_0-sd_0-frac_1-seed_0-"
    )
    elsewhere = Source("/there/pets", options={"data_dir": "/b"})
    assert dataclasses.replace(cell, data=elsewhere).name == cell.name
    for change in (
        {"image_size": 32},
        {"loss": "sigmoid"},
        {"data": Source("/here/pets", options={"flip": False})},
        {"data": Source("/here/pets", val="val")},
    ):
        assert dataclasses.replace(cell, **change).name != cell.name


def test_a_file_of_several_grids(tmp_path):
    path = tmp_path / "grid.json"
    more = {**FIELDS, "seeds": [1, 2]}
    path.write_text(json.dumps([FIELDS, more]))
    cells = read_cells(path)
    assert len(cells) == len(Grid.from_json(FIELDS).cells()) * 3 // 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fractions": [0.0]}, "`fractions` must be above 0 and at most 1"),
        ({"epochs": [0]}, r"`epochs` must be above 0. Received: epochs=\(0,\)"),
        ({"loss": "hinge"}, "loss='hinge'"),
        ({"models": ["ViT_X"]}, "architecture 'ViT_X'"),
        ({"models": [{"name": "x_8"}]}, "lacks depth, mlp_dim"),
        ({"models": []}, "The grid is empty"),
        ({"recipes": ["strong1"]}, "means 'heavy1'"),
        ({"recipes": [{"level": "none"}]}, "Expected a recipe"),
        ({"datasets": ["/a/x", "/b/x"]}, "Two data sets are called 'x'"),
        ({"datasets": ["pets", "oxford_iiit_pet"]}, "Spell one data set in"),
        (
            {"datasets": ["i1k"], "transfers": [{"data": "imagenet2012"}]},
            "'i1k' and 'imagenet2012'",
        ),
        ({"datasets": [{"path": "x"}]}, "Expected a data set"),
        ({"transfers": [{"steps": [1]}]}, "lacks data"),
        ({"checkpoints": ["B_17"]}, "Unknown checkpoint"),
        ({"lr": 0.1}, "Expected a grid: .* some of batch_size, checkpoints"),
    ],
)
def test_messages(change, message):
    with pytest.raises(ValueError, match=message):
        Grid.from_json({**FIELDS, **change})


def test_a_file_that_is_not_json(tmp_path):
    (tmp_path / "grid.json").write_text("models: []")
    with pytest.raises(ValueError, match=r"grid\.json is not JSON"):
        read_cells(tmp_path / "grid.json")


def test_papers_names():
    names = [variant.paper_name for variant in VARIANTS.values()]
    assert "B/16" in names
    assert "R50+L/32" in names
    assert "R+Ti/16" in names
