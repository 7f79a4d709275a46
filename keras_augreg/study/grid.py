"""The grids of a study, and their cells.

A cell is one pre-training or one fine-tuning. Its `name` is unique, the same
on every machine, and starts like the name of a released file, with the level
of augmentation in the release's spelling.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from keras_augreg.checkpoints import names
from keras_augreg.checks import check_choice
from keras_augreg.dataset_names import canonical
from keras_augreg.recipe import (
    PRETRAINING_LEARNING_RATE,
    PRETRAINING_RESOLUTION,
    AugReg,
)
from keras_augreg.variants import VARIANTS, Sizes, Variant, find


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set of a study.

    Args:
        source: A source of `data.load`: a folder, a TFDS name, `"digits"`.
        name: Its name in the tables; by default the last part of `source`.
        train: Split to train on.
        val: Split to choose by; `None` holds out a tenth of `train`.
        test: Split for the final figures.
        options: Further arguments of `data.load`, `data.Preprocess` and
            `data.Options`, for example
            `{"data_dir": "/data", "flip": False}`.
    """

    source: str
    name: str = ""
    train: str = "train"
    val: str | None = None
    test: str = "test"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        name = self.name or pathlib.PurePath(self.source).name
        object.__setattr__(self, "name", re.sub(r"[^\w.]+", "_", name))


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """A cell: one model trained from scratch.

    Args:
        model: The architecture.
        data: The data set to train on.
        recipe: Augmentation and regularisation.
        fraction: Share of the training images to use, in (0, 1].
        epochs: Passes over that share.
        seed: Seed of weights, order, augmentation and dropout.
        learning_rate: Peak of the learning rate.
        image_size: Side of the images in pixels.
        batch_size: Images in a step.
        loss: `"softmax"` or `"sigmoid"`.
    """

    model: Variant
    data: Source
    recipe: AugReg
    fraction: float
    epochs: float
    seed: int
    learning_rate: float
    image_size: int
    batch_size: int
    loss: str

    @functools.cached_property
    def name(self) -> str:
        """Unique, usable as a file name."""
        recipe = self.recipe
        return (
            f"{self.model.release}-{self.data.name}-{self.epochs:g}ep"
            f"-lr_{self.learning_rate:g}-aug_{recipe.release_augment}"
            f"-wd_{recipe.weight_decay:g}-do_{recipe.dropout:g}"
            f"-sd_{recipe.stochastic_depth:g}-frac_{self.fraction:g}"
            f"-seed_{self.seed}-{_digest(self)}"
        )

    def row(self) -> dict[str, Any]:
        """The columns of the table that are known before the run."""
        return {
            "name": self.model.paper_name,
            "ds": self.data.name,
            "epochs": self.epochs,
            "lr": self.learning_rate,
            **_columns(self.recipe),
            "filename": self.name,
            "fraction": self.fraction,
            "seed": self.seed,
            "resolution": self.image_size,
            "batch_size": self.batch_size,
        }


@dataclasses.dataclass(frozen=True)
class Finetuning:
    """A cell: one model fine-tuned.

    Args:
        upstream: The cell that trains the model, or the full name of a
            released checkpoint.
        data: The data set to fine-tune on.
        steps: Weight updates.
        learning_rate: Peak of the learning rate.
        image_size: Side of the images in pixels.
        batch_size: Images in a step.
        seed: Seed of the images' order.
    """

    upstream: Pretraining | str
    data: Source
    steps: int
    learning_rate: float
    image_size: int
    batch_size: int
    seed: int

    @property
    def model(self) -> Variant:
        """The architecture."""
        if isinstance(self.upstream, Pretraining):
            return self.upstream.model
        return VARIANTS[names.parse(self.upstream).variant]

    @functools.cached_property
    def name(self) -> str:
        """Unique, usable as a file name."""
        upstream = getattr(self.upstream, "name", self.upstream)
        return (
            f"{upstream}--{self.data.name}-steps_{self.steps}"
            f"-lr_{self.learning_rate:g}-res_{self.image_size}-seed_{self.seed}"
            f"-{_digest(self)}"
        )

    def row(self) -> dict[str, Any]:
        """The columns of the table that are known before the run."""
        if isinstance(self.upstream, Pretraining):
            row = self.upstream.row()
        else:
            fields = names.parse(self.upstream)
            row = {
                "name": self.model.paper_name,
                "ds": fields.upstream,
                "epochs": fields.epochs,
                "lr": fields.learning_rate,
                **_columns(AugReg.from_checkpoint(self.upstream)),
                "filename": self.upstream,
                "fraction": 1.0,
                "resolution": PRETRAINING_RESOLUTION,
            }
        return {
            **row,
            "adapt_ds": self.data.name,
            "adapt_lr": self.learning_rate,
            "adapt_steps": self.steps,
            "adapt_resolution": self.image_size,
            "adapt_filename": self.name,
            "seed": self.seed,
            "batch_size": self.batch_size,
        }


Cell = Pretraining | Finetuning


@dataclasses.dataclass(frozen=True)
class Transfer:
    """Fine-tunings of every pre-trained model on one data set.

    One for each combination of steps, learning rate and image size. The
    paper's own are `keras_augreg.recipe.FINETUNING_RUNS`.

    Args:
        data: The data set to fine-tune on.
        steps: Weight updates.
        learning_rates: Peaks of the learning rate.
        image_sizes: Sides of the images in pixels; `()` for that of the
            pre-training.
    """

    data: Source
    steps: tuple[int, ...] = (500,)
    learning_rates: tuple[float, ...] = (0.003, 0.01)
    image_sizes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "data", _source(self.data))


@dataclasses.dataclass(frozen=True)
class Grid:
    """Every combination of its lists, each pre-trained, then fine-tuned.

    The paper's grid: nine models, `AugReg.grid()`, ImageNet-1k and
    ImageNet-21k, batches of 4,096, peak 1e-3 (arXiv 2106.10270, section 3).

    Args:
        datasets: Data sets to pre-train on: sources of `data.load`, or
            `Source`s with their options.
        models: Architectures: any spelling of one, or a `Variant`.
        recipes: Augmentation and regularisation: levels, or `AugReg`s.
        fractions: Shares of the training images to use, each in (0, 1]; a
            smaller share is part of a larger one.
        epochs: Passes over that share, above 0.
        seeds: Repetitions.
        transfers: Fine-tunings that follow each pre-training.
        checkpoints: Full names of released checkpoints to fine-tune as well.
        image_size: Side of the images in pixels.
        batch_size: Images in a step.
        learning_rate: Peak of the learning rate in pre-training.
        loss: `"softmax"` or `"sigmoid"`, as in `compile_pretraining`.

    Raises:
        ValueError: If a value is out of range, two data sets have one name
            or one data set has two, or the grid has no cell.

    Example:
    >>> grid = Grid(
    ...     datasets=("digits",),
    ...     models=("Ti/16",),
    ...     recipes=("none", "light1"),
    ...     seeds=(0, 1),
    ... )
    >>> len(grid.cells())
    4
    """

    datasets: tuple[Source | str, ...] = ()
    models: tuple[Variant | str, ...] = ()
    recipes: tuple[AugReg | str, ...] = ()
    fractions: tuple[float, ...] = (1.0,)
    epochs: tuple[float, ...] = (30.0,)
    seeds: tuple[int, ...] = (0,)
    transfers: tuple[Transfer, ...] = ()
    checkpoints: tuple[str, ...] = ()
    image_size: int = PRETRAINING_RESOLUTION
    batch_size: int = 64
    learning_rate: float = PRETRAINING_LEARNING_RATE
    loss: str = "softmax"

    def __post_init__(self) -> None:
        if not all(0 < fraction <= 1 for fraction in self.fractions):
            raise ValueError(
                "`fractions` must be above 0 and at most 1. Received: "
                f"fractions={self.fractions}"
            )
        for name in ("datasets", "models", "recipes", "checkpoints"):
            if isinstance(value := getattr(self, name), str):
                raise TypeError(
                    f"`{name}` must be a tuple, such as {name}=({value!r},). "
                    f"Received: {name}={value!r}"
                )
        for name in ("epochs", "image_size", "batch_size", "learning_rate"):
            value = getattr(self, name)
            if not all(np.atleast_1d(value) > 0):
                raise ValueError(
                    f"`{name}` must be above 0. Received: {name}={value}"
                )
        check_choice("loss", self.loss, ("softmax", "sigmoid"))
        for checkpoint in self.checkpoints:
            names.parse(checkpoint)
        known: dict[str, Source] = {}
        targets = (transfer.data for transfer in self._transfers())
        for data in (*map(_source, self.datasets), *targets):
            same = known.setdefault(canonical(data.name), data)
            if (same.name, same.source) != (data.name, data.source):
                raise ValueError(
                    f"Two data sets are called {data.name!r} (or a synonym): "
                    f"{same.source!r} and {data.source!r}. Spell one data set "
                    "in one way; give different ones different names: "
                    '{"source": ..., "name": ...}.'
                )
        if not self.cells():
            raise ValueError(
                "The grid is empty: it needs `datasets`, `models` and "
                "`recipes`, or `checkpoints` and `transfers`. Received: "
                f"{len(self.datasets)} datasets, {len(self.models)} models, "
                f"{len(self.recipes)} recipes, {len(self.checkpoints)} "
                f"checkpoints, {len(self.transfers)} transfers"
            )

    def cells(self) -> tuple[Cell, ...]:
        """Returns all cells, each fine-tuning after its pre-training."""
        cells: list[Cell] = []
        upstream: Pretraining | str
        for data, model, recipe, fraction, epochs, seed in itertools.product(
            map(_source, self.datasets), map(_model, self.models),
            map(_recipe, self.recipes), self.fractions, self.epochs, self.seeds,
        ):  # fmt: skip
            upstream = Pretraining(
                model, data, recipe, fraction, epochs, seed, self.learning_rate,
                self.image_size, self.batch_size, self.loss,
            )  # fmt: skip
            cells += [upstream, *self._finetunings(upstream, seed)]
        for upstream, seed in itertools.product(self.checkpoints, self.seeds):
            cells += self._finetunings(upstream, seed)
        return tuple(cells)

    def _transfers(self) -> list[Transfer]:
        return [
            value
            if isinstance(value, Transfer)
            else Transfer(**_checked("transfer", value, Transfer, "data"))
            for value in self.transfers
        ]

    def _finetunings(
        self, upstream: Pretraining | str, seed: int
    ) -> Iterable[Finetuning]:
        for transfer in self._transfers():
            sizes = transfer.image_sizes or (self.image_size,)
            for steps, learning_rate, size in itertools.product(
                transfer.steps, transfer.learning_rates, sizes
            ):
                yield Finetuning(
                    upstream, transfer.data, steps, learning_rate, size,
                    self.batch_size, seed,
                )  # fmt: skip

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Grid:
        """Makes the grid that a JSON object describes.

        Args:
            fields: The arguments of the class. A data set is a source of
                `data.load` or an object with the arguments of `Source`; a
                model is any spelling of an architecture, or an object with
                the fields of `Sizes` and a `name` that ends in `_PATCH`; a
                recipe is a level or an object with the arguments of `AugReg`,
                and `"recipes": "paper"` stands for the paper's 28; a transfer
                is an object with the arguments of `Transfer`.

        Returns:
            The grid.

        Raises:
            ValueError: If a key or a value is unknown.
        """
        fields = _checked("grid", fields, cls)
        if fields.get("recipes") == "paper":
            fields["recipes"] = AugReg.grid()
        return cls(**fields)


def read_cells(path: str | os.PathLike[str]) -> tuple[Cell, ...]:
    """Reads the cells of a JSON file that holds a grid or a list of grids.

    Args:
        path: The file; see `Grid.from_json`.

    Returns:
        Each cell once, in the order of the file.

    Raises:
        ValueError: If the file is not JSON or a grid in it is wrong.

    Example:
    >>> cells = read_cells("tests/benchmarks/study_grid.json")
    """
    text = pathlib.Path(path).read_text(encoding="utf-8")
    try:
        grids = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    cells: dict[str, Cell] = {}
    for fields in grids if isinstance(grids, list) else [grids]:
        for cell in Grid.from_json(fields).cells():
            cells.setdefault(cell.name, cell)
    return tuple(cells.values())


def _columns(recipe: AugReg) -> dict[str, Any]:
    return {
        "aug": recipe.release_augment,
        "wd": recipe.weight_decay,
        "do": recipe.dropout,
        "sd": recipe.stochastic_depth,
    }


def _digest(cell: Cell) -> str:
    """Tells apart cells that differ in more than names and paths."""
    fields = dataclasses.asdict(cell)
    for part in (fields, fields.get("upstream")):
        if isinstance(part, dict):
            del part["data"]["source"]
            part["data"]["options"].pop("data_dir", None)
    text = json.dumps(fields, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _checked(
    what: str, value: Any, kind: type, *required: str
) -> dict[str, Any]:
    """The fields of a JSON object for a class, lists as tuples."""
    known = {field.name for field in dataclasses.fields(kind)}
    known |= {"name"} & {*required}
    if not isinstance(value, Mapping) or not set(value) <= known:
        raise ValueError(
            f"Expected a {what}: a JSON object with some of "
            f"{', '.join(sorted(known))}. Received: {value!r}"
        )
    if missing := set(required) - set(value):
        raise ValueError(
            f"The {what} {value!r} lacks {', '.join(sorted(missing))}."
        )
    return {
        key: tuple(item) if isinstance(item, list) else item
        for key, item in value.items()
    }


def _source(value: Any) -> Source:
    if isinstance(value, Source | str):
        return Source(value) if isinstance(value, str) else value
    return Source(**_checked("data set", value, Source, "source"))


def _model(value: Any) -> Variant:
    if isinstance(value, Variant | str):
        return find(value)
    required = ("name", "patch_size", "width", "depth", "num_heads", "mlp_dim")
    fields = _checked("model", value, Sizes, *required)
    name = fields.pop("name")
    return Variant(name, name, Sizes(**fields))


def _recipe(value: Any) -> AugReg:
    if isinstance(value, AugReg | str):
        return AugReg(value) if isinstance(value, str) else value
    return AugReg(**_checked("recipe", value, AugReg, "augment"))
