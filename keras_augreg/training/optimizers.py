"""The optimizers of the study, with the arithmetic of optax.

Keras's own change the weights in other ways: its Adam adds epsilon to the
uncorrected root, its SGD stores learning rate times gradient in the momentum,
it clips before the sum over replicas under TensorFlow's strategies,
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
    """What one weight update has in common for all variables."""

    learning_rate: Any
    count: Any  # float32: weight updates before this one
    due: Any  # bool: whether the weights move, or gradients are accumulated


def is_kernel(variable: Any) -> bool:
    """Whether weight decay applies to this variable.

    The originals decay `.*/kernel`: convolutions, projections, MLP, head. In
    these models: `kernel`, `qkv_kernel`, `out_kernel`, `mlp_kernel1` and
    `mlp_kernel2`; not biases, scales, position embedding and class token.
    """
    name: str = variable.path.split("/")[-1]
    return re.search(r"(^|_)kernel\d*$", name) is not None


def layer_rates(paths: list[str], decay: float) -> list[float]:
    """Each variable's factor on the learning rate.

    1 for the head and the last LayerNorm, `decay` for the last block,
    `decay`^2 for the block before it, and one power more than the first block
    for the embeddings and a ResNet stem (as in BEiT, arXiv 2106.08254,
    appendix; not part of the AugReg study).
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


def _widened(x: Any) -> Any:
    """In float32 if it is in half precision."""
    half = "16" in keras.backend.standardize_dtype(x.dtype)
    return ops.cast(x, "float32") if half else x


class _Optimizer(keras.optimizers.Optimizer):
    """What Adam and SGD share: everything except `direction`.

    Subclasses name their slots (variables of a weight's shape), their own
    settings, and the direction in which a gradient moves a weight.
    """

    slots: tuple[str, ...]
    settings: tuple[str, ...]

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
                    f"{kwargs[unsupported]}. Clip with `global_clipnorm`; "
                    "to validate averages, use "
                    "keras.callbacks.SwapEMAWeights()."
                )
        if layer_decay is not None and not 0 < layer_decay <= 1:
            raise ValueError(
                "`layer_decay` must be above 0 and at most 1. Received: "
                f"layer_decay={layer_decay}"
            )
        super().__init__(**kwargs)
        self.layer_decay = layer_decay
        self.momentum_dtype = momentum_dtype

    def direction(self, gradient: Any, slots: list[Any], count: Any) -> Any:
        """Returns the update before learning rate and decay, and new slots.

        All in float32, in whatever dtype the slots are stored.
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
        """The schedule's rate for the current weight update."""
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
        # JAX's gradient is that of the whole batch already.
        return mean_over_processes(grads)

    def _all_reduce_sum_gradients(self, grads_and_vars: Any) -> Any:
        # Keras would sum here, after the clipping.
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
        # Adapters are float32 among weights in bfloat16.
        grads = self._clip_gradients([_widened(g) for g in grads])
        step = _Step(
            ops.cast(self.learning_rate, "float32"),
            ops.cast(self.iterations, "float32"),
            due,
        )
        # Keras's own loop over the variables, which TensorFlow's strategies
        # need; it passes pairs of gradient and sum on to `update_step`.
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
        before = _widened(variable)
        old_slots = [ops.cast(slot, "float32") for slot in slots]
        direction, new_slots = self.direction(gradient, old_slots, step.count)
        if self._decays[index]:
            direction = direction + self._decays[index] * before
        rate = step.learning_rate * self._rates[index]
        new = before - rate * direction
        if self.use_ema:
            average = self._model_variables_moving_average[index]
            # The average starts at the first update's weights.
            keep = self.ema_momentum * ops.cast(step.count > 0, "float32")
            kept = keep * _widened(average)
            assign(average, kept + (1 - keep) * new)
        for slot, value in zip(slots, new_slots, strict=True):
            assign(slot, value)
        assign(variable, new)
        if accumulates:
            self.assign(
                self._accumulated_gradients[index],
                ops.where(step.due, ops.zeros_like(total), total),
            )

    def get_config(self) -> dict[str, Any]:
        names = ("layer_decay", "momentum_dtype", *self.settings)
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
        }


@keras.saving.register_keras_serializable(package="keras_augreg")
class Adam(_Optimizer):
    """Adam as in optax: epsilon is added to the corrected root.

    The betas and epsilon are big_vision's `scale_by_adam` defaults, those of
    arXiv 1412.6980.

    Args:
        learning_rate: A rate above 0, or a Keras schedule; it is evaluated at
            the number of weight updates, under accumulation too.
        beta_1: Decay of the first moment, in [0, 1).
        beta_2: Decay of the second moment, in [0, 1).
        epsilon: Added to the root of the corrected second moment.
        layer_decay: Factor in (0, 1] by which each block's learning rate is
            that of the block after it (`layer_rates`). `None` for 1.
        momentum_dtype: Dtype in which the momentum is stored, for example
            `"bfloat16"`; `None` for that of the weight.
        **kwargs: Of `keras.optimizers.Optimizer`: `weight_decay` (decoupled,
            times the learning rate, only on kernels), `global_clipnorm`
            (after gradients are summed over replicas),
            `gradient_accumulation_steps` (gradients are averaged, then
            clipped), `use_ema` and `ema_momentum` (averages are updated once
            per weight update), `loss_scale_factor` and `name`.

    Raises:
        ValueError: An argument is out of range or not implemented.

    Example:
    >>> optimizer = Adam(1e-3, weight_decay=0.1, global_clipnorm=1.0)
    >>> model.compile(optimizer, loss="mse")
    """

    slots = ("momentum", "velocity")
    settings = ("beta_1", "beta_2", "epsilon")

    def __init__(
        self,
        learning_rate: Any = 1e-3,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
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


@keras.saving.register_keras_serializable(package="keras_augreg")
class SGD(_Optimizer):
    """SGD whose momentum is a sum of gradients, as in optax.

    The learning rate multiplies the momentum and is not stored in it: under a
    schedule, `keras.optimizers.SGD` takes a different trajectory.

    Args:
        learning_rate: As in `Adam`.
        momentum: Decay of the sum, in [0, 1).
        **kwargs: As in `Adam`, with `layer_decay` and `momentum_dtype`.

    Raises:
        ValueError: An argument is out of range or not implemented.

    Example:
    >>> optimizer = SGD(0.003, global_clipnorm=1.0, momentum_dtype="bfloat16")
    >>> model.compile(optimizer, loss="mse")
    """

    slots = ("momentum",)
    settings = ("momentum",)

    def __init__(
        self, learning_rate: Any = 0.01, momentum: float = 0.9, **kwargs: Any
    ) -> None:
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.momentum = momentum

    def direction(self, gradient: Any, slots: list[Any], count: Any) -> Any:
        (momentum,) = slots
        total = gradient + self.momentum * momentum
        return total, (total,)
