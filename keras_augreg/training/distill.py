"""Distillation of a teacher into a student that was compiled here."""

from __future__ import annotations

from typing import Any

import keras

from keras_augreg.training import losses
from keras_augreg.trainstep import (
    TrainStep,
    batches_seen,
    inner_optimizer,
    on_logits,
)


@keras.saving.register_keras_serializable(package="keras_augreg")
class Distiller(keras.distillation.Distiller):
    """A `keras.distillation.Distiller` that augments and trains on logits.

    Keras's own calls the student, not its training step: it trains a student
    from `compile_pretraining` on images that are not augmented. This one
    augments each batch as the student was compiled to, and teacher and student
    see the same images. Both return logits in training, as
    `keras.distillation.LogitsDistillation` expects, if they are models of this
    package; another teacher must end in logits.

    Args:
        teacher: The model to learn from; it is frozen.
        student: A `VisionTransformer`, compiled by `compile_pretraining` or
            `compile_finetuning`.
        distillation_losses: One or a list of `keras.distillation` losses.
        **kwargs: Further arguments of `keras.distillation.Distiller`, for
            example `student_loss_weight=0.5`.

    Raises:
        ValueError: If the models do not fit.

    Example:
    >>> compile_pretraining(student, recipe, total_steps=90_000)
    >>> distiller = Distiller(
    ...     teacher, student, keras.distillation.LogitsDistillation())
    >>> distiller.compile()
    >>> distiller.fit(dataset, epochs=10)
    >>> student.save("student.keras")
    """

    _on_logits = False

    def compile(self, **kwargs: Any) -> None:
        """Configures the training as the student is compiled.

        Args:
            **kwargs: Arguments of `keras.distillation.Distiller.compile`.
                `optimizer`, `loss` and `metrics` default to an optimizer like
                the student's, its loss, and the accuracy of classes.

        Raises:
            ValueError: If the student is not compiled.
        """
        student = self.student
        if not isinstance(student, TrainStep) or not student.compiled:
            raise ValueError(
                "`student` must be a VisionTransformer that "
                "`compile_pretraining` or `compile_finetuning` compiled, which "
                f"says how to train it. Received: {student!r}"
            )
        given = inner_optimizer(student)
        kwargs = {
            "optimizer": type(given).from_config(given.get_config()),
            "loss": student.loss,
            **kwargs,
        }
        loss = losses.as_loss(kwargs["loss"])
        self._on_logits = bool(getattr(loss, "from_logits", False))
        if student._options.augment is not None:
            losses.check_takes_columns(loss)
        by_logits = any(
            isinstance(x, keras.distillation.LogitsDistillation)
            for x in self.distillation_losses
        )
        activations = [
            getattr(model, "classifier_activation", None)
            for model in (self.teacher, student)
        ]
        if by_logits and not self._on_logits and any(activations):
            raise ValueError(
                "LogitsDistillation compares logits, and the student's loss "
                "expects probabilities: the models cannot return both. Pass "
                "compile(loss='softmax'), or a loss made with "
                f"from_logits=True. Received: loss={loss!r}"
            )
        if losses.of_classes(loss):
            accuracy = losses.Accuracy(self._on_logits)
            kwargs.setdefault("metrics", [accuracy])
        super().compile(**{**kwargs, "loss": loss})

    def get_compile_config(self) -> dict[str, Any]:
        """Nothing: compile it again after loading."""
        return {}

    def fit(self, x: Any = None, y: Any = None, **kwargs: Any) -> Any:
        """Trains the student, as `keras.Model.fit`."""
        if not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        with self.student._entered(x, y) as x:
            return super().fit(x, y, **kwargs)

    def train_step(self, *args: Any) -> Any:
        *state, data = args  # JAX: (state, data); the others: (data,)
        if self.student._options.augment is not None:
            data = self.student.augmented(data, batches_seen(self, *state))
        with on_logits(self._on_logits):
            return super().train_step(*state, data)

    def test_step(self, *args: Any) -> Any:
        with on_logits(self._on_logits):
            return super().test_step(*args)

    def compute_loss(
        self, x: Any = None, y: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        y = self.student._labels(y)
        return super().compute_loss(x, y, *args, **kwargs)

    def compute_metrics(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Any:
        compiled = self._compile_metrics
        if compiled is None or not self._on_logits:
            y = self.student._labels(y)
            return super().compute_metrics(x, y, y_pred, sample_weight)
        self.student._update_metrics(compiled, y, y_pred, sample_weight)
        return self.get_metrics_result()
