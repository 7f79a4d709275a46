"""The results table: a sweep's, or the release's `index.csv`.

The first columns are those of the release's index (`vit_jax_augreg.ipynb` of
google-research/vision_transformer), in its order and spelling, so that the
tables can be joined and concatenated; ours follow.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keras_augreg.atomic import owner, replacing

if TYPE_CHECKING:
    import pandas

COLUMNS: dict[str, type] = {
    # The release's index. Accuracies are from 0 to 1.
    "name": str,  # "B/16"
    "ds": str,  # pre-training set
    "epochs": float,
    "lr": float,
    "aug": str,  # level of augmentation in the release's spelling
    "wd": float,
    "do": float,
    "sd": float,
    "best_val": float,
    "final_val": float,
    "final_test": float,
    "adapt_ds": str,  # fine-tuning set; none in the row of a pre-training
    "adapt_lr": float,
    "adapt_steps": int,
    "adapt_resolution": int,
    "adapt_final_val": float,
    "adapt_final_test": float,
    "params": int,
    "infer_samples_per_sec": float,  # in a sweep: on the training device
    "filename": str,
    "adapt_filename": str,
    # Ours.
    "seed": int,
    "fraction": float,  # of the pre-training set
    "num_examples": int,  # pre-trained on
    "resolution": int,  # image size of the pre-training, pixels
    "batch_size": int,
    "train_seconds": float,  # pre-training, with its validations
    "train_samples_per_sec": float,
    "adapt_num_examples": int,
    "adapt_seconds": float,  # fine-tuning, with its validations
    "backend": str,
    "status": str,  # "done", "failed" or "running" (perhaps killed)
    "attempts": int,
    "error": str,
}
# Training images as the paper's Figure 1 counts them (3.1 says about 14M).
IMAGES = {"i1k": 1_280_000, "i21k_30": 13_000_000, "i21k": 13_000_000}


def read(path: str | os.PathLike[str]) -> pandas.DataFrame:
    """Reads a results table.

    Args:
        path: `results.csv` or `results.parquet` of a sweep, or the release's
            `index.csv` (`keras_augreg.checkpoints.search()` fetches it).

    Returns:
        A data frame with all of `COLUMNS`, NaN where the file has none.

    Raises:
        ImportError: If pandas (extra `study`) is not installed.
        ValueError: If the file is not a results table.

    Example:
    >>> table = read("runs/sweep/results.csv")
    >>> table.groupby("aug")["final_test"].max()
    """
    pandas = _pandas()
    path = pathlib.Path(path)
    parquet = path.suffix == ".parquet"
    # Read at once: pandas opens a Parquet file twice, and a sweep may replace
    # it in between.
    content = io.BytesIO(path.read_bytes())
    table = (pandas.read_parquet if parquet else pandas.read_csv)(content)
    if missing := {"name", "ds", "aug", "filename"} - set(table.columns):
        raise ValueError(
            f"{path} is not a results table: it lacks the columns "
            f"{', '.join(sorted(missing))}. Expected results.csv of a sweep "
            "or the release's index.csv."
        )
    return table.reindex(columns=[*COLUMNS])


def as_table(
    rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = tuple(COLUMNS)
) -> pandas.DataFrame:
    """Makes a data frame of rows that have some of the columns."""
    return _pandas().DataFrame(list(rows)).reindex(columns=list(columns))


def read_text(text: str) -> pandas.DataFrame:
    """As `read`, from the text of a CSV file."""
    return _pandas().read_csv(io.StringIO(text)).reindex(columns=[*COLUMNS])


def to_csv(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """Formats rows as a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def to_parquet(rows: Iterable[Mapping[str, Any]]) -> bytes | None:
    """Formats rows as a Parquet file; `None` without pyarrow."""
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
    """Writes a file completely or not at all, on a shared directory too."""
    # Unique among all machines; cut, as a cell's name may be as long as a
    # file system allows.
    own = f"{path.name}.{owner()}"
    with replacing(path, path.with_name(f".{own[-200:]}")) as file:
        file.write(content)


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError(
            "The study's tables and figures need pandas, which is not "
            "installed: pip install 'keras_augreg[study]'"
        ) from error
    return pandas
