r"""Writes a model for ONNX Runtime, TensorFlow Serving, LiteRT and others.

    python recipes/export.py --format=onnx runs/finetune/model.keras served

Makes the folder `served` with the exported model, which takes uint8 pixels, and
the names of its classes. Prints the file. Hardware: any; the export runs on the
CPU. What each format needs, and in Python: `keras_augreg.export`.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

from absl import app, flags

import keras_augreg
from keras_augreg.serving import FORMATS

_FORMAT = flags.DEFINE_enum("format", "onnx", list(FORMATS), "What to write.")


def main(argv: list[str]) -> None:
    """Exports and prints where."""
    if len(argv) != 3:
        raise app.UsageError("Pass a .keras file and a folder to make.")
    _, model, folder = argv
    try:
        print(keras_augreg.export(model, folder, _FORMAT.value))
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        raise app.UsageError(str(error)) from error


if __name__ == "__main__":
    app.run(main)
