"""What `pretrain.py` and `finetune.py` share: data, run, and what is left."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from absl import app, flags

from keras_augreg import data, visualize
from keras_augreg.augment import AugRegAugment
from keras_augreg.training.workdir import Workdir

SEED = 0


def open_run(path: str, elsewhere: Sequence[str], devices: Any) -> Workdir:
    """Opens the working directory of the run that the flags describe.

    Args:
        path: The directory.
        elsewhere: Names of flags that change no result.
        devices: Of `distribute`.

    Returns:
        The run.
    """
    if devices.kind == "model" and devices.shard[1] > 1:
        raise app.UsageError(
            "The scripts save a model from one host, which has a part of it "
            "under --distribute=model. Use --distribute=data, or one host."
        )
    if flags.FLAGS.tensorboard:
        try:
            import tensorboard  # noqa: F401 (tf.summary needs it)
            import tensorflow  # noqa: F401 (writes the files)
        except ImportError as error:
            raise app.UsageError(
                "--tensorboard needs TensorFlow and TensorBoard. Install them "
                "with `pip install tensorflow tensorboard`, or leave the flag "
                "out: `metrics.jsonl` has the same numbers."
            ) from error
    settings = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    return Workdir(
        path, {f.name: f.value for f in settings if f.name not in elsewhere}
    )


def load(
    source: str, train_split: str, shard: tuple[int, int], **options: Any
) -> tuple[Any, Any, Any]:
    """Loads both splits.

    Args:
        source: The source, as in `data.load`.
        train_split: "train" or a part of it, "train[:10%]".
        shard: (index, count) of this process.
        **options: Further arguments of `data.load`, for both splits.

    Returns:
        (train, test, info): the training set, the test set with the training
        set's classes, and the training set's `data.Info`.
    """
    train, info = data.load(
        source, train_split, training=True, seed=SEED, **options
    )
    test, _ = data.load(
        source, "test", training=False, class_names=info.class_names, **options
    )
    return train.sharded(*shard), test.sharded(*shard), info


def tensorboard(run: Workdir, batches: Any, recipe: Any, info: Any) -> list:
    """Shows inputs of a new run's first batch, and makes the callback.

    Args:
        run: The run.
        batches: Training batches.
        recipe: A `keras_augreg.AugReg`.
        info: Of the training set.

    Returns:
        The callbacks of `fit` that log scalars.
    """
    import tensorflow as tf

    path = run.path / "tensorboard"
    if not (path / "inputs").exists():
        images, labels = map(np.asarray, next(iter(batches))[:2])
        augment = AugRegAugment(recipe, info.num_classes, seed=SEED)
        shown, _ = augment(images, labels, step=0)
        with tf.summary.create_file_writer(str(path / "inputs")).as_default():
            tf.summary.image(
                "inputs of the first step",
                keras.ops.convert_to_numpy(shown[:16]) / 255,
                step=0,
                max_outputs=16,
            )
    return [keras.callbacks.TensorBoard(path)]


def finish(
    run: Workdir,
    model: Any,
    test: Any,
    info: Any,
    devices: Any,
    result: dict[str, Any],
) -> None:
    """Saves the model and a picture of predictions, prints the JSON line.

    Args:
        run: The run.
        model: The trained model.
        test: The test set.
        info: Of the training set.
        devices: Of `distribute`. The first host does all of this; there is no
            picture from several, which would have to predict together.
        result: What the line says.
    """
    index, hosts = devices.shard
    if index:
        return
    model.save(run.path / "model.keras")
    if hosts == 1:
        images, labels = map(np.asarray, next(iter(test))[:2])
        visualize.plot_predictions(
            images[:32],
            labels[:32],
            model.predict(images[:32], verbose=0),
            info.class_names,
        ).savefig(run.path / "predictions.png", dpi=100)
    result["backend"] = keras.config.backend()
    result["devices"] = devices.replicas
    result["workdir"] = str(run.path)
    print(json.dumps(result))
