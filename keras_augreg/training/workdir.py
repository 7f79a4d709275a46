"""A run that can be stopped at any moment and resumed.

A working directory holds

    settings.json             what the run is
    metrics.jsonl             one line per interval
    checkpoints/0000001200    the state after 1,200 batches: the newest few,
                              and that with the best value of `monitor`
    lock, lock.json           which process trains here

A checkpoint holds every variable: weights, seeds, optimizer, moving averages
(keras_augreg.training.storage says how).
The augmentation draws from the seed and the step, and the training data can
start at any step, so nothing else is needed to resume bit for bit.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from keras_augreg import atomic, distribution
from keras_augreg.checks import check_choice, warn
from keras_augreg.training import state, storage
from keras_augreg.training.progress import Progress
from keras_augreg.training.rundir import (
    locked,
    plain,
    read_log,
    read_settings,
    replacing,
    unusable,
    warn_of_damage,
)
from keras_augreg.trainstep import inner_optimizer, separate_averages

# Batches that a pass offers beyond those trained on. Keras on TensorFlow looks
# at some before it starts, at several under a strategy, whose devices read
# ahead; a pass that ended there would shift the batches of the next one.
UNREAD = 64


class Workdir:
    """The directory of one run.

    Args:
        path: Created if it does not exist; on a disk, or `gs://BUCKET/NAME`.
            If there are several processes, all must see it.
        settings: What makes the run this experiment: JSON values. The
            directory of another experiment is refused.
        keep: Number of checkpoints to keep besides the best one, at least 1.
            If the newest is damaged, the run resumes from the one before.
        monitor: The metric in the logs of `fit` that decides which checkpoint
            is the best.
        mode: `"max"` if the greatest value is the best, `"min"` if the least.

    Raises:
        ValueError: An argument is not as above, or the directory belongs to a
            run with other settings; the message shows the differences.

    Example:
    ```python
    run = Workdir("/tmp/run", {"learning_rate": 0.01, "total_steps": 1_000})
    train, info = keras_augreg.data.load(
        "digits", "train", image_size=32, batch_size=64, training=True
    )
    run.fit(model, train, total_steps=1_000, interval=100)
    ```
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        settings: dict[str, Any],
        keep: int = 3,
        monitor: str = "val_accuracy",
        mode: str = "max",
    ) -> None:
        if keep < 1:
            raise ValueError(
                f"`keep` must be at least 1. Received: keep={keep}"
            )
        check_choice("mode", mode, ("max", "min"))
        self.path = atomic.as_path(path)
        if not atomic.is_remote(self.path):
            self.path = self.path.absolute()
        self.keep = keep
        self.monitor = monitor
        self.mode = mode
        self.terminated = False
        self._settings = plain(settings)
        self._engine = storage.engine()
        self._folder = self.path / "checkpoints"
        self._pending: Any = None  # The checkpoint that is being written.
        self._still_mine: Callable[[], None] = lambda: None
        self._metrics: dict[str, Any] = {}
        self._damaged: set[Any] = set()
        try:
            if not atomic.is_remote(self.path):  # Objects need no folder.
                self._folder.mkdir(parents=True, exist_ok=True)
            self._check_settings()
        except OSError as error:
            raise unusable(self.path, error) from error

    def fit(
        self,
        model: Any,
        train: Any,
        *,
        total_steps: int,
        interval: int,
        restore_best: bool = False,
        callbacks: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Trains a compiled model to the end, from wherever the run is.

        Each interval is an epoch of `model.fit`: it ends with an evaluation
        (if there is `validation_data`) and a checkpoint. SIGTERM makes one
        after the current step and exits with status 143.

        With `ema_momentum`, the model ends with the averages, as after
        `model.fit`; add `keras.callbacks.SwapEMAWeights()` to validate with
        them, too. A callback that sets `model.stop_training` ends the run;
        started again, the run goes on.

        Args:
            model: Compiled and built, with the run's settings.
            train: The training data, from `keras_augreg.data.load`; or any
                object whose `at(step, steps)` returns the run's batches from
                `step` on, which depend on nothing else. It is asked for
                `UNREAD` more than are trained on, also beyond the last.
            total_steps: Weight updates of the whole run, as for `compile_*`.
            interval: Weight updates from one checkpoint to the next.
            restore_best: Whether the model ends with the checkpoint whose
                `monitor` is the best, instead of the last one.
            callbacks: More Keras callbacks.
            **kwargs: Passed to `model.fit`.

        Raises:
            FloatingPointError: Loss or weights became NaN or infinite; the
                last good checkpoint stays.
            OSError: A checkpoint cannot be written; those before it stay.
            RuntimeError: Another process trains in this directory; the
                message names its host and process id.
            ValueError: `restore_best` without `monitor` in the logs,
                `SwapEMAWeights(swap_on_epoch=True)`, `total_steps` or
                `interval` below 1, or the run is past `total_steps`.
        """
        if min(total_steps, interval) < 1:
            raise ValueError(
                "`total_steps` and `interval` must be at least 1. Received: "
                f"{total_steps=}, {interval=}"
            )
        for callback in callbacks or []:
            if getattr(callback, "swap_on_epoch", False):
                raise ValueError(
                    "SwapEMAWeights(swap_on_epoch=True) would swap the "
                    "weights that a checkpoint saves. Use SwapEMAWeights()."
                )
        # Build the metrics now: otherwise `fit` consumes a batch to build
        # them, and prefetching could exhaust a short pass.
        model.test_on_batch(*map(np.asarray, next(iter(train.at(0, 2)))[:2]))
        batches = total_steps * _batches_per_update(model)
        interval *= _batches_per_update(model)
        stopped = False
        with (
            locked(self.path) as self._still_mine,
            self._heeding_sigterm(),
            self._finishing(),
        ):
            # Two processes may have been the first to write them.
            self._check_settings()
            if distribution.process()[0] == 0:
                storage.clean(self._folder)
            distribution.barrier()
            while (step := self.restore(model, batches)) < batches:
                # First finish the interval that was interrupted.
                steps, epochs = interval - step % interval, 1
                if steps == interval and batches - step >= interval:
                    epochs = (batches - step) // interval
                steps = min(steps, batches - step)
                epoch = step // interval
                model.fit(
                    train.at(step, epochs * steps + UNREAD),
                    initial_epoch=epoch,
                    epochs=epoch + epochs,
                    steps_per_epoch=steps,
                    callbacks=[
                        # First, so that what they add to the logs is saved.
                        *(callbacks or []),
                        Progress(step, batches),
                        _Checkpoints(
                            self, step, step % interval > 0, restore_best
                        ),
                    ],
                    **kwargs,
                )
                if stopped := model.stop_training:
                    break
            if stopped and not restore_best:
                return  # with what the callback left in the model
            if restore_best:
                self.restore_best(model)
            # `fit` ends by writing the moving averages into the model; the
            # checkpoint was saved before that, so do it again here.
            model.optimizer.finalize_variable_values(model.trainable_variables)
            separate_averages(model)

    def save(self, model: Any, step: int, logs: dict[str, Any]) -> None:
        """Writes a checkpoint; a crash at any moment leaves those before it.

        Args:
            model: The model; its metrics are saved too.
            step: Batches trained on.
            logs: Metrics of the interval, empty within one.
        """
        self._begin_to_save(model, step, logs)
        self._wait()

    def _begin_to_save(
        self, model: Any, step: int, logs: dict[str, Any]
    ) -> None:
        """As `save`, but may leave the writing to the background."""
        self._wait()
        self._still_mine()
        try:
            taken = self._engine.take(
                {**state.variables(model), **state.metrics(model)}
            )
        except storage.NotFiniteError as error:
            self._stop(model, step, f"{error} is not finite")
        if logs and distribution.process()[0] == 0:
            self._log({"step": step, **logs})
        self._pending = self._engine.write(self._folder, step, taken)

    def _wait(self) -> None:
        """Waits until the last checkpoint is written; deletes old ones."""
        file, self._pending = self._pending, None
        if file is None:
            return
        try:
            self._engine.wait()
        except OSError:
            if distribution.process()[0] == 0:
                storage.clean(self._folder)
            raise
        self._damaged.discard(file)
        if distribution.process()[0] > 0:
            return
        step = storage.step_of(file)
        good = [
            p
            for p in storage.checkpoints(self._folder)
            if p not in self._damaged and storage.step_of(p) <= step
        ]
        # Another backend may have left one of this step.
        steps = [p for p in good if storage.step_of(p) < step or p == file]
        best = [p for p, _ in self._by_value(steps)[:1]]
        for old in good:
            if old not in {*steps[-self.keep :], *best}:
                storage.remove(old)

    def restore(self, model: Any, last: float = math.inf) -> int:
        """Puts the newest whole checkpoint into the model.

        Checkpoints that are damaged in any way are skipped with a warning.

        Args:
            model: The model, compiled and built.
            last: Checkpoints of later steps (batches) are skipped, too.

        Returns:
            Batches trained on; 0 and an untouched model without a checkpoint.

        Raises:
            ValueError: A checkpoint is of another model, or all of them are
                of later steps.
            ImportError: Orbax wrote it, and is not installed here.
        """
        self._wait()
        later = 0
        # The network's file system may show each host others.
        names = [p.name for p in storage.checkpoints(self._folder)]
        for name in reversed(distribution.gather(names)[0]):
            file = self._folder / name
            if not (arrays := self._read(file, model)):
                continue
            if arrays["step"] > last:
                later = later or arrays["step"]
                warn(f"{file} is skipped: after step {last}, the last")
                continue
            state.assign(model, arrays, file)
            self._metrics = {
                k: v for k, v in arrays.items() if k.startswith("metrics/")
            }
            return int(arrays["step"])
        if later:
            each = _batches_per_update(model)
            raise ValueError(
                f"The run in {self.path} is at step {later} and has no "
                f"checkpoint up to step {last}, with {each} of these for each "
                f"update of weights. Use at least total_steps="
                f"{math.ceil(later / each)}, or another directory."
            )
        return 0

    def restore_metrics(self, model: Any) -> None:
        """Continues the means of an interval that was interrupted."""
        state.assign_metrics(model, self._metrics)

    def restore_best(self, model: Any) -> float | None:
        """Puts the checkpoint with the best `monitor` into the model.

        Returns:
            The metric; `None` and an untouched model without such a
            checkpoint. Damaged ones are skipped with a warning.

        Raises:
            ValueError: The checkpoint is of another model.
        """
        self._wait()
        files = self._by_value(storage.checkpoints(self._folder))
        pairs = [[file.name, value] for file, value in files]
        for name, value in distribution.gather(pairs)[0]:
            file = self._folder / name
            if arrays := self._read(file, model):
                state.assign(model, arrays, file)
                return float(value)
        return None

    def _read(self, file: Any, model: Any) -> dict[str, Any]:
        """Reads a checkpoint; nothing if any process found damage."""
        if file in self._damaged:
            return {}
        arrays, damage = {}, ""
        like = {**state.variables(model), **state.metrics(model)}
        try:
            arrays = storage.read(file, like)
        except storage.DamagedError as error:
            damage = str(error)
        if damages := [text for text in distribution.gather(damage) if text]:
            self._damaged.add(file)
            warn_of_damage(file, damages[0])
            return {}
        return arrays

    def _by_value(self, files: list[Any]) -> list[tuple[Any, float]]:
        """Checkpoints with their `monitor`, the best first."""
        values = {
            line["step"]: line.get(self.monitor)
            for line in read_log(self.path / "metrics.jsonl")
        }
        pairs = [(file, values.get(storage.step_of(file))) for file in files]
        found = [
            (file, float(value))
            for file, value in pairs
            if isinstance(value, int | float) and not math.isnan(value)
        ]
        sign = -1 if self.mode == "max" else 1
        return sorted(found, key=lambda pair: sign * pair[1])

    @contextlib.contextmanager
    def _finishing(self) -> Iterator[None]:
        """Lets no checkpoint be half written, whatever ends the run."""
        try:
            yield
        finally:
            self._wait()

    @contextlib.contextmanager
    def _heeding_sigterm(self) -> Iterator[None]:
        def terminate(*_: object) -> None:
            # `torchrun` tells all its processes; the first decides for them,
            # because they cannot go on without it.
            self.terminated = distribution.process()[0] == 0

        self.terminated = False
        if (
            # Python handles signals only in the main thread.
            threading.current_thread() is not threading.main_thread()
            or distribution.several_jax_processes()  # `preempted` does it.
        ):
            yield
            return
        before = signal.signal(signal.SIGTERM, terminate)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
        if self.terminated and distribution.process()[1] == 1:
            raise SystemExit(128 + signal.SIGTERM)  # after the last step

    def _check_settings(self) -> None:
        file, settings = self.path / "settings.json", self._settings
        if not atomic.exists(file):
            if distribution.process()[0] == 0:
                text = json.dumps(settings, indent=2) + "\n"
                with atomic.replacing(file) as f:
                    f.write(text.encode())
            return
        before = read_settings(file)
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
                + "\nUse the settings it had, or another directory, such as "
                f"{self._free()} (the scripts' --workdir)."
            )

    def _free(self) -> Any:
        """A directory beside this one that does not exist."""
        names = (f"{self.path.name}-{i}" for i in itertools.count(2))
        paths = map(self.path.with_name, names)
        return next(path for path in paths if not path.exists())

    def _log(self, line: dict[str, Any]) -> None:
        """Adds a line; drops those that the run is about to repeat."""
        file = self.path / "metrics.jsonl"
        kept = [old for old in read_log(file) if old["step"] < line["step"]]
        # A callback's metrics may be NumPy's or a backend's.
        dump = functools.partial(
            json.dumps, default=lambda value: np.asarray(value).tolist()
        )
        with replacing(file) as f:
            f.writelines(f"{dump(entry)}\n".encode() for entry in (*kept, line))

    def _stop(self, model: Any, step: int, what: str) -> None:
        self._wait()
        files = storage.checkpoints(self._folder)
        good = [p for p in files if p not in self._damaged]
        # The rate of the update that this batch belonged to.
        update = (step - 1) // _batches_per_update(model)
        rate = inner_optimizer(model)._learning_rate
        rate = float(rate(update) if callable(rate) else rate)
        raise FloatingPointError(
            f"Stopped at step {step}, learning rate {rate:.3g}: {what}. Last "
            f"good checkpoint: {good[-1] if good else 'none'}. A lower "
            "learning_rate, a longer warm-up or float32 may help."
        )


def _batches_per_update(model: Any) -> int:
    return inner_optimizer(model).gradient_accumulation_steps or 1


class _Checkpoints(keras.callbacks.Callback):
    # Keras then calls `on_train_batch_end` in a thread once the loss is there,
    # instead of making the device wait for every step's loss to be read.
    async_safe = True

    def __init__(
        self, run: Workdir, step: int, within: bool, needs_monitor: bool
    ) -> None:
        super().__init__()
        self._run = run
        self._needs_monitor = needs_monitor
        self._epoch_start = self._step = step
        self._within = within
        self._bad: tuple[int, float] | None = None

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._within:
            self._run.restore_metrics(self.model)
            self._within = False

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._check_loss()
        if distribution.several_jax_processes():
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
        logs = dict(logs or {})
        if self._needs_monitor and self._run.monitor not in logs:
            raise ValueError(
                f"`restore_best` needs {self._run.monitor!r} in the logs, "
                f"which hold {', '.join(logs)}. Pass `validation_data`, or "
                "another `monitor` to Workdir."
            )
        self._run._begin_to_save(self.model, self._step, logs)
        distribution.barrier()
        self._epoch_start = self._step
        if self._run.terminated:
            raise SystemExit(128 + signal.SIGTERM)

    def _check_loss(self) -> None:
        if self._bad:
            step, loss = self._bad
            self._run._stop(self.model, step, f"the loss is {loss}")
