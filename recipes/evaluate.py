r"""Measures a model on a test set: top-1, top-5, each class, confusions.

    python recipes/evaluate.py --weights=runs/pretrain/model.keras \
        --dataset=digits --image_size=32

A released checkpoint on ImageNet (the sources do not say how the published
figures resized images: --crop=resize is vit_jax's way, resize_small
big_vision's):

    python recipes/evaluate.py --dataset=imagenet-1k --model=ViT_S16 \
        --weights=augreg-in21k-ft-in1k --image_size=384 --crop=resize

and `--dataset=imagenet-v2` or `imagenet-real` (a prediction is correct if it
is one of the image's classes). These were not run here. --workdir gets
`per_class.csv` and `confusions.png`; the last line on stdout is JSON.
"""

from __future__ import annotations

import csv
import io
import json
import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import arguments
import building
import keras
import numpy as np
from absl import app, flags

from keras_augreg import atomic, data, dataset_names, visualize
from keras_augreg.recipe import PRETRAINING_RESOLUTION as RESOLUTION

_DATASET = flags.DEFINE_string("dataset", "digits", "See `data.load`.")
_SPLIT = flags.DEFINE_string("split", None, "Default: test, else val.")
_WEIGHTS = flags.DEFINE_string("weights", None, "File or alias.", required=True)
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "As 'B/16' or 'ViT_B16'.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", RESOLUTION, "Side in pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Images per step.")
_CROP = flags.DEFINE_string("crop", None, "See `data.load`.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS keeps data.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/evaluate", "Output folder.")


def main(argv: list[str]) -> None:
    """Predicts, compares, reports."""
    del argv
    source, folder = _DATASET.value, _DATA_DIR.value
    split = _SPLIT.value or data.evaluation_split(source, data_dir=folder)[1]
    test, info = data.load(
        source,
        split,
        image_size=_IMAGE_SIZE.value,
        batch_size=_BATCH_SIZE.value,
        training=False,
        data_dir=folder,
        preprocess=_CROP.value,
        # ImageNet-ReaL's labels are vectors already.
        options=data.Options(
            one_hot=not dataset_names.lookup(source, ["imagenet-real"]),
            pad=False,
        ),
    )
    model = building.pretrained(_MODEL.value, _IMAGE_SIZE.value, _WEIGHTS.value)
    names = model.class_names or info.class_names
    if (model.classes, list(names)) != (info.num_classes, info.class_names):
        raise app.UsageError(
            f"{_WEIGHTS.value} has {building.shown(names, model.classes)}, the "
            f"data set has {building.shown(info.class_names)}. Fine-tune it "
            "first (recipes/finetune.py), or take the data set that it was "
            "trained on."
        )
    truth = np.concatenate([np.asarray(batch[1]) for batch in test]) > 0
    scores = model.predict(test)
    some = truth.any(axis=1)  # ReaL has images without a class.
    truth, scores = truth[some], scores[some]
    best = np.argsort(-scores, axis=1)[:, :5]
    right = np.take_along_axis(truth, best, axis=1)

    workdir = atomic.as_path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    counts = truth.sum(axis=0)
    hits = (truth & np.eye(model.classes, dtype=bool)[best[:, 0]]).sum(axis=0)
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["class", "name", "images", "found"])
    rows = zip(info.class_names, counts, hits, strict=True)
    table.writerows([i, *row] for i, row in enumerate(rows))
    with atomic.replacing(workdir / "per_class.csv") as file:
        file.write(text.getvalue().encode())
    figure = visualize.plot_confusions(truth, best[:, 0], info.class_names)
    with atomic.replacing(workdir / "confusions.png") as file:
        figure.savefig(file, format="png", dpi=150)
    result = {
        "model": _MODEL.value,
        "weights": _WEIGHTS.value,
        "dataset": _DATASET.value,
        "split": split,
        "images": len(truth),
        "top1": float(right[:, 0].mean()),
        "top5": float(right.any(axis=1).mean()),
        "backend": keras.config.backend(),
        "workdir": str(workdir),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    arguments.run(main)
