r"""Names what a model sees in photos.

    python recipes/predict.py runs/finetune/model.keras photo.jpg FOLDER

The model is a `.keras` file, with the class names that it was saved with, or
an architecture with its released weights (downloaded once):

    python recipes/predict.py ViT_B16 photo.jpg

Prints one line for each photo; `--sample=sample_submission.csv` writes
`submission.csv` in its form instead, with `--value=CLASS` the probability of
that class. Hardware: any. In Python:
`keras_augreg.predict`, `keras_augreg.submission`.
"""

from __future__ import annotations

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

from absl import app, flags

import keras_augreg
from keras_augreg.data import tables

_TOP = flags.DEFINE_integer("top", 5, "Classes to name.", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 32, "Images at once.", lower_bound=1
)
_TTA = flags.DEFINE_enum(
    "tta", None, ["flip", "crops"], "Views of a photo to average."
)
_SAMPLE = flags.DEFINE_string(
    "sample", None, "A competition's sample submission; all classes are used."
)
_VALUE = flags.DEFINE_string(
    "value", None, "The class whose probability the sample's only column gets."
)


def main(argv: list[str]) -> None:
    """Predicts and prints."""
    if len(argv) < 3:
        raise app.UsageError("Pass a model and at least one photo or folder.")
    if _VALUE.value is not None and not _SAMPLE.value:
        raise app.UsageError("--value is for a --sample. Pass its file.")
    _, model, *images = argv
    try:
        if _SAMPLE.value:
            tables.read(_SAMPLE.value)  # Before all is predicted.
        top = sys.maxsize if _SAMPLE.value else _TOP.value
        predictions = keras_augreg.predict(
            model, images, top, _BATCH_SIZE.value, _TTA.value
        )
        if _SAMPLE.value:
            path = keras_augreg.submission(
                predictions, _SAMPLE.value, value=_VALUE.value
            )
            print(path)
            return
    except (OSError, ValueError) as error:
        raise app.UsageError(str(error)) from error
    for prediction in predictions:
        print(prediction)


if __name__ == "__main__":
    app.run(main)
