"""The progress bar of `Workdir.fit`."""

from __future__ import annotations

from typing import Any

import keras


class Progress(keras.callbacks.ProgbarLogger):
    """Keras's progress bar, of steps, with estimates of a step's own time.

    Keras would call a run's intervals epochs, and estimate from its first
    step, which compiles, that it takes many times as long as it does.
    """

    async_safe = True  # As Keras treats its own bar.

    def __init__(self, step: int, batches: int) -> None:
        super().__init__()
        self._step = step
        self._batches = batches
        self._compiled = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._uncounted = (
            0 if self._compiled else self.model.steps_per_execution
        )
        self._compiled = True
        self.epochs = 1  # No heading of Keras's.
        super().on_epoch_begin(epoch, logs)
        if self.verbose:
            last = self._step + self.target
            steps = f"{self._step + 1} to {last} of {self._batches}"
            print(f"Steps {steps}", flush=True)
            self._step = last

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # On JAX, Keras calls this in threads, in any order, where asking for
        # `self.model` would take the state from the step that runs.
        if batch >= self._uncounted:
            super().on_train_batch_end(batch, logs)
            return
        self.progbar = keras.utils.Progbar(
            self.target, verbose=self.verbose, stateless_metrics=set()
        )
