"""Verdicts on tables whose truth is known."""

from __future__ import annotations

import os

import numpy as np
import pytest

from keras_augreg.study import table
from keras_augreg.study.grid import Grid, Source, Transfer
from keras_augreg.study.verdict import (
    CORRECT,
    DOES_NOT,
    HOLDS,
    STATEMENTS,
    UNTOLD,
    seeds_needed,
    verdicts,
)
from keras_augreg.variants import VARIANTS

pytestmark = pytest.mark.once

RECIPES = (
    "none", "medium1",
    {"augment": "none", "dropout": 0.1, "stochastic_depth": 0.1},
)  # fmt: skip


def study(test, seeds=3, noise=0.0, folder=None, **grid):
    """A table whose test accuracies, in percent, are `test(row)` and noise."""
    grid = Grid(
        **{
            "datasets": (Source("digits"), Source("photos")),
            "models": (VARIANTS["ViT_S32"], VARIANTS["ViT_Ti16"]),
            "recipes": RECIPES, "fractions": (0.1, 1.0),
            "epochs": (10.0, 40.0), "seeds": tuple(range(seeds)),
            "transfers": (Transfer(Source("photos"), (10,), (0.01,)),),
        } | grid
    )  # fmt: skip
    rng = np.random.default_rng(0)
    rows = []
    for cell in grid.cells():
        row = cell.row()
        true = test(row) + noise * rng.normal()
        prefix = "adapt_" if "adapt_ds" in row else ""
        row |= {
            f"{prefix}final_val": true / 100, f"{prefix}final_test": true / 100,
            "infer_samples_per_sec": 400, "status": "done",
            "num_examples": round(1000 * row["fraction"]),
            "params": 22e6 if row["name"] == "S/32" else 6e6,
        }  # fmt: skip
        if prefix:
            row["final_val"] = test({**row, "adapt_ds": None}) / 100
        rows.append(row)
        if folder:
            place = folder / "runs" / cell.name
            place.mkdir(parents=True)
            right = np.arange(200) < 2 * true
            np.save(place / CORRECT, rng.permutation(right))
    return table.read_text(table.to_csv(rows).decode())


def augreg(row):
    return row["aug"] != "none" or row["do"] > 0


def found(*args, **kwargs):
    return {(v.section, v.statement): v for v in verdicts(*args, **kwargs)}


def only(results, section, word=""):
    (verdict,) = (
        v for (s, text), v in results.items() if s == section and word in text
    )
    return verdict


def agreeable(row):
    """A world in which every finding holds."""
    long, large = row["epochs"] == 40, row["name"] == "S/32"
    gain = 6 * augreg(row) * (1 + long) * (1 + large)
    more = 4 * (row["fraction"] == 1) + 5 * (row["aug"] != "none") + 5 * large
    return 50 + gain + more + 10 * bool(row.get("adapt_ds"))


def contrary(row):
    return 100 - agreeable(row)


def test_every_finding_holds_where_it_is_true():
    results = verdicts(study(agreeable, noise=0.2))
    assert [v.section for v in results] == [s[0] for s in STATEMENTS]
    for verdict in results:
        assert verdict.verdict == HOLDS, verdict
        low, high = verdict.interval
        assert low <= verdict.difference <= high
        assert low > verdict.margin
        assert (verdict.seeds, verdict.examples) == (3, False)
        assert verdict.seeds_needed in (2, 3, 4)


def test_none_holds_where_the_opposite_is_true():
    for verdict in verdicts(study(contrary, noise=0.2)):
        # 4.5: validation of both kinds agrees here, too.
        expected = HOLDS if verdict.section == "4.5" else DOES_NOT
        assert verdict.verdict == expected, verdict


def test_differences_by_hand():
    results = found(study(agreeable))
    # 4.4: gains of 6, 12 or 24 and 5 for augmentation.
    gains = [6 * a * b + 5 for a in (1, 2) for b in (1, 2)]
    helps = results["4.4", "AugReg helps"]
    assert helps.comparisons == 2 * 2 * 2 * 2
    assert helps.difference == pytest.approx(np.mean(gains))
    assert helps.interval == pytest.approx([helps.difference] * 2)
    longest = only(results, "4.4", "longest")
    assert longest.difference == pytest.approx(np.mean([6 * 1, 6 * 2]))
    largest = only(results, "4.4", "largest")
    assert largest.difference == pytest.approx(np.mean([6 * 1, 6 * 2]))
    assert only(results, "4.4", "dropout").difference == pytest.approx(5)
    # 4.1: AugReg at 40 epochs on a tenth, against none on all, 40 epochs.
    instead = only(results, "4.1").difference
    assert instead == pytest.approx(np.mean([12 + 5 - 4, 24 + 5 - 4]))
    assert only(results, "4.2").difference == pytest.approx(10)
    assert only(results, "4.3").difference == pytest.approx(4)
    assert only(results, "4.5").difference == pytest.approx(0)
    assert only(results, "4.6").difference > 5


def test_a_wrong_choice_upstream_costs():
    """Upstream prefers AugReg, the other task does not."""

    def test(row):
        tuned = bool(row.get("adapt_ds"))
        return 50 + (-4 if tuned else 4) * augreg(row)

    verdict = only(found(study(test, noise=0.01)), "4.5")
    assert verdict.difference == pytest.approx(-4, abs=0.1)
    assert verdict.verdict == DOES_NOT


def test_noise_cannot_be_told_and_how_many_seeds_would():
    small = study(
        lambda row: 50 + 0.5 * augreg(row), noise=3.0, fractions=(1.0,),
        recipes=("none", "medium1"), epochs=(10.0,), transfers=(),
        models=("S/32",), datasets=("digits",),
    )  # fmt: skip
    verdict = found(small)["4.4", "AugReg helps"]
    assert verdict.verdict == UNTOLD
    assert verdict.seeds_needed > 3
    assert f"; {verdict.seeds_needed} seeds would tell)" in str(verdict)


@pytest.mark.parametrize(
    ("distance", "deviation", "seeds"),
    # Tables of Student's t: 6.314, 2.920, 2.353, 2.132 for 1 to 4 degrees.
    [
        (6.314 / 2**0.5 + 0.01, 1, 2),
        (6.314 / 2**0.5 - 0.01, 1, 3),
        (2.353 / 2 + 0.01, 1, 4),
        (1, 0, 2),
        (0, 1, None),
        (1e-3, 1, None),
    ],
)
def test_seeds_needed(distance, deviation, seeds):
    assert seeds_needed(distance, deviation, 0.9) == seeds


def test_a_single_seed_tells_nothing():
    for verdict in verdicts(study(agreeable, seeds=1)):
        assert verdict.verdict == UNTOLD
        assert verdict.interval is None
        assert "1 seed)" in str(verdict)


def test_test_examples_widen_the_interval(tmp_path):
    """Without noise between seeds, 200 examples still leave some."""
    options = {"models": ("S/32",), "fractions": (1.0,), "epochs": (10.0,)}
    runs = study(lambda row: 50 + 2 * augreg(row), folder=tmp_path, **options)
    alone = found(runs)["4.4", "AugReg helps"]
    drawn = found(runs, tmp_path)["4.4", "AugReg helps"]
    assert (alone.examples, drawn.examples) == (False, True)
    assert alone.difference == drawn.difference == pytest.approx(2)
    assert alone.interval == pytest.approx([2, 2])
    # Two data sets, a difference in each, 200 examples of 50%, mean squares of
    # weights of three drawn seeds of 5/9, as here seeds are independent.
    error = 1.645 * (2 * 2500 / 200 * 5 / 9 / 2) ** 0.5 * 1.5**0.5
    width = drawn.interval[1] - drawn.interval[0]
    assert width == pytest.approx(2 * error, rel=0.1)
    assert "test examples" in str(drawn)
    whole, other = list((tmp_path / "runs").glob(f"*/{CORRECT}"))[:2]
    os.truncate(other, 200)  # Cut off: as if it were not there.
    assert found(runs, tmp_path)["4.4", "AugReg helps"].examples
    whole.unlink()
    assert found(runs, tmp_path)["4.4", "AugReg helps"].examples
    for path in (tmp_path / "runs").glob(f"*/{CORRECT}"):
        path.unlink()
    assert not found(runs, tmp_path)["4.4", "AugReg helps"].examples


def test_seeds_that_only_some_runs_have_are_left_out():
    runs = study(agreeable, noise=0.2)
    lost = (runs["seed"] == 2) & (runs["aug"] == "medium1")
    verdict = found(runs[~lost])["4.4", "AugReg helps"]
    assert verdict.seeds == 2
    none = found(runs[(runs["seed"] == 2) == lost])["4.4", "AugReg helps"]
    assert none.seeds == 2
    one = runs[(runs["seed"] == 0) == (runs["aug"] == "medium1")]
    text = str(found(one[one["do"] == 0])["4.4", "AugReg helps"])
    assert "no seed has all of the runs" in text


def test_few_seeds_are_rarely_wrong():
    """Where there is no difference, some 10% may be told one, at 90%."""
    options = {"models": ("S/32",), "fractions": (1.0,), "epochs": (10.0,),
               "recipes": ("none", "medium1"), "transfers": ()}  # fmt: skip
    runs = study(lambda row: 50, **options)
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        noise = rng.normal(size=len(runs)) / 100
        runs["final_test"] = 0.5 + noise
        verdict = found(runs, draws=200)["4.4", "AugReg helps"]
        told += verdict.verdict != UNTOLD
        if verdict.verdict != UNTOLD:  # The count of seeds agrees.
            assert verdict.seeds_needed <= 3
    assert 1 <= told <= 12


def test_runs_of_one_seed_do_not_silence_the_others():
    runs = study(agreeable, seeds=5, noise=0.2)
    single = (runs["ds"] == "photos") & (runs["seed"] > 0)
    verdict = found(runs[~single])["4.4", "AugReg helps"]
    assert (verdict.verdict, verdict.seeds) == (HOLDS, 5)
    assert verdict.left_out == verdict.comparisons == 8
    assert "5 seeds; 8 left out" in str(verdict)


def test_checkpoints_of_unknown_upstream_accuracy_are_not_chosen_by_it():
    runs = study(agreeable, noise=0.2)
    runs.loc[runs["adapt_ds"].notna(), "final_val"] = np.nan
    results = found(runs)
    assert only(results, "4.2").verdict == HOLDS
    for section in ("4.3", "4.5"):
        assert only(results, section).comparisons == 0


def test_nothing_to_compare(ours):
    none = ours[ours["aug"] == "none"]
    none = none[(none["do"] == 0) & none["adapt_ds"].isna()]
    verdict = found(none)["4.4", "AugReg helps"]
    assert (verdict.comparisons, verdict.difference) == (0, None)
    assert str(verdict).endswith("(the table has nothing to compare)")


def test_messages(ours):
    with pytest.raises(ValueError, match="`confidence` must be between 0"):
        verdicts(ours, confidence=1)
    with pytest.raises(ValueError, match="draws=0"):
        verdicts(ours, draws=0)
