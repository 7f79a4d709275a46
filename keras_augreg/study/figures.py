"""The paper's figures, from a results table: sections 4.1 to 4.6.

Each function takes a table (`keras_augreg.study.read` or `published`) and
returns a matplotlib figure and the numbers in it; `render` writes all of them.
Accuracies are top-1, in percent. Recipes are chosen on the validation split of
the pre-training, fine-tunings on that of their own data set; what is shown is
the test split, the mean over seeds.
"""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_augreg.output import markdown_table, subplots
from keras_augreg.recipe import LEVEL_OF_RELEASE, LEVELS
from keras_augreg.study.table import IMAGES, write
from keras_augreg.variants import VARIANTS

if TYPE_CHECKING:
    import pandas

Drawn = tuple[Any, "pandas.DataFrame"]

# VTAB's groups of the release's fine-tuning sets (paper, section 3.1); other
# data sets are groups of their own.
GROUPS = {
    "cifar100": "natural",
    "oxford_iiit_pet": "natural",
    "resisc45": "specialized",
    "kitti": "structured",
}
# The release's fine-tuning set that is also a pre-training set.
SAME = {"i1k": "imagenet2012"}
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
    """The table has no rows that a figure is about."""


def data_size(table: pandas.DataFrame) -> Drawn:
    """4.1: what more data, AugReg and more compute each bring.

    A panel for each model: accuracy over images seen (epochs times training
    images), a colour for each size of the training set. The accuracy is that
    on ImageNet-1k after fine-tuning where the table has it, otherwise that on
    the pre-training's own test split.

    Args:
        table: Of `keras_augreg.study.read` or `published`.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If the table has no such rows.
    """
    runs = _accuracy(table)
    plain = (runs["aug"] == "none") & (runs["do"] == 0)
    runs["recipe"] = plain.map({True: "none", False: "AugReg"})
    runs.loc[runs["aug"].isna(), "recipe"] = "best recipe"
    best = _best(runs, "chosen", [*_KEYS, "recipe"])
    best = best.sort_values(["name", "images", "seen"])
    names = _by_accuracy(best)
    figure, axes = _panels(
        len(names),
        "images seen in the pre-training (M million, G billion)",
        3,
        same=True,
    )
    sizes = sorted(set(zip(best["images"], _dataset(best), strict=True)))
    lines: dict[str, Any] = {}
    for axis, name in zip(axes, names, strict=True):
        axis.set_title(name)
        _log(axis)
        for color, (images, ds) in zip(_colors(sizes), sizes, strict=True):
            for recipe, style in (
                ("AugReg", "o-"),
                ("none", "o:"),
                ("best recipe", "o-"),
            ):
                rows = best[
                    (best["name"] == name) & (best["images"] == images)
                    & (_dataset(best) == ds) & (best["recipe"] == recipe)
                ]  # fmt: skip
                if len(rows):
                    label = f"{ds}, {_count(images)} images, {recipe}"
                    (lines[label],) = axis.plot(
                        rows["seen"], rows["accuracy"], style, color=color,
                        markerfacecolor="w" if recipe == "none" else color,
                    )  # fmt: skip
    _legend(figure, lines)
    return figure, best[[*_KEYS, "recipe", "accuracy"]]


def transfer(table: pandas.DataFrame) -> Drawn:
    """4.2: fine-tuning a model against training one from scratch.

    A panel for each data set that models were both pre-trained on and
    fine-tuned on: accuracy over the cost of that training; the cost of the
    pre-training before a fine-tuning is not counted, as in the paper. Our
    tables have seconds; for the release's it is images seen, divided by its
    images/s: the forward passes alone, on a V100.

    Args:
        table: Of `keras_augreg.study.read`.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If no data set has both.
    """
    scratch = _upstream(table).dropna(subset=["final_test"])
    scratch = scratch.assign(target=scratch["ds"].replace(SAME), how="scratch")
    tuned = _done(table).dropna(subset=["adapt_final_test"])
    tuned = tuned[tuned["ds"].replace(SAME) != tuned["adapt_ds"]]
    tuned = tuned.assign(target=tuned["adapt_ds"], how="transfer")
    both = sorted({*scratch["target"]} & {*tuned["target"]})
    if not both:
        raise NotInTableError(
            "no data set was both trained on from scratch (`ds`) and "
            "fine-tuned on (`adapt_ds`)"
        )
    seen = scratch["epochs"] * _images(scratch), tuned["adapt_steps"] * 512
    measured = ("train_seconds", "adapt_seconds")
    test = ("final_test", "adapt_final_test")
    frames = []
    for frame, images, own, accuracy in zip(
        (scratch, tuned), seen, measured, test, strict=True
    ):
        cost = frame[own].fillna(images / frame[_SPEED])
        percent = 100 * frame[accuracy]
        frames.append(frame.assign(seconds=cost, accuracy=percent))
    figure, axes = _panels(len(both), "seconds of training", 2, (5.6, 3.8))
    lines: dict[str, Any] = {}
    names = sorted({*scratch["name"], *tuned["name"]})
    for axis, target in zip(axes, both, strict=True):
        axis.set_title(target)
        _log(axis)
        for frame, color in zip(frames, COLORS, strict=False):
            for name, marker in zip(names, MARKERS * 9, strict=False):
                rows = frame[
                    (frame["target"] == target) & (frame["name"] == name)
                ]
                if len(rows):
                    label = f"{name}, {rows['how'].iloc[0]}"
                    (lines[label],) = axis.plot(
                        rows["seconds"], rows["accuracy"], marker,
                        color=color, alpha=0.7,
                    )  # fmt: skip
    _legend(figure, lines)
    keys = ["target", "how", "name", "ds", "epochs"]
    groups = [f.groupby(keys, dropna=False) for f in frames]
    columns = {
        "runs": ("accuracy", "size"),
        "accuracy, best": ("accuracy", "max"),
        "accuracy, median": ("accuracy", "median"),
        "seconds, median": ("seconds", "median"),
    }
    numbers = _stack([g.agg(**columns).reset_index() for g in groups])
    numbers = numbers[numbers["target"].isin(both)]
    return figure, numbers.sort_values(["target", "how", "name"])


def generality(table: pandas.DataFrame) -> Drawn:
    """4.3: what the data of the pre-training does for other tasks.

    A panel for each group of tasks, a line for each model, along the
    pre-trainings in the order of images seen. The model is the best by
    upstream validation.

    Args:
        table: Of `keras_augreg.study.read` or `published`.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If nothing was fine-tuned on another data set.
    """
    tuned = _tuned(table)
    tuned = tuned[tuned["adapt_ds"] != "imagenet2012"]
    tuned = tuned[tuned["adapt_ds"] != tuned["ds"]]
    if tuned.empty:
        raise NotInTableError("nothing was fine-tuned on another data set")
    best = _best(tuned, "upstream", [*_KEYS, "adapt_ds"])
    best["group"] = best["adapt_ds"].replace(GROUPS)
    best["pre-training"] = [
        f"{ds}\n{_count(images)}\n{epochs:g} ep"
        for ds, images, epochs in zip(
            _dataset(best), best["images"], best["epochs"], strict=True
        )
    ]
    keys = ["group", "name", "pre-training", "seen", "images"]
    means = best.groupby(keys)["accuracy"].mean().reset_index()
    order = means.sort_values(["seen", "images"])["pre-training"].unique()
    groups = sorted(means["group"].unique())
    figure, axes = _panels(len(groups), "pre-trained on", 3, (3.8, 3.9))
    lines: dict[str, Any] = {}
    names = _by_accuracy(means)
    for axis, group in zip(axes, groups, strict=True):
        axis.set_title(group)
        axis.set_xticks(range(len(order)), order, fontsize=8)
        for color, marker, name in zip(
            _colors(names), MARKERS * 9, names, strict=False
        ):
            rows = means[(means["group"] == group) & (means["name"] == name)]
            rows = rows.set_index("pre-training").reindex(order)
            (lines[name],) = axis.plot(
                range(len(order)), rows["accuracy"], f"{marker}-", color=color
            )
    _legend(figure, lines)
    means["pre-training"] = means["pre-training"].str.replace("\n", ", ")
    columns = ["group", "name", "pre-training", "accuracy"]
    return figure, means.sort_values(["group", "name", "seen"])[columns]


def augmentation(table: pandas.DataFrame) -> Drawn:
    """4.4: augmentation against regularisation, a heat map.

    A map for each pre-training (with a single model, a row): upstream
    validation accuracy, coloured by its difference to the model without
    either, the better of the weight decays.

    Args:
        table: Of `keras_augreg.study.read` or `published`.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If no model was trained with two recipes.
    """
    runs = _mean(_upstream(table), "final_val")
    runs = _best(runs, "final_val", [*_KEYS, "aug", "do"])
    runs["recipe"] = [
        ([*LEVEL_OF_RELEASE].index(aug), do)
        for aug, do in zip(runs["aug"], runs["do"], strict=True)
    ]
    runs["accuracy"] = 100 * runs["final_val"]
    runs["map"] = [
        f"{ds}, {_count(images)} images, {epochs:g} epochs"
        for ds, images, epochs in zip(
            _dataset(runs), runs["images"], runs["epochs"], strict=True
        )
    ]
    runs = runs[runs.groupby(["map", "name"])["recipe"].transform("size") > 1]
    if runs.empty:
        raise NotInTableError("no model was pre-trained with two recipes")
    runs = runs.sort_values(["images", "epochs"])
    names = _by_accuracy(runs)
    if len(names) == 1:  # Then a row for each pre-training.
        runs["name"] = runs["name"] + ", " + runs["map"]
        runs["map"] = "all pre-trainings"
        names = list(runs["name"].unique())
    maps = list(runs["map"].unique())
    recipes = sorted(set(runs["recipe"]), key=lambda r: (r[1], r[0]))
    labels = [f"{[*LEVELS][aug]}, {do:g}" for aug, do in recipes]
    figure, axes = _panels(
        len(maps), "augmentation, dropout and stochastic depth", 1,
        (3.5 + 0.5 * len(recipes), 1.8 + 0.3 * len(names)), "",
    )  # fmt: skip
    for axis, title in zip(axes, maps, strict=True):
        grid = runs[runs["map"] == title].pivot(
            index="name", columns="recipe", values="accuracy"
        )
        grid = grid.reindex(index=names, columns=recipes)
        gain = grid.sub(grid.get((0, 0.0), grid.max(axis=1)), axis=0)
        image = _heat(axis, gain, grid, names, labels)
        axis.set_title(title)
        figure.colorbar(image, ax=axis, label="gain, points")
    runs["recipe"] = [labels[recipes.index(r)] for r in runs["recipe"]]
    return figure, runs.pivot(
        index=["map", "name"], columns="recipe", values="accuracy"
    )[labels].reset_index()  # fmt: skip


def choice(table: pandas.DataFrame) -> Drawn:
    """4.5: the model that is best upstream against the best of all.

    Test accuracy of the model with the best upstream validation, minus that
    of the model with the best validation after fine-tuning all of them.

    Args:
        table: Of `keras_augreg.study.read`, or the release's.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If there was no choice between two models.
    """
    tuned = _tuned(table)
    tuned = tuned.dropna(subset=["adapt_final_val", "upstream"])
    keys = ["name", "ds", "epochs", "adapt_ds"]
    tuned = tuned[tuned.groupby(keys)["upstream"].transform("size") > 1]
    if tuned.empty:
        raise NotInTableError(
            "no two pre-trained models of a kind were fine-tuned on a data set"
        )
    numbers = _best(tuned, "upstream", keys).merge(
        _best(tuned, "chosen", keys), on=keys, suffixes=("_up", "_all")
    )
    numbers["difference"] = numbers["accuracy_up"] - numbers["accuracy_all"]
    numbers["model"] = [
        f"{name}, {ds}, {epochs:g} ep"
        for name, ds, epochs in zip(
            numbers["name"], _dataset(numbers), numbers["epochs"], strict=True
        )
    ]
    grid = numbers.pivot(index="model", columns="adapt_ds", values="difference")
    size = (4.5 + 1.0 * grid.shape[1], 2.2 + 0.3 * len(grid))
    figure, (axis,) = _panels(1, "fine-tuned on", 1, size, "")
    image = _heat(
        axis, grid, grid, list(grid.index), list(grid.columns), "+.1f"
    )
    axis.set_title("best upstream minus best of all")
    figure.colorbar(image, ax=axis, label="difference, points")
    pair = numbers["ds"].str.startswith("i21k") & (
        numbers["adapt_ds"] == "imagenet2012"
    )
    if pair.any():
        figure.text(0.01, -0.02, MINIVAL, va="top", fontsize=8)
    numbers = numbers.rename(
        columns={"accuracy_up": "best upstream", "accuracy_all": "best of all"}
    )
    return figure, numbers[
        [*keys, "best upstream", "best of all", "difference"]
    ].sort_values(keys)


def throughput(
    table: pandas.DataFrame,
    benchmark: Iterable[Mapping[str, Any]] | None = None,
) -> Drawn:
    """4.6: larger patches against smaller models.

    Accuracy over images/s, a panel for each pre-training (on all of its data
    set) and resolution, a line for each size of the patch.

    Args:
        table: Of `keras_augreg.study.read` or `published`.
        benchmark: Rows of `recipes/benchmark.py`, with at least `model` (a
            builder's name) and `images_per_second`: the speed on your device
            instead of the table's.

    Returns:
        The figure and its numbers.

    Raises:
        NotInTableError: If there are no two models to compare.
    """
    runs = _accuracy(table)
    unit = "images/s, inference"
    if benchmark is not None:
        measured = _speeds(benchmark)
        runs[_SPEED] = runs["name"].map(measured)
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
    best["patch"] = "/" + best["name"].str.rpartition("/")[2]
    best["panel"] = [
        f"{ds}, {epochs:g} epochs" + (f", {size:g} px" if size > 0 else "")
        for ds, epochs, size in zip(
            _dataset(best), best["epochs"], best["resolution"], strict=True
        )
    ]
    panels = sorted(best["panel"].unique())
    figure, axes = _panels(len(panels), unit, 2, (5.6, 3.4))
    lines: dict[str, Any] = {}
    patches = sorted(best["patch"].unique(), key=lambda p: int(p[1:] or 0))
    for axis, panel in zip(axes, panels, strict=True):
        axis.set_title(panel)
        _log(axis)
        axis.margins(0.18)
        for color, marker, patch in zip(COLORS, MARKERS, patches, strict=False):
            rows = best[(best["panel"] == panel) & (best["patch"] == patch)]
            (lines[f"patch {patch}"],) = axis.plot(
                rows[_SPEED], rows["accuracy"], f"{marker}-", color=color
            )
            for row in rows.itertuples():
                # One line's names above it, the other's below.
                left = patch == patches[0]
                axis.annotate(
                    row.name, (getattr(row, _SPEED), row.accuracy),
                    (-5, -11) if left else (5, 5), color=color, fontsize=7.5,
                    ha="right" if left else "left", textcoords="offset points",
                )  # fmt: skip
    _legend(figure, lines)
    return figure, best[["panel", "name", _SPEED, "accuracy"]]


FIGURES: dict[str, Callable[..., Drawn]] = {
    "4.1_data_size": data_size,
    "4.2_transfer": transfer,
    "4.3_generality": generality,
    "4.4_augmentation": augmentation,
    "4.5_choice": choice,
    "4.6_throughput": throughput,
}
"""File name -> what draws it."""


def render(
    table: pandas.DataFrame,
    folder: str | os.PathLike[str],
    benchmark: str | os.PathLike[str] | None = None,
) -> list[pathlib.Path]:
    """Writes every figure that a table has the rows for.

    Args:
        table: Of `keras_augreg.study.read` or `published`.
        folder: Made if there is none. Gets `NAME.png`, `NAME.svg` and
            `NAME.md` for each of `FIGURES`, and `README.md`, which says why
            others are missing.
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
    arguments: dict[str, Any] = {}
    if benchmark is not None:
        text = pathlib.Path(benchmark).read_text(encoding="utf-8")
        arguments["4.6_throughput"] = json.loads(text)
        _speeds(arguments["4.6_throughput"])  # Complain before drawing.
    index = ["# Figures", ""]
    written = []
    for name, draw in FIGURES.items():
        title = (draw.__doc__ or "").splitlines()[0]
        extra = [arguments[name]] if name in arguments else []
        try:
            figure, numbers = draw(table, *extra)
        except NotInTableError as missing:
            index += [f"- {title} Not drawn: {missing}."]
            continue
        for suffix in ("png", "svg"):
            content = io.BytesIO()
            figure.savefig(content, format=suffix, dpi=120, bbox_inches="tight")
            write(root / f"{name}.{suffix}", content.getvalue())
        lines = markdown_table(numbers.columns, numbers.to_numpy(object))
        text = f"# {title}\n\n{lines}"
        write(root / f"{name}.md", text.encode())
        index += [f"- {title} [{name}.png]({name}.png), [{name}.md]({name}.md)"]
        written.append(root / f"{name}.png")
    write(root / "README.md", ("\n".join(index) + "\n").encode())
    return written


def _done(table: pandas.DataFrame) -> pandas.DataFrame:
    """The rows with a result, with the number of training images."""
    rows = table[table["status"].isna() | (table["status"] == "done")].copy()
    rows["images"] = _images(rows)
    rows["fraction"] = rows["fraction"].fillna(1.0)
    rows["seen"] = rows["images"] * rows["epochs"]
    return rows


def _images(rows: pandas.DataFrame) -> pandas.Series:
    return rows["num_examples"].fillna(rows["ds"].map(IMAGES)).astype(float)


def _upstream(table: pandas.DataFrame) -> pandas.DataFrame:
    """One row for each pre-training whose accuracy is known."""
    rows = _done(table).dropna(subset=["final_val"])
    return rows.drop_duplicates("filename").copy()


def _tuned(table: pandas.DataFrame, *extra: str) -> pandas.DataFrame:
    """The best fine-tuning of each pre-trained recipe on each data set.

    `accuracy` is its test accuracy in percent, `chosen` what it was chosen
    by, `upstream` the validation accuracy of the pre-training. One for each
    value of the `extra` columns.
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

    `accuracy` is in percent, `chosen` what to choose a recipe by: upstream
    validation, as the paper; see MINIVAL.
    """
    rows = _tuned(table, "adapt_resolution")
    rows = rows[rows["adapt_ds"] == "imagenet2012"]
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


def _dataset(rows: pandas.DataFrame) -> pandas.Series:
    """The data set's name without the release's mark of 30 epochs."""
    return rows["ds"].str.removesuffix("_30")


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
        variant = VARIANTS.get(row["model"])
        name = variant.paper_name if variant else row["model"]
        if name in speeds:
            raise ValueError(
                f"The benchmark has several rows of {row['model']!r}, for "
                "example with other backends, dtypes or image sizes. Pass "
                "the rows of one of them."
            )
        speeds[name] = float(row["images_per_second"])
    return speeds


def _panels(
    count: int,
    xlabel: str,
    columns: int,
    size: tuple[float, float] = (3.8, 3.0),
    ylabel: str = "top-1 accuracy, %",
    same: bool = False,
) -> tuple[Any, list[Any]]:
    """A figure with so many axes."""
    columns = min(columns, count)
    figure, axes = subplots(-(-count // columns), columns, *size, sharey=same)
    axes = axes.flatten()
    for axis in axes[count:]:
        axis.remove()
    figure.supxlabel(xlabel, fontsize=10)
    figure.supylabel(ylabel, fontsize=10)
    for axis in axes[:count]:
        axis.tick_params(labelsize=8)
        if ylabel:
            axis.grid(alpha=0.3)
    return figure, axes[:count].tolist()


def _log(axis: Any) -> None:
    """A logarithmic axis with numbers such as 2M."""
    from matplotlib import ticker

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def _heat(
    axis: Any,
    colors: pandas.DataFrame,
    texts: pandas.DataFrame,
    rows: list[str],
    columns: list[str],
    form: str = ".3g",
) -> Any:
    """A table of numbers, purple for gains and orange for losses."""
    limit = max(float(colors.abs().max().max()), 0.1)
    image = axis.imshow(
        colors.to_numpy(float), "PuOr", vmin=-limit, vmax=limit, aspect="auto"
    )
    axis.set_xticks(range(len(columns)), columns, rotation=40, ha="right")
    axis.set_yticks(range(len(rows)), rows)
    for i, line in enumerate(texts.to_numpy(float)):
        for j, value in enumerate(line):
            if not math.isnan(value):
                strong = abs(colors.to_numpy(float)[i, j]) > 0.6 * limit
                text = format(round(value, 1) + 0.0, form)  # Never "-0.0".
                axis.text(
                    j, i, text, ha="center", va="center",
                    fontsize=8, color="white" if strong else "black",
                )  # fmt: skip
    return image


def _legend(figure: Any, lines: Mapping[str, Any]) -> None:
    many = len(lines) > 9
    figure.legend(
        list(lines.values()), list(lines), fontsize=8,
        loc="outside right upper" if many else "outside upper center",
        ncols=1 if many else 3,
    )  # fmt: skip


def _colors(values: Sequence[Any]) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(len(values))]


def _count(images: float) -> str:
    """1293 -> "1293", 1280000 -> "1.28M"."""
    return f"{images / 1e6:.3g}M" if images >= 1e6 else f"{images:g}"


def _stack(parts: Sequence[pandas.DataFrame]) -> pandas.DataFrame:
    import pandas

    return pandas.concat(parts, ignore_index=True)
