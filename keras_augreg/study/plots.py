"""How the study's figures are drawn: panels of lines, and heat maps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_augreg.output import subplots

if TYPE_CHECKING:
    import pandas

# Okabe and Ito's colours, which colour-blind people tell apart.
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#000000", "#999999", "#8C6D1F",
)  # fmt: skip
MARKERS = "osD^vP*Xd"


def line_styles(lines: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a marker for each line."""
    styles = itertools.cycle(zip(COLORS, MARKERS, strict=True))
    return {
        line: {"color": color, "marker": marker}
        for line, (color, marker) in zip(lines, styles, strict=False)
    }


def draw_lines(
    rows: pandas.DataFrame, panels: tuple[str, Sequence[str]],
    styles: Mapping[str, Mapping[str, Any]], x: str, xlabel: str, columns: int,
    size: tuple[float, float] = (3.8, 3.0), log: bool = True,
    sharey: bool = False, band: tuple[str, str] | None = None,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Plots accuracy over column `x`.

    `panels` are a column and its values, each a panel; `styles` has the
    values of column "line", each a line with arguments of `Axes.plot`; `band`
    are two columns between which the line's surroundings are shaded.
    """
    column, titles = panels
    figure, axes = new_panels(len(titles), xlabel, columns, size, sharey=sharey)
    drawn: dict[str, Any] = {}
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.grid(alpha=0.3)
        if log:
            log_axis(axis)
        lines = dict(list(rows[rows[column] == title].groupby("line")))
        for line in [line for line in styles if line in lines]:
            xy = lines[line][[x, "accuracy"]].to_numpy().T
            (drawn[line],) = axis.plot(*xy, **styles[line])
            if band:
                edges = (lines[line][column] for column in band)
                color = styles[line]["color"]
                axis.fill_between(xy[0], *edges, color=color, alpha=0.15)
    many = len(drawn) > 9
    figure.legend(
        list(drawn.values()), list(drawn), fontsize=8,
        loc="outside right upper" if many else "outside upper center",
        ncols=1 if many else 3,
    )  # fmt: skip
    return figure, axes


def new_panels(
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


def log_axis(axis: Any) -> None:
    """A logarithmic axis with numbers such as 2M."""
    from matplotlib import ticker

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(ticker.NullFormatter())


def heat(
    axis: Any, colors: pandas.DataFrame, texts: pandas.DataFrame, label: str,
    form: str = ".3g",
) -> None:  # fmt: skip
    """A table of numbers, purple for gains and orange for losses."""
    limit = max(float(np.nanmax(np.abs(colors.to_numpy(float)))), 0.1)
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
