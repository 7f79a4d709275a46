"""The paper's figures, from a results table: sections 4.1 to 4.6.

Each function of `FIGURES` takes a table (`keras_augreg.study.read` or
`published`) and returns a matplotlib figure and its numbers as a data frame,
or raises `NotInTableError`; `render` writes all of them. Accuracies are top-1,
in percent, averaged over seeds. Pre-trainings are chosen by their validation
split, fine-tunings by that of their own data set; the figures show the test
split. Where the paper prints the numbers themselves, they are drawn as printed
(means of tasks, in 4.3, are ours: the printed ones are of unrounded numbers).
"""

from __future__ import annotations

import io
import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from keras_augreg.output import markdown_table
from keras_augreg.recipe import FOUR_LAYERS, LEVEL_OF_RELEASE, AugReg
from keras_augreg.study import plots, select
from keras_augreg.study.paper import PRINTED
from keras_augreg.study.search import random_search
from keras_augreg.study.select import IMAGENET, KEYS, SPEED, NotInTableError
from keras_augreg.study.table import COLUMNS, write
from keras_augreg.variants import find

if TYPE_CHECKING:
    import pandas

Drawn = tuple[Any, "pandas.DataFrame"]

MINIVAL = (
    "Models pre-trained on ImageNet-21k have seen ImageNet-1k's training "
    "images,\nof which its validation split (minival) is a part: it flatters "
    "them.\nThe paper chooses by ImageNetV2 there (section 4.5)."
)
_SHIFTED = (
    "Columns are named as the paper draws them. They look shifted by one:\n"
    'its "Kitti" equals Table 3\'s difference on ImageNet in all nine rows.'
)
_PLAIN = "none, 0"


def data_or_augreg(table: pandas.DataFrame) -> Drawn:
    """4.1, Figure 1: AugReg beside more training images.

    A line for each model along the sizes of the training set, each without
    and with AugReg, at the best length of pre-training. Of the
    paper's points only the last two are printed (Table 3: the checkpoints
    chosen by ImageNetV2, and JFT-300M).
    """
    printed = {"384 i21kv2": "13M\nAugReg", "384 JFT300M": "300M"}
    if len(rows := _printed(table, "table 3")):
        best = rows[rows["column"].isin(printed)].assign(
            place=lambda rows: rows["column"].map(printed),
            accuracy=lambda rows: rows["value"],
            panel="imagenet-1k",
        )
        best = best[best["name"].map(best["name"].value_counts()) > 1]
        places = list(printed.values())
    else:
        runs = _with_or_without(select.accuracy(table))
        runs["panel"] = IMAGENET if "adapt_ds" in runs else select.dataset(runs)
        keys = ["panel", "name", "images", "recipe"]
        best = select.best(runs, "chosen", keys)
        groups = best.groupby("panel")
        best = best[
            (groups["images"].transform("nunique") > 1)
            & (groups["recipe"].transform("nunique") > 1)
        ].sort_values(["images", "recipe"], ascending=[True, False])
        if best.empty:
            raise NotInTableError(
                "no data set has runs on two numbers of images, with and "
                "without AugReg"
            )
        names = select.labels("{}\n{}", select.count(best), best["recipe"])
        best["place"] = [name.removesuffix("\nnone") for name in names]
        places = list(best["place"].unique())
    best["x"] = best["place"].map(places.index)
    best = best.assign(line=best["name"]).sort_values(["panel", "name", "x"])
    figure, axes = plots.draw_lines(
        best, ("panel", list(best["panel"].unique())),
        plots.line_styles(sorted(best["name"].unique())), "x",
        "training images", columns=2, size=(5.6, 3.8), log=False,
    )  # fmt: skip
    for axis in axes:
        axis.set_xticks(range(len(places)), places, fontsize=8)
    best["training images"] = best["place"].str.replace("\n", " + ")
    return figure, best[["panel", "name", "training images", "accuracy"]]


def data_size(table: pandas.DataFrame) -> Drawn:
    """4.1: what more data, AugReg and more compute each bring.

    A panel for each model: accuracy over images seen (epochs times training
    images), a colour for each size of the training set. The accuracy is that
    on ImageNet-1k after fine-tuning where the table has it, otherwise that on
    the pre-training's own test split.
    """
    runs = _with_or_without(select.accuracy(table))
    best = select.best(runs, "chosen", [*KEYS, "recipe"])
    best = best.sort_values(["name", "images", "seen"])
    best["data"] = select.labels(
        "{}, {} images", select.dataset(best), select.count(best)
    )
    best["line"] = best["data"] + ", " + best["recipe"]
    styles: dict[str, dict[str, Any]] = {}
    sizes = best.sort_values(["images", "data"])["data"].unique()
    for data, color in zip(sizes, itertools.cycle(plots.COLORS), strict=False):
        solid = {"color": color, "marker": "o"}
        dotted = solid | {"linestyle": ":", "markerfacecolor": "w"}
        styles[f"{data}, AugReg"] = styles[f"{data}, best recipe"] = solid
        styles[f"{data}, none"] = dotted
    figure, _ = plots.draw_lines(
        best, ("name", _by_accuracy(best)), styles, "seen",
        "images seen in the pre-training (M million, G billion)",
        columns=3, sharey=True,
    )  # fmt: skip
    return figure, best[[*KEYS, "recipe", "accuracy"]]


def transfer(table: pandas.DataFrame) -> Drawn:
    """4.2: fine-tuning a model against training one from scratch.

    A panel for each data set that models were both pre-trained on and
    fine-tuned on: accuracy over the cost of that training; the cost of the
    pre-training before a fine-tuning is not counted.
    """
    runs = select.runs_by_target(table)
    points = {"linestyle": "none", "alpha": 0.7}
    styles = {line: style | points for line, style in _how(runs).items()}
    figure, _ = plots.draw_lines(
        runs, ("target", sorted(runs["target"].unique())), styles, "seconds",
        "seconds of training", columns=2, size=(5.6, 3.8),
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


def searched(table: pandas.DataFrame) -> Drawn:
    """4.2, Figure 2, right: what random search finds within a budget.

    The median of `random_search` and its 90% band over the budget.
    """
    numbers = random_search(table)
    lines = numbers.assign(
        line=numbers["name"] + ", " + numbers["how"],
        accuracy=numbers["median"],
        seconds=3600 * numbers["hours"],
    )
    figure, _ = plots.draw_lines(
        lines, ("target", sorted(lines["target"].unique())), _how(lines),
        "seconds", "budget, seconds of training", columns=2, size=(5.6, 3.8),
        band=("low", "high"),
    )  # fmt: skip
    return figure, numbers


def generality(table: pandas.DataFrame) -> Drawn:
    """4.3, Figure 3: what the data of the pre-training does for other tasks.

    A panel for each group of tasks, a line for each pre-training, along the
    models' images/s. The recipe is the best by upstream validation. Of the
    paper's models the Tiny ones are left out, as there.
    """
    tuned = select.tuned(table)
    if len(_printed(table, "table 5")):
        tuned = tuned[~tuned["name"].isin(["Ti/16", "R+Ti/16"])]
    tuned = tuned[tuned["adapt_ds"] != IMAGENET]
    tuned = tuned[tuned["adapt_ds"] != select.canonical_names(tuned["ds"])]
    if tuned.empty:
        raise NotInTableError("nothing was fine-tuned on another data set")
    best = select.best(tuned, "upstream", [*KEYS, "adapt_ds"])
    tasks = best["adapt_ds"].str.removeprefix("vtab-")
    best["group"] = tasks.replace(select.GROUPS)
    best["pre-training"] = select.labels(
        "{}, {} images, {:g} ep", select.dataset(best), select.count(best),
        best["epochs"],
    )  # fmt: skip
    best[SPEED] = best.groupby("name")[SPEED].transform("mean")
    keys = ["group", "name", "pre-training", "seen", "images"]
    means = best.groupby(keys)[["accuracy", SPEED]].mean().reset_index()
    means["line"] = means["pre-training"]
    order = means.sort_values(["seen", "images"])["line"].unique()
    means = means.sort_values(SPEED)
    figure, axes = plots.draw_lines(
        means, ("group", sorted(means["group"].unique())),
        plots.line_styles(order), SPEED, "images/s, inference", columns=3,
        size=(4.2, 3.9),
    )  # fmt: skip
    models = means.groupby("name")[SPEED].first().dropna()
    for axis in axes:
        axis.margins(y=0.25)
        for name, speed in models.items():
            axis.annotate(
                name, (speed, 0), (0, 3), xycoords=axis.get_xaxis_transform(),
                textcoords="offset points", rotation=90, fontsize=7,
                color="grey",
            )  # fmt: skip
    columns = ["group", "name", "pre-training", "accuracy"]
    return figure, means.sort_values(["group", "name", "seen"])[columns]


def augmentation(table: pandas.DataFrame) -> Drawn:
    """4.4, Figure 4: augmentation against regularisation, a heat map.

    A map for each pre-training (with a single model, a row): upstream
    validation accuracy, coloured by its difference to the model without
    either, the better of the weight decays (Figure 4 does not say which). The
    last column is the best with regularisation minus the best without.
    """
    numbers, names = _recipes(table)
    regularised = [c for c in numbers if not c.endswith(", 0")]
    if regularised and len(regularised) < len(numbers.columns):
        best = numbers[regularised].max(axis=1)
        plain = numbers.drop(columns=regularised).max(axis=1)
        numbers["reg - noreg"] = best - plain
        printed = _printed(table, "figure 4")
        printed = printed[printed["column"] == "reg - noreg"]
        if len(printed):
            printed = printed.assign(map=_map(select.done(printed)))
            numbers["reg - noreg"] = printed.set_index(["map", "name"])["value"]
    figure, axes = _maps(numbers, names)
    for axis, (_, grid) in axes:
        recipes = grid.drop(columns="reg - noreg", errors="ignore")
        plain = recipes.get(_PLAIN, recipes.max(axis=1))
        gain = recipes.sub(plain, axis=0)
        if "reg - noreg" in grid:
            gain["reg - noreg"] = grid["reg - noreg"]
        plots.heat(axis, gain, grid, "gain, points")
    return figure, numbers.reset_index()


def regularisation(table: pandas.DataFrame) -> Drawn:
    """Appendix D, Figure 7: accuracy with minus without regularisation.

    For each level of augmentation, by upstream validation; see Figure 4.
    """
    printed = _printed(table, "figure 7")
    numbers, names = _recipes(table)
    if len(printed):
        printed = printed.assign(
            map=_map(select.done(printed)),
            level=printed["column"].map(lambda name: AugReg(name).label),
        )
        levels = list(printed["level"].unique())
        order = list(numbers.index.unique("map"))
        numbers = printed.pivot(
            index=["map", "name"], columns="level", values="value"
        ).reindex(order, level="map")[levels]
    else:
        with_rates = {
            column: float(column.rpartition(", ")[2]) for column in numbers
        }
        rate = max(with_rates.values())
        levels = [
            level
            for column in numbers
            if f"{(level := column.rpartition(', ')[0])}, {rate:g}" in numbers
            and with_rates[column] == 0 < rate
        ]
        if not levels:
            raise NotInTableError(
                "no level was trained with and without regularisation"
            )
        for level in levels:
            without = numbers[f"{level}, 0"]
            numbers[level] = numbers[f"{level}, {rate:g}"] - without
        numbers = numbers[levels]
    figure, axes = _maps(numbers, names)
    for axis, (_, grid) in axes:
        plots.heat(axis, grid, grid, "difference, points")
    return figure, numbers.reset_index()


def choice(table: pandas.DataFrame) -> Drawn:
    """4.5, Figure 5, left: the best model upstream against the best of all.

    Test accuracy of the model with the best upstream validation, minus that
    of the model with the best validation after fine-tuning all of them.
    """
    keys = ["name", "ds", "epochs", "adapt_ds"]
    if len(printed := _printed(table, "figure 5")):
        printed = printed.assign(
            adapt_ds=printed["column"], difference=printed["value"]
        )
        numbers = printed[[*keys, "difference"]]
    else:
        numbers = _choices(table, keys)
    data = select.dataset(numbers)
    numbers = numbers.assign(
        model=select.labels(
            "{}, {}, {:g} ep", numbers["name"], data, numbers["epochs"]
        )
    )
    grid = numbers.pivot(
        index="model", columns="adapt_ds", values="difference"
    ).reindex(numbers["model"].unique())[numbers["adapt_ds"].unique()]
    size = (4.5 + 1.0 * grid.shape[1], 2.2 + 0.3 * len(grid))
    figure, (axis,) = plots.new_panels(1, "fine-tuned on", 1, size, "")
    axis.set_title("best upstream minus best of all")
    plots.heat(axis, grid, grid, "difference, points", "+.1f")
    if len(printed):
        figure.text(0.01, -0.02, _SHIFTED, va="top", fontsize=8)
    seen = select.canonical_names(data) == "imagenet-21k"
    if (seen & (numbers["adapt_ds"] == IMAGENET)).any():
        figure.text(0.01, -0.02, MINIVAL, va="top", fontsize=8)
    return figure, numbers.drop(columns="model")


def throughput(
    table: pandas.DataFrame,
    benchmark: Iterable[Mapping[str, Any]] | None = None,
) -> Drawn:
    """4.6, Figure 6: larger patches against smaller models.

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
    runs = select.accuracy(table)
    unit = "images/s, inference"
    if benchmark is not None:
        runs[SPEED] = runs["name"].map(_speeds(benchmark))
        unit += ", as benchmarked"
    runs = runs.dropna(subset=[SPEED])
    runs = runs[runs["images"] == runs.groupby("ds")["images"].transform("max")]
    keys = ["ds", "epochs", "resolution"]
    best = select.best(runs, "chosen", ["name", *keys])
    models = best.groupby(keys, dropna=False)["name"].transform("size")
    best = best[models > 1].sort_values(SPEED)
    if best.empty:
        raise NotInTableError(
            "no two models of the same pre-training have images/s"
        )
    best["line"] = "patch /" + best["name"].str.rpartition("/")[2]
    size = best["resolution"].map(lambda px: f", {px:g} px" if px > 0 else "")
    best["panel"] = select.labels(
        "{}, {:g} epochs{}", select.dataset(best), best["epochs"], size
    )
    panels = sorted(best["panel"].unique())
    patches = sorted(
        best["line"].unique(), key=lambda line: int(line.split("/")[1] or 0)
    )
    styles = plots.line_styles(patches)
    figure, axes = plots.draw_lines(
        best, ("panel", panels), styles, SPEED, unit, columns=2,
        size=(5.6, 3.4),
    )  # fmt: skip
    for axis, panel in zip(axes, panels, strict=True):
        axis.margins(0.18)
        for row in best[best["panel"] == panel].itertuples():
            # Below the line of the smallest patches, above the others.
            below = row.line == patches[0]
            axis.annotate(
                row.name, (getattr(row, SPEED), row.accuracy),
                (-5, -11) if below else (5, 5), fontsize=7.5,
                color=styles[row.line]["color"], textcoords="offset points",
                ha="right" if below else "left",
            )  # fmt: skip
    return figure, best[["panel", "name", SPEED, "accuracy"]]


FIGURES: dict[str, Callable[..., Drawn]] = {
    "4.1_data_or_augreg": data_or_augreg,
    "4.1_data_size": data_size,
    "4.2_transfer": transfer,
    "4.2_random_search": searched,
    "4.3_generality": generality,
    "4.4_augmentation": augmentation,
    "4.4_regularisation": regularisation,
    "4.5_choice": choice,
    "4.6_throughput": throughput,
}
"""File name -> the function that draws it."""


def render(
    table: pandas.DataFrame,
    folder: str | os.PathLike[str],
    benchmark: str | os.PathLike[str] | None = None,
    beside: pandas.DataFrame | None = None,
) -> list[pathlib.Path]:
    """Writes every figure that a table has the rows for.

    Args:
        table: From `keras_augreg.study.read` or `published`.
        folder: Created if missing. Gets `NAME.png`, `NAME.svg` and `NAME.md`
            for each of `FIGURES`, and `README.md`, which shows them and says
            why others are missing.
        benchmark: A JSON file of `recipes/benchmark.py`, for 4.6.
        beside: Another table, such as `published()`: its figures are written
            as `NAME_beside.*`, and `README.md` shows them on the right.

    Returns:
        The PNG files of `table`.

    Raises:
        ImportError: If matplotlib (extra `study`) is not installed.
        ValueError: If `benchmark` is not as in `throughput`.

    Example:
    >>> render(read("runs/sweep/results.csv"), "figures", beside=published())
    """
    root = pathlib.Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    more: dict[str, Any] = {}
    if benchmark is not None:
        rows = json.loads(pathlib.Path(benchmark).read_text(encoding="utf-8"))
        _speeds(rows)  # Complain before drawing.
        more["4.6_throughput"] = {"benchmark": rows}
    index = ["# Figures"]
    written = []
    for name, draw in FIGURES.items():
        title = (draw.__doc__ or "").splitlines()[0]
        shown = {name: _write(root / name, draw, table, more.get(name, {}))}
        if beside is not None:
            other = f"{name}_beside"
            shown[other] = _write(root / other, draw, beside, {})
        if shown[name] is None:
            written.append(root / f"{name}.png")
        cells = [
            f"Not drawn: {problem}."
            if problem
            else f"![{name}]({name}.png) [numbers]({name}.md)"
            for name, problem in shown.items()
        ]
        head = ["", "beside"][: len(cells)]
        index += [f"## {title}", markdown_table(head, [cells])]
    write(root / "README.md", ("\n\n".join(index)).encode())
    return written


def _write(
    path: pathlib.Path, draw: Callable[..., Drawn], table: pandas.DataFrame,
    more: dict[str, Any],
) -> str | None:  # fmt: skip
    """Writes one figure and its numbers; returns why not, if so."""
    try:
        figure, numbers = draw(table, **more)
    except NotInTableError as missing:
        return str(missing)
    for suffix in ("png", "svg"):
        content = io.BytesIO()
        figure.savefig(content, format=suffix, dpi=120, bbox_inches="tight")
        write(path.with_name(f"{path.name}.{suffix}"), content.getvalue())
    title = (draw.__doc__ or "").splitlines()[0]
    lines = markdown_table(numbers.columns, numbers.to_numpy(object))
    write(path.with_name(f"{path.name}.md"), f"# {title}\n\n{lines}".encode())
    return None


def _printed(table: pandas.DataFrame, where: str) -> pandas.DataFrame:
    """The numbers of a table or figure, if the table is the paper's."""
    table = table.reindex(columns=[*COLUMNS, *PRINTED])
    return table[table["where"] == where]


def _with_or_without(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Adds `recipe`: "none", "AugReg", or "best recipe" where not known."""
    plain = (runs["aug"] == "none") & (runs["do"] == 0)
    recipe = plain.map({True: "none", False: "AugReg"})
    return runs.assign(recipe=recipe.where(runs["aug"].notna(), "best recipe"))


def _choices(table: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    """Figure 5's differences, of a table of runs."""
    tuned = select.tuned(table)
    tuned = tuned.dropna(subset=["adapt_final_val", "upstream"])
    tuned = tuned[tuned.groupby(keys)["upstream"].transform("size") > 1]
    if tuned.empty:
        raise NotInTableError(
            "no two pre-trained models of a kind were fine-tuned on a data set"
        )
    upstream, chosen = (
        select.best(tuned, by, keys)[[*keys, "accuracy"]].rename(
            columns={"accuracy": name}
        )
        for by, name in (("upstream", "best upstream"),
                         ("chosen", "best of all"))
    )  # fmt: skip
    numbers = upstream.merge(chosen, on=keys).sort_values(keys)
    difference = numbers["best upstream"] - numbers["best of all"]
    return numbers.assign(difference=difference)


def _recipes(table: pandas.DataFrame) -> tuple[pandas.DataFrame, list[str]]:
    """Upstream validation accuracy of each model (rows) and recipe."""
    runs = select.mean(select.upstream(table), "final_val")
    runs = select.best(runs, "final_val", [*KEYS, "aug", "do"])
    runs["accuracy"] = 100 * runs["final_val"]
    levels = runs["aug"].map(_level)
    runs["recipe"] = select.labels("{}, {:g}", levels, runs["do"])
    runs["map"] = _map(runs)
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
    order = list(runs["map"].unique())
    return numbers.reindex(order, level="map"), names


def _map(runs: pandas.DataFrame) -> list[str]:
    """Titles of the heat maps."""
    return select.labels(
        "{}, {} images, {:g} epochs", select.dataset(runs), select.count(runs),
        runs["epochs"],
    )  # fmt: skip


def _maps(
    numbers: pandas.DataFrame, names: list[str]
) -> tuple[Any, Iterable[tuple[Any, tuple[str, pandas.DataFrame]]]]:
    """A figure with an axis for each map, and the rows to draw there."""
    maps = list(numbers.index.unique("map"))
    figure, axes = plots.new_panels(
        len(maps), "augmentation, dropout and stochastic depth", 1,
        (3.5 + 0.5 * len(numbers.columns), 1.8 + 0.3 * len(names)), "",
    )  # fmt: skip
    for axis, title in zip(axes, maps, strict=True):
        axis.set_title(title)
    grids = [(title, numbers.loc[title].reindex(names)) for title in maps]
    return figure, zip(axes, grids, strict=True)


def _level(release: str) -> str:
    """Both names of a level of augmentation."""
    return AugReg(LEVEL_OF_RELEASE.get(release, release)).label


def _by_accuracy(rows: pandas.DataFrame) -> list[str]:
    """The models, from the least accurate, after the longest pre-training."""
    rows = rows.sort_values(["seen", "accuracy"]).groupby("name").tail(1)
    return list(rows.sort_values("accuracy")["name"])


def _how(runs: pandas.DataFrame) -> dict[str, dict[str, Any]]:
    """Styles: a colour for scratch or transfer, a marker for each model."""
    models = plots.line_styles(sorted(runs["name"].unique()))
    return {
        f"{name}, {how}": {"color": color, "marker": style["marker"]}
        for how, color in zip(
            ("scratch", "transfer"), plots.COLORS, strict=False
        )
        for name, style in models.items()
    }


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
