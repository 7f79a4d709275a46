"""A run that can be stopped at any moment and goes on where it was.

A working directory holds

    settings.json             what the run is
    metrics.jsonl             a line for each interval
    checkpoints/0000001200.npz  the state after 1,200 batches; the newest few
    best.npz                  the state with the best validation metric

A checkpoint holds every variable: weights, seeds, optimizer, moving averages.
The augmentation draws from the seed and the step, and the data set starts at
any step, so nothing else is needed to go on bit for bit.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import signal
import threading
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import keras
import numpy as np

from keras_augreg import distribution
from keras_augreg.atomic import replacing

# Batches that a pass has beyond those trained on. Keras on TensorFlow looks at
# some before it begins, at several under a strategy, whose devices read ahead;
# if they ended the pass, training would begin with the batches of the next.
UNREAD = 64


class Workdir:
    """The directory of one run.

    Args:
        path: Made if there is none. With several processes, one that all of
            them see; the first writes.
        settings: What makes the run this experiment; JSON values. A directory
            of another experiment is refused.
        keep: How many checkpoints are kept besides the best one, at least 1;
            a damaged newest one falls back to the one before it.
        monitor: The metric of `fit` whose greatest value makes the best
            checkpoint.

    Raises:
        ValueError: If the directory's run had other settings; the message
            shows which.

    Example:
    ```python
    run = Workdir("/tmp/run", {"learning_rate": 0.01, "total_steps": 1_000})
    run.fit(model, load_batches, total_steps=1_000, interval=100)
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: dict[str, Any],
        keep: int = 3,
        monitor: str = "val_accuracy",
    ) -> None:
        if keep < 1:
            raise ValueError(f"`keep` is at least 1. Received: keep={keep}")
        self.path = pathlib.Path(path)
        self.keep = keep
        self.monitor = monitor
        self.terminated = False
        self._arrays: dict[str, Any] = {}
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        self._check_settings(json.loads(json.dumps(settings)))

    def fit(
        self,
        model: Any,
        train: Any,
        *,
        total_steps: int,
        interval: int,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Trains a compiled model to the end, from wherever the run is.

        Each interval is an epoch of `model.fit`: it ends in an evaluation (if
        there is `validation_data`) and a checkpoint. SIGTERM makes one at
        the next step and exits with status 143.

        Args:
            model: Compiled and built, with the run's settings.
            train: The training data, from `keras_augreg.data.load`; or any
                object whose `at(step, steps)` returns the run's batches from
                `step` on, which depend on nothing else. It is asked for
                `UNREAD` more than are trained on, also beyond the last.
            total_steps: Batches of the whole run.
            interval: Batches from one checkpoint to the next.
            callbacks: More Keras callbacks.
            **kwargs: Of `model.fit`.

        Raises:
            FloatingPointError: If loss or weights become NaN or infinite; the
                last good checkpoint stays.
            OSError: If a checkpoint cannot be written; those before it stay.
        """
        batches = getattr(train, "at", train)
        # `fit` would build metrics on a first batch that it throws away, and
        # what is prepared in advance could use up a short pass.
        model.test_on_batch(*map(np.asarray, next(iter(batches(0, 2)))[:2]))
        with self._heeding_sigterm():
            while (step := self.restore(model)) < total_steps:
                # What a stop in the middle left of an interval comes first.
                steps, epochs = interval - step % interval, 1
                if steps == interval and total_steps - step >= interval:
                    epochs = (total_steps - step) // interval
                steps = min(steps, total_steps - step)
                epoch = step // interval
                model.fit(
                    batches(step, epochs * steps + UNREAD),
                    initial_epoch=epoch,
                    epochs=epoch + epochs,
                    steps_per_epoch=steps,
                    callbacks=[
                        # What these add to the logs is saved, too.
                        *(callbacks or []),
                        _Checkpoints(self, step, step % interval > 0),
                    ],
                    **kwargs,
                )
        # `fit` ended so, but the checkpoint holds the weights before it.
        model.optimizer.finalize_variable_values(model.trainable_variables)

    def save(self, model: Any, step: int, logs: dict[str, Any]) -> None:
        """Writes a checkpoint; a crash at any moment leaves those before it.

        Args:
            model: The model; its metrics are saved too.
            step: Batches trained on.
            logs: Metrics of the interval, empty within one.
        """
        arrays = {
            key: distribution.to_numpy(variable)
            for key, variable in _variables(model).items()
        }
        for key, variable in _metrics(model).items():
            arrays[key] = distribution.to_numpy(variable)
        for key, array in arrays.items():
            # bfloat16 has no name that NumPy could load again.
            if array.dtype.kind not in "biuf":
                arrays[key] = array.astype("float32")
            if not np.isfinite(arrays[key]).all():
                self._stop(model, step, f"{key} is not finite")
        if distribution.process()[0] > 0:
            return
        value = logs.get(self.monitor)
        arrays["step"] = np.int64(step)
        arrays["value"] = np.float64(-np.inf if value is None else value)
        file = self._file(step)
        if logs:
            self._log({"step": step, **logs})
        with _replacing(file) as f:
            np.savez(f, **arrays)
        if value is not None and value > self._best():
            best = self.path / "best.npz"
            link = best.with_suffix(".tmp")
            link.unlink(missing_ok=True)
            os.link(file, link)
            os.replace(link, best)
        for old in self._files()[: -self.keep]:
            old.unlink()

    def restore(self, model: Any) -> int:
        """Puts the newest good checkpoint into the model.

        Returns:
            Batches trained on; 0 and an untouched model without checkpoint.

        Raises:
            ValueError: If a checkpoint is of another model.
        """
        for file in reversed(self._files()):
            try:
                with np.load(file) as archive:
                    arrays = {key: archive[key] for key in archive.files}
                step = int(arrays["step"])
            except (OSError, EOFError, KeyError, ValueError,
                    zipfile.BadZipFile) as error:  # fmt: skip
                warnings.warn(
                    f"The checkpoint {file} is damaged ({error}); going on "
                    "from the one before it.",
                    stacklevel=2,
                )
                continue
            _assign(model, arrays, file)
            self._arrays = arrays
            return step
        return 0

    def restore_metrics(self, model: Any) -> None:
        """Continues the means of an interval that was stopped within."""
        for key, variable in _metrics(model).items():
            if key in self._arrays:
                variable.assign(self._arrays[key])

    def restore_best(self, model: Any) -> float:
        """Puts the checkpoint with the best validation metric into the model.

        Returns:
            The metric.
        """
        with np.load(self.path / "best.npz") as archive:
            _assign(model, dict(archive), self.path / "best.npz")
            return float(archive["value"])

    @contextlib.contextmanager
    def _heeding_sigterm(self) -> Iterator[None]:
        def terminate(*_: object) -> None:
            # `torchrun` tells all its processes; the first decides for them,
            # as they cannot go on without it.
            self.terminated = distribution.process()[0] == 0

        self.terminated = False
        if (
            # Python handles signals in the main thread alone.
            threading.current_thread() is not threading.main_thread()
            or distribution.jax_hosts()  # `preempted` hears it.
        ):
            yield
            return
        before = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        file = self.path / "settings.json"
        if not file.exists():
            if distribution.process()[0] == 0:
                text = json.dumps(settings, indent=2) + "\n"
                with _replacing(file) as f:
                    f.write(text.encode())
            return
        before = json.loads(file.read_text())
        changed = [
            f"  {key}: {before.get(key, 'not set')!r} before, "
            f"{settings.get(key, 'not set')!r} now"
            for key in sorted({*before, *settings})
            if before.get(key) != settings.get(key)
        ]
        if changed:
            raise ValueError(
                f"The run in {self.path} is another experiment:\n"
                + "\n".join(changed)
                + "\nTake the settings it had, or another directory."
            )

    def _file(self, step: int) -> pathlib.Path:
        return self.path / "checkpoints" / f"{step:010d}.npz"

    def _files(self) -> list[pathlib.Path]:
        return sorted((self.path / "checkpoints").glob("*.npz"))

    def _best(self) -> float:
        try:
            with np.load(self.path / "best.npz") as archive:
                return float(archive["value"])
        except FileNotFoundError:
            return -math.inf

    def _log(self, line: dict[str, Any]) -> None:
        """Adds a line; drops those that the run is about to repeat."""
        file = self.path / "metrics.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        kept = [s for s in lines if json.loads(s)["step"] < line["step"]]
        text = "\n".join([*kept, json.dumps(line)]) + "\n"
        with _replacing(file) as f:
            f.write(text.encode())

    def _stop(self, model: Any, step: int, what: str) -> None:
        good = self._files()
        # The rate of the update that this batch was for.
        update = (step - 1) // (
            _optimizer(model).gradient_accumulation_steps or 1
        )
        rate = _optimizer(model)._learning_rate
        rate = float(rate(update) if callable(rate) else rate)
        raise FloatingPointError(
            f"Stopped at step {step}, learning rate {rate:.3g}: {what}. Last "
            f"good checkpoint: {good[-1] if good else 'none'}. A lower "
            "learning_rate, a longer warm-up or float32 may help."
        )


class _Checkpoints(keras.callbacks.Callback):
    # Keras then calls `on_train_batch_end` in a thread when the loss is there,
    # instead of making the device wait for every step to be looked at.
    async_safe = True

    def __init__(self, run: Workdir, step: int, within: bool) -> None:
        super().__init__()
        self._run = run
        self._epoch_start = self._step = step
        self._within = within
        self._bad: tuple[int, float] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._within:
            self._run.restore_metrics(self.model)
            self._within = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._check_loss()
        if distribution.jax_hosts():
            self._run.terminated = distribution.preempted()
        if self._run.terminated:
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            self._run.save(self.model, self._epoch_start + batch, {})
            raise SystemExit(128 + signal.SIGTERM)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._step = max(self._step, self._epoch_start + batch + 1)
        loss = float((logs or {}).get("loss", 0.0))
        step = self._epoch_start + batch + 1
        if not math.isfinite(loss) and (not self._bad or step < self._bad[0]):
            self._bad = step, loss

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._check_loss()
        self._run.save(self.model, self._step, dict(logs or {}))
        distribution.barrier()
        self._epoch_start = self._step
        if self._run.terminated:
            raise SystemExit(128 + signal.SIGTERM)

    def _check_loss(self) -> None:
        if self._bad:
            step, loss = self._bad
            self._run._stop(self.model, step, f"the loss is {loss}")


def _optimizer(model: Any) -> Any:
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def _variables(model: Any) -> dict[str, Any]:
    """All that training changes, under names that are unique and stable.

    Paths are not: Keras numbers the seed generators of a process.
    """
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{i}/{variable.name}": variable
        for group, variables in groups.items()
        for i, variable in enumerate(variables)
    }


def _metrics(model: Any) -> dict[str, Any]:
    return {
        f"metrics/{i}/{variable.name}": variable
        for i, variable in enumerate(model.metrics_variables)
    }


def _assign(model: Any, arrays: dict[str, Any], file: pathlib.Path) -> None:
    variables = _variables(model)
    for key, variable in variables.items():
        if key not in arrays or arrays[key].shape != tuple(variable.shape):
            found = arrays[key].shape if key in arrays else "no such array"
            raise ValueError(
                f"The checkpoint {file} is of another model: for {key} of "
                f"shape {tuple(variable.shape)} it has {found}."
            )
    for key, variable in variables.items():
        variable.assign(arrays[key])


def _replacing(file: pathlib.Path) -> AbstractContextManager[BinaryIO]:
    # Always the same name, which replaces what a killed run left.
    return replacing(file, file.with_suffix(".tmp"))
