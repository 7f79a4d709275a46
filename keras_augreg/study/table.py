"""The results table: ours, the release's `index.csv`, the paper's figures.

The first columns are those of the release's index (`vit_jax_augreg.ipynb` of
google-research/vision_transformer), in its order and spelling, so that the
tables can be joined and put under each other; then come our own.
"""

from __future__ import annotations

import csv
import importlib.resources
import importlib.util
import io
import os
import pathlib
import socket
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from keras_augreg.atomic import replacing

if TYPE_CHECKING:
    import pandas

COLUMNS: dict[str, type] = {
    # Of the release's index. Accuracies are from 0 to 1.
    "name": str,  # "B/16"
    "ds": str,  # pre-training set
    "epochs": float,
    "lr": float,
    "aug": str,  # in the release's spelling
    "wd": float,
    "do": float,
    "sd": float,
    "best_val": float,
    "final_val": float,
    "final_test": float,
    "adapt_ds": str,  # fine-tuning set; none in a row of pre-training alone
    "adapt_lr": float,
    "adapt_steps": int,
    "adapt_resolution": int,
    "adapt_final_val": float,
    "adapt_final_test": float,
    "params": int,
    "infer_samples_per_sec": float,  # ours: on the device that trained
    "filename": str,
    "adapt_filename": str,
    # Ours.
    "seed": int,
    "fraction": float,  # of the pre-training set
    "num_examples": int,  # pre-trained on
    "resolution": int,  # of the pre-training, pixels
    "batch_size": int,
    "train_seconds": float,  # pre-training, with its validations
    "train_samples_per_sec": float,
    "adapt_num_examples": int,
    "adapt_seconds": float,  # fine-tuning, with its validations
    "backend": str,
    "status": str,  # "done", "failed" or "running" (or it was killed)
    "attempts": int,
    "error": str,
}
# Training images, arXiv 2106.10270, section 3.1 and figure 1.
IMAGES = {"i1k": 1_280_000, "i21k_30": 13_000_000, "i21k": 13_000_000}


def read(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Reads a results table.

    Args:
        path: `results.csv` or `results.parquet` of a sweep, or the release's
            `index.csv` (`keras_augreg.checkpoints.search()` fetches it).

    Returns:
        A data frame with all of `COLUMNS`, empty where the file has none.

    Raises:
        ImportError: If pandas (extra `study`) is not installed.
        ValueError: If the file is no such table.

    Example:
    >>> table = read("runs/sweep/results.csv")
    >>> table.groupby("aug")["final_test"].max()
    """
    pandas = _pandas()
    path = pathlib.Path(path)
    # All at once: pandas opens a Parquet file twice, and a sweep may replace
    # it in between.
    content = io.BytesIO(path.read_bytes())
    if path.suffix == ".parquet":
        table = pandas.read_parquet(content)
    else:
        table = pandas.read_csv(content)
    if missing := {"name", "ds", "aug", "filename"} - set(table.columns):
        raise ValueError(
            f"{path} is no results table: it lacks the columns "
            f"{', '.join(sorted(missing))}. Expected results.csv of a sweep "
            "or the release's index.csv."
        )
    return table.reindex(columns=[*COLUMNS])


def published() -> pandas.DataFrame:
    """The figures that the paper printed, as a table.

    Tables 3 and 5 and figure 4 of arXiv 2106.10270v2; the asset's README says
    how they were read. `final_val` are figure 4's upstream accuracies, the
    better of the two weight decays. `adapt_final_test` are table 3's on
    ImageNet-1k (`adapt_ds` "imagenet2012") and table 5's means over VTAB's
    groups ("natural", "specialized", "structured"), each of the best recipe
    by upstream validation; its `aug` is empty.

    Returns:
        A data frame as from `read`.

    Raises:
        ImportError: If pandas (extra `study`) is not installed.
    """
    return read_text(_asset())


def read_text(text: str) -> pandas.DataFrame:
    """As `read`, of the text of a CSV file."""
    return _pandas().read_csv(io.StringIO(text)).reindex(columns=[*COLUMNS])


def published_rows() -> list[dict[str, str]]:
    """As `published`, without pandas: cells are texts."""
    return list(csv.DictReader(io.StringIO(_asset())))


def to_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """The rows as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_parquet(rows: Iterable[Mapping[str, Any]]) -> bytes | None:
    """The rows as a Parquet file; `None` if pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        return None
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), buffer)
    return buffer.getvalue()


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file as a whole or not at all.

    Args:
        path: One that exists is replaced.
        content: What it is to hold.

    Raises:
        OSError: If it cannot be written; then it is as it was.
    """
    # This process's own among all machines; a cell's name may fill what a
    # file system allows.
    own = f"{path.name}.{socket.gethostname()}.{os.getpid()}"
    with replacing(path, path.with_name(f".{own[-200:]}")) as file:
        file.write(content)


def _asset() -> str:
    asset = importlib.resources.files("keras_augreg") / "assets/paper.csv"
    return asset.read_text(encoding="utf-8")


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "Tables and figures of a study need pandas: pip install "
            "'keras_augreg[study]'"
        ) from error
    return pandas
