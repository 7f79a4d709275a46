"""What all figures and Markdown tables of the package are made with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any


def subplots(
    rows: int, columns: int, width: float, height: float, **kwargs: Any
) -> tuple[Any, Any]:
    """Makes a figure without pyplot and its global state.

    `width` and `height` are those of one of the axes, in inches.

    >>> figure, axes = subplots(1, 2, width=4.0, height=3.0)
    >>> axes.shape
    (1, 2)
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "Figures are drawn with matplotlib, which is not installed: "
            "pip install 'keras_augreg[study]'"
        ) from error
    size = (width * columns, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def markdown_table(
    head: Sequence[object], rows: Iterable[Iterable[object]]
) -> str:
    """Formats a Markdown table; `None` and NaN leave a cell empty.

    >>> print(markdown_table(["model", "images/s"], [["S/16", 1234.5]]))
    | model | images/s |
    | --- | --- |
    | S/16 | 1,234 |
    """

    def text(value: object) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        return f"{value:,.4g}" if isinstance(value, float) else str(value)

    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(text, line))} |\n" for line in lines)
