r"""Fine-tunes a checkpoint on your own images, with the study's settings.

    python recipes/finetune.py --dataset=FOLDER --weights=FILE

FOLDER holds one folder of images for each class, or `train/` and `test/` with
such folders; FILE is a `.npz` of the release, a timm `.safetensors`, or what
`recipes/pretrain.py` saved. SGD with momentum 0.9, warm-up and cosine,
clipping at 1, a new classifier of zeros (arXiv 2106.10270, section 3.5 and
Table 4). The study's run on Oxford-IIIT Pets, on one accelerator:

    python recipes/finetune.py --study=pets-500 --model=ViT_B16 \
        --weights=augreg-in21k --learning_rate=0.01

It was not run here. --study sets the paper's constants (Table 4), unless other
flags set them; it tried several learning rates. If it is stopped or killed, the
same command resumes the run (docs/training.md). --workdir gets checkpoints,
`settings.json`, `metrics.jsonl`, the model (`model.keras`) and a picture of
predictions; the last line on stdout is JSON. Further flags: --helpfull.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import arguments
import building
import common
import running
from absl import app, flags

import keras_augreg
from keras_augreg.recipe import FINETUNING_LEARNING_RATE as RATE
from keras_augreg.recipe import FINETUNING_RESOLUTIONS as RESOLUTIONS
from keras_augreg.recipe import (
    FINETUNING_RUNS,
    finetuning_settings,
    finetuning_warmup,
)

_STUDY = flags.DEFINE_enum(
    "study",
    None,
    [f"{name}-{n}" for name, runs in FINETUNING_RUNS.items() for n in runs[0]],
    "One of the paper's runs.",
)
_DATASET = flags.DEFINE_string("dataset", None, "See `data.load`.")
_WEIGHTS = flags.DEFINE_string("weights", None, "File or alias.", required=True)
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "As 'B/16' or 'ViT_B16'.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", RESOLUTIONS[0], "Pixels.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images per step.")
_STEPS = flags.DEFINE_integer("steps", 500, "Weight updates.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", RATE, "Peak.")
_HEAD = flags.DEFINE_enum(
    "head", "auto", ["auto", "new", "keep"], "auto: kept for the same classes."
)
_FREEZE = flags.DEFINE_bool("freeze", False, "Train only the classifier.")


def main(argv: list[str]) -> None:
    """Fine-tunes, evaluates, saves, reports."""
    del argv
    if _STUDY.value:
        common.apply(finetuning_settings(_STUDY.value))
    if not _DATASET.value:
        raise app.UsageError("Pass --dataset, or --study with its data set.")
    with keras_augreg.distribute(flags.FLAGS.distribute) as devices:
        common.start()
        train, test, info = common.load(
            _DATASET.value,
            devices.shard,
            image_size=_IMAGE_SIZE.value,
            batch_size=_BATCH_SIZE.value,
        )
        model = building.pretrained(
            _MODEL.value,
            _IMAGE_SIZE.value,
            _WEIGHTS.value,
            info.class_names,
            _HEAD.value,
        )
        keras_augreg.compile_finetuning(
            model,
            total_steps=_STEPS.value,
            learning_rate=_LEARNING_RATE.value,
            freeze=_FREEZE.value,
            **common.compile_options(finetuning_warmup(_STEPS.value)),
        )
        run = running.open_run(devices)
        recipe = keras_augreg.AugReg("none")
        callbacks = running.tensorboard(run, train, recipe, info, devices)
        scores = running.fit(run, model, train, test, _STEPS.value, callbacks)
    running.finish(
        run,
        model,
        test,
        info,
        devices,
        scores,
        model=_MODEL.value,
        weights=_WEIGHTS.value,
        dataset=_DATASET.value,
        steps=_STEPS.value,
        dtype=flags.FLAGS.dtype,
    )


if __name__ == "__main__":
    arguments.run(main)
