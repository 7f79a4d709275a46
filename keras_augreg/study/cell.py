"""Trains one cell of a study; resumes it if it was interrupted."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg import checkpoints, data
from keras_augreg.data.order import shuffled_classes
from keras_augreg.recipe import AugReg, pretraining_warmup
from keras_augreg.study.grid import Cell, Pretraining, Source
from keras_augreg.study.verdict import CORRECT
from keras_augreg.training import compile_finetuning, compile_pretraining
from keras_augreg.training.rundir import read_log, replacing
from keras_augreg.training.workdir import Workdir
from keras_augreg.vision_transformer import VisionTransformer

# Share of the training images held out where there is no validation split.
# The paper: 1% (ImageNet-1k) to 20% (Resisc45), section 3.1.
VAL_SHARE = 0.1
# Each run is validated and saved at least this many times.
INTERVALS = 4
# Every cell divides a data set in the same way.
SPLIT_SEED = 0


def train(
    cell: Cell,
    folder: pathlib.Path,
    save_every: int = 1000,
    augment_on: str = "device",
    verbose: int | str = 0,
) -> dict[str, Any]:
    """Trains, validates and tests a cell.

    Args:
        cell: A cell of a grid.
        folder: Folder of the cell's files. A pre-training leaves its model
            there as `model.npz`; its fine-tunings, in folders beside it, load
            that. Each cell leaves `correct.npy`: for each test example
            whether it was classified correctly.
        save_every: Most steps between two checkpoints.
        augment_on: Where augmentation runs, `"device"` or `"host"`, with the
            same random draws. On the host it needs TensorFlow and reads
            through tf.data; it is faster there if the device is a CPU.
        verbose: Passed to `model.fit`.

    Returns:
        The columns of the table that are known after the run.

    Raises:
        ValueError: If the data set or a setting does not fit.
        FloatingPointError: If the loss becomes NaN or infinite.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(cell.seed)
    fraction = cell.fraction if isinstance(cell, Pretraining) else 1.0
    batches, val, test, info = _load(cell, fraction)
    model = VisionTransformer(
        **dataclasses.asdict(cell.model.sizes),
        input_shape=(cell.image_size, cell.image_size, 3),
        classes=info.num_classes,
        recipe=cell.recipe if isinstance(cell, Pretraining) else AugReg("none"),
        seed=cell.seed,
    )
    if isinstance(cell, Pretraining):
        total_steps = max(round(cell.epochs * info.steps_per_epoch), 1)
        compile_pretraining(
            model,
            cell.recipe,
            total_steps=total_steps,
            learning_rate=cell.learning_rate,
            warmup_steps=pretraining_warmup(total_steps),
            loss=cell.loss,
            augment_on=augment_on,
            seed=cell.seed,
        )
    else:
        total_steps = cell.steps
        if isinstance(cell.upstream, str):
            weights = checkpoints.download(cell.upstream)
        else:
            weights = folder.with_name(cell.upstream.name) / "model.npz"
        checkpoints.load(model, weights, head="new")
        compile_finetuning(
            model, total_steps=total_steps, learning_rate=cell.learning_rate
        )
    run = Workdir(folder, {"cell": cell.name}, keep=1)
    run.fit(
        model,
        batches,
        total_steps=total_steps,
        interval=min(save_every, -(-total_steps // INTERVALS)),
        validation_data=val,
        callbacks=[_Clock(cell.batch_size)],
        verbose=verbose,
    )
    logs = read_log(folder / "metrics.jsonl")
    correct = _correct(model, test)
    with replacing(folder / CORRECT) as file:
        np.save(file, correct)
    if isinstance(cell, Pretraining):
        checkpoints.to_npz(model, folder / "model.npz")
    result = {
        "params": model.count_params(),
        "infer_samples_per_sec": _speed(model, test),
        "backend": keras.config.backend(),
    }
    tested = float(correct.mean())
    return result | _figures(cell, logs, tested, info.num_examples)


def _figures(
    cell: Cell, logs: list[dict[str, Any]], tested: float, num_examples: int
) -> dict[str, Any]:
    """The columns of the table that depend on the kind of the cell."""
    accuracy = [line["val_accuracy"] for line in logs]
    seconds = sum(line["seconds"] for line in logs)
    if isinstance(cell, Pretraining):
        return {
            "best_val": max(accuracy),
            "final_val": accuracy[-1],
            "final_test": tested,
            "num_examples": num_examples,
            "train_seconds": seconds,
            "train_samples_per_sec": max(line["speed"] for line in logs),
        }
    return {
        "adapt_final_val": accuracy[-1],
        "adapt_final_test": tested,
        "adapt_num_examples": num_examples,
        "adapt_seconds": seconds,
    }


def hold_out(
    found: Any, fraction: float, val_share: float
) -> tuple[list[str], list[str], list[str]]:
    """Divides the names of a training split: train, validate, the others.

    Always in the same way, a smaller fraction being part of a larger one.
    Folders and digits are divided class by class, with at least one example
    in each part; TFDS data sets, whose labels are in their files, as a whole.
    """
    names, labels = np.array(found.names), found.labels
    if labels is None:
        labels = np.zeros(len(names), int)
    train, val, rest = [], [], []
    for places in shuffled_classes(labels, SPLIT_SEED):
        members = names[places].tolist()
        held = max(round(val_share * len(members)), 1) if val_share else 0
        held = min(held, len(members) - 1)
        count = max(round(fraction * (len(members) - held)), 1)
        val += members[:held]
        train += members[held : held + count]
        rest += members[held + count :]
    return train, val, rest


def _load(cell: Cell, fraction: float) -> tuple[Any, Any, Any, data.Info]:
    """Returns the data sets to train, validate and test on, and the info."""
    source: Source = cell.data
    arguments, options = _arguments(source.options)
    found = data.find(
        source.source,
        source.train,
        data_dir=arguments.get("data_dir"),
        options=data.Options(**options),
    )
    val_share = VAL_SHARE if source.val is None else 0.0
    train, val, rest = hold_out(found, fraction, val_share)

    def load(split: str, exclude: Sequence[str] = (), **more: Any) -> Any:
        return data.load(
            source.source,
            split,
            image_size=cell.image_size,
            batch_size=cell.batch_size,
            options=data.Options(**{**options, "exclude": exclude}),
            **{**arguments, **more},
        )

    rest_of_train = [*val, *rest]
    batches, info = load(
        source.train, rest_of_train, training=True, seed=cell.seed
    )
    evaluate = {"training": False, "class_names": info.class_names}
    if source.val is None:
        validation, _ = load(source.train, [*train, *rest], **evaluate)
    else:
        validation, _ = load(source.val, **evaluate)
    return batches, validation, load(source.test, **evaluate)[0], info


def _arguments(
    settings: Mapping[str, Any],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits a source's options into arguments of `load` and `Options`."""
    arguments = dict(settings)
    crop, options = (
        {f.name: arguments.pop(f.name)
         for f in dataclasses.fields(kind) if f.name in arguments}
        for kind in (data.Preprocess, data.Options)
    )  # fmt: skip
    if crop:
        arguments["preprocess"] = data.Preprocess(**crop)
    return arguments, options


def _correct(model: Any, dataset: Any) -> np.ndarray:
    """Whether each example's highest output is one of its classes, (N,)."""
    found = []
    for batch in dataset:
        images, labels, *weights = map(np.asarray, batch)
        best = np.asarray(model.predict_on_batch(images)).argmax(axis=1)
        if labels.ndim > 1:
            right = np.take_along_axis(labels, best[:, None], 1)[:, 0] > 0
        else:
            right = labels == best
        found.append(right[weights[0] > 0] if weights else right)
    return np.concatenate(found)


def _speed(model: Any, dataset: Any) -> float:
    """Images/s of the forward pass: the best of five batches."""
    images = np.asarray(next(iter(dataset))[0])
    seconds = []
    for _ in range(6):  # The first may compile.
        start = time.perf_counter()
        model.predict_on_batch(images)
        seconds.append(time.perf_counter() - start)
    return len(images) / min(seconds[1:])


class _Clock(keras.callbacks.Callback):
    """Logs an interval's `seconds`, with validation, and images/s, without."""

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        self._batch_size = batch_size

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = self._trained = time.perf_counter()

    def on_test_begin(self, logs: Any = None) -> None:
        self._trained = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        images = self.params["steps"] * self._batch_size
        logs["seconds"] = time.perf_counter() - self._start
        logs["speed"] = images / (self._trained - self._start)
