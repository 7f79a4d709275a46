"""Executes the notebooks, whose files keep their outputs.

    python docs/execute.py

Without a network, as the tests do, in a few minutes; or only those that are
named: `python docs/execute.py quickstart`. Pictures get 128 colours and at most
the width of a page, which makes the files a tenth as large.
"""

from __future__ import annotations

import base64
import io
import os
import pathlib
import sys
import tempfile

import nbclient
import nbformat
import PIL.Image

ROOT = pathlib.Path(__file__).parents[1]
WIDTH = 700  # pixels


def execute(path: pathlib.Path, folder: str) -> None:
    """Executes a notebook in a folder, and keeps its outputs in its file."""
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": folder}},
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}  # No versions.
    for cell in notebook.cells:
        if "outputs" in cell:  # Warnings name the machine's folders.
            outputs = cell.outputs
            cell.outputs = [o for o in outputs if o.get("name") != "stderr"]
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                data["image/png"] = shrink(data["image/png"])
    nbformat.write(notebook, path)


def shrink(picture: str) -> str:
    """A PNG with fewer colours, both in base64."""
    image = PIL.Image.open(io.BytesIO(base64.b64decode(picture)))
    image.thumbnail((WIDTH, 10 * WIDTH))
    image = image.convert("RGB").quantize(128, dither=PIL.Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


if __name__ == "__main__":
    os.environ |= {
        "KERAS_BACKEND": "jax",
        "KERAS_AUGREG_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    os.environ.pop("KERAS_AUGREG_MIRROR", None)
    for file in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        if file.stem in (sys.argv[1:] or [file.stem]):
            with tempfile.TemporaryDirectory() as work:
                os.environ["KERAS_AUGREG_CACHE"] = f"{work}/cache"
                execute(file, work)
            print(file.name, file.stat().st_size, "bytes", flush=True)
