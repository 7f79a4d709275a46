"""What surrounds a step on JAX.

Weights that survive exceptions, as Keras drops them while steps run; gathers
of split ones; and the parts of a batch that a TPU computes one by one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

from keras_augreg import vit
from keras_augreg.distribution import gathered
from keras_augreg.layer import sets_trainable

# What steps of training, testing and prediction take and return on JAX.
_JAX_STATES = {
    len(names): [f"{name}_variables" for name in names]
    for names in (
        ("trainable", "non_trainable", "optimizer", "metrics"),
        ("trainable", "non_trainable", "metrics"),
        ("trainable", "non_trainable"),
    )
}


def _keeping(name: str) -> Any:
    @functools.wraps(getattr(keras.Model, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self._state_kept():
            return getattr(super(KeepsState, self), name)(*args, **kwargs)

    return method


class KeepsState(keras.Model):
    """A model whose variables have values after any exception.

    It is saved with `jit_compile` as given: "auto" means another thing on
    another backend, whereas Keras saves what it meant.
    """

    _jax_state: Any
    _jit_compile_given: Any = "auto"

    @property
    def _takes_parts(self) -> bool:
        """Whether a TPU's step is faster in parts (`vit.in_parts`)."""
        return False

    def __setattr__(self, name: str, value: Any) -> None:
        if not sets_trainable(self, name, value):
            super().__setattr__(name, value)

    def compile(
        self, *args: Any, jit_compile: Any = "auto", **kwargs: Any
    ) -> None:
        super().compile(*args, jit_compile=jit_compile, **kwargs)
        self._jit_compile_given = jit_compile

    def stateless_call(
        self,
        trainable_variables: Any,
        non_trainable_variables: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        call = functools.partial(
            super().stateless_call,
            gathered(trainable_variables, self.trainable_variables),
            gathered(non_trainable_variables, self.non_trainable_variables),
        )
        one = kwargs.get("training") and len(args) == 1
        if not (one and self._takes_parts):
            return call(*args, **kwargs)
        call = functools.partial(call, **kwargs)
        outputs, states, *losses = zip(*vit.in_parts(call, *args), strict=True)
        whole = keras.tree.map_structure(vit.joined, *outputs)
        # Each part leaves the seeds as the whole batch would.
        means = [
            [sum(x) / len(x) for x in zip(*each, strict=True)]
            for each in losses
        ]
        return whole, states[0], *means

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config:
            config["jit_compile"] = self._jit_compile_given
        return config

    fit = _keeping("fit")
    evaluate = _keeping("evaluate")
    predict = _keeping("predict")
    train_on_batch = _keeping("train_on_batch")
    test_on_batch = _keeping("test_on_batch")
    predict_on_batch = _keeping("predict_on_batch")

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Gives the variables their values back after any exception.

        On JAX, Keras drops their values while steps run.
        """
        try:
            yield
        except BaseException:
            if keras.backend.backend() == "jax":
                self.jax_state_sync()
                self._jax_state = None
            raise

    def _get_jax_state(
        self, purge_model_variables: bool = False, **kwargs: Any
    ) -> Any:
        # Noted before the first step, and after each of several, for Keras
        # does so only when all of one execution are done.
        state = super()._get_jax_state(**kwargs)
        self._note_state(state)
        if purge_model_variables:
            self._purge_model_variables(**kwargs)
        return state

    def _make_function(
        self, step_function: Any, *args: Any, **kwargs: Any
    ) -> Any:
        if keras.backend.backend() != "jax":
            return super()._make_function(step_function, *args, **kwargs)

        def noting(state: Any, data: Any) -> Any:
            outputs, state = step_function(state, data)
            self._note_state(state)
            return outputs, state

        return super()._make_function(noting, *args, **kwargs)

    def _note_state(self, state: Any) -> None:
        self._jax_state = dict(zip(_JAX_STATES[len(state)], state, strict=True))
        self._jax_state_synced = False
