"""The paper's figures, from a results table: sections 4.1 to 4.6.

Each function of `FIGURES` takes a table (`keras_augreg.study.read` or
`published`) and returns a matplotlib figure and its numbers as a data frame,
or raises `NotInTableError`; `render` writes all of them. Accuracies are top-1,
in percent, averaged over seeds. Pre-trainings are chosen by their validation
split, fine-tunings by that of their own data set; the figures show the test
split.
"""

from __future__ import annotations

import io
import itertools
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_augreg.dataset_names import canonical
from keras_augreg.output import markdown_table, subplots
from keras_augreg.recipe import (
    FINETUNING_BATCH,
    FOUR_LAYERS,
    LEVEL_OF_RELEASE,
    AugReg,
)
from keras_augreg.study.table import IMAGES, write
from keras_augreg.variants import find

if TYPE_CHECKING:
    import pandas

Drawn = tuple[Any, "pandas.DataFrame"]

# VTAB's groups of the release's fine-tuning sets (paper, section 3.1); every
# other data set is a group of its own.
GROUPS = {
    "cifar-100": "natural",
    "pets": "natural",
    "resisc45": "specialized",
    "kitti-distance": "structured",
}
IMAGENET = "imagenet-1k"
MINIVAL = (
    "Models pre-trained on ImageNet-21k have seen ImageNet-1k's training "
    "images,\nof which its validation split (minival) is a part: it flatters "
    "them.\nThe paper chooses by ImageNetV2 there (section 4.5)."
)
# Okabe and Ito's colours, which colour-blind people tell apart.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#000000", "#999999", "#8C6D1F",
)  # fmt: skip
MARKERS = "osD^vP*Xd"
_RECIPE = ["name", "ds", "epochs", "fraction", "aug", "wd", "do", "sd"]
_SEEN = ["images", "seen"]
_KEYS = ["name", "ds", "epochs", *_SEEN]
_SPEED = "infer_samples_per_sec"


class NotInTableError(ValueError):
    """The table lacks the rows that a figure needs."""


def data_size(table: pandas.DataFrame) -> Drawn:
    """4.1: what more data, AugReg and more compute each bring.

    A panel for each model: accuracy over images seen (epochs times training
    images), a colour for each size of the training set. The accuracy is that
    on ImageNet-1k after fine-tuning where the table has it, otherwise that on
    the pre-training's own test split.
    """
    runs = _accuracy(table)
    plain = (runs["aug"] == "none") & (runs["do"] == 0)
    runs["recipe"] = plain.map({True: "none", False: "AugReg"})
    runs.loc[runs["aug"].isna(), "recipe"] = "best recipe"
    best = _best(runs, "chosen", [*_KEYS, "recipe"])
    best = best.sort_values(["name", "images", "seen"])
    best["data"] = _format("{}, {} images", _dataset(best), _count(best))
    best["line"] = best["data"] + ", " + best["recipe"]
    styles: dict[str, dict[str, Any]] = {}
    sizes = best.sort_values(["images", "data"])["data"].unique()
    for data, color in zip(sizes, itertools.cycle(COLORS), strict=False):
        solid = {"color": color, "marker": "o"}
        dotted = solid | {"linestyle": ":", "markerfacecolor": "w"}
        styles[f"{data}, AugReg"] = styles[f"{data}, best recipe"] = solid
        styles[f"{data}, none"] = dotted
    figure, _ = _draw_lines(
        best, ("name", _by_accuracy(best)), styles, "seen",
        "images seen in the pre-training (M million, G billion)",
        columns=3, sharey=True,
    )  # fmt: skip
    return figure, best[[*_KEYS, "recipe", "accuracy"]]


def transfer(table: pandas.DataFrame) -> Drawn:
    """4.2: fine-tuning a model against training one from scratch.

    A panel for each data set that models were both pre-trained on and
    fine-tuned on: accuracy over the cost of that training; as in the paper,
    the cost of the pre-training before a fine-tuning is not counted. Our
    tables have seconds; for the release's, the cost is the number of images
    seen divided by images/s: the forward passes only, on a V100.
    """
    import pandas

    scratch = _upstream(table).dropna(subset=["final_test"])
    forward = scratch["seen"] / scratch[_SPEED]
    scratch = scratch.assign(
        how="scratch",
        target=_canonical(scratch["ds"]),
        seconds=scratch["train_seconds"].fillna(forward),
        accuracy=100 * scratch["final_test"],
    )
    tuned = _done(table).dropna(subset=["adapt_final_test"])
    tuned = tuned[_canonical(tuned["ds"]) != tuned["adapt_ds"]]
    forward = tuned["adapt_steps"] * FINETUNING_BATCH / tuned[_SPEED]
    tuned = tuned.assign(
        how="transfer",
        target=tuned["adapt_ds"],
        seconds=tuned["adapt_seconds"].fillna(forward),
        accuracy=100 * tuned["adapt_final_test"],
    )
    both = sorted({*scratch["target"]} & {*tuned["target"]})
    if not both:
        raise NotInTableError(
            "no data set was both trained on from scratch (`ds`) and "
            "fine-tuned on (`adapt_ds`)"
        )
    runs = pandas.concat([scratch, tuned], ignore_index=True)
    runs = runs[runs["target"].isin(both)]
    runs["line"] = runs["name"] + ", " + runs["how"]
    points = {"linestyle": "none", "alpha": 0.7}
    styles = {
        f"{name}, {how}": points | {"color": color, "marker": style["marker"]}
        for how, color in zip(("scratch", "transfer"), COLORS, strict=False)
        for name, style in _styles(sorted(runs["name"].unique())).items()
    }
    figure, _ = _draw_lines(
        runs, ("target", both), styles, "seconds", "seconds of training",
        columns=2, size=(5.6, 3.8),
    )  # fmt: skip
    keys = ["target", "how", "name", "ds", "epochs"]
    columns = {
        "runs": ("accuracy", "size"),
        "accuracy, best": ("accuracy", "max"),
        "accuracy, median": ("accuracy", "median"),
        "seconds, median": ("seconds", "median"),
    }
    numbers = runs.groupby(keys, dropna=False).agg(**columns).reset_index()
    return figure, numbers.sort_values(["target", "how", "name"])


def generality(table: pandas.DataFrame) -> Drawn:
    """4.3: what the data of the pre-training does for other tasks.

    A panel for each group of tasks, a line for each model, along the
    pre-trainings in the order of images seen. The model is the best by
    upstream validation.
    """
    tuned = _tuned(table)
    tuned = tuned[tuned["adapt_ds"] != IMAGENET]
    tuned = tuned[tuned["adapt_ds"] != _canonical(tuned["ds"])]
    if tuned.empty:
        raise NotInTableError("nothing was fine-tuned on another data set")
    best = _best(tuned, "upstream", [*_KEYS, "adapt_ds"])
    best["group"] = best["adapt_ds"].replace(GROUPS)
    best["pre-training"] = _format(
        "{}\n{}\n{:g} ep", _dataset(best), _count(best), best["epochs"]
    )
    keys = ["group", "name", "pre-training", "seen", "images"]
    means = best.groupby(keys)["accuracy"].mean().reset_index()
    means = means.sort_values(["seen", "images"])
    order = list(means["pre-training"].unique())
    means["place"] = means["pre-training"].map(order.index)
    means["line"] = means["name"]
    figure, axes = _draw_lines(
        means, ("group", sorted(means["group"].unique())),
        _styles(_by_accuracy(means)), "place", "pre-trained on",
        columns=3, size=(3.8, 3.9), log=False,
    )  # fmt: skip
    for axis in axes:
        axis.set_xticks(range(len(order)), order, fontsize=8)
    means["pre-training"] = means["pre-training"].str.replace("\n", ", ")
    columns = ["group", "name", "pre-training", "accuracy"]
    return figure, means.sort_values(["group", "name", "seen"])[columns]


def augmentation(table: pandas.DataFrame) -> Drawn:
    """4.4: augmentation against regularisation, a heat map.

    A map for each pre-training (with a single model, a row): upstream
    validation accuracy, coloured by its difference to the model without
    either, the better of the weight decays (Figure 4 does not say which).
    """
    runs = _mean(_upstream(table), "final_val")
    runs = _best(runs, "final_val", [*_KEYS, "aug", "do"])
    runs["accuracy"] = 100 * runs["final_val"]
    runs["recipe"] = _format("{}, {:g}", runs["aug"].map(_level), runs["do"])
    form = "{}, {} images, {:g} epochs"
    runs["map"] = _format(form, _dataset(runs), _count(runs), runs["epochs"])
    runs = runs[runs.groupby(["map", "name"])["recipe"].transform("size") > 1]
    if runs.empty:
        raise NotInTableError("no model was pre-trained with two recipes")
    runs = runs.sort_values(["images", "epochs"])
    names = _by_accuracy(runs)
    if len(names) == 1:  # Then a row for each pre-training.
        runs["name"] = runs["name"] + ", " + runs["map"]
        runs["map"] = "all pre-trainings"
        names = list(runs["name"].unique())
    recipes = [
        recipe
        for rate in sorted(runs["do"].unique())
        for release in (*LEVEL_OF_RELEASE, *FOUR_LAYERS)
        if (recipe := f"{_level(release)}, {rate:g}") in set(runs["recipe"])
    ]
    numbers = runs.pivot(
        index=["map", "name"], columns="recipe", values="accuracy"
    )[recipes]
    maps = list(runs["map"].unique())
    figure, axes = _panels(
        len(maps), "augmentation, dropout and stochastic depth", 1,
        (3.5 + 0.5 * len(recipes), 1.8 + 0.3 * len(names)), "",
    )  # fmt: skip
    for axis, title in zip(axes, maps, strict=True):
        grid = numbers.loc[title].reindex(names)
        gain = grid.sub(grid.get("none, 0", grid.max(axis=1)), axis=0)
        axis.set_title(title)
        _heat(axis, gain, grid, "gain, points")
    return figure, numbers.reset_index()


def choice(table: pandas.DataFrame) -> Drawn:
    """4.5: the model that is best upstream against the best of all.

    Test accuracy of the model with the best upstream validation, minus that
    of the model with the best validation after fine-tuning all of them.
    """
    tuned = _tuned(table)
    tuned = tuned.dropna(subset=["adapt_final_val", "upstream"])
    keys = ["name", "ds", "epochs", "adapt_ds"]
    tuned = tuned[tuned.groupby(keys)["upstream"].transform("size") > 1]
    if tuned.empty:
        raise NotInTableError(
            "no two pre-trained models of a kind were fine-tuned on a data set"
        )
    upstream, chosen = (
        _best(tuned, by, keys)[[*keys, "accuracy"]].rename(
            columns={"accuracy": name}
        )
        for by, name in (("upstream", "best upstream"),
                         ("chosen", "best of all"))
    )  # fmt: skip
    numbers = upstream.merge(chosen, on=keys)
    numbers["difference"] = numbers["best upstream"] - numbers["best of all"]
    data = _dataset(numbers)
    grid = numbers.assign(
        model=_format(
            "{}, {}, {:g} ep", numbers["name"], data, numbers["epochs"]
        )
    ).pivot(index="model", columns="adapt_ds", values="difference")
    size = (4.5 + 1.0 * grid.shape[1], 2.2 + 0.3 * len(grid))
    figure, (axis,) = _panels(1, "fine-tuned on", 1, size, "")
    axis.set_title("best upstream minus best of all")
    _heat(axis, grid, grid, "difference, points", "+.1f")
    seen = _canonical(data) == "imagenet-21k"
    if (seen & (numbers["adapt_ds"] == IMAGENET)).any():
        figure.text(0.01, -0.02, MINIVAL, va="top", fontsize=8)
    return figure, numbers.sort_values(keys)


def throughput(
    table: pandas.DataFrame,
    benchmark: Iterable[Mapping[str, Any]] | None = None,
) -> Drawn:
    """4.6: larger patches against smaller models.

    Accuracy over images/s, a panel for each pre-training (on all of its data
    set) and resolution, a line for each patch size.

    Args:
        table: A results table.
        benchmark: Rows of `recipes/benchmark.py`, with at least `model` (any
            spelling of an architecture) and `images_per_second`: the speed on
            your device instead of the table's.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If there are no two models to compare.
    """
    runs = _accuracy(table)
    unit = "images/s, inference"
    if benchmark is not None:
        runs[_SPEED] = runs["name"].map(_speeds(benchmark))
        unit += ", as benchmarked"
    runs = runs.dropna(subset=[_SPEED])
    runs = runs[runs["images"] == runs.groupby("ds")["images"].transform("max")]
    keys = ["ds", "epochs", "resolution"]
    best = _best(runs, "chosen", ["name", *keys])
    models = best.groupby(keys, dropna=False)["name"].transform("size")
    best = best[models > 1].sort_values(_SPEED)
    if best.empty:
        raise NotInTableError(
            "no two models of the same pre-training have images/s"
        )
    best["line"] = "patch /" + best["name"].str.rpartition("/")[2]
    size = best["resolution"].map(lambda px: f", {px:g} px" if px > 0 else "")
    best["panel"] = _format(
        "{}, {:g} epochs{}", _dataset(best), best["epochs"], size
    )
    panels = sorted(best["panel"].unique())
    patches = sorted(
        best["line"].unique(), key=lambda line: int(line.split("/")[1] or 0)
    )
    styles = _styles(patches)
    figure, axes = _draw_lines(
        best, ("panel", panels), styles, _SPEED, unit, columns=2,
        size=(5.6, 3.4),
    )  # fmt: skip
    for axis, panel in zip(axes, panels, strict=True):
        axis.margins(0.18)
        for row in best[best["panel"] == panel].itertuples():
            # Below the line of the smallest patches, above the others.
            below = row.line == patches[0]
            axis.annotate(
                row.name, (getattr(row, _SPEED), row.accuracy),
                (-5, -11) if below else (5, 5), fontsize=7.5,
                color=styles[row.line]["color"], textcoords="offset points",
                ha="right" if below else "left",
            )  # fmt: skip
    return figure, best[["panel", "name", _SPEED, "accuracy"]]


FIGURES: dict[str, Callable[..., Drawn]] = {
    "4.1_data_size": data_size,
    "4.2_transfer": transfer,
    "4.3_generality": generality,
    "4.4_augmentation": augmentation,
    "4.5_choice": choice,
    "4.6_throughput": throughput,
}
"""File name -> the function that draws it."""


def render(
    table: pandas.DataFrame,
    folder: str | os.PathLike[str],
    benchmark: str | os.PathLike[str] | None = None,
) -> list[pathlib.Path]:
    """Writes every figure that a table has the rows for.

    Args:
        table: From `keras_augreg.study.read` or `published`.
        folder: Created if missing. Gets `NAME.png`, `NAME.svg` and `NAME.md`
            for each of `FIGURES`, and `README.md`, which says why others are
            missing.
        benchmark: A JSON file of `recipes/benchmark.py`, for 4.6.

    Returns:
        The PNG files.

    Raises:
        ImportError: If matplotlib (extra `study`) is not installed.
        ValueError: If `benchmark` is not as in `throughput`.

    Example:
    >>> render(read("runs/sweep/results.csv"), "figures")
    """
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if benchmark is not None:
        rows = json.loads(pathlib.Path(benchmark).read_text(encoding="utf-8"))
        _speeds(rows)  # Complain before drawing.
        more["4.6_throughput"] = {"benchmark": rows}
    index = ["# Figures", ""]
    written = []
    for name, draw in FIGURES.items():
        title = (draw.__doc__ or "").splitlines()[0]
        try:
            figure, numbers = draw(table, **more.get(name, {}))
        except NotInTableError as missing:
            index += [f"- {title} Not drawn: {missing}."]
            continue
        for suffix in ("png", "svg"):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=120, bbox_inches="tight")
            write(root / f"{name}.{suffix}", content.getvalue())
        lines = markdown_table(numbers.columns, numbers.to_numpy(object))
        write(root / f"{name}.md", f"# {title}\n\n{lines}".encode())
        index += [f"- {title} [{name}.png]({name}.png), [{name}.md]({name}.md)"]
        written.append(root / f"{name}.png")
    write(root / "README.md", ("\n".join(index) + "\n").encode())
    return written


def _done(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows with a result, with the number of training images."""
    rows = table[table["status"].isna() | (table["status"] == "done")].copy()
    images = rows["num_examples"].fillna(rows["ds"].map(IMAGES))
    rows["images"] = images.astype(float)
    rows["fraction"] = rows["fraction"].fillna(1.0)
    rows["seen"] = rows["images"] * rows["epochs"]
    rows["adapt_ds"] = _canonical(rows["adapt_ds"])
    return rows


def _upstream(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row for each pre-training whose accuracy is known."""
    rows = _done(table).dropna(subset=["final_val"])
    return rows.drop_duplicates("filename").copy()


def _tuned(table: pandas.DataFrame, *extra: str) -> pandas.DataFrame:
    """The best fine-tuning of each pre-trained recipe on each data set.

    `accuracy` is in percent, `chosen` what it was chosen by, `upstream` the
    validation accuracy of the pre-training.
    """
    rows = _done(table).dropna(subset=["adapt_final_test"])
    rows = rows.assign(
        chosen=rows["adapt_final_val"].fillna(rows["adapt_final_test"]),
        accuracy=100 * rows["adapt_final_test"],
        upstream=rows["final_val"],
    )
    settings = ["adapt_ds", "adapt_lr", "adapt_steps", "adapt_resolution"]
    rows = _mean(rows, "chosen", "accuracy", "upstream", "adapt_final_val",
                 _SPEED, keys=settings)  # fmt: skip
    return _best(rows, "chosen", [*_RECIPE, *_SEEN, "adapt_ds", *extra])


def _accuracy(table: pandas.DataFrame) -> pandas.DataFrame:
    """Each recipe's accuracy: on ImageNet-1k if known, or its own test's.

    Recipes are `chosen` by upstream validation, as in the paper; see MINIVAL.
    """
    rows = _tuned(table, "adapt_resolution")
    rows = rows[rows["adapt_ds"] == IMAGENET]
    if len(rows):
        rows["resolution"] = rows["adapt_resolution"]
        rows["chosen"] = rows["upstream"].fillna(rows["accuracy"])
        return rows
    rows = _upstream(table).dropna(subset=["final_test"])
    if rows.empty:
        raise NotInTableError("no row has a test accuracy")
    rows["accuracy"] = 100 * rows["final_test"]
    rows["chosen"] = rows["final_val"]
    return _mean(rows, "chosen", "accuracy", _SPEED, keys=["resolution"])


def _mean(
    rows: pandas.DataFrame, *values: str, keys: Sequence[str] = ()
) -> pandas.DataFrame:
    """The mean over seeds."""
    groups = rows.groupby([*_RECIPE, *_SEEN, *keys], dropna=False)
    return groups[list(values)].mean().reset_index()


def _best(
    rows: pandas.DataFrame, by: str, keys: Sequence[str]
) -> pandas.DataFrame:
    """The row with the greatest `by` of each group."""
    rows = rows.sort_values(by, kind="stable", na_position="first")
    return rows.groupby(list(keys), dropna=False).tail(1).copy()


def _canonical(names: pandas.Series) -> pandas.Series:
    return names.map(canonical, na_action="ignore")


def _dataset(rows: pandas.DataFrame) -> pandas.Series:
    """The data set's name without the release's mark of 30 epochs."""
    return rows["ds"].str.removesuffix("_30")


def _count(rows: pandas.DataFrame) -> list[str]:
    """Training images: 1293 -> "1293", 1280000 -> "1.28M"."""
    return [f"{n / 1e6:.3g}M" if n >= 1e6 else f"{n:g}" for n in rows["images"]]


def _level(release: str) -> str:
    """Both names of a level of augmentation."""
    return AugReg(LEVEL_OF_RELEASE.get(release, release)).label


def _format(text: str, *columns: Iterable[Any]) -> list[str]:
    return [text.format(*row) for row in zip(*columns, strict=True)]


def _by_accuracy(rows: pandas.DataFrame) -> list[str]:
    """The models, from the least accurate, after the longest pre-training."""
    rows = rows.sort_values(["seen", "accuracy"]).groupby("name").tail(1)
    return list(rows.sort_values("accuracy")["name"])


def _speeds(benchmark: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Paper's name of a model -> images/s."""
    speeds: dict[str, float] = {}
    for row in benchmark:
        if row.get("task") == "train":
            continue
        if not {"model", "images_per_second"} <= set(row):
            raise ValueError(
                "Each row of a benchmark has `model` and `images_per_second`. "
                f"Received: {row!r}"
            )
        name = find(row["model"]).paper_name
        if name in speeds:
            raise ValueError(
                f"The benchmark has several rows of {row['model']!r}, such as "
                "other backends or image sizes. Pass the rows of one of them."
            )
        speeds[name] = float(row["images_per_second"])
    return speeds


def _styles(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    styles = itertools.cycle(zip(COLORS, MARKERS, strict=True))
    return {
        line: {"color": color, "marker": marker}
        for line, (color, marker) in zip(lines, styles, strict=False)
    }


def _draw_lines(
    rows: pandas.DataFrame, panels: tuple[str, Sequence[str]],
    styles: Mapping[str, Mapping[str, Any]], x: str, xlabel: str, columns: int,
    size: tuple[float, float] = (3.8, 3.0), log: bool = True,
    sharey: bool = False,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Plots accuracy over column `x`.

    `panels` are a column and its values, each a panel; `styles` has the
    values of column "line", each a line with arguments of `Axes.plot`.
    """
    column, titles = panels
    figure, axes = _panels(len(titles), xlabel, columns, size, sharey=sharey)
    drawn: dict[str, Any] = {}
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if log:
            _log(axis)
        lines = dict(list(rows[rows[column] == title].groupby("line")))
        for line in [line for line in styles if line in lines]:
            xy = lines[line][[x, "accuracy"]].to_numpy().T
            (drawn[line],) = axis.plot(*xy, **styles[line])
    many = len(drawn) > 9
    figure.legend(
        list(drawn.values()), list(drawn), fontsize=8,
        loc="outside right upper" if many else "outside upper center",
        ncols=1 if many else 3,
    )  # fmt: skip
    return figure, axes


def _panels(
    count: int, xlabel: str, columns: int, size: tuple[float, float],
    ylabel: str = "top-1 accuracy, %", sharey: bool = False,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """A figure with `count` axes."""
    columns = min(columns, count)
    figure, axes = subplots(-(-count // columns), columns, *size, sharey=sharey)
    axes = axes.flatten()
    for axis in axes[count:]:
        axis.remove()
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    for axis in axes[:count]:
        axis.tick_params(labelsize=8)
    return figure, axes[:count].tolist()


def _log(axis: Any) -> None:
    """A logarithmic axis with numbers such as 2M."""
    from matplotlib import ticker

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def _heat(
    axis: Any, colors: pandas.DataFrame, texts: pandas.DataFrame, label: str,
    form: str = ".3g",
) -> None:  # fmt: skip
    """A table of numbers, purple for gains and orange for losses."""
    limit = max(float(colors.abs().max().max()), 0.1)
    shades = colors.to_numpy(float)
    image = axis.imshow(shades, "PuOr", vmin=-limit, vmax=limit, aspect="auto")
    columns = range(len(texts.columns))
    axis.set_xticks(columns, texts.columns, rotation=40, ha="right")
    axis.set_yticks(range(len(texts)), texts.index)
    for (i, j), value in np.ndenumerate(texts.to_numpy(float)):
        if not math.isnan(value):
            axis.text(
                j, i, format(round(value, 1) + 0.0, form),  # Never "-0.0".
                ha="center", va="center", fontsize=8,
                color="white" if abs(shades[i, j]) > 0.6 * limit else "black",
            )  # fmt: skip
    axis.figure.colorbar(image, ax=axis, label=label)
