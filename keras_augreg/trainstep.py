"""What `fit` does with a batch: augment it, train on logits, on any backend.

`VisionTransformer` inherits from `TrainStep`; `keras_augreg.training` compiles
with it. Everything runs inside Keras's own compiled step.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import keras

from keras_augreg import distribution
from keras_augreg.augment.arrays import soft_labels
from keras_augreg.batch_labels import (
    check_batch_labels,
    checked_data,
    is_dataset,
    labels_of,
)
from keras_augreg.checks import check_tensorboard, warn
from keras_augreg.jax_state import KeepsState
from keras_augreg.metric_inputs import (
    of_columns,
    probabilities,
    update_metrics,
)
from keras_augreg.preprocessing import only

# Read now: programs may replace `fit` by a function of (*args, **kwargs).
_FIT = inspect.signature(keras.Model.fit)

# Per thread, because TensorFlow's strategies trace each replica in its own.
# Its `logits` says whether models return logits; outside our steps it has none.
_scope = threading.local()


@contextmanager
def on_logits(active: bool) -> Iterator[None]:
    """Marks a step of ours, in which models return logits if `active`."""
    before = getattr(_scope, "logits", None)
    _scope.logits = active
    try:
        yield
    finally:
        _scope.logits = before


@keras.saving.register_keras_serializable(package="keras_augreg")
class Predictions(keras.layers.Activation):
    """The classifier's activation, skipped while training on logits."""

    def call(self, x: Any) -> Any:
        return x if getattr(_scope, "logits", False) else super().call(x)


@dataclasses.dataclass(frozen=True)
class _Options:
    """Options of `compile`; in a dict, Keras would track the layer."""

    on_logits: bool = False  # whether loss and metrics get logits
    augment: Any = None  # layer: images, labels, step -> images, labels
    augment_on: str = "device"  # or "host", "auto"
    remat: bool = False  # whether blocks run again for the backward pass


@keras.saving.register_keras_serializable(package="keras_augreg")
class _LossWithOptions(keras.losses.Loss):
    """A loss with the options of `compile`, as they are saved.

    `keras.models.clone_model` compiles a clone with other layers, a plain
    model, with it: it would train on probabilities, without augmentation.
    """

    def __init__(self, loss: Any, options: dict[str, Any]) -> None:
        super().__init__()
        self.loss, self.options = loss, dict(options)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        raise ValueError(
            "A clone from `keras.models.clone_model` that has other layers "
            "than its original, or whose class has a constructor of its own, "
            "is a plain Keras model: it cannot train or be evaluated as its "
            "original was compiled to. Compile the clone with Keras's "
            "`compile`; or clone without changing types and names of layers, "
            "with a constructor of (*args, **kwargs)."
        )

    def get_config(self) -> dict[str, Any]:
        own = {"loss": self.loss, "options": self.options}
        return {k: keras.saving.serialize_keras_object(own[k]) for k in own}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _LossWithOptions:
        own = {k: keras.saving.deserialize_keras_object(config[k])
               for k in config}  # fmt: skip
        return cls(**own)


class TrainStep(KeepsState):
    """A model whose `compile` takes options on logits and augmentation."""

    _options = _Options()
    _traced_for: Any = None  # the shape of one example's label, on TensorFlow
    _on_host = False  # Where `fit` augments; with "auto", decided per call.
    _padded = False  # Whether the data of an evaluation end in padding.
    _fit_padded = False  # Whether those that `fit` validates on do.

    def compile(
        self,
        *args: Any,
        on_logits: bool = False,
        augment: Any = None,
        augment_on: str = "device",
        remat: bool = False,
        **kwargs: Any,
    ) -> None:
        """Configures the model for training, as `keras.Model.compile`.

        `keras_augreg.compile_pretraining`, which calls it, explains the rest.
        """
        super().compile(*args, **kwargs)
        self._options = _Options(on_logits, augment, augment_on, remat)
        self._on_host = augment_on == "host"
        for layer in self.layers:
            if hasattr(layer, "remat"):
                layer.remat = remat

    def get_compile_config(self) -> dict[str, Any]:
        config = super().get_compile_config()
        if config and self._options != _Options():
            loss = _LossWithOptions(self.loss, vars(self._options))
            config["loss"] = keras.saving.serialize_keras_object(loss)
        return config

    def compile_from_config(self, config: dict[str, Any]) -> None:
        config = keras.saving.deserialize_keras_object(config)
        if keras.backend.backend() == "torch":
            # What other backends take, this one refuses or is slow with.
            config = {**config, "steps_per_execution": 1, "jit_compile": "auto"}
        loss = config["loss"]
        if isinstance(loss, _LossWithOptions):
            config = {**config, **loss.options, "loss": loss.loss}
        self.compile(**config)
        self.optimizer.build(self.trainable_variables)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if (
            kwargs.get("training")
            and self._options.augment is not None
            and getattr(_scope, "logits", None) is None
            and not isinstance(inputs, keras.KerasTensor)
        ):
            warn(
                "Called with training=True outside of its own `fit`: the "
                "augmentation that the model was compiled with is not applied. "
                "To distil, use keras_augreg.training.Distiller instead of "
                "Keras's. If you augment yourself, compile the model with "
                'AugReg("none").'
            )
        return super().__call__(inputs, *args, **kwargs)

    def train_step(self, *args: Any) -> Any:
        *state, data = args  # JAX: (state, data); the others: (data,)
        options = self._options
        if options.augment is not None and not self._on_host:
            data = self.augmented(data, batches_seen(self, *state))
        with on_logits(options.on_logits):
            return super().train_step(*state, data)

    def test_step(self, *args: Any) -> Any:
        _scope.padded = self._padded
        try:
            with on_logits(self._options.on_logits):
                return super().test_step(*args)
        finally:
            _scope.padded = False

    def _symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # Keras computes the loss once outside of steps, for its shapes.
        with on_logits(self._options.on_logits):
            super()._symbolic_build(*args, **kwargs)

    def _labels(self, y: Any) -> Any:
        """Labels as the augmentation makes them, also without it."""
        if self._options.augment is None or y is None:
            return y
        return soft_labels(only(y), self.output_shape[-1])

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None,
        *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        y, y_pred = self._labels(y), self._as_logits(y_pred)
        loss = super().compute_loss(x, y, y_pred, *args, **kwargs)
        weights = args[0] if args else kwargs.get("sample_weight")
        if not getattr(_scope, "padded", False) or weights is None:
            return loss
        # Keras logs the sum of `loss` times rows, `compute_metrics` divides it
        # by real ones. A mean over rows counts padding as without loss.
        rows = keras.ops.cast(keras.ops.shape(weights)[0], "float32")
        share = _real(weights) / rows
        if getattr(self.loss, "reduction", "") != "sum_over_batch_size":
            return loss * share
        others = sum(map(self._aggregate_additional_loss, self.losses))
        return loss - (1 - share) * others

    def _as_logits(self, y_pred: Any) -> Any:
        """Outputs as the loss expects them, in steps of users' too.

        There the model returns probabilities.
        """
        last = self.layers[-1]
        if (
            getattr(_scope, "logits", None) is not None
            or not self._options.on_logits
            or not isinstance(last, Predictions)
        ):
            return y_pred
        epsilon = keras.config.epsilon()
        y_pred = keras.ops.cast(y_pred, "float32")
        y_pred = keras.ops.clip(y_pred, epsilon, 1 - epsilon)
        if last.activation is keras.activations.sigmoid:
            return keras.ops.log(y_pred) - keras.ops.log1p(-y_pred)
        if last.activation is keras.activations.softmax and not of_columns(
            self.loss
        ):
            return keras.ops.log(y_pred)
        raise ValueError(
            f"{type(self.loss).__name__} expects logits, and a training step "
            "of your own gets predictions, which cannot be turned into them. "
            "Build the model with classifier_activation=None."
        )

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        """Gives each metric the labels and outputs that it expects."""
        if getattr(_scope, "padded", False) and sample_weight is not None:
            count = self._loss_tracker.count
            rows = keras.ops.shape(sample_weight)[0]
            padding = keras.ops.cast(rows, count.dtype) - _real(sample_weight)
            count.assign(count - padding)
        compiled = self._compile_metrics
        if compiled is None or not self._options.on_logits:
            y = self._labels(y)
            return super().compute_metrics(x, y, y_pred, sample_weight)
        logits = self._as_logits(y_pred)
        self._update_metrics(compiled, y, logits, sample_weight)
        return self.get_metrics_result()

    def _update_metrics(
        self, compiled: Any, y: Any, logits: Any, weights: Any
    ) -> None:
        """Updates metrics that were compiled, here or with a `Distiller`."""
        last = self.layers[-1]
        activation = None
        if isinstance(last, Predictions):
            activation = last.activation
        outputs = functools.partial(
            probabilities, logits, activation, self.loss
        )
        update_metrics(compiled, self._labels(y), logits, outputs, weights)

    def augmented(self, data: Any, step: Any) -> Any:
        """A batch as the model is trained on it in a step."""
        x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
        if weights is not None:
            self._check_weights()
        index, replicas = distribution.replica()
        # Replicas have other images; they should not share their draws.
        step = keras.ops.cast(step, "int32") * replicas + index
        x, y = self._options.augment(only(x), y, step=step)
        return keras.utils.pack_x_y_sample_weight(x, y, weights)

    def _check_weights(self) -> None:
        recipe = getattr(self._options.augment, "recipe", None)
        if recipe is not None and recipe.mixup:
            raise ValueError(
                "Mixup mixes examples, and a mixture has no weight of its "
                "own. Train without class weights and sample weights, or with "
                "a recipe without Mixup (none, light1). Received: weights with "
                f"the recipe {recipe}"
            )

    @contextmanager
    def _batches_checked(
        self,
        x: Any,
        y: Any = None,
        unlabelled: bool = False,
        predicting: bool = False,
    ) -> Iterator[Any]:
        """Yields `x`; refuses images of another shape, and wrong labels.

        And batches without examples, in training.
        """
        classes = self.output_shape[-1]
        # The engines of `keras_augreg.data` have checked theirs.
        checked = getattr(x, "checked_classes", None) == classes
        if not predicting:
            self._trace_for(x, y)
        if checked:
            yield x
            return
        if predicting or not self._takes_numbers():
            classes = None
        check = functools.partial(check_batch_labels, classes, unlabelled)
        check(only(y))
        found: list[Exception] = []
        try:
            shape = self.input_shape[1:]
            yield checked_data(x, self._shape_check, check, found, shape)
        except Exception:
            if found:  # without the traceback of the library that read it
                raise found[0] from None
            raise

    def _trace_for(self, x: Any, y: Any) -> None:
        """Traces again for labels of another rank or number of columns.

        TensorFlow would trace for both at once, and know neither.
        """
        if keras.backend.backend() != "tensorflow":
            return
        labels = labels_of(x.element_spec) if is_dataset(x) else only(y)
        shape = getattr(labels, "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            return
        if self._traced_for not in (None, tuple(shape[1:])):
            self.train_function = self.test_function = None
        self._traced_for = tuple(shape[1:])

    def _takes_numbers(self) -> bool:
        """Whether integer labels are numbers of classes to the loss."""
        loss = getattr(self, "loss", None)
        sparse = keras.losses.SparseCategoricalCrossentropy
        function = keras.losses.sparse_categorical_crossentropy
        if isinstance(loss, sparse) or loss in (function.__name__, function):
            return getattr(loss, "ignore_class", None) is None
        augments = self._options.augment is not None
        return augments or getattr(loss, "takes_numbers", False)

    def _shape_check(self, images: Any) -> None:
        """Refuses images that the model cannot take; nothing here."""

    @contextmanager
    def _watched(
        self, data: Any, batch: bool = False, shape_only: bool = False
    ) -> Iterator[Any]:
        """Yields data whose images are checked; nothing here.

        Arrays are images, or a `batch` (images, labels, ...). Where only their
        shape is checked, another check warns of images that were scaled.
        """
        yield data

    @contextmanager
    def _entered(
        self, x: Any, y: Any = None, unlabelled: bool = False
    ) -> Iterator[Any]:
        """Yields data that is checked."""
        # Before `fit` builds the optimizer. Keras's `evaluate` and
        # `test_on_batch` do not ask on every backend.
        self._assert_compile_called()
        with (
            self._watched(x) as x,
            self._batches_checked(x, y, unlabelled) as x,
        ):
            yield x

    @functools.wraps(keras.Model.fit)
    def fit(self, *args: Any, **kwargs: Any) -> Any:
        bound = _FIT.bind(self, *args, **kwargs)
        _, *names = bound.arguments
        given = {name: bound.arguments[name] for name in names}
        validation = given.get("validation_data")
        self._fit_padded = getattr(validation, "padded", False)
        arrays = isinstance(validation, (tuple, list))
        labels = labels_of(validation) if arrays else None
        if validation is not None:
            # Before the first update.
            with self._watched(validation, arrays, True) as validation:
                pass
        with (
            self._entered(given.get("x"), given.get("y")) as x,
            self._batches_checked(validation, labels, True) as validation,
        ):
            return self._fit(**{**given, "x": x, "validation_data": validation})

    def _fit(self, x: Any, **kwargs: Any) -> Any:
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        self._check_optimizer()
        distribution.copy_from_first_process(
            self.variables + self.optimizer.variables
        )
        callbacks = kwargs.get("callbacks") or []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        elif isinstance(callbacks, keras.callbacks.Callback):
            callbacks = [callbacks]
        check_tensorboard(callbacks)
        _check_callbacks(callbacks, inner_optimizer(self)._learning_rate)
        # The engines of `keras_augreg.data` are a data set and such an object.
        suits = is_dataset(x) or hasattr(x, "augmented")
        self._augment_where(suits and distribution.augments_on_host())
        if self._options.augment is not None and self._on_host:
            if kwargs.get("class_weight"):
                self._check_weights()
            if hasattr(x, "augmented"):
                x, count = self._augmented_batches(x)
            else:
                x, count = self._augmented_dataset(x)
            kwargs["callbacks"] = [count, *callbacks]
        before = self._updates_past_schedule()
        if before >= 0:
            _warn_of_schedule("`fit` changes nothing")
        try:
            history = super().fit(x, **kwargs)
        finally:
            # A step that failed may have deleted the arrays.
            with suppress(RuntimeError):
                separate_averages(self)
        past = self._updates_past_schedule()
        if before < 0 < past:
            _warn_of_schedule(f"The last {past} updates changed nothing")
        return history

    def _check_optimizer(self) -> None:
        """Refuses weights that the optimizer does not know."""
        if type(self).train_step is not TrainStep.train_step:
            return  # It may have optimizers of its own.
        known = {*map(id, inner_optimizer(self)._trainable_variables)}
        now = {*map(id, self.trainable_variables)}
        # On JAX, Keras counts them; elsewhere it skips what is frozen since.
        if now != known if keras.backend.backend() == "jax" else now - known:
            raise ValueError(
                "The weights to train are not those that the optimizer was "
                "built for: layers were frozen or unfrozen, quantized or "
                "adapted by LoRA since. Compile it again, with a new "
                f"optimizer. Received: {len(now)} weights to train, "
                f"{len(known)} in the optimizer"
            )

    def _updates_past_schedule(self) -> int:
        """Updates since the learning rate reached 0; below 0 before."""
        optimizer = inner_optimizer(self)
        schedule = optimizer._learning_rate
        if (
            not isinstance(schedule, keras.optimizers.schedules.CosineDecay)
            or schedule.alpha
        ):
            return -1
        total = schedule.decay_steps + schedule.warmup_steps
        return int(distribution.to_numpy(optimizer.iterations)) - int(total)

    def train_on_batch(
        self, x: Any, y: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        with self._entered(x, y):
            if self.optimizer.built:
                self._check_optimizer()
            self._augment_where(host=False)
            return super().train_on_batch(x, y, *args, **kwargs)

    def test_on_batch(
        self, x: Any, y: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        with self._entered(x, y, True):
            self._pads(False)
            return super().test_on_batch(x, y, *args, **kwargs)

    def evaluate(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if kwargs.get("_use_cached_eval_dataset"):  # `fit` has checked it.
            self._pads(self._fit_padded)
            return super().evaluate(x, y, *args, **kwargs)
        with self._entered(x, y, True) as checked:
            self._pads(getattr(x, "padded", False))
            return super().evaluate(checked, y, *args, **kwargs)

    def predict(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        with (
            self._watched(x) as x,
            self._batches_checked(x, None, True, predicting=True) as x,
        ):
            if getattr(only(x), "shape", (None,))[0] == 0:
                return self.predict_on_batch(only(x))  # Keras needs a batch.
            return super().predict(x, *args, **kwargs)

    def predict_on_batch(self, x: Any) -> Any:
        with self._watched(x):
            return super().predict_on_batch(x)

    def _pads(self, padded: bool) -> None:
        """Notes whether data pad; the compiled step depends on it."""
        if padded != self._padded:
            self.test_function = None
        self._padded = padded

    def _augment_where(self, host: bool) -> None:
        """Decides `augment_on="auto"`; the compiled step depends on it."""
        if self._options.augment_on == "auto" and self._on_host != host:
            self._on_host = host
            self.train_function = None
            augments = self._options.augment is not None
            if host and augments and not distribution.on_cpu():
                print(
                    "keras_augreg: RandAugment and Mixup run on the host; "
                    "augment_on='device' runs them on the accelerator",
                    file=sys.stderr,
                )

    def _augmented_batches(self, batches: Any) -> tuple[Any, Any]:
        """What `_augmented_dataset` returns, for the engine of NumPy."""
        index, processes = distribution.process()

        def augment(
            images: Any, labels: Any, step: int, run: Any
        ) -> tuple[Any, Any]:
            # Processes should not share their draws, as in `augmented`.
            step = step * processes + index
            return self._options.augment.on_host(images, labels, step, run)

        augmented = batches.augmented(augment)
        if augmented.has_weights:
            self._check_weights()

        def begin(*_: Any) -> None:
            augmented.first = int(distribution.to_numpy(batches_seen(self)))

        return augmented, keras.callbacks.LambdaCallback(on_epoch_begin=begin)

    def _augmented_dataset(self, dataset: Any) -> tuple[Any, Any]:
        """The data set, augmented, and the callback that counts for it."""
        if not is_dataset(dataset):
            raise TypeError(
                "With augment_on='host', `fit` expects what "
                "`keras_augreg.data.load` returns, or a `tf.data.Dataset` of "
                "batches of images and labels. Received: x of type "
                f"{type(dataset).__name__}. Pass such a data set, or compile "
                "with augment_on='device'."
            )
        tf = sys.modules["tensorflow"]
        index, processes = distribution.process()
        # Read when a pass begins, so that every epoch has its own draws.
        first = tf.Variable(0, dtype="int64")

        count = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda *_: first.assign(
                int(distribution.to_numpy(batches_seen(self)))
            )
        )

        def augment(step: Any, data: tuple[Any, ...]) -> tuple[Any, ...]:
            if len(data) > 2:
                self._check_weights()
            # Processes should not share their draws, as in `augmented`.
            step = tf.cast(step, "int32") * processes + index
            images, labels = self._options.augment(
                only(data[0]), data[1], step=step
            )
            return (images, labels, *data[2:])

        numbered = tf.data.Dataset.from_tensors(0).flat_map(
            lambda _: dataset.enumerate(first.read_value())
        )
        augmented = numbered.map(augment, tf.data.AUTOTUNE)
        augmented = augmented.prefetch(tf.data.AUTOTUNE)
        sized = tf.data.experimental.assert_cardinality(dataset.cardinality())
        return augmented.apply(sized), count

    def get_metrics_result(self) -> Any:
        variables = [v for m in self.metrics for v in m.variables]
        with distribution.summed_over_processes(variables):
            return super().get_metrics_result()


def _real(weights: Any) -> Any:
    """The number of examples that are no padding."""
    real = keras.ops.not_equal(weights, 0)
    return keras.ops.sum(keras.ops.cast(real, "float32"))


def _warn_of_schedule(what: str) -> None:
    warn(
        f"{what}: all `total_steps` weight updates are done, and the learning "
        "rate is 0. Compile again to train on."
    )


def batches_seen(model: Any, state: Any = None) -> Any:
    """Batches trained on so far, which a checkpoint brings back."""
    counter = inner_optimizer(model)._iterations
    if state is None:
        return keras.ops.convert_to_tensor(counter)
    values = zip(model.optimizer.variables, state[2], strict=True)
    return next(value for v, value in values if v is counter)


def inner_optimizer(model: Any) -> Any:
    """The optimizer, without the one that scales losses in float16."""
    return getattr(model.optimizer, "inner_optimizer", model.optimizer)


def separate_averages(model: Any) -> None:
    """Gives the weights memory of their own after `fit` with averages.

    Keras ends `fit` by assigning the averages to the weights. On JAX both
    then share their arrays, and the next step, `predict` too, deletes them.
    """
    if keras.backend.backend() == "jax" and inner_optimizer(model).use_ema:
        for variable in model.trainable_variables:
            variable.assign(keras.ops.copy(variable))


def _check_callbacks(callbacks: Any, rate: Any) -> None:
    """Refuses two learning rates, and to restore what was not validated."""
    setters = (
        keras.callbacks.LearningRateScheduler,
        keras.callbacks.ReduceLROnPlateau,
    )
    schedule = keras.optimizers.schedules.LearningRateSchedule
    for callback in callbacks:
        if isinstance(callback, setters) and isinstance(rate, schedule):
            raise ValueError(
                f"{type(callback).__name__} sets the learning rate, and so "
                f"does the schedule that the model was compiled with, {rate}. "
                "Compile it with total_steps=None and a number as "
                "`learning_rate`."
            )
    swaps = [
        i
        for i, callback in enumerate(callbacks)
        if isinstance(callback, keras.callbacks.SwapEMAWeights)
    ]
    for i, callback in enumerate(callbacks):
        restores = getattr(callback, "restore_best_weights", False)
        if restores and any(
            s > i or not callbacks[s].swap_on_epoch for s in swaps
        ):
            raise ValueError(
                "SwapEMAWeights validates the averaged weights, and "
                f"{type(callback).__name__}(restore_best_weights=True) would "
                "restore the others. Put SwapEMAWeights(swap_on_epoch=True) "
                "before it in `callbacks`."
            )
