"""Names of the released checkpoints: name <-> fields, and the aliases.

A name of the AugReg release says how its file was trained:

    B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0
        --imagenet2012-steps_20k-lr_0.03-res_384

architecture, pre-training set, epochs, learning rate, augmentation, weight
decay, dropout and stochastic depth; then, where the file was fine-tuned, the
data set, steps, learning rate and resolution. The file is at
`gs://vit_models/augreg/NAME.npz`.

Sources of the rule and its values: the columns of the release's `index.csv`
and the counts in `vit_jax_augreg.ipynb` (google-research/vision_transformer
at c6de1e5); "How to train your ViT?" (arXiv 2106.10270), section 3. Which file
an alias means, and where each name was seen, stands only in
`keras_augreg/assets/checkpoints.csv`.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import importlib.resources
import itertools
import re
from typing import Any

from keras_augreg import dataset_names, variants
from keras_augreg.recipe import (
    FINETUNING_RESOLUTIONS,
    LEVEL_OF_RELEASE,
    LEVELS,
    PRETRAINING_EPOCHS,
    PRETRAINING_LEARNING_RATE,
    PRETRAINING_RESOLUTION,
    REGULARIZATION,
    RELEASE_FINETUNING_RUNS,
    WEIGHT_DECAY,
    AugReg,
)
from keras_augreg.variants import VARIANTS, find

DATASETS = {
    dataset if epochs == max(choices) else f"{dataset}_{epochs}": epochs
    for dataset, choices in PRETRAINING_EPOCHS.items()
    for epochs in sorted(choices, reverse=True)
}
"""Pre-training set, as in the index's column `ds` -> epochs."""

ADAPT = {
    name: RELEASE_FINETUNING_RUNS[
        dataset_names.choose(name, RELEASE_FINETUNING_RUNS)
    ]
    for name in (
        "cifar100", "imagenet2012", "kitti", "oxford_iiit_pet", "resisc45"
    )
}  # fmt: skip
"""Fine-tuning set, as in file names -> its steps and learning rates."""

DROPOUT = tuple(rate for rate, _ in REGULARIZATION)
"""Rates of dropout, and equally of stochastic depth."""

# Nine architectures have every recipe. B/8 has three pre-trained checkpoints,
# fine-tuned at 224 only; two of the names are known.
_FULL_GRID = (
    "ViT_Ti16", "ViT_S16", "ViT_S32", "ViT_B16", "ViT_B32", "ViT_L16",
    "R_ViT_Ti16", "R26_ViT_S32", "R50_ViT_L32",
)  # fmt: skip
_RELEASED = {VARIANTS[v].release: v for v in (*_FULL_GRID, "ViT_B8")}

_ADAPT_FIELDS = (
    "adapt_dataset", "adapt_steps", "adapt_learning_rate", "adapt_resolution"
)  # fmt: skip
_NUMBER = r"[0-9]\.[0-9]{1,3}"
_NAME = re.compile(
    r"(?P<variant>[A-Za-z0-9_]+)-(?P<dataset>[a-z0-9_]+)"
    rf"-(?P<epochs>[0-9]{{2,3}})ep-lr_(?P<learning_rate>{_NUMBER})"
    rf"-aug_(?P<augment>[a-z0-9]+)-wd_(?P<weight_decay>{_NUMBER})"
    rf"-do_(?P<dropout>{_NUMBER})-sd_(?P<stochastic_depth>{_NUMBER})"
    r"(?:--(?P<adapt_dataset>[a-z0-9_]+)-steps_(?P<adapt_steps>[0-9]{1,2}k)"
    rf"-lr_(?P<adapt_learning_rate>{_NUMBER})"
    r"-res_(?P<adapt_resolution>[0-9]{3}))?"
)
_STEPS = {f"{n // 1000}k": n for runs in ADAPT.values() for n in runs.steps}
# Bounds the time that difflib takes; the longest released name has 107.
_MAX_LENGTH = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointName:
    """The fields of a released name; `str()` gives the name back.

    Fields that no checkpoint of the release has are a `ValueError`.

    >>> name = parse("L_16-i1k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0")
    >>> name.variant, name.augment, name.release_augment, name.adapt_dataset
    ('ViT_L16', 'light2', 'light1', None)
    """

    variant: str  # any spelling; becomes the builder's name
    # The pre-training set, any spelling of a key of `DATASETS`. No name of a
    # 30-epoch file has been seen: `i21k_30-30ep` follows from the index;
    # `i21k-30ep` is understood as well.
    dataset: str
    epochs: int
    learning_rate: float  # at its peak
    augment: str  # the paper's level: "light2"
    weight_decay: float
    dropout: float
    stochastic_depth: float  # equal to `dropout` throughout the release
    # Any spelling of a key of `ADAPT`; all four are `None` before fine-tuning.
    adapt_dataset: str | None = None
    adapt_steps: int | None = None  # of 512 images each
    adapt_learning_rate: float | None = None
    adapt_resolution: int | None = None  # side of the images, 224 or 384
    release_augment: str = dataclasses.field(init=False)  # as in file names

    def __post_init__(self) -> None:
        named = variants.match(self.variant)
        for field, value in (
            ("variant", named and named.name),
            ("dataset", dataset_names.lookup(self.dataset, DATASETS)),
            ("adapt_dataset", dataset_names.lookup(self.adapt_dataset, ADAPT)),
        ):
            if value is not None:
                object.__setattr__(self, field, value)
        runs = ADAPT.get(self.adapt_dataset or "")
        epochs = DATASETS.get(self.dataset)
        expected: dict[str, tuple[object, ...]] = {
            "variant": tuple(_RELEASED.values()),
            "dataset": tuple(DATASETS),
            "epochs": PRETRAINING_EPOCHS.get(self.dataset, (epochs,)),
            "learning_rate": (PRETRAINING_LEARNING_RATE,),
            "augment": tuple(LEVELS),
            "weight_decay": WEIGHT_DECAY,
            "dropout": DROPOUT,
            "stochastic_depth": (self.dropout,),
            "adapt_dataset": (None, *ADAPT),
            "adapt_steps": runs.steps if runs else (None,),
            "adapt_learning_rate": runs.learning_rates if runs else (None,),
            "adapt_resolution": _resolutions(self.variant) if runs else (None,),
        }
        for field, values in expected.items():
            if (value := getattr(self, field)) not in values:
                raise ValueError(
                    f"The release has no checkpoint with {field}={value!a}; "
                    f"expected {' or '.join(map(repr, values))}."
                )
        object.__setattr__(self, "release_augment", LEVELS[self.augment][2])

    @property
    def upstream(self) -> str:
        """The key of `DATASETS` with this data set and these epochs."""
        if DATASETS[self.dataset] == self.epochs:
            return self.dataset
        return f"{self.dataset}_{self.epochs}"

    @property
    def pretrained(self) -> CheckpointName:
        """The name of the checkpoint that this one was fine-tuned from."""
        fields: dict[str, Any] = dict.fromkeys(_ADAPT_FIELDS)
        return dataclasses.replace(self, **fields)

    def __str__(self) -> str:
        name = (
            f"{VARIANTS[self.variant].release}-{self.dataset}-{self.epochs}ep"
            f"-lr_{self.learning_rate}-aug_{self.release_augment}"
            f"-wd_{self.weight_decay}-do_{self.dropout}"
            f"-sd_{self.stochastic_depth}"
        )
        if self.adapt_steps is None:
            return name
        return (  # 500 steps are spelled "0k"
            f"{name}--{self.adapt_dataset}-steps_{self.adapt_steps // 1000}k"
            f"-lr_{self.adapt_learning_rate}-res_{self.adapt_resolution}"
        )


def parse(name: str) -> CheckpointName:
    """Reads the name of an AugReg checkpoint.

    Args:
        name: For example
            `"B_32-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0"`, with
            or without `.npz`.

    Returns:
        Its fields. `str()` of them is `name` without `.npz`.

    Raises:
        ValueError: If the release has no such name; it lists the nearest.

    Example:
    >>> parse(
    ...     "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
    ...     "--oxford_iiit_pet-steps_0k-lr_0.003-res_384.npz"
    ... ).adapt_steps
    500
    """
    stem = name.removesuffix(".npz")
    if stem in _aliases():
        raise ValueError(
            f"{name!r} is an alias: which file it means depends on the "
            "architecture. Pass the full name, for example "
            f"keras_augreg.checkpoints.resolve('ViT_B16', {name!r})."
        )
    match = _NAME.fullmatch(stem)
    if match is None:
        raise _unknown(name, "It is not the name of a released checkpoint.")
    fields: dict[str, Any] = match.groupdict()
    level, steps = fields["augment"], fields["adapt_steps"]
    if level not in LEVEL_OF_RELEASE:
        levels = " or ".join(map(repr, LEVEL_OF_RELEASE))
        raise _unknown(name, f"Its augmentation is {level!r}, not {levels}.")
    fields["augment"] = LEVEL_OF_RELEASE[level]
    if steps is not None:
        fields["adapt_steps"] = _STEPS.get(steps, int(steps[:-1]) * 1000)
    for key, value in fields.items():
        if isinstance(value, str) and re.fullmatch(r"[0-9.]+", value):
            fields[key] = float(value) if "." in value else int(value)
    try:
        parsed = CheckpointName(**fields)
    except ValueError as error:
        raise _unknown(name, str(error)) from None
    if str(parsed) != stem:  # "0.10" for "0.1", "02k" for "2k"
        raise _unknown(name, f"The release writes it as {parsed}.")
    return parsed


@functools.cache
def pretrained_names() -> tuple[CheckpointName, ...]:
    """All pre-trained checkpoints that follow from the release's rule.

    9 architectures x {i1k, i21k, i21k_30} x 28 recipes, and two of the three
    for B/8, whose third name is not known here.
    """
    names = [
        CheckpointName(
            variant=variant,
            dataset=dataset,
            epochs=epochs,
            learning_rate=PRETRAINING_LEARNING_RATE,
            **dataclasses.asdict(recipe),
        )
        for variant in _FULL_GRID
        for dataset, epochs in DATASETS.items()
        for recipe in AugReg.grid()
    ]
    names += [
        parse(name)
        for name, row in table().items()
        if row["variant"] == "ViT_B8" and name.startswith("B_8-i21k-")
        if "--" not in name
    ]
    return tuple(names)


def adapted_names(name: CheckpointName) -> tuple[CheckpointName, ...]:
    """The 68 (B/8: 34) fine-tuned checkpoints of a pre-trained one."""
    resolutions = _resolutions(name.variant)
    names = []
    for dataset, runs in ADAPT.items():
        choices = ([dataset], runs.steps, runs.learning_rates, resolutions)
        for run in itertools.product(*choices):
            fields: dict[str, Any] = dict(zip(_ADAPT_FIELDS, run, strict=True))
            names.append(dataclasses.replace(name, **fields))
    return tuple(names)


def _resolutions(variant: str) -> tuple[int, ...]:
    return FINETUNING_RESOLUTIONS[: 1 if variant == "ViT_B8" else None]


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """The bundled table: name -> the columns of `assets/checkpoints.csv`."""
    asset = importlib.resources.files("keras_augreg") / "assets/checkpoints.csv"
    rows = csv.DictReader(asset.read_text(encoding="utf-8").splitlines())
    return {row["name"]: row for row in rows}


@functools.cache
def _aliases() -> dict[str, dict[str, list[str]]]:
    """Alias -> variant -> the files it may mean, one for each resolution."""
    aliases: dict[str, dict[str, list[str]]] = {}
    for name, row in table().items():
        if alias := row["alias"]:
            variants = aliases.setdefault(alias, {})
            variants.setdefault(row["variant"], []).append(name)
    return aliases


def aliases(variant: str) -> list[str]:
    """The aliases that an architecture has, for example `["augreg-in21k"]`."""
    variant = find(variant).name
    return [alias for alias, has in _aliases().items() if variant in has]


def default_weights(variant: str) -> str | None:
    """The builder's default for `weights`: `None` if it was not released."""
    alias = "augreg-in21k-ft-in1k"
    return alias if alias in aliases(variant) else None


def resolve(variant: str, weights: str, resolution: int | None = None) -> str:
    """Returns the full, immutable name that an alias stands for.

    Args:
        variant: Any spelling of an architecture: `"ViT_B16"`, `"B_16"`,
            `"B/16"`.
        weights: An alias, or a full name, with or without `.npz`:
            `"augreg-in21k"`: the best by upstream validation, as
            google-research/vision_transformer recommends.
            `"augreg-in21k-ft-in1k"`: fine-tuned on ImageNet-1k; at 384
            google-research's choice, at 224 timm's.
            `"augreg-in1k"`: pre-trained and fine-tuned on ImageNet-1k, timm's
            choice.
            `"in21k"`: the older ViT release (arXiv 2010.11929).
        resolution: Side of the images in pixels. Where an alias has files of
            two resolutions it means the nearer one: 384 from 305 pixels on,
            224 below and for `None` (position embeddings are resampled).

    Returns:
        A name for `download`: `"B_16-i21k-..."` or `"imagenet21k/ViT-B_16"`.

    Raises:
        ValueError: If the alias or the name is unknown, if the architecture
            lacks the alias, or if the name belongs to another architecture.

    Example:
    >>> resolve("Ti/16", "augreg-in21k")
    'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
    """
    variant = find(variant).name
    files = _aliases().get(weights)
    if files is not None:
        if variant not in files:
            raise ValueError(
                f"weights={weights!r} was not released for {variant}, only "
                f"for {', '.join(files)}. Aliases of {variant}: "
                f"{', '.join(aliases(variant)) or 'none'}."
            )
        wanted = resolution or PRETRAINING_RESOLUTION
        return min(
            files[variant], key=lambda name: abs(_resolution(name) - wanted)
        )
    name = weights.removesuffix(".npz")
    owner = table()[name]["variant"] if name in table() else parse(name).variant
    if owner != variant:
        raise ValueError(
            f"weights={weights!r} is a checkpoint of {owner}, not of "
            f"{variant}: build keras_augreg.{owner}, or choose one of "
            f"keras_augreg.checkpoints.search(variant={variant!r})."
        )
    return name


def bucket_path(name: str) -> str:
    """Returns the path of a checkpoint below `gs://vit_models/`.

    Every name that becomes a path or a URL goes through here: only names of
    the release pass, and none leads out of the bucket or the cache.
    """
    stem = name.removesuffix(".npz")
    if "/" in stem and stem in table():
        return f"{stem}.npz"
    return f"augreg/{parse(name)}.npz"


def _resolution(name: str) -> int:
    _, adapted, resolution = name.rpartition("-res_")
    return int(resolution) if adapted else PRETRAINING_RESOLUTION


def _unknown(name: str, problem: str) -> ValueError:
    """The error for a name, with the nearest names of the release."""
    # A path or URL is compared by its last part.
    stem = re.split(r"[/\\]", name[-2 * _MAX_LENGTH :].removesuffix(".npz"))[-1]
    stem, adapted, suffix = stem[:_MAX_LENGTH].partition("--")
    known = [str(known) for known in pretrained_names()]
    known += [*_aliases(), *(row for row in table() if "/" in row)]
    near = difflib.get_close_matches(stem, known, n=3)
    if adapted and near:
        suffixes = {
            str(parsed).partition("--")[2]: None
            for parsed in adapted_names(pretrained_names()[0])
        }
        heads = near[:1] if stem == near[0] else near
        tails = difflib.get_close_matches(suffix, suffixes, n=4 - len(heads))
        near = [f"{head}--{tail}" for head in heads for tail in tails] or near
    shown = ascii(name if len(name) <= _MAX_LENGTH else name[:80] + "...")
    return ValueError(
        f"Unknown checkpoint {shown}: {problem} "
        + (f"Nearest: {', '.join(near)}. " if near else "")
        + "keras_augreg.checkpoints.search() lists the names; aliases: "
        + f"{', '.join(_aliases())}."
    )
