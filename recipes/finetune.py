r"""Fine-tunes a checkpoint on your own images, with the study's settings.

    python recipes/finetune.py --dataset=FOLDER --weights=FILE

FOLDER holds one folder of images for each class, or `train/` and `test/` of
such folders; FILE is a `.npz` of the release, a timm `.safetensors`, or what
`recipes/pretrain.py` saved. SGD with momentum 0.9, warm-up and cosine,
clipping at 1, a new classifier of zeros (arXiv 2106.10270, table of
hyper-parameters). The study's run on Oxford-IIIT Pets, on one accelerator:

    python recipes/finetune.py --dataset=oxford_iiit_pet --model=ViT_B16 \
        --weights=augreg-in21k --image_size=224 --batch_size=512 --steps=500 \
        --learning_rate=0.01

It was not run here. Stopped or killed, the same command goes on where it was
(docs/training.md). --workdir gets checkpoints, `settings.json`,
`metrics.jsonl`, the model (`model.keras`) and a picture of predictions; the
last line on stdout is JSON.
"""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "jax")

import common
import keras
from absl import app, flags

import keras_augreg

_DATASET = flags.DEFINE_string(
    "dataset", None, "See `data.load`.", required=True
)
_WEIGHTS = flags.DEFINE_string("weights", None, "File or alias.", required=True)
_TRAIN_SPLIT = flags.DEFINE_string("train_split", "train", "Or train[:10%].")
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "Name of a builder.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels of a side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images of a step.")
_STEPS = flags.DEFINE_integer("steps", 500, "Weight updates.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.003, "Its peak.")
_FREEZE = flags.DEFINE_bool("freeze", False, "Train the classifier alone.")
_SAVE_EVERY = flags.DEFINE_integer("save_every", 100, "Steps, see Workdir.fit.")
_DISTRIBUTE = flags.DEFINE_string("distribute", "auto", "See `distribute`.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/finetune", "Output folder.")
_TENSORBOARD = flags.DEFINE_bool("tensorboard", False, "Needs TensorFlow.")

ELSEWHERE = ("workdir", "tensorboard")  # flags that change no result


def main(argv: list[str]) -> None:
    """Fine-tunes, evaluates, saves, reports."""
    del argv
    keras.utils.set_random_seed(common.SEED)
    with keras_augreg.distribute(_DISTRIBUTE.value) as devices:
        train, test, info = common.load(
            _DATASET.value,
            _TRAIN_SPLIT.value,
            image_size=_IMAGE_SIZE.value,
            batch_size=_BATCH_SIZE.value,
            shard=devices.shard,
        )
        model = getattr(keras_augreg, _MODEL.value)(
            weights=_WEIGHTS.value,
            input_shape=(_IMAGE_SIZE.value, _IMAGE_SIZE.value, 3),
            classes=info.num_classes,
        )
        keras_augreg.compile_finetuning(
            model,
            total_steps=_STEPS.value,
            learning_rate=_LEARNING_RATE.value,
            freeze=_FREEZE.value,
        )
        # Only now: a command that failed before leaves no directory behind.
        run = common.open_run(_WORKDIR.value, ELSEWHERE, devices)
        callbacks = []
        if _TENSORBOARD.value and devices.shard[0] == 0:
            callbacks = common.tensorboard(
                run, train.at(0, 1), keras_augreg.AugReg("none"), info
            )
        run.fit(
            model,
            train,
            total_steps=_STEPS.value,
            interval=_SAVE_EVERY.value,
            validation_data=test,
            callbacks=callbacks,
        )
        scores = model.evaluate(test, return_dict=True)
    result = {
        "model": _MODEL.value,
        "weights": _WEIGHTS.value,
        "dataset": _DATASET.value,
        **{f"test_{name}": value for name, value in scores.items()},
        "steps": _STEPS.value,
    }
    common.finish(run, model, test, info, devices, result)


if __name__ == "__main__":
    app.run(main)
