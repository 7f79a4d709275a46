"""Which checkpoints there are, and which one to take.

All figures come from the release's `index.csv` (51,509 rows, fetched once into
the cache). Without network there are the names that follow from the release's
rule, and the bundled table `assets/checkpoints.csv`: where each name was seen,
and what was published about it. Its `sources`: `readme` and `notebook` are
`README.md` and `vit_jax_augreg.ipynb` of google-research/vision_transformer at
c6de1e5, `listing` is the bucket's listing in its `vit_jax.ipynb`, `big_vision`
is `models/vit.py` of google-research/big_vision, `timm` is timm 1.0.31 (column
`timm`: its name for the file). A name seen nowhere is not verified.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keras_augreg import dataset_names
from keras_augreg.checkpoints import files, names
from keras_augreg.checkpoints.download import DownloadError, download_index
from keras_augreg.recipe import (
    FINETUNING_RESOLUTIONS,
    LEVEL_OF_RELEASE,
    WEIGHT_DECAY,
    AugReg,
)
from keras_augreg.variants import find

if TYPE_CHECKING:
    import pandas

UPSTREAM = ("best_val", "final_val", "final_test")
"""Accuracies of the pre-training; columns of the index.

On the validation split (the best, the last) and on the test split; for
ImageNet-1k these are a part of the training set and the official validation
set (`vit_jax/checkpoint.py`).
"""

_ADAPTED = ("adapt_final_val", "adapt_final_test", "infer_samples_per_sec")
_COLUMNS = {*UPSTREAM, *_ADAPTED, "filename", "adapt_filename"}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One checkpoint and what is known about it."""

    name: str  # in full, as `weights=` and `download` take it
    fields: names.CheckpointName
    # Sources or "index"; empty if it only follows from the release's rule.
    seen: tuple[str, ...] = ()
    # `UPSTREAM` and `adapt_*` accuracies (0 to 1), `infer_samples_per_sec`
    # (images/s on a V100, with timm), `size_mib`.
    figures: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def verified(self) -> bool:
        """Whether the name was seen in a source."""
        return bool(self.seen)

    def flat(self) -> dict[str, Any]:
        """Everything in one dictionary: a row of a table."""
        return {
            "name": self.name,
            "verified": self.verified,
            **dataclasses.asdict(self.fields),
            **self.figures,
        }


class SearchResult(list[Checkpoint]):
    """A list of checkpoints, the best first, that prints as a table."""

    def __init__(self, rows: Iterable[Checkpoint], source: str) -> None:
        super().__init__(rows)
        self.source = source

    def to_pandas(self) -> pandas.DataFrame:
        """One row for each checkpoint; needs pandas."""
        try:
            import pandas
        except ImportError as error:
            message = "to_pandas() needs pandas: pip install pandas"
            raise ImportError(message) from error
        return pandas.DataFrame([row.flat() for row in self])

    def __repr__(self) -> str:
        shown = self[:20]
        figures = [
            key
            for key in (*UPSTREAM, *_ADAPTED, "size_mib")
            if any(key in row.figures for row in shown)
        ]
        lines = [["name", "augment", *figures, "seen in"]]
        for row in shown:
            cells = [f"{row.figures.get(key, ''):.6}" for key in figures]
            seen = " ".join(row.seen) or "unverified"
            lines.append([row.name, row.fields.augment, *cells, seen])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        padded = ("  ".join(map(str.ljust, line, widths)) for line in lines)
        text = list(map(str.rstrip, padded))
        if len(self) > len(shown):
            text.append(f"... and {len(self) - len(shown):,} more")
        text.append(f"{len(self):,} checkpoints, from {self.source}")
        return "\n".join(text)


def search(
    variant: str | None = None,
    *,
    dataset: str | None = None,
    augment: str | None = None,
    release_augment: str | None = None,
    weight_decay: float | None = None,
    dropout: float | None = None,
    adapt_dataset: str | None = None,
    resolution: int | None = None,
    refresh: bool = False,
) -> SearchResult:
    """Lists the AugReg checkpoints that have all the given properties.

    Searches the release's `index.csv` (51,509 rows), which is downloaded once
    and cached. Without it (`KERAS_AUGREG_OFFLINE=1`, a mirror directory that
    lacks it or, with a warning, a network that fails) the names that follow
    from the release's rule are searched.

    Args:
        variant: Any spelling of an architecture: `"ViT_B16"`, `"B/16"`.
        dataset: The pre-training set: `"i1k"`, `"i21k"` (300 epochs),
            `"i21k_30"` (30 epochs) or another spelling of these.
        augment: The augmentation level in the paper's spelling, as in
            `keras_augreg.AugReg`: `"light2"`.
        release_augment: The same as the release's file names spell it:
            `"light1"` for the paper's `"light2"`.
        weight_decay: 0.03 or 0.1.
        dropout: 0.0 or 0.1, for dropout and stochastic depth alike.
        adapt_dataset: The fine-tuning set: `"cifar100"`, `"imagenet2012"`,
            `"kitti"`, `"oxford_iiit_pet"`, `"resisc45"` or another spelling
            of these, such as `"pets"`.
        resolution: Side of the images in fine-tuning, 224 or 384 pixels.
            Without this and `adapt_dataset`, pre-trained checkpoints are
            listed.
        refresh: Whether to download `index.csv` again; it is an error if that
            fails.

    Returns:
        A list that prints as a table and has `to_pandas()`. It is ordered by
        accuracy on the validation split, of the fine-tuning if there was one.

    Raises:
        ValueError: If no checkpoint can have one of these properties.
        DownloadError: If `refresh` fails.

    Example:
    ```python
    keras_augreg.checkpoints.search(
        "S/16", dataset="i21k", augment="light2", adapt_dataset="pets"
    )
    ```
    """
    if variant is not None:
        variant = find(variant).name
    if dataset is not None:
        dataset = dataset_names.choose(dataset, names.DATASETS)
    if augment is not None:
        augment = AugReg(augment).augment
    if adapt_dataset is not None:
        adapt_dataset = dataset_names.choose(
            adapt_dataset, names.ADAPT, "adapt_dataset"
        )
    _check("release_augment", release_augment, LEVEL_OF_RELEASE)
    _check("weight_decay", weight_decay, WEIGHT_DECAY)
    _check("dropout", dropout, names.DROPOUT)
    _check("resolution", resolution, FINETUNING_RESOLUTIONS)
    wanted = {
        "variant": variant, "upstream": dataset, "augment": augment,
        "release_augment": release_augment, "weight_decay": weight_decay,
        "dropout": dropout, "adapt_dataset": adapt_dataset,
        "adapt_resolution": resolution,
    }  # fmt: skip
    adapted = adapt_dataset is not None or resolution is not None
    path = _index_path(refresh)
    rows = _index(path).values() if path else _rule()
    found = [
        row
        for row in rows
        if (row.fields.adapt_dataset is not None) == adapted
        and all(v in (None, getattr(row.fields, k)) for k, v in wanted.items())
    ]
    order = "adapt_final_val" if adapted else "final_val"
    found.sort(  # keeps the order of equal ones
        key=lambda r: (-r.figures.get(order, -1), -len(r.figures), not r.seen)
    )
    source = path or "the release's rule, without its index"
    return SearchResult(found, str(source))


def best(variant: str, dataset: str = "i21k", by: str = "final_val") -> str:
    """Returns the pre-trained checkpoint that is best upstream.

    The paper recommends this choice (sections 4.5 and 7): in most cases it is
    as good as choosing after fine-tuning all of them, though 8 of 45 lost half
    a point or more, up to 3.6 (Figure 5). Names that were not seen in a source
    are never returned.

    Args:
        variant: Any spelling of an architecture: `"ViT_B16"`, `"B/16"`.
        dataset: The pre-training set: `"i1k"`, `"i21k"`, `"i21k_30"` or
            another spelling of these.
        by: The accuracy, one of `UPSTREAM`. For `"final_val"` on `"i21k"` the
            bundled table has google-research's answer; anything else needs
            `index.csv`.

    Returns:
        A full name, for `weights=` and `download`.

    Raises:
        ValueError: If AugReg has no such checkpoint.
        FileNotFoundError: If the index is needed, not on this machine, and
            the network must not be used.
        DownloadError: If the index is needed and cannot be downloaded.

    Example:
    >>> best("L/16")
    'L_16-i21k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0'
    """
    variant = find(variant).name
    dataset = dataset_names.choose(dataset, names.DATASETS)
    _check("by", by, UPSTREAM)
    path = files.local(files.INDEX)
    if path is None and (dataset, by) == ("i21k", "final_val"):
        return names.resolve(variant, "augreg-in21k")
    path = path or download_index()
    rows = [
        row
        for row in _index(path).values()
        if (row.fields.variant, row.fields.upstream) == (variant, dataset)
        and row.fields.adapt_dataset is None
        and by in row.figures
    ]
    if not rows:
        raise ValueError(
            f"{path} has no {by} of a {variant} pre-trained on {dataset}."
        )
    return max(rows, key=lambda row: row.figures[by]).name


def lookup(name: str) -> Checkpoint:
    """Returns what the bundled table and an index on this machine tell.

    >>> lookup(best("ViT_Ti16")).figures
    {'size_mib': 37.0}
    """
    found = _bundled(names.parse(name))
    path = files.local(files.INDEX)
    row = _index(path).get(found.name) if path else None
    if row is None:
        return found
    seen, figures = (*found.seen, *row.seen), found.figures | row.figures
    return dataclasses.replace(row, seen=seen, figures=figures)


def _check(argument: str, value: Any, valid: Iterable[Any]) -> None:
    if value is not None and value not in (valid := tuple(valid)):
        expected = ", ".join(map(repr, valid))
        raise ValueError(f"{argument}={value!r}: expected one of {expected}.")


def _index_path(refresh: bool) -> Path | None:
    """Returns the index, downloaded if necessary; `None` if impossible."""
    if refresh:
        return download_index()
    if path := files.local(files.INDEX):
        return path
    try:
        return download_index()
    except FileNotFoundError:  # the user's settings forbid the network
        return None
    except DownloadError as error:
        warnings.warn(
            f"The index cannot be downloaded; searching the names that follow "
            f"from the release's rule, without figures. {error}",
            stacklevel=3,
        )
        return None


@functools.cache
def _rule() -> tuple[Checkpoint, ...]:
    """All checkpoints, from the names' rule and the bundled table."""
    return tuple(
        _bundled(name)
        for pretrained in names.pretrained_names()
        for name in (pretrained, *names.adapted_names(pretrained))
    )


def _bundled(fields: names.CheckpointName) -> Checkpoint:
    name = str(fields)
    row = names.table().get(name, {"sources": ""})
    figures = _figures(row, (*UPSTREAM, *_ADAPTED, "size_mib"))
    return Checkpoint(name, fields, tuple(row["sources"].split()), figures)


def _index(path: Path) -> dict[str, Checkpoint]:
    """All checkpoints of an index, by name, with its figures."""
    return _read(path, path.stat().st_mtime_ns)


_AGAIN = "Fetch it again with keras_augreg.checkpoints.search(refresh=True)."


@functools.lru_cache(maxsize=1)
def _read(path: Path, _modified: int) -> dict[str, Checkpoint]:
    rows: dict[str, Checkpoint] = {}
    unread = []
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file)
        if missing := _COLUMNS - set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} is not the release's index: it lacks the columns "
                f"{', '.join(sorted(missing))}. {_AGAIN}"
            )
        for line in reader:
            try:
                upstream = _figures(line, UPSTREAM)
                adapted = upstream | _figures(line, _ADAPTED)
                if None in (line["filename"], line["adapt_filename"]):
                    raise ValueError("it ends before its last column")
            except ValueError as error:
                raise ValueError(
                    f"{path} is damaged in line {reader.line_num}: {error}. "
                    f"{_AGAIN}"
                ) from error
            for name, figures in (
                (line["filename"], upstream),
                (line["adapt_filename"], adapted),
            ):
                if name in rows:  # a pre-trained one is in 68 lines
                    continue
                try:
                    fields = names.parse(name)
                except ValueError:
                    unread.append(name)
                else:
                    rows[name] = Checkpoint(name, fields, ("index",), figures)
    if unread:
        warnings.warn(
            f"{path}: left out {len(unread):,} names that do not match the "
            f"known naming rule, for example {unread[0]!a}.",
            stacklevel=4,
        )
    return rows


def _figures(line: dict[str, str], columns: Iterable[str]) -> dict[str, float]:
    """The figures that a line has: some cells are empty."""
    return {key: float(line[key]) for key in columns if line.get(key)}
