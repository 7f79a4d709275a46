"""The optimizers of the study, with the arithmetic of optax.

Keras's own differ where it moves weights: its Adam adds epsilon to the
uncorrected root, its SGD stores learning rate times gradient in the momentum,
its clipping under TensorFlow's strategies comes before the sum over replicas,
its schedules and moving averages count batches instead of weight updates
under gradient accumulation, and `exclude_from_weight_decay` is forgotten on
reload. These two are equal to

    optax.chain(
        optax.clip_by_global_norm(global_clipnorm),
        optax.scale_by_adam(),  # or optax.trace(momentum)
        optax.add_decayed_weights(weight_decay, mask=kernels),
        optax.scale_by_learning_rate(schedule),
    )

which is how big_vision and vit_jax write them.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import keras
from keras import ops

from keras_augreg.distribution import mean_over_processes


class _Step(NamedTuple):
    """What all variables share in one weight update."""

    learning_rate: Any
    count: Any  # float32: weight updates before this one
    due: Any  # bool: whether the weights move, or gradients are accumulated


def is_kernel(variable: Any) -> bool:
    """Whether weight decay is for this variable.

    The originals decay `.*/kernel`: convolutions, projections, MLP, head. In
    these models: `kernel`, `qkv_kernel`, `out_kernel`, `mlp_kernel1` and
    `mlp_kernel2`, not biases, scales, position embedding and class token.
    """
    name: str = variable.path.split("/")[-1]
    return re.search(r"(^|_)kernel\d*$", name) is not None


def layer_rates(paths: list[str], decay: float) -> list[float]:
    """The factor on the learning rate of each variable.

    1 for the head and the last LayerNorm, `decay` for the last block,
    `decay`^2 for the one before, one more for the embeddings and a ResNet
    stem (as in BEiT, arXiv 2106.08254, appendix; not part of the AugReg
    study).
    """
    blocks = [re.search(r"encoderblock_(\d+)/", path) for path in paths]
    depth = 1 + max((int(b[1]) for b in blocks if b), default=-1)
    rates = []
    for path, block in zip(paths, blocks, strict=True):
        if block:
            rates.append(decay ** (depth - int(block[1])))
        elif re.search(r"(^|/)(encoder_norm|head)/", path):
            rates.append(1.0)
        else:
            rates.append(decay ** (depth + 1))
    return rates


class _Optimizer(keras.optimizers.Optimizer):
    """What Adam and SGD share: everything but `direction`.

    Subclasses name their slots (variables of a weight's shape) and say which
    way a gradient moves it.
    """

    slots: tuple[str, ...]

    def __init__(
        self,
        *,
        layer_decay: float | None = None,
        momentum_dtype: str | None = None,
        **kwargs: Any,
    ) -> None:
        for unsupported in ("clipnorm", "clipvalue", "ema_overwrite_frequency"):
            if kwargs.get(unsupported) is not None:
                raise ValueError(
                    f"{type(self).__name__} does not implement "
                    f"`{unsupported}`. Received: {unsupported}="
                    f"{kwargs[unsupported]}. It clips with `global_clipnorm`, "
                    "and keras.callbacks.SwapEMAWeights swaps averages in."
                )
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(
                "`layer_decay` is the factor on the learning rate from one "
                "block to the one before, above 0 and at most 1. Received: "
                f"layer_decay={layer_decay}"
            )
        super().__init__(**kwargs)
        self.layer_decay = layer_decay
        self.momentum_dtype = momentum_dtype

    def direction(self, gradient: Any, slots: list[Any], count: Any) -> Any:
        """Returns the way before learning rate and decay, and new slots.

        All in float32, whatever the slots are stored in.
        """
        raise NotImplementedError

    def build(self, variables: list[Any]) -> None:
        if self.built:
            return
        super().build(variables)
        self._slots = [
            [
                self.add_variable(
                    v.shape,
                    dtype=(slot == "momentum" and self.momentum_dtype)
                    or v.dtype,
                    layout=getattr(v, "_layout", None),
                    name=f"{v.path.replace('/', '_')}_{slot}",
                )
                for slot in self.slots
            ]
            for v in variables
        ]
        self._decays = [
            float(self.weight_decay or 0.0) if is_kernel(v) else 0.0
            for v in variables
        ]
        self._rates = layer_rates(
            [v.path for v in variables], self.layer_decay or 1.0
        )

    def _get_current_learning_rate(self) -> Any:
        """The schedule's rate for the weight update that is accumulating."""
        if isinstance(
            self._learning_rate,
            keras.optimizers.schedules.LearningRateSchedule,
        ):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def _sum_over_replicas(self, grads: list[Any], variables: list[Any]) -> Any:
        if keras.backend.backend() == "tensorflow":
            pairs = zip(grads, variables, strict=True)
            return [g for g, _ in super()._all_reduce_sum_gradients(pairs)]
        # JAX differentiates the loss of the whole batch already.
        return mean_over_processes(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        # TensorFlow's update would sum here, after the clipping.
        return grads_and_vars

    def _backend_apply_gradients(
        self, grads: list[Any], trainable_variables: list[Any]
    ) -> None:
        grads = self._sum_over_replicas(grads, trainable_variables)
        steps = self.gradient_accumulation_steps or 1
        due = ops.equal((self._iterations + 1) % steps, 0)
        sums = grads
        if steps > 1:
            sums = [
                ops.add(self._accumulated_gradients[i], g)
                for i, g in zip(
                    map(self._get_variable_index, trainable_variables),
                    grads,
                    strict=True,
                )
            ]
            grads = [ops.divide(total, steps) for total in sums]
        grads = self._clip_gradients(grads)
        step = _Step(
            ops.cast(self.learning_rate, "float32"),
            ops.cast(self.iterations, "float32"),
            due,
        )
        # Keras's own loop over the variables, which TensorFlow's strategies
        # need; it takes whatever `update_step` understands.
        self._backend_update_step(
            list(zip(grads, sums, strict=True)), trainable_variables, step
        )

    def update_step(self, gradient: Any, variable: Any, step: Any) -> None:
        gradient, total = gradient
        index = self._get_variable_index(variable)
        accumulates = bool(self.gradient_accumulation_steps)

        def assign(target: Any, value: Any) -> None:
            if accumulates:
                value = ops.where(
                    step.due,
                    ops.cast(value, target.dtype),
                    ops.convert_to_tensor(target),
                )
            self.assign(target, value)

        slots = self._slots[index]
        direction, new_slots = self.direction(
            gradient, [ops.cast(s, "float32") for s in slots], step.count
        )
        if self._decays[index]:
            direction = direction + self._decays[index] * variable
        rate = step.learning_rate * self._rates[index]
        new = variable - rate * direction
        if self.use_ema:
            average = self._model_variables_moving_average[index]
            # The first update is the average's first value.
            keep = self.ema_momentum * ops.cast(step.count > 0, "float32")
            assign(average, keep * average + (1 - keep) * new)
        for slot, value in zip(slots, new_slots, strict=True):
            assign(slot, value)
        assign(variable, new)
        if accumulates:
            self.assign(
                self._accumulated_gradients[index],
                ops.where(step.due, ops.zeros_like(total), total),
            )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer_decay": self.layer_decay,
            "momentum_dtype": self.momentum_dtype,
        }


_SHARED_ARGS = """learning_rate: A rate above 0, or a Keras schedule, which is
            asked for the rate of a weight update, under accumulation too.
        weight_decay: Decoupled decay, times the learning rate, on kernels
            alone (`is_kernel`). `None` for none.
        global_clipnorm: Largest norm of all gradients together, after they
            are summed over replicas. `None` for no clipping.
        gradient_accumulation_steps: Batches for each weight update, at least
            2; `None` for one. Gradients are averaged before the clipping.
        layer_decay: Factor in (0, 1] on the learning rate from one block to
            the one before (`layer_rates`). `None` for none.
        momentum_dtype: Dtype that the momentum is stored in, for example
            `"bfloat16"`; `None` for that of the weight.
        **kwargs: `name`, `use_ema`, `ema_momentum` and `loss_scale_factor` of
            `keras.optimizers.Optimizer`. Averages are updated once for each
            weight update."""


@keras.saving.register_keras_serializable(package="keras_augreg")
class Adam(_Optimizer):  # noqa: D101 (an f-string)
    __doc__ = f"""Adam as in optax: epsilon is added to the corrected root.

    The betas and epsilon are big_vision's `scale_by_adam` defaults, those of
    arXiv 1412.6980.

    Args:
        {_SHARED_ARGS}
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Added to the root of the corrected second moment.

    Raises:
        ValueError: If an argument is out of range, or is one of Keras's that
            is not implemented.

    Example:
    >>> optimizer = Adam(1e-3, weight_decay=0.1, global_clipnorm=1.0)
    >>> model.compile(optimizer, loss="mse")
    """

    slots = ("momentum", "velocity")

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        weight_decay: float | None = None,
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        layer_decay: float | None = None,
        momentum_dtype: str | None = None,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            global_clipnorm=global_clipnorm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            layer_decay=layer_decay,
            momentum_dtype=momentum_dtype,
            **kwargs,
        )
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon

    def direction(self, gradient: Any, slots: list[Any], count: Any) -> Any:
        momentum, velocity = slots
        m = (1 - self.beta_1) * gradient + self.beta_1 * momentum
        v = (1 - self.beta_2) * ops.square(gradient) + self.beta_2 * velocity
        root = ops.sqrt(v / (1 - ops.power(self.beta_2, count + 1)))
        corrected = m / (1 - ops.power(self.beta_1, count + 1))
        return corrected / (root + self.epsilon), (m, v)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="keras_augreg")
class SGD(_Optimizer):  # noqa: D101 (an f-string)
    __doc__ = f"""SGD whose momentum is a sum of gradients, as in optax.

    The learning rate multiplies the momentum, it is not stored in it: under a
    schedule, `keras.optimizers.SGD` goes another way.

    Args:
        {_SHARED_ARGS}
        momentum: Decay of the sum, in [0, 1).

    Raises:
        ValueError: If an argument is out of range, or is one of Keras's that
            is not implemented.

    Example:
    >>> optimizer = SGD(0.003, global_clipnorm=1.0, momentum_dtype="bfloat16")
    >>> model.compile(optimizer, loss="mse")
    """

    slots = ("momentum",)

    def __init__(
        self,
        learning_rate: Any = 0.01,
        weight_decay: float | None = None,
        global_clipnorm: float | None = None,
        gradient_accumulation_steps: int | None = None,
        layer_decay: float | None = None,
        momentum_dtype: str | None = None,
        momentum: float = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            global_clipnorm=global_clipnorm,
            gradient_accumulation_steps=gradient_accumulation_steps,
            layer_decay=layer_decay,
            momentum_dtype=momentum_dtype,
            **kwargs,
        )
        self.momentum = momentum

    def direction(self, gradient: Any, slots: list[Any], count: Any) -> Any:
        (momentum,) = slots
        total = gradient + self.momentum * momentum
        return total, (total,)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "momentum": self.momentum}
