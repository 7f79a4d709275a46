"""Advice: each sentence has its source, and the budget decides."""

from __future__ import annotations

import pytest

from keras_augreg.checkpoints import best
from keras_augreg.study.advice import advise

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
