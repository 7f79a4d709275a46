"""What `pretrain.py` and `finetune.py` share: data, run, and what is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

from keras_augreg import data, visualize
from keras_augreg.augment import AugRegAugment
from keras_augreg.workdir import Workdir

SEED = 0


def open_run(path: str, elsewhere: Sequence[str]) -> Workdir:
    """Opens the working directory of the run that the flags describe.

    Args:
        path: The directory.
        elsewhere: Names of flags that change no result.

    Returns:
        The run.
    """
    settings = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    return Workdir(
        path, {f.name: f.value for f in settings if f.name not in elsewhere}
    )


def repeatable() -> None:
    """Makes the run repeat bit by bit where that costs no speed: on CPUs."""
    keras.utils.set_random_seed(SEED)
    if keras.config.backend() == "tensorflow":
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            tf.config.experimental.enable_op_determinism()


def load(
    source: str, **options: Any
) -> tuple[Callable[[int, int], Any], Any, Any]:
    """Loads both splits.

    Args:
        source: Of `data.load`.
        **options: Of `data.load`, for both splits.

    Returns:
        (train, test, info): the batches of `Workdir.fit`, the test set with
        the training set's classes, what is known of the training set.
    """

    def train(first: int, steps: int | None) -> Any:
        return data.load(
            source,
            "train",
            training=True,
            seed=SEED,
            start_step=first,
            steps=steps,
            **options,
        )

    _, info = train(0, None)
    test, _ = data.load(
        source, "test", training=False, class_names=info.class_names, **options
    )
    return lambda first, steps: train(first, steps)[0], test, info


def tensorboard(run: Workdir, batches: Any, recipe: Any, info: Any) -> list:
    """Shows the first images, augmented, and makes the callback.

    Args:
        run: The run.
        batches: Training batches.
        recipe: A `keras_augreg.AugReg`.
        info: Of the training set.

    Returns:
        The callbacks of `fit` that log scalars.
    """
    try:
        import tensorboard  # noqa: F401 (tf.summary needs it)
        import tensorflow as tf
    except ImportError as error:
        raise app.UsageError(
            "--tensorboard needs TensorFlow and TensorBoard. Install them "
            "with `pip install tensorflow tensorboard`, or leave the flag "
            "out: `metrics.jsonl` has the same numbers."
        ) from error
    images, labels = map(np.asarray, next(iter(batches))[:2])
    augment = AugRegAugment(recipe, info.num_classes, seed=SEED)
    shown, _ = augment(images[:16], labels[:16], step=0)
    path = run.path / "tensorboard"
    with tf.summary.create_file_writer(str(path / "inputs")).as_default():
        tf.summary.image(
            "inputs of the first step",
            (keras.ops.convert_to_numpy(shown) + 1) / 2,
            step=0,
            max_outputs=16,
        )
    return [keras.callbacks.TensorBoard(path)]


def finish(
    run: Workdir, model: Any, test: Any, info: Any, result: dict[str, Any]
) -> None:
    """Saves the model and a picture of predictions, prints the JSON line.

    Args:
        run: The run.
        model: The trained model.
        test: The test set.
        info: Of the training set.
        result: What the line says.
    """
    model.save(run.path / "model.keras")
    images, labels = map(np.asarray, next(iter(test))[:2])
    visualize.predictions(
        images[:32],
        labels[:32],
        model.predict(images[:32], verbose=0),
        info.class_names,
    ).savefig(run.path / "predictions.png", dpi=100)
    result["backend"] = keras.config.backend()
    result["workdir"] = str(run.path)
    print(json.dumps(result))
