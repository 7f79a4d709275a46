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

It was not run here. The script writes the model (`model.keras`) and a picture
of predictions on test images (`predictions.png`) to --workdir, and ends with
one line of JSON.
"""

from __future__ import annotations

import json
import os
import pathlib
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
from absl import app, flags

import keras_augreg
from keras_augreg import data, visualize

_DATASET = flags.DEFINE_string(
    "dataset", None, "See `data.load`.", required=True
)
_WEIGHTS = flags.DEFINE_string("weights", None, "File or alias.", required=True)
_MODEL = flags.DEFINE_string("model", "ViT_Ti16", "Name of a builder.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels of a side.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "Images of a step.")
_STEPS = flags.DEFINE_integer("steps", 500, "Weight updates.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.003, "Its peak.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/finetune", "Output folder.")

SEED = 0


def main(argv: list[str]) -> None:
    """Fine-tunes, evaluates, saves, reports."""
    del argv
    start = time.monotonic()
    keras.utils.set_random_seed(SEED)
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)

    size, steps = _IMAGE_SIZE.value, _STEPS.value
    train, info = data.load(
        _DATASET.value,
        "train",
        image_size=size,
        batch_size=_BATCH_SIZE.value,
        training=True,
        seed=SEED,
        steps=steps,
    )
    test, test_info = data.load(
        _DATASET.value,
        "test",
        image_size=size,
        batch_size=_BATCH_SIZE.value,
        training=False,
        class_names=info.class_names,
    )
    model = getattr(keras_augreg, _MODEL.value)(
        weights=_WEIGHTS.value,
        input_shape=(size, size, 3),
        classes=info.num_classes,
    )
    keras_augreg.compile_finetuning(
        model,
        total_steps=steps,
        base_lr=_LEARNING_RATE.value,
        warmup_steps=min(500, steps // 5),
    )
    model.fit(train)
    scores = model.evaluate(test, return_dict=True)
    model.save(workdir / "model.keras")

    images, labels = next(iter(test))[:2]
    images = keras.ops.convert_to_numpy(images)[:32]
    visualize.predictions(
        images,
        keras.ops.convert_to_numpy(labels)[:32],
        model.predict(images, verbose=0),
        info.class_names,
    ).savefig(workdir / "predictions.png", dpi=100)
    print(
        json.dumps(
            {
                "model": _MODEL.value,
                "weights": _WEIGHTS.value,
                "dataset": _DATASET.value,
                "test_examples": test_info.num_examples,
                **{f"test_{name}": value for name, value in scores.items()},
                "steps": steps,
                "minutes": round((time.monotonic() - start) / 60, 2),
                "backend": keras.config.backend(),
                "workdir": str(workdir),
            }
        )
    )


if __name__ == "__main__":
    app.run(main)
