"""The results table: a sweep's, the release's index, the paper's numbers."""

from __future__ import annotations

import sys

import pandas
import pytest
from _checkpoints import INDEX_HEADER

from keras_augreg.checkpoints.names import table as release
from keras_augreg.study import figures, paper, table
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once


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
    rows = paper.published()
    rows = rows[(rows["ds"] == "i21k") & (rows["adapt_resolution"] == 384)]
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
    last = paper.published()
    last = last[last["column"] == "reg - noreg"].set_index(["ds", "name"])
    models = ["R+Ti/16", "Ti/16", "S/32", "S/16", "B/32", "R26+S/32", "B/16",
              "L/16", "R50+L/32"]  # fmt: skip
    runs = paper.published().dropna(subset=["final_val"])
    best = 100 * runs.groupby(["ds", "name", "do"])["final_val"].max()
    assert len(runs) == 3 * 9 * 14
    for ds, differences in printed.items():
        for model, difference in zip(models, differences, strict=True):
            ours = best[ds, model, 0.1] - best[ds, model, 0.0]
            assert abs(ours - difference) < 1.5  # Each figure is rounded.
            assert last.loc[(ds, model), "value"] == difference


def test_another_csv_file_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("name,ds\nB/16,i1k\n")
    with pytest.raises(ValueError, match="lacks the columns aug, filename"):
        table.read(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("pandas", lambda ours: paper.published()),
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
