"""The run of a script that trains: its directory, `fit`, its results."""

from __future__ import annotations

import json
import logging
import pathlib
import sys
from typing import Any

import keras
import numpy as np
from absl import app, flags

from keras_augreg import atomic, distribution, visualize
from keras_augreg.augment import AugRegAugment
from keras_augreg.training import Workdir
from keras_augreg.training.fewshot import real_examples
from keras_augreg.variants import find

# absl's scripts would show JAX's list of devices that a machine lacks.
logging.getLogger("jax").setLevel(logging.WARNING)

# Flags that do not change what is trained.
ELSEWHERE = ("workdir", "tensorboard", "restore_best")

FLAGS = flags.FLAGS


def workdir() -> str:
    """The folder of `--workdir`."""
    script = pathlib.Path(sys.argv[0]).stem
    return FLAGS.workdir or f"runs/{script}"


def open_run(devices: Any) -> Workdir:
    """Opens the run that the flags describe; call it late.

    A command that fails before leaves no directory behind.
    """
    if FLAGS.tensorboard:
        try:
            import tensorboardX  # noqa: F401 (writes the files)
        except ImportError as error:
            raise app.UsageError(
                "--tensorboard writes its files with tensorboardX: pip install "
                "'keras_augreg[tensorboard]', or leave the flag out: "
                "`metrics.jsonl` has the same numbers."
            ) from error
    modules = (sys.argv[0], "common")
    known = [f for m in modules for f in FLAGS.get_key_flags_for_module(m)]
    settings = {f.name: f.value for f in known if f.name not in ELSEWHERE}
    settings["model"] = find(settings["model"]).name  # However it is spelled.
    return Workdir(workdir(), settings)


def tensorboard(
    run: Workdir, train: Any, recipe: Any, info: Any, devices: Any
) -> list[Any]:
    """A callback for TensorBoard, after it got a new run's first inputs."""
    if not FLAGS.tensorboard or devices.shard[0]:
        return []
    from tensorboardX import SummaryWriter

    path = run.path / "tensorboard"
    if not (path / "inputs").exists():
        images, labels = map(np.asarray, next(iter(train.at(0, 1)))[:2])
        augment = AugRegAugment(recipe, info.num_classes, seed=FLAGS.seed)
        shown = keras.ops.convert_to_numpy(augment(images, labels, step=0)[0])
        with SummaryWriter(str(path / "inputs")) as writer:
            name = "inputs_of_the_first_step"
            writer.add_images(name, shown[:16] / 255, 0, dataformats="NHWC")
    return [_TensorBoard(path)]


class _TensorBoard(keras.callbacks.Callback):
    """Writes what `fit` logs; Keras's own callback needs TensorFlow."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self.path = path

    def on_train_begin(self, logs: Any = None) -> None:
        from tensorboardX import SummaryWriter

        self.writers = {
            part: SummaryWriter(str(self.path / part))
            for part in ("train", "validation")
        }

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        for name, value in (logs or {}).items():
            of_test = name.startswith("val_")
            writer = self.writers["validation" if of_test else "train"]
            name = f"epoch_{name.removeprefix('val_')}"
            writer.add_scalar(name, float(value), epoch)
            writer.flush()

    def on_train_end(self, logs: Any = None) -> None:
        for writer in self.writers.values():
            writer.close()


def fit(
    run: Workdir, net: Any, train: Any, test: Any, total_steps: int,
    callbacks: list[Any],
) -> dict[str, float]:  # fmt: skip
    """Trains as the flags say; returns the scores on `test`."""
    if FLAGS.ema:  # Validates what the run ends with.
        callbacks = [*callbacks, keras.callbacks.SwapEMAWeights()]
    run.fit(
        net,
        train,
        total_steps=total_steps,
        interval=FLAGS.save_every,
        restore_best=FLAGS.restore_best,
        validation_data=test,
        callbacks=callbacks,
    )
    return net.evaluate(test, return_dict=True)


def finish(
    run: Workdir, net: Any, test: Any, info: Any, devices: Any, scores: Any,
    **result: Any,
) -> None:  # fmt: skip
    """Saves the model and prints the result as JSON, in the first process.

    Call it after `with distribute(...)`: inside, saving would wait for the
    other processes.
    """
    index, processes = devices.shard
    if processes > 1 and devices.kind in ("model", "fsdp"):
        net = _gathered(net)
    if index:
        return
    net.class_names = info.class_names
    # Keras checks the ending.
    unfinished = run.path / f"unfinished.{atomic.owner()}.keras"
    with atomic.replacing(run.path / "model.keras", unfinished) as file:
        net.save(file.name)
    if processes == 1:  # Several would have to predict together.
        images, labels = _sample(test, 32)
        predicted = net.predict(images, verbose=0)
        figure = visualize.plot_predictions(
            images, labels, predicted, info.class_names
        )
        with atomic.replacing(run.path / "predictions.png") as file:
            figure.savefig(file, format="png", dpi=100)
    result |= {f"test_{name}": value for name, value in scores.items()}
    result |= {"devices": devices.replicas, "workdir": str(run.path)}
    print(json.dumps({**result, "backend": keras.config.backend()}))


def _gathered(net: Any) -> Any:
    """The model, without its optimizer, whole in every process."""
    whole = net.from_config(net.get_config())
    for mine, theirs in zip(whole.weights, net.weights, strict=True):
        mine.assign(distribution.to_numpy(theirs))
    return whole


def _sample(test: Any, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels from all parts of an evaluation set, so all classes."""
    batches = int(test.cardinality())
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for i, (batch, names) in enumerate(real_examples(test)):
        first, last = (count * k // batches for k in (i, i + 1))
        here = len(batch)
        some = np.unique(np.arange(last - first) * here // (last - first or 1))
        some = some[:here]
        images.extend(batch[some])
        labels.extend(names[some])
    return np.stack(images), np.stack(labels)
