"""A suggestion of what to train, with reasons: the paper's guidance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from keras_augreg.checkpoints import best, names
from keras_augreg.recipe import (
    FINETUNING_BATCH,
    FINETUNING_RUNS,
    FinetuningRuns,
)
from keras_augreg.study import select
from keras_augreg.study.paper import published_rows
from keras_augreg.study.table import IMAGES
from keras_augreg.study.verdict import UNTOLD, verdicts
from keras_augreg.variants import find

if TYPE_CHECKING:
    import pandas

PAPER = "arXiv 2106.10270"
# Training images of the paper's data sets whose fine-tuning runs are taken:
# 90% of 3,680 (4.2), 60% of 31,500 (3.1; Figure 2's title says 31k), Figure 1.
_LIKE = {"pets": 3_312, "resisc45": 18_900, "imagenet-1k": IMAGES["i1k"]}
# A training step counts as three forward passes, as the backward pass costs
# about two: a rule of thumb, not from the paper.
_STEP = 3.0


@dataclasses.dataclass(frozen=True)
class Reason:
    """One sentence of advice.

    Args:
        text: The sentence.
        source: Its source.
    """

    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} [{self.source}]"


@dataclasses.dataclass(frozen=True)
class Advice:
    """A suggestion with its reasons; `print` it.

    Args:
        model: Name of the builder.
        weights: The checkpoint to start from, for the builder's `weights`.
        steps: Numbers of weight updates to try.
        learning_rates: Peaks of the learning rate to try with each.
        hours: Estimated hours of all these runs on your device, at 224 px.
        reasons: The reasons.
    """

    model: str
    weights: str
    steps: tuple[int, ...]
    learning_rates: tuple[float, ...]
    hours: float
    reasons: tuple[Reason, ...]

    def __str__(self) -> str:
        runs = len(self.steps) * len(self.learning_rates)
        steps = ", ".join(map(str, self.steps))
        rates = ", ".join(map(str, self.learning_rates))
        lines = [
            "A rule of thumb, from the paper's findings; your data decide.",
            f"Fine-tune {self.model} from {self.weights}:",
            f"{runs} run{'s' * (runs > 1)}, steps {steps} x learning rates "
            f"{rates}, about {self.hours:.2g} device hours.",
            *(f"- {reason}" for reason in self.reasons),
        ]
        return "\n".join(lines)


def _paper(text: str, where: str) -> Reason:
    return Reason(text, f"{PAPER}, {where}")


_TRANSFER = _paper(
    "Fine-tune a pre-trained model rather than train from scratch: it is "
    "cheaper and gives better results for most practical purposes.",
    "section 4.2",
)
# With fewer images than this: what training from scratch reached.
_FROM_SCRATCH: Mapping[float, Reason] = {
    10_000: _paper(
        "With some 3,000 images (Pets), no amount of training from scratch "
        "came anywhere near.",
        "section 4.2",
    ),
    300_000: _paper(
        "With some 20,000 images (Resisc45), training from scratch came close "
        "with two orders of magnitude more compute and a heavy search, but "
        "not there.",
        "section 4.2",
    ),
}
_CHOICE = (
    _paper(
        "Start from ImageNet-21k: models pre-trained on more data do better "
        "across very different tasks.",
        "sections 4.3 and 7",
    ),
    _paper(
        "Take the checkpoint with the best upstream validation accuracy: in "
        "the majority of cases it is as good as the best of all after "
        "fine-tuning them; of 45 cases 8 lost half a point or more, up to 3.6.",
        "sections 4.5 and 7, Figure 5",
    ),
    _paper(
        "If your task is ImageNet-1k itself, choose by ImageNetV2: the "
        "minival split is part of what these models were pre-trained on.",
        "section 4.5",
    ),
)
_NONE_FITS = Reason(
    "Even one run of the fastest of these models takes longer than your "
    "hours: take fewer steps, or train only the classifier "
    "(compile_finetuning(freeze=True)).",
    "our inference",
)
_ONE_RUN = _paper(
    "Your hours do not suffice for all of the paper's runs, so this is one of "
    "them; with a recommended checkpoint, few attempts are likely to suffice.",
    "section 4.2",
)
_PATCHES = _paper(
    "If that is too slow, prefer larger patches (/32) to a thinner model: the "
    "Tiny models are clearly worse than /32 models of similar speed.",
    "section 4.6",
)
_FINETUNE_WITHOUT = _paper(
    "Fine-tune without RandAugment, Mixup, dropout and stochastic depth: they "
    "did not help there.",
    "section 4.2",
)
# With fewer images than this: AugReg in your own pre-training.
_AUGREG: Mapping[float, Reason] = {
    IMAGES["i1k"] // 2: _paper(
        "If you must train from scratch, use AugReg, but do not expect it to "
        "replace the missing images: its gain does not hold for arbitrarily "
        "small data sets.",
        "section 4.1",
    ),
    IMAGES["i21k"] // 2: _paper(
        "If you pre-train on your own images, use AugReg: at the size of "
        "ImageNet-1k, with 300 epochs, nearly all of it helps.",
        "section 4.4 and Figure 4",
    ),
    math.inf: _paper(
        "If you pre-train on your own images, AugReg hurts all but the "
        "largest models in a short training (30 epochs), and small models in "
        "a long one (300 epochs) too.",
        "section 4.4",
    ),
}
_AUGMENTATION_FIRST = _paper(
    "Prefer augmentation to dropout and stochastic depth, which help less "
    "often and mainly large models.",
    "section 4.4 and appendix D",
)


def advise(
    num_examples: int,
    device_budget_hours: float,
    throughput: Mapping[str, float] | None = None,
    table: pandas.DataFrame | None = None,
) -> Advice:
    """Suggests what to train, by the paper's rules of thumb and your runs.

    Args:
        num_examples: Number of your labelled training images, at least 1.
        device_budget_hours: Hours of your device for all runs, above 0.
        throughput: Architecture (in any spelling) -> images/s of inference at
            224 px on your device (`recipes/benchmark.py` measures it). `None`
            for the paper's, on a V100.
        table: Results of your own runs, from `read`. What `verdicts` can tell
            from them comes first; of the released checkpoints that were
            fine-tuned in them, the best by validation that fits the hours is
            suggested.

    Returns:
        The suggestion. Each of its sentences names a source.

    Raises:
        ValueError: If an argument is out of range, or `throughput` has a
            model that the paper does not have.

    Example:
    >>> print(advise(5_000, device_budget_hours=2.0))
    A rule of thumb, from the paper's findings; your data decide.
    Fine-tune ViT_B32 from B_32-i21k-300ep-...
    """
    if num_examples < 1:
        raise ValueError(
            f"`num_examples` must be at least 1. Received: {num_examples=}"
        )
    if not device_budget_hours > 0:
        raise ValueError(
            "`device_budget_hours` must be above 0. Received: "
            f"{device_budget_hours=}"
        )
    accuracy, speeds = published_models()
    speed_source = f"{PAPER}, Table 3, on a V100"
    if throughput is not None:
        speed_source = "your measurement"
        speeds = {find(name).name: v for name, v in throughput.items()}
        unknown = set(speeds) - set(accuracy)
        if unknown or not speeds or min(speeds.values()) <= 0:
            raise ValueError(
                "`throughput` must hold images/s, above 0, of some of "
                f"{', '.join(accuracy)}. Received: {dict(throughput)!r}"
            )
    # The data set with the nearest number of images, by ratio.
    like = min(_LIKE, key=lambda k: abs(math.log(num_examples / _LIKE[k])))
    runs = FINETUNING_RUNS[like]
    reasons = [*_own_findings(table), _TRANSFER]
    reasons += [*_below(_FROM_SCRATCH, num_examples), *_CHOICE]
    budget = device_budget_hours
    model = _best_within(budget, runs, accuracy, speeds)
    if model is None:
        runs = FinetuningRuns(runs.steps[:1], runs.learning_rates[1:2])
        model = _best_within(budget, runs, accuracy, speeds)
        if model is None:
            model = max(speeds, key=speeds.__getitem__)
            reasons.append(_NONE_FITS)
        reasons.append(_ONE_RUN)
    fitting = [m for m in speeds if _hours(runs, speeds[m]) <= budget]
    if own := _own_checkpoint(table, fitting):
        model = own[0]
        reasons.append(
            Reason(
                f"Of the released checkpoints that your runs fine-tuned and "
                f"that fit your hours, {own[1]} is the best by validation.",
                "your table",
            )
        )
    reasons += [
        Reason(
            "Steps and learning rates are those of the paper's data set of "
            f"the nearest size, {like} ({_LIKE[like]:,} images), in batches "
            f"of {FINETUNING_BATCH}.",
            f"{PAPER}, Table 4; going by size is our inference",
        ),
        Reason(
            f"{model} does {speeds[model]:,.0f} images/s of inference at 224 "
            f"px, and a training step counts as {_STEP:g} of them.",
            f"{speed_source}; the factor is a rule of thumb",
        ),
        _PATCHES,
        _FINETUNE_WITHOUT,
        *_below(_AUGREG, num_examples),
        _AUGMENTATION_FIRST,
    ]
    hours = _hours(runs, speeds[model])
    weights = own[1] if own else best(model)
    return Advice(model, weights, *runs, hours, tuple(reasons))


def _own_findings(table: pandas.DataFrame | None) -> list[Reason]:
    """What one's own table tells about the paper's findings."""
    if table is None:
        return []
    return [
        Reason(
            f"In your runs, this finding {verdict.verdict}: "
            f"{verdict.statement}.",
            f"your table, section {verdict.section}, {verdict.numbers}",
        )
        for verdict in verdicts(table)
        if verdict.verdict != UNTOLD
    ]


def _own_checkpoint(
    table: pandas.DataFrame | None, models: Sequence[str]
) -> tuple[str, str] | None:
    """The builder and the name of the best released checkpoint in a table.

    Of `models`; by its best fine-tuning on each data set, averaged over the
    data sets that most of them were fine-tuned on.
    """
    if table is None:
        return None
    rows = select.mean(
        select.done(table).dropna(subset=["adapt_final_val"]),
        "adapt_final_val", keys=["filename", *select.SETTINGS],
    )  # fmt: skip
    released = {str(name): name.variant for name in names.pretrained_names()}
    rows = rows[rows["filename"].map(released).isin(models)]
    if rows.empty:
        return None
    best = rows.groupby(["filename", "adapt_ds"])["adapt_final_val"].max()
    scores = best.unstack()
    counts = scores.count()
    scores = scores[counts.index[counts == counts.max()]].dropna()
    if scores.empty:  # No two were fine-tuned on the same data sets.
        return None
    name = str(scores.mean(axis=1).idxmax())
    return released[name], name


def _below(reasons: Mapping[float, Reason], number: int) -> list[Reason]:
    """The first reason whose limit is above a number, if there is one."""
    return [reason for limit, reason in reasons.items() if number < limit][:1]


def _best_within(
    hours: float, runs: FinetuningRuns,
    accuracy: Mapping[str, float], speeds: Mapping[str, float],
) -> str | None:  # fmt: skip
    """The most accurate model whose runs fit; Tiny only if no other fits."""
    fitting = [m for m, speed in speeds.items() if _hours(runs, speed) <= hours]
    larger = [m for m in fitting if "Ti" not in m] or fitting
    return max(larger, key=accuracy.__getitem__, default=None)


def published_models() -> tuple[dict[str, float], dict[str, float]]:
    """Builder -> accuracy at 384 px; images/s at 224 px (Table 3)."""
    accuracy, speeds = {}, {}
    for row in published_rows():
        if row["where"] == "table 3":
            builder = find(row["name"]).name
            if row["column"] == "384 i21k300":
                accuracy[builder] = row["value"]
            elif row["column"] == "224 img/s":
                speeds[builder] = row["value"]
    return accuracy, speeds


def _hours(runs: FinetuningRuns, speed: float) -> float:
    images = sum(runs.steps) * len(runs.learning_rates) * FINETUNING_BATCH
    return images * _STEP / speed / 3600
