"""Advice: each sentence has its source, and the budget decides."""

from __future__ import annotations

import pandas
import pytest

from keras_augreg.checkpoints import best
from keras_augreg.study.advice import advise
from keras_augreg.study.table import read_text, to_csv

pytestmark = pytest.mark.once


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path))
    monkeypatch.setenv("KERAS_AUGREG_OFFLINE", "1")


@pytest.mark.parametrize("num_examples", [10, 40_000, 1_000_000, 20_000_000])
@pytest.mark.parametrize("hours", [0.001, 1, 10_000])
def test_every_sentence_has_a_source(num_examples, hours):
    advice = advise(num_examples, hours)
    for reason in advice.reasons:
        assert reason.text.endswith(".")
        assert reason.source
    text = str(advice)
    assert text.startswith("A rule of thumb")
    for section in ("4.2", "4.3", "4.4", "4.5", "4.6"):
        assert f"section {section}" in text or f"sections {section}" in text
    assert advice.reasons[0].text.startswith("Fine-tune a pre-trained model")
    assert advice.weights == best(advice.model)


def test_the_budget_decides_on_the_model():
    rich = advise(3_000, 23)
    assert rich.model == "R50_ViT_L32"  # Table 3's best at 384 px.
    # Table 4: three rates of 500 and 2,500 steps. 1,047 images/s, three
    # passes each.
    assert rich.hours == pytest.approx(9_000 * 512 * 3 / 1047 / 3600)
    assert (rich.steps, len(rich.learning_rates)) == ((500, 2_500), 3)
    assert advise(3_000, 1.5).model == "ViT_B32"
    assert advise(3_000, 0.5).model == "ViT_S32"
    # Fewer runs before a smaller model.
    poor = advise(3_000, 0.1)
    assert (poor.model, poor.steps, poor.learning_rates) == (
        "ViT_B32",
        (500,),
        (0.003,),
    )
    assert "1 run, steps 500 x learning rates 0.003" in str(poor)
    assert "do not suffice for all of the paper's runs" in str(poor)
    assert "Even one run" not in str(poor)
    assert "Even one run" in str(advise(3_000, 1e-4))


def test_larger_patches_before_smaller_models():
    """A Tiny model is suggested only if nothing larger fits."""
    speeds = {"Ti/16": 3_000.0, "S_32": 2_900.0}
    assert advise(3_000, 3.0, speeds).model == "ViT_S32"
    assert advise(3_000, 3.0, {"ViT_Ti16": 3_000.0}).model == "ViT_Ti16"


def test_steps_follow_the_size_of_the_data_set():
    assert advise(1_000, 100).steps == (500, 2_500)
    assert advise(50_000, 500).steps == (2_500, 10_000)
    assert advise(2_000_000, 500).steps == (20_000,)


def test_augreg_helps_or_hurts():
    assert "does not" not in str(advise(1_000_000, 500))
    assert "at the size of ImageNet-1k" in str(advise(1_000_000, 500))
    assert "hurts all but the largest" in str(advise(14_000_000, 500))
    assert "arbitrarily small" in str(advise(1_000, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 1), "`num_examples` must be at least 1. Received: num_examples=0"),
        ((10, 0), "`device_budget_hours` must be above 0"),
        ((10, float("nan")), "`device_budget_hours` must be above 0"),
        ((10, 1, {"L/32": 5}), "some of .*ViT_B16.* Received: {'L/32'"),
        ((10, 1, {"B17": 5}), "architecture 'B17'"),
        ((10, 1, {"ViT_B16": 0}), "above 0, of some of "),
        ((10, 1, {}), "above 0, of some of "),
    ],
)
def test_messages(arguments, message):
    with pytest.raises(ValueError, match=message):
        advise(*arguments)


RELEASED = {
    "B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0": 0.7,
    "S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0": 0.9,
    "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0": 0.95,
}


def own_table(seeds=3):
    """Released checkpoints that were fine-tuned, and AugReg that helped."""
    rows = [
        {
            "name": name[:4], "ds": "i21k", "epochs": 300, "aug": "none",
            "filename": name, "adapt_ds": "mine", "adapt_final_val": accuracy,
            "adapt_final_test": 0.5, "adapt_lr": 0.01, "status": "done",
        }
        for name, accuracy in RELEASED.items()
    ]  # fmt: skip
    rows += [
        {
            "name": "mini/8", "ds": "mine", "epochs": 10, "aug": level,
            "do": 0.0, "sd": 0.0, "filename": f"{level} {seed}",
            "final_val": accuracy, "final_test": accuracy + seed / 1000,
            "seed": seed, "num_examples": 100, "status": "done",
        }
        for seed in range(seeds)
        for level, accuracy in (("none", 0.5), ("medium1", 0.6))
    ]  # fmt: skip
    return read_text(to_csv(rows).decode())


def test_ones_own_table_comes_first():
    advice = advise(3_000, 1.0, table=own_table())
    # L/16 is better, but its runs take longer than an hour.
    assert (advice.model, advice.weights) == ("ViT_S32", [*RELEASED][1])
    first = str(advice.reasons[0])
    assert first.startswith("In your runs, this finding holds: AugReg helps.")
    assert "[your table, section 4.4, +10.0 points" in first
    assert "1 comparison, 3 seeds" in first
    assert any("is the best by validation" in str(r) for r in advice.reasons)
    rich = advise(3_000, 1000.0, table=own_table())
    assert rich.weights == [*RELEASED][2]


def test_a_table_that_tells_nothing_changes_nothing(ours):
    plain = advise(3_000, 1.0)
    single = own_table(seeds=1)
    single = single[~single["filename"].isin([*RELEASED])]
    assert advise(3_000, 1.0, table=single) == plain
    # Files of a sweep's own models are no released checkpoints.
    assert advise(3_000, 1.0, table=ours).weights == plain.weights


def test_checkpoints_are_compared_on_the_data_sets_that_they_share():
    """A hard data set that only one was fine-tuned on does not count."""
    own = own_table()
    best = next(iter(RELEASED))
    tuned = own[own["filename"] == best]
    hard = tuned.assign(adapt_ds="hard", adapt_final_val=0.1)
    own.loc[own["filename"] == best, "adapt_final_val"] = 0.91
    both = pandas.concat([own, hard], ignore_index=True)
    assert advise(3_000, 2.0, table=both).weights == best
