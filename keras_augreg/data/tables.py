"""Examples that a table lists: a CSV file or a DataFrame of pandas."""

from __future__ import annotations

import collections
import csv
import functools
import io
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from keras_augreg.data.decode import extensions
from keras_augreg.data.options import Options
from keras_augreg.data.sources import Examples, check_once, read_file

SUFFIXES = {".csv": ",", ".tsv": "\t"}
# What a column of a class among several may hold.
SWITCH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "False": 0, "True": 1}
WHOLE = re.compile(r"[+-]?[0-9]+(\.0*)?")
DECIMAL = re.compile(r"[+-]?[0-9]+\.[0-9]+")


def is_frame(source: Any) -> bool:
    """Whether a source is a DataFrame, without importing pandas."""
    return hasattr(source, "columns") and hasattr(source, "iloc")


def read(source: Any) -> tuple[str, dict[str, list[Any]]]:
    """The name of a table, and its columns.

    Spaces around cells and names, as in `a.jpg, cat`, are not part of them.
    """
    if is_frame(source):
        header = [str(name).strip() for name in source.columns]
        _check_header("The DataFrame", header)
        lists = (source[name].tolist() for name in source.columns)
        return "the DataFrame", dict(zip(header, lists, strict=True))
    path = pathlib.Path(source).expanduser()
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(
            f"A table ends in {' or '.join(SUFFIXES)}. Received: "
            f"{str(source)!r}"
        )
    try:
        text = read_file(str(path.parent), path.name).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(source)!r} is not UTF-8 text ({error}). Save it as UTF-8."
        ) from error
    delimiter = SUFFIXES[path.suffix.lower()]
    # Without `skipinitialspace`, quotes after a space would be text.
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        skipinitialspace=True,
    )
    stripped = ([cell.strip() for cell in row] for row in reader)
    header = next(stripped, [])
    _check_header(repr(str(source)), header)
    rows = [row for row in stripped if row]
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise ValueError(
                f"Row {number} of {str(source)!r} has {len(row)} cells, the "
                f"header {len(header)}. Received: {row}"
            )
    cells = zip(*rows, strict=True) if rows else [() for _ in header]
    return repr(str(source)), dict(zip(header, map(list, cells), strict=True))


def _check_header(where: str, header: list[str]) -> None:
    if len(set(header)) < len(header):
        raise ValueError(f"{where} repeats a column. Received: {header}")


def table(
    source: Any,
    root: str,
    class_names: Sequence[str] | None,
    options: Options,
) -> tuple[Examples, list[Any] | None]:
    """Lists the examples of a table, and their groups.

    Args:
        source: Path of a CSV file, or a DataFrame.
        root: The folder that the names of images are relative to.
        class_names: As in `load`.
        options: As in `load`; its `image`, `label`, `group` and `on_error`.
    """
    where, columns = read(source)
    names = _column(where, columns, "image", options.image, 0)
    known, labels, problems = _labels(where, columns, class_names, options)
    groups = None
    if options.group is not None:
        groups = _texts(_column(where, columns, "group", options.group, 0))
    find = functools.lru_cache(None)(functools.partial(_find, root))
    kept: list[int] = []
    files: list[str] = []
    left_out = []
    wholes = _texts(names)
    for i, name in enumerate(names):
        file = find(_text(name)) or find(wholes[i])
        problem = None
        if file is None:
            file = ""
            problem = f"there is no image {_text(name)!r} in {root!r}"
        elif problems[i]:
            problem = f"{_text(name)!r} has {problems[i]}"
        elif groups is not None and not groups[i]:
            problem = f"{_text(name)!r} has no {options.group!r}"
        if problem is None:
            kept.append(i)
            files.append(file)
            continue
        if options.on_error == "raise":
            raise ValueError(
                f"Row {i + 1} of {where}: {problem}. Correct it, pass the "
                "folder of the images as `data_dir`, or leave out such rows "
                'with on_error="skip".'
            )
        left_out.append(_text(name))
    if not kept:
        raise ValueError(f"{where} lists no images in {root!r}.")
    twice, times = collections.Counter(files).most_common(1)[0]
    if times > 1:
        raise ValueError(
            f"{where} has {times} rows for the image {twice!r}. Expected one "
            'for each image; class_weight="balanced" helps small classes.'
        )
    examples = Examples(
        files,
        labels[kept],
        known,
        functools.partial(read_file, root),
        root,
        left_out,
    )
    return examples, None if groups is None else [groups[i] for i in kept]


def _labels(
    where: str,
    columns: dict[str, list[Any]],
    class_names: Sequence[str] | None,
    options: Options,
) -> tuple[list[str], np.ndarray, list[str]]:
    """The classes, each row's label, and what is wrong with it, if anything."""
    if options.label is None or isinstance(options.label, str):
        values = _column(where, columns, "label", options.label, 1)
        texts = _texts(values, class_names or None)
        known = [str(name) for name in class_names or _classes(texts)]
        keys = _texts(known)
        check_once(keys)
        number = {key: i for i, key in enumerate(keys)}
        problems = [
            ""
            if text in number
            else f"the label {text!r}, which "
            + ("`class_names` does not name" if text else "is empty")
            for text in texts
        ]
        labels = [number.get(text, -1) for text in texts]
        return known, np.array(labels, np.int64), problems
    named = [str(name).strip() for name in options.label]
    known = [str(name).strip() for name in class_names or named]
    if sorted(known) != sorted(set(named)):
        raise ValueError(
            "`label` must name each column once, and `class_names`, if given, "
            f"the same ones. Received: label={named}, "
            f"class_names={known}"
        )
    each = [_column(where, columns, "label", name, 1) for name in known]
    vectors = np.zeros((len(each[0]), len(known)), np.float32)
    problems = [""] * len(vectors)
    for k, column in enumerate(each):
        for i, value in enumerate(column):
            text = _text(value)
            if text in SWITCH:
                vectors[i, k] = SWITCH[text]
            else:
                problems[i] = f"{text!r} in the column {known[k]!r}, not 0 or 1"
    return known, vectors, problems


def _column(
    where: str,
    columns: dict[str, list[Any]],
    argument: str,
    name: str | None,
    default: int,
) -> list[Any]:
    if name is None and len(columns) > default:
        return list(columns.values())[default]
    if name is not None and name.strip() in columns:
        return columns[name.strip()]
    raise ValueError(
        f"`{argument}` must be a column of {where}: "
        f"{', '.join(map(repr, columns))}. Received: {argument}={name!r}"
    )


def _text(value: Any) -> str:
    """A cell as text; empty where pandas has NaN or `None`."""
    missing = value is None or type(value).__name__ == "NAType"  # pandas's
    if missing or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.1f}"  # Without an exponent.
    return str(value).strip()


def _texts(
    values: Iterable[Any], class_names: Iterable[Any] | None = None
) -> list[str]:
    """A column as text; 1.0 is 1 if all are whole, or all `class_names`.

    pandas makes floats of integers where a cell is missing. In a column of
    versions, such as 1.0 and 1.10, they are text.
    """
    texts = [_text(value) for value in values]
    names = texts if class_names is None else [*map(_text, class_names)]
    decimals = any(DECIMAL.fullmatch(name) for name in names)
    # Otherwise with names such as "0", "1" and "unknown", too.
    among = names if decimals else texts
    if not all(WHOLE.fullmatch(name) for name in among if name):
        return texts
    return [
        text.partition(".")[0] if WHOLE.fullmatch(text) else text
        for text in texts
    ]


def _classes(texts: list[str]) -> list[str]:
    """All labels in order: as numbers if they are integers, else as text."""
    found = {*texts} - {""}
    try:
        return sorted(found, key=lambda text: (int(text), text))
    except ValueError:
        return sorted(found)


def _find(root: str, name: str) -> str | None:
    """The name of an image file, which tables may give without extension."""
    if os.path.isabs(name):
        name = os.path.relpath(name, root)
    endings = ("", *extensions(), *map(str.upper, extensions()))
    files = (name + ending for ending in endings if name)
    return next((f for f in files if os.path.isfile(f"{root}/{f}")), None)
