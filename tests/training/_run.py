"""A tiny run of everything that a checkpoint has to bring back.

`_run.py --workdir=DIR [--distribute=KIND] [--recipe=NAME] [--until=STEP]`
trains it. With a recipe, nothing is dropped, so that backends agree.
"""

import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras

from keras_augreg import VisionTransformer, data, distribute
from keras_augreg.recipe import AugReg
from keras_augreg.training import Workdir, compile_pretraining

STEPS, INTERVAL = 20, 4
SETTINGS = {"recipe": "medium1"}


def set_determinism(on):
    """TensorFlow repeats a run bit by bit only if told to."""
    if keras.backend.backend() == "tensorflow":
        # The public module can only turn it on; other tests need it off.
        from tensorflow.python.framework import config

        (
            config.enable_op_determinism
            if on
            else config.disable_op_determinism
        )()


def make_model(recipe=None, **changes):
    keras.utils.set_random_seed(0)
    recipe = recipe or AugReg("medium1", dropout=0.1, stochastic_depth=0.1)
    model = VisionTransformer(
        patch_size=8,
        width=16,
        depth=1,
        num_heads=2,
        mlp_dim=32,
        input_shape=(16, 16, 3),
        classes=10,
        recipe=recipe,
        seed=0,
    )
    settings = {"total_steps": STEPS, "warmup_steps": 4, "ema_momentum": 0.9}
    compile_pretraining(model, recipe, **{**settings, "seed": 1, **changes})
    return model


def digits(split="train", training=True):
    return data.load(
        "digits", split, image_size=16, batch_size=8, training=training
    )[0]


def train(
    model,
    workdir,
    callbacks=(),
    verbose=0,
    settings=SETTINGS,
    shard=(0, 1),
    until=STEPS,
):
    run = Workdir(workdir, settings)
    run.fit(
        model,
        digits().sharded(*shard),
        total_steps=until,
        interval=INTERVAL,
        callbacks=list(callbacks),
        verbose=verbose,
    )
    return run


def main(*arguments):
    options = dict(text.removeprefix("--").split("=") for text in arguments)
    set_determinism(True)
    recipe = AugReg(options["recipe"]) if "recipe" in options else None
    kind, _, parts = options.get("distribute", "none").partition(":")
    with distribute(kind, int(parts) if parts else None) as devices:
        train(
            make_model(recipe),
            options["workdir"],
            shard=devices.shard,
            until=int(options.get("until", STEPS)),
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
