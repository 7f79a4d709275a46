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
at c6de1e5); "How to train your ViT?" (arXiv 2106.10270), section 3. Which
file an alias means, and where each name was seen, is in
`keras_augreg/assets/checkpoints.csv` alone.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import functools
import importlib.resources
import itertools
import re

from keras_augreg.variants import VARIANTS

AUGMENTS = (
    "none", "light0", "light1", "medium1", "medium2", "strong1", "strong2",
)  # fmt: skip
"""The release's seven levels; `AugReg.from_checkpoint` says what they do."""

DATASETS = {"i1k": 300, "i21k": 300, "i21k_30": 30}
"""Pre-training set, as in the index's column `ds`, -> its epochs."""

ADAPT = {
    "cifar100": ((2_500, 10_000), (0.001, 0.003, 0.01, 0.03)),
    "imagenet2012": ((20_000,), (0.01, 0.03)),
    "kitti": ((500, 2_500), (0.001, 0.003, 0.01, 0.03)),
    "oxford_iiit_pet": ((500, 2_500), (0.001, 0.003, 0.01, 0.03)),
    "resisc45": ((2_500, 10_000), (0.001, 0.003, 0.01, 0.03)),
}
"""Fine-tuning set -> its numbers of steps and its learning rates."""

# Nine architectures have every recipe. B/8 has three pre-trained checkpoints,
# fine-tuned at 224 only; two of the names are known.
_FULL_GRID = (
    "ViT_Ti16", "ViT_S16", "ViT_S32", "ViT_B16", "ViT_B32", "ViT_L16",
    "R_ViT_Ti16", "R26_ViT_S32", "R50_ViT_L32",
)  # fmt: skip
_RELEASED = {VARIANTS[v].release: v for v in (*_FULL_GRID, "ViT_B8")}

_NUMBER = r"([0-9]\.[0-9]{1,3})"
_NAME = re.compile(
    r"([A-Za-z0-9_]+)-([a-z0-9_]+)-([0-9]{2,3})ep"
    rf"-lr_{_NUMBER}-aug_([a-z0-9]+)-wd_{_NUMBER}-do_{_NUMBER}-sd_{_NUMBER}"
    rf"(?:--([a-z0-9_]+)-steps_([0-9]{{1,2}}k)-lr_{_NUMBER}-res_([0-9]{{3}}))?"
)
_STEPS = {f"{n // 1000}k": n for steps, _ in ADAPT.values() for n in steps}
# Bounds the time that difflib takes; the longest released name has 107.
_MAX_LENGTH = 200


@dataclasses.dataclass(frozen=True)
class CheckpointName:
    """The fields of a name of the release; `str()` gives the name back.

    Args:
        variant: The builder's name, for example `"ViT_B16"`.
        dataset: What it was pre-trained on: `"i1k"` (ImageNet-1k), `"i21k"`
            (ImageNet-21k) or `"i21k_30"` (30 epochs). No name of a 30-epoch
            file has been seen here: `i21k_30-30ep` follows from the index's
            columns; `i21k-30ep` is understood as well.
        epochs: Epochs of the pre-training, 300 or 30.
        lr: Peak learning rate of the pre-training, 0.001.
        augment: One of `AUGMENTS`, in the release's spelling.
        weight_decay: 0.03 or 0.1.
        dropout: 0.0 or 0.1.
        stochastic_depth: Equal to `dropout` throughout the release.
        adapt_dataset: What it was fine-tuned on, a key of `ADAPT`, or `None`
            for a file that was pre-trained only: then the following three
            are `None` too.
        adapt_steps: Fine-tuning steps, of 512 images.
        adapt_lr: Learning rate of the fine-tuning.
        adapt_resolution: Side of the fine-tuning's images, 224 or 384 pixels.

    Raises:
        ValueError: If the release has no checkpoint with these fields.

    Example:
    >>> name = parse("S_32-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0")
    >>> name.variant, name.augment, name.adapt_dataset
    ('ViT_S32', 'none', None)
    """

    variant: str
    dataset: str
    epochs: int
    lr: float
    augment: str
    weight_decay: float
    dropout: float
    stochastic_depth: float
    adapt_dataset: str | None = None
    adapt_steps: int | None = None
    adapt_lr: float | None = None
    adapt_resolution: int | None = None

    def __post_init__(self) -> None:
        steps, lrs = ADAPT.get(self.adapt_dataset or "", ((None,), (None,)))
        sizes = (224,) if self.variant == "ViT_B8" else (224, 384)
        epochs = DATASETS.get(self.dataset)
        expected: dict[str, tuple[object, ...]] = {
            "variant": tuple(_RELEASED.values()),
            "dataset": tuple(DATASETS),
            "epochs": (300, 30) if self.dataset == "i21k" else (epochs,),
            "lr": (0.001,),
            "augment": AUGMENTS,
            "weight_decay": (0.03, 0.1),
            "dropout": (0.0, 0.1),
            "stochastic_depth": (self.dropout,),
            "adapt_dataset": (None, *ADAPT),
            "adapt_steps": steps,
            "adapt_lr": lrs,
            "adapt_resolution": sizes if self.adapt_dataset else (None,),
        }
        for field, values in expected.items():
            if (value := getattr(self, field)) not in values:
                raise ValueError(
                    f"The release has no checkpoint with {field}={value!a}; "
                    f"expected {' or '.join(map(repr, values))}."
                )

    @property
    def upstream(self) -> str:
        """The pre-training as the index's column `ds` has it."""
        return "i21k_30" if self.epochs == 30 else self.dataset

    @property
    def pretrained(self) -> CheckpointName:
        """The name of the checkpoint that this one was fine-tuned from."""
        return CheckpointName(*dataclasses.astuple(self)[:8])

    def __str__(self) -> str:
        name = (
            f"{VARIANTS[self.variant].release}-{self.dataset}-{self.epochs}ep"
            f"-lr_{self.lr}-aug_{self.augment}-wd_{self.weight_decay}"
            f"-do_{self.dropout}-sd_{self.stochastic_depth}"
        )
        if self.adapt_steps is None:
            return name
        return (  # 500 steps are spelled "0k"
            f"{name}--{self.adapt_dataset}-steps_{self.adapt_steps // 1000}k"
            f"-lr_{self.adapt_lr}-res_{self.adapt_resolution}"
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
    match = _NAME.fullmatch(stem)
    if match is None:
        raise _unknown(name, "It is not the name of a released checkpoint.")
    release, dataset, epochs, lr, augment, decay, dropout, depth = (
        match.groups()[:8]
    )
    adapt_dataset, steps, adapt_lr, resolution = match.groups()[8:]
    try:
        parsed = CheckpointName(
            _RELEASED.get(release, release), dataset, int(epochs), float(lr),
            augment, float(decay), float(dropout), float(depth),
            adapt_dataset,
            _STEPS.get(steps, int(steps[:-1]) * 1000) if steps else None,
            float(adapt_lr) if adapt_lr else None,
            int(resolution) if resolution else None,
        )  # fmt: skip
    except ValueError as error:
        raise _unknown(name, str(error)) from None
    if str(parsed) != stem:  # "0.10" for "0.1", "02k" for "2k"
        raise _unknown(name, "The release spells it otherwise.")
    return parsed


@functools.cache
def pretrained_names() -> tuple[CheckpointName, ...]:
    """All pre-trained checkpoints that follow from the release's rule.

    9 architectures x {i1k, i21k, i21k_30} x 28 recipes, and two of the three
    for B/8, whose third name is not known here.
    """
    grid = itertools.product(
        _FULL_GRID, DATASETS.items(), AUGMENTS, (0.03, 0.1), (0.0, 0.1)
    )
    names = [
        CheckpointName(variant, dataset, epochs, 0.001, augment, wd, do, do)
        for variant, (dataset, epochs), augment, wd, do in grid
    ]
    names += [
        parse(name)
        for name, row in table().items()
        if row["variant"] == "ViT_B8" and name.startswith("B_8-i21k-")
        if "--" not in name
    ]
    return tuple(names)


def adapted_names(name: CheckpointName) -> tuple[CheckpointName, ...]:
    """All fine-tuned checkpoints that follow from one pre-trained one.

    Args:
        name: A pre-trained checkpoint.

    Returns:
        68 names, 34 for B/8.
    """
    sizes = (224,) if name.variant == "ViT_B8" else (224, 384)
    return tuple(
        dataclasses.replace(
            name,
            adapt_dataset=dataset,
            adapt_steps=step,
            adapt_lr=lr,
            adapt_resolution=size,
        )
        for dataset, (steps, lrs) in ADAPT.items()
        for step, lr, size in itertools.product(steps, lrs, sizes)
    )


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
    return [alias for alias, has in _aliases().items() if variant in has]


def default_weights(variant: str) -> str | None:
    """The builder's default for `weights`.

    Args:
        variant: The builder's name, for example `"ViT_B16"`.

    Returns:
        `"augreg-in21k-ft-in1k"`, or `None` where no such file was released:
        Ti32, L32, R26_B32 and R50_B16.

    Raises:
        ValueError: If there is no such builder.
    """
    _check_variant(variant)
    alias = "augreg-in21k-ft-in1k"
    return alias if variant in _aliases()[alias] else None


def resolve(weights: str, variant: str, resolution: int | None = None) -> str:
    """The full, immutable name that an alias stands for.

    Args:
        weights: An alias, or a full name, with or without `.npz`:
            `"augreg-in21k"`: the best by upstream validation, as
            google-research/vision_transformer recommends.
            `"augreg-in21k-ft-in1k"`: fine-tuned on ImageNet-1k; at 384
            google-research's choice, at 224 timm's.
            `"augreg-in1k"`: pre-trained and fine-tuned on ImageNet-1k, timm's
            choice.
            `"in21k"`: the older ViT release (arXiv 2010.11929).
        variant: The builder's name, for example `"ViT_B16"`.
        resolution: Side of the images in pixels. Where an alias has files of
            two resolutions it means the nearer one: 384 from 305 pixels on,
            224 below and for `None` (position embeddings are resampled).

    Returns:
        A name for `files.fetch`: `"B_16-i21k-..."` or
        `"imagenet21k/ViT-B_16"`.

    Raises:
        ValueError: If the alias or the name is unknown, if the architecture
            lacks the alias, or if the name is another architecture's.

    Example:
    >>> resolve("augreg-in21k", "ViT_Ti16")
    'Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0'
    """
    _check_variant(variant)
    files = _aliases().get(weights)
    if files is not None:
        if variant not in files:
            raise ValueError(
                f"weights={weights!r} was not released for {variant}, only "
                f"for {', '.join(files)}. Aliases of {variant}: "
                f"{', '.join(aliases(variant)) or 'none'}."
            )
        return min(
            files[variant],
            key=lambda name: abs(_resolution(name) - (resolution or 224)),
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
    """Where a checkpoint lies below `gs://vit_models/`.

    Every name that becomes a path or a URL goes through here: only names of
    the release pass, so that none leads out of the bucket or of the cache.

    Args:
        name: A full name, with or without `.npz`.

    Returns:
        For example `"imagenet21k/ViT-B_16.npz"`.

    Raises:
        ValueError: If it is not a name of the release.
    """
    stem = name.removesuffix(".npz")
    if stem in _aliases():
        raise ValueError(
            f"{name!r} is an alias: which file it means depends on the "
            f"architecture. Give a full name, or ask for the alias's with "
            f"keras_augreg.checkpoints.resolve({name!r}, 'ViT_B16')."
        )
    if "/" in stem and stem in table():
        return f"{stem}.npz"
    return f"augreg/{parse(name)}.npz"


def _resolution(name: str) -> int:
    """Resolution of a file's position embeddings: pre-training is at 224."""
    _, adapted, resolution = name.rpartition("-res_")
    return int(resolution) if adapted else 224


def _check_variant(variant: str) -> None:
    if variant not in VARIANTS:
        near = difflib.get_close_matches(str(variant)[:_MAX_LENGTH], VARIANTS)
        raise ValueError(
            f"There is no architecture {variant!a}. Nearest: "
            f"{', '.join(near or VARIANTS)}."
        )


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
