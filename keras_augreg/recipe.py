"""The recipes of the AugReg study as objects.

Sources: Steiner et al., "How to train your ViT?" (TMLR 2022, arXiv
2106.10270v2), "the paper"; `configs/vit_i1k.py` and `configs/vit_i21k.py` of
google-research/big_vision at 0127fb6; README and `vit_jax_augreg.ipynb` of
google-research/vision_transformer at c6de1e5. tests/study/test_paper.py
compares each constant with the paper.
"""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, NamedTuple

import numpy as np

from keras_augreg import dataset_names
from keras_augreg.variants import find

# level: ((RandAugment's layers, magnitude) or None, Mixup's p, the level's
# name in the release's file names). `AugReg` says where they come from.
LEVELS: dict[str, tuple[tuple[int, int] | None, float, str]] = {
    "none": (None, 0.0, "none"),
    "light1": ((2, 0), 0.0, "light0"),
    "light2": ((2, 10), 0.2, "light1"),
    "medium1": ((2, 15), 0.2, "medium1"),
    "medium2": ((2, 15), 0.5, "medium2"),
    "heavy1": ((2, 20), 0.5, "strong1"),
    "heavy2": ((2, 20), 0.8, "strong2"),
}
# From-scratch runs of the paper's appendix A only; the names are ours.
FOUR_LAYERS: dict[str, tuple[tuple[int, int], float, str]] = {
    "medium2x4": ((4, 15), 0.5, "medium2x4"),
    "heavy2x4": ((4, 20), 0.8, "heavy2x4"),
}
_ALL = {**LEVELS, **FOUR_LAYERS}
_SHORT = {"light": "light1", "medium": "medium1", "heavy": "heavy1"}
LEVEL_OF_RELEASE = {release: level for level, (_, _, release) in LEVELS.items()}

# (dropout, stochastic depth) and weight decay in the paper's grid, 3.3.
REGULARIZATION = ((0.0, 0.0), (0.1, 0.1))
WEIGHT_DECAY = (0.1, 0.03)

# Pre-training: paper, section 3.4 (the peak: 3.3; the resolution: 3.5).
PRETRAINING_BATCH = 4096
PRETRAINING_LEARNING_RATE = 1e-3
PRETRAINING_WARMUP = 10_000
PRETRAINING_EPOCHS = {"i1k": (300,), "i21k": (30, 300)}
PRETRAINING_RESOLUTION = 224
# Fine-tuning: paper, section 3.5 and Table 4.
FINETUNING_BATCH = 512
FINETUNING_RESOLUTIONS = (224, 384)
FINETUNING_MOMENTUM_DTYPE = "bfloat16"
# Both: paper, sections 3.4 and 3.5.
CLIP_NORM = 1.0


class FinetuningRuns(NamedTuple):
    """Fine-tuning runs on one data set: all pairs of these."""

    steps: tuple[int, ...]  # weight updates
    learning_rates: tuple[float, ...]  # peaks


def _runs(*rates: float) -> dict[str, FinetuningRuns]:
    short = FinetuningRuns((500, 2_500), rates)
    long = FinetuningRuns((2_500, 10_000), rates)
    return {
        "imagenet-1k": FinetuningRuns((20_000,), (0.01, 0.03)),
        "cifar-100": long,
        "resisc45": long,
        "pets": short,
        "kitti-distance": short,
    }


FINETUNING_RUNS = _runs(0.001, 0.003, 0.01)
"""The paper's runs by data set (Table 4): 52 a model, at two resolutions."""

RELEASE_FINETUNING_RUNS = _runs(0.001, 0.003, 0.01, 0.03)
"""Those of the release (`vit_jax_augreg.ipynb`): 68 files a model."""


# The middle of the paper's rates (`FINETUNING_RUNS`), for a first run.
FINETUNING_LEARNING_RATE = 0.003


PRETRAINING_RUNS = {
    f"{dataset}-{epochs}ep": (dataset, epochs)
    for dataset, numbers in PRETRAINING_EPOCHS.items()
    for epochs in numbers
}
"""The paper's pre-training runs (3.4) by name, as in the release's files."""


def pretraining_settings(run: str, model: str | None) -> dict[str, Any]:
    """The study's settings of a pre-training run, for `recipes/pretrain.py`.

    The paper does not say which loss it used; this is big_vision's.

    Args:
        run: One of `PRETRAINING_RUNS`.
        model: The architecture, to add `AugReg.recommended`; `None` without.

    >>> pretraining_settings("i1k-300ep", "S/16")["recipe"]
    'medium2'
    """
    dataset, epochs = PRETRAINING_RUNS[run]
    recipe = {}
    if model is not None:
        pick = AugReg.recommended(
            model, "i21k_30" if run == "i21k-30ep" else dataset
        )
        recipe = {
            "recipe": pick.augment,
            "dropout": pick.dropout,
            "weight_decay": pick.weight_decay,
        }
    return {
        **recipe,
        "dataset": dataset_names.canonical(dataset),
        "image_size": PRETRAINING_RESOLUTION,
        "batch_size": PRETRAINING_BATCH,
        "epochs": float(epochs),
        "learning_rate": PRETRAINING_LEARNING_RATE,
        "loss": "sigmoid",
    }


def finetuning_settings(run: str) -> dict[str, Any]:
    """The study's settings of a fine-tuning run, for `recipes/finetune.py`.

    The study tried several learning rates (`FINETUNING_RUNS`); this is
    `FINETUNING_LEARNING_RATE` where it is one of them, otherwise the lowest.

    Args:
        run: A data set of `FINETUNING_RUNS` and its steps: `"pets-500"`.

    >>> finetuning_settings("pets-500")["batch_size"]
    512
    """
    dataset, _, steps = run.rpartition("-")
    rates = FINETUNING_RUNS[dataset].learning_rates
    middle = FINETUNING_LEARNING_RATE
    return {
        "dataset": dataset,
        "image_size": FINETUNING_RESOLUTIONS[0],
        "batch_size": FINETUNING_BATCH,
        "steps": int(steps),
        "learning_rate": middle if middle in rates else rates[0],
        "momentum_dtype": FINETUNING_MOMENTUM_DTYPE,
    }


def pretraining_warmup(total_steps: int) -> int:
    """Warm-up steps of a pre-training run: the study's, or a tenth.

    The study's 10,000 are 1% to 11% of its runs, the shortest of which has
    some 93,000 steps (300 epochs of ImageNet-1k). Shorter ones than that warm
    up for a tenth of their steps.
    """
    if total_steps > 90_000:
        return PRETRAINING_WARMUP
    return total_steps // 10


def finetuning_warmup(total_steps: int) -> int:
    """Warm-up steps of a fine-tuning run.

    The paper's values (Table 4) are 100 of 500 steps, 200 of 2,500 and 500 of
    10,000 and 20,000. Between them we interpolate; shorter runs than 500
    steps warm up for a fifth of their steps, longer ones than 10,000 for 500.
    """
    steps, warmup = (0, 500, 2_500, 10_000), (0, 100, 200, 500)
    return int(np.interp(total_steps, steps, warmup))


# (data set, variant's release name): (level, dropout = stochastic depth,
# weight decay). `AugReg.recommended` says where they come from.
_PICKS: dict[tuple[str, str], tuple[str, float, float]] = {
    ("i1k", "Ti_16"): ("light1", 0.0, 0.1),
    ("i1k", "S_32"): ("medium1", 0.0, 0.1),
    ("i1k", "S_16"): ("medium2", 0.0, 0.1),
    ("i1k", "B_32"): ("medium2", 0.1, 0.1),
    ("i1k", "B_16"): ("medium2", 0.1, 0.1),
    ("i1k", "L_16"): ("medium2", 0.1, 0.1),
    ("i21k", "R_Ti_16"): ("none", 0.0, 0.03),
    ("i21k", "Ti_16"): ("none", 0.0, 0.03),
    ("i21k", "S_32"): ("none", 0.0, 0.1),
    ("i21k", "S_16"): ("light2", 0.0, 0.03),
    ("i21k", "R26_S_32"): ("light2", 0.0, 0.1),
    ("i21k", "B_32"): ("light2", 0.0, 0.1),
    ("i21k", "B_16"): ("medium1", 0.0, 0.1),
    ("i21k", "B_8"): ("medium2", 0.0, 0.1),
    ("i21k", "L_16"): ("heavy1", 0.0, 0.1),
    ("i21k", "R50_L_32"): ("medium1", 0.1, 0.1),
}
_CHECKPOINT = re.compile(
    r"-aug_([a-z]+\d?)-wd_([\d.]+)-do_([\d.]+)-sd_([\d.]+)(?:-|$)"
)


@dataclasses.dataclass(frozen=True)
class AugReg:
    """One recipe of the AugReg study: augmentation and regularisation.

    | `augment` | RandAugment (layers, magnitude) | Mixup p | in file names |
    | --- | --- | --- | --- |
    | `none` | no | 0 | `none` |
    | `light1` | (2, 0) | 0 | `light0` |
    | `light2` | (2, 10) | 0.2 | `light1` |
    | `medium1` | (2, 15) | 0.2 | `medium1` |
    | `medium2` | (2, 15) | 0.5 | `medium2` |
    | `heavy1` | (2, 20) | 0.5 | `strong1` |
    | `heavy2` | (2, 20) | 0.8 | `strong2` |
    | `medium2x4` | (4, 15) | 0.5 | no file |
    | `heavy2x4` | (4, 20) | 0.8 | no file |

    Source: section 3.3 of the paper; `RANDAUG_DEF` and `MIXUP_DEF` of
    big_vision's `vit_i1k.py`. Both say "strong" where the paper's figures say
    "heavy". That the files' `light0` and `light1` are `light1` and `light2`
    is inferred: Figure 4 has the best B/32 at `light2`, and the release's best
    B/32 is called `light1`. Both names are shown wherever a recipe is printed.

    The last two, whose names are ours, were trained only from scratch
    (appendix A), as was a rate of 0.2: `AugReg("heavy2x4", 0.2, 0.2)`.

    Args:
        augment: A name from the first column; `light`, `medium` and `heavy`
            mean `light1`, `medium1` and `heavy1`.
        dropout: Rate of dropout, in [0, 1). The study used 0 and 0.1 (0.2
            from scratch).
        stochastic_depth: Rate of stochastic depth in the last block, in
            [0, 1). The study used the dropout's.
        weight_decay: Decoupled weight decay as the study counts it: each
            step subtracts `weight_decay` times the learning rate. The study
            used 0.1 and 0.03.

    Raises:
        ValueError: An argument is not as above.

    Example:
    >>> recipe = keras_augreg.AugReg("medium1")
    >>> recipe.randaugment, recipe.mixup
    ((2, 15), 0.2)
    """

    augment: str
    dropout: float = 0.0
    stochastic_depth: float = 0.0
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        level = _SHORT.get(self.augment, self.augment)
        if level not in _ALL:
            hint = ""
            if meant := LEVEL_OF_RELEASE.get(level):
                hint = (
                    f" {level!r} in the release's file names means {meant!r}."
                )
            raise ValueError(
                f"Unknown `augment` {self.augment!r}. Expected one of: "
                f"{', '.join([*_ALL, *_SHORT])}.{hint}"
            )
        object.__setattr__(self, "augment", level)
        for name in ("dropout", "stochastic_depth"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise ValueError(
                    f"`{name}` must be in [0, 1). Received: {name}={rate}."
                )
        if self.weight_decay < 0:
            raise ValueError(
                "`weight_decay` must be at least 0. Received: "
                f"weight_decay={self.weight_decay}."
            )

    @property
    def randaugment(self) -> tuple[int, int] | None:
        """RandAugment's (number of layers, magnitude), or `None`."""
        return _ALL[self.augment][0]

    @property
    def mixup(self) -> float:
        """Mixup's p: lambda is max(b, 1 - b) with b ~ Beta(p, p)."""
        return _ALL[self.augment][1]

    @property
    def release_augment(self) -> str:
        """The level's name in the release's file names, if it has any."""
        return _ALL[self.augment][2]

    @property
    def label(self) -> str:
        """Both names of the level: `"heavy2 (strong2)"`."""
        if self.augment == self.release_augment:
            return self.augment
        return f"{self.augment} ({self.release_augment})"

    def __str__(self) -> str:
        """The recipe in the paper's terms, with both names of the level."""
        level = self.augment
        if self.release_augment != level:
            level += f" ({self.release_augment} in the release's file names)"
        augment = "no RandAugment"
        if self.randaugment:
            augment = "RandAugment l={}, m={}".format(*self.randaugment)
        mixup = f"Mixup p={self.mixup:g}" if self.mixup else "no Mixup"
        return (
            f"{level}: {augment}, {mixup}; dropout {self.dropout:g}, "
            f"stochastic depth {self.stochastic_depth:g}; "
            f"weight decay {self.weight_decay:g}"
        )

    def to_json(self) -> str:
        """The recipe as a JSON object, which `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> AugReg:
        """The recipe that `to_json` wrote; others raise a `ValueError`."""
        fields: Any = json.loads(text)
        known = {field.name for field in dataclasses.fields(cls)}
        fits = isinstance(fields, dict) and set(fields) <= known
        if not fits or "augment" not in fields:
            raise ValueError(
                f"Expected a JSON object with {', '.join(sorted(known))}; "
                f"only augment is required. Received: {text!r}."
            )
        return cls(**fields)

    @classmethod
    def grid(cls) -> tuple[AugReg, ...]:
        """The paper's 28 recipes (3.3): levels, regularisations, decays."""
        return tuple(
            cls(level, dropout, stochastic_depth, weight_decay)
            for level in LEVELS
            for dropout, stochastic_depth in REGULARIZATION
            for weight_decay in WEIGHT_DECAY
        )

    @classmethod
    def from_checkpoint(cls, name: str) -> AugReg:
        """The recipe that a released checkpoint was pre-trained with.

        Args:
            name: The name of a pre-trained or fine-tuned checkpoint of the
                release, or a path that ends in one.

        Returns:
            The recipe.

        Raises:
            ValueError: The name does not contain a recipe of the release.

        Example:
        >>> name = "L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0"
        >>> keras_augreg.AugReg.from_checkpoint(name).augment
        'heavy1'
        """
        found = _CHECKPOINT.search(name.removesuffix(".npz"))
        if found is None or found[1] not in LEVEL_OF_RELEASE:
            raise ValueError(
                "Expected the name of an AugReg checkpoint, with "
                "`-aug_LEVEL-wd_NUMBER-do_NUMBER-sd_NUMBER`, where LEVEL is "
                f"one of {', '.join(LEVEL_OF_RELEASE)}. Received: {name!r}."
            )
        decay, dropout, stochastic_depth = map(float, found.groups()[1:])
        level = LEVEL_OF_RELEASE[found[1]]
        return cls(level, dropout, stochastic_depth, decay)

    @classmethod
    def recommended(cls, variant: str, dataset: str) -> AugReg:
        """The study's pick for pre-training a model on a data set.

        For ImageNet-1k, the levels are those of big_vision's `vit_i1k.py`.
        Its docstring says that regularisation, which the file lacks, helps
        B/32, B/16 and L/16; these get dropout and stochastic depth 0.1.

        For ImageNet-21k, they are the recipes of the best checkpoints by
        upstream validation in google-research/vision_transformer's README
        (for B/8, in its notebook). big_vision's `vit_i21k.py` agrees for
        Ti/16, S/32 and B/32, has light1 for S/16 (here light2), light2 for
        B/16 (medium1) and medium2 for L/16 (heavy1), and lacks the others.

        Args:
            variant: An architecture in any spelling: `"ViT_B16"`, `"B_16"`,
                `"B/16"`, `"R26+S/32"`.
            dataset: ImageNet-1k or ImageNet-21k in any spelling: `"i1k"`,
                `"imagenet2012"`, `"i21k"`, `"imagenet21k"`.

        Returns:
            The recipe.

        Raises:
            ValueError: An argument is unknown, or the sources recommend
                nothing for the two.

        Example:
        >>> print(keras_augreg.AugReg.recommended("B/16", "i21k"))
        medium1: RandAugment l=2, m=15, Mixup p=0.2; dropout 0, ...
        """
        release = find(variant).release
        if dataset_names.lookup(dataset, ["i21k_30"]):
            raise ValueError(
                "The picks for ImageNet-21k are for 300 epochs: pass 'i21k'. "
                "For 30 epochs, take the recipe of the best checkpoint: "
                "`AugReg.from_checkpoint(keras_augreg.checkpoints.best("
                f"{variant!r}, {dataset!r}))`."
            )
        dataset = dataset_names.choose(dataset, PRETRAINING_EPOCHS)
        if (dataset, release) not in _PICKS:
            known = [v for d, v in _PICKS if d == dataset]
            raise ValueError(
                f"The study's authors recommend no recipe for {variant} on "
                f"{dataset}, only for: {', '.join(known)}. Use the recipe of "
                "the model closest in size."
            )
        level, regularization, decay = _PICKS[dataset, release]
        return cls(level, regularization, regularization, decay)


def check_recipe(recipe: Any) -> None:
    """Raises a `TypeError` if a value is not an `AugReg`."""
    if not isinstance(recipe, AugReg):
        raise TypeError(
            "`recipe` must be a `keras_augreg.AugReg`, such as "
            f"`AugReg('medium1')`. Received: recipe={recipe!r}."
        )
