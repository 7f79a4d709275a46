"""Compiles models for the study's pre-training and fine-tuning.

Sources of the constants: Steiner et al., "How to train your ViT?" (TMLR 2022,
arXiv 2106.10270; "paper" below); `vit_jax/configs/augreg.py` and
`vit_jax/train.py` of google-research/vision_transformer ("vit_jax");
`configs/vit_i1k.py`, `configs/vit_i21k.py` and `configs/transfer.py` of
google-research/big_vision ("big_vision").
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_augreg.augment import AugRegAugment
from keras_augreg.checks import check_choice
from keras_augreg.layer import freeze as freeze_layers
from keras_augreg.metric_inputs import takes_logits
from keras_augreg.recipe import (
    CLIP_NORM,
    FINETUNING_LEARNING_RATE,
    PRETRAINING_LEARNING_RATE,
    PRETRAINING_WARMUP,
    AugReg,
    check_recipe,
    finetuning_warmup,
)
from keras_augreg.training import losses, optimizers, schedules
from keras_augreg.vision_transformer import VisionTransformer

# Read now: programs may replace `compile` by a function of (*args, **kwargs).
_OF_KERAS = inspect.signature(keras.Model.compile).parameters.keys()


def compile_pretraining(
    model: Any,
    recipe: AugReg,
    *,
    total_steps: int | None,
    learning_rate: Any = PRETRAINING_LEARNING_RATE,
    warmup_steps: int = PRETRAINING_WARMUP,
    loss: Any = "sigmoid",
    label_smoothing: float = 0.0,
    augment_on: str = "auto",
    seed: int | None = None,
    gradient_accumulation_steps: int | None = None,
    ema_momentum: float | None = None,
    momentum_dtype: str | None = None,
    remat: bool = False,
    **kwargs: Any,
) -> None:
    """Compiles a model for the study's pre-training.

    Adam (0.9, 0.999, 1e-8), decoupled weight decay on kernels only, linear
    warm-up and cosine decay to 0, gradients clipped to norm 1. The study's
    batch size is 4,096. Each update subtracts `recipe.weight_decay` times the
    learning rate: at the study's 1e-3, big_vision's 1e-4 times the schedule.

    Under the sigmoid loss, a fresh classifier (all zeros) gets the bias
    -ln(classes), about the -6.9 and -10 of big_vision's `init_head_bias`.

    Args:
        model: A `keras_augreg` model with a classifier, built with the
            recipe's `dropout` and `stochastic_depth` (`recipe=recipe`).
        recipe: A `keras_augreg.AugReg`.
        total_steps: Weight updates of the whole training. `None` for a
            constant `learning_rate`, which callbacks may change, or for a
            schedule.
        learning_rate: Peak of the learning rate, or a schedule of
            `keras.optimizers.schedules` in place of the study's.
        warmup_steps: Weight updates until the peak.
        loss: `"sigmoid"`: one binary decision per class, summed over the
            classes; `"softmax"`: one class out of all. Both are averaged over
            the batch and computed on logits, whatever `classifier_activation`
            is. Or a loss of Keras (an object, a name such as `"mse"`, or a
            function), which gets what the model returns, or logits if it was
            made with `from_logits=True`.
        label_smoothing: In [0, 1), of the losses `"sigmoid"` and `"softmax"`.
        augment_on: Where the recipe's augmentation runs, with the same
            draws: `"device"`, inside the compiled training step; `"host"`,
            inside the data set that `fit` gets: what `data.load` returns, or
            a `tf.data.Dataset`; `"auto"`, on the host if `fit` gets such a
            data set and the device is a CPU or a TPU (which is printed on
            stderr), else on the device.
        seed: Seed of the augmentation, an integer in [0, 2^31). `None` takes
            one from Keras's global seed.
        gradient_accumulation_steps: Batches for each weight update, at least
            2; `None` for one. The effective batch is that many times larger.
        ema_momentum: Momentum in [0, 1) of a moving average of the weights,
            for example 0.9999; `None` for no average. As in Keras, `fit`
            leaves the averages in the model, and the callback
            `keras.callbacks.SwapEMAWeights()` validates with them too.
        momentum_dtype: Dtype in which the optimizer's momentum is stored;
            `None` for float32. vit_jax and big_vision use `"bfloat16"`, to
            save memory.
        remat: Whether Transformer blocks keep only their inputs for the
            backward pass and recompute the rest (gradient checkpointing):
            less memory, a second forward pass, the same result.
        **kwargs: Further arguments of `keras.Model.compile`, for example
            `metrics`, `jit_compile` or `steps_per_execution` (not on
            PyTorch). Metrics get what `predict` returns, or, of a model that
            returns logits, their softmax or sigmoid as the loss has it; those
            made with `from_logits=True` get logits. `metrics` and
            `weighted_metrics` replace the default, the accuracy if the loss
            is one of classes.

    Returns:
        `None`, like `keras.Model.compile`. `fit` takes batches of images
        (B, H, W, 3) in [0, 255] and labels, integers (B,) or soft labels
        (B, classes). With `classes=1` and the sigmoid loss, a label is 0 or 1.

    Raises:
        TypeError: `model` is not a `VisionTransformer` with a classifier, or
            `recipe` is not an `AugReg`.
        ValueError: An argument is not as above, or the backend lacks it.

    Example:
    >>> recipe = keras_augreg.AugReg("medium1", 0.1, 0.1)
    >>> model = keras_augreg.ViT_S16(weights=None, classes=10, recipe=recipe)
    >>> keras_augreg.compile_pretraining(model, recipe, total_steps=90_000)
    >>> model.fit(dataset, epochs=300)
    """
    _check_model(model)
    check_recipe(recipe)
    rates = (model.dropout, model.stochastic_depth)
    if rates != (recipe.dropout, recipe.stochastic_depth):
        raise ValueError(
            "The model's dropout and stochastic depth differ from the "
            f"recipe's. Received: a model with dropout={rates[0]} and "
            f"stochastic_depth={rates[1]}, a recipe with dropout="
            f"{recipe.dropout} and stochastic_depth={recipe.stochastic_depth}."
            " Build the model with `recipe=recipe`."
        )
    check_choice("augment_on", augment_on, ("auto", "device", "host"))
    layer = None
    if recipe.randaugment or recipe.mixup:
        if not model.include_preprocessing:
            raise ValueError(
                "The recipe augments pixels from 0 to 255, and the model was "
                "built with include_preprocessing=False. Build it with True, "
                f"or pass a recipe with augment='none'. Received: {recipe}"
            )
        layer = AugRegAugment(recipe, model.classes, seed=seed)
    freeze_layers(model, False)
    optimizer = optimizers.Adam(
        _rate(learning_rate, total_steps, warmup_steps),
        weight_decay=recipe.weight_decay,
        global_clipnorm=CLIP_NORM,
        gradient_accumulation_steps=gradient_accumulation_steps,
        momentum_dtype=momentum_dtype,
        use_ema=ema_momentum is not None,
        ema_momentum=ema_momentum or 0.0,
    )
    _compile(
        model,
        optimizer,
        loss,
        label_smoothing,
        augment=layer,
        augment_on=augment_on,
        remat=remat,
        **kwargs,
    )


def compile_finetuning(
    model: Any,
    *,
    total_steps: int | None,
    learning_rate: Any = FINETUNING_LEARNING_RATE,
    warmup_steps: int | None = None,
    loss: Any = "softmax",
    label_smoothing: float = 0.0,
    freeze: bool | str | int | Sequence[str] = False,
    layer_decay: float | None = None,
    gradient_accumulation_steps: int | None = None,
    ema_momentum: float | None = None,
    momentum_dtype: str | None = None,
    remat: bool = False,
    **kwargs: Any,
) -> None:
    """Compiles a model for the study's fine-tuning.

    SGD with momentum 0.9 and no weight decay, linear warm-up and cosine decay
    to 0, gradients clipped to norm 1; no RandAugment, no Mixup. The study's
    batch size is 512, its steps and rates are in
    `keras_augreg.recipe.FINETUNING_RUNS`, and its models had dropout 0 and a
    new classifier (`classes=`) of zeros.

    For class weights, use `fit(..., class_weight=...)`.

    Args:
        model: A `keras_augreg` model with a classifier.
        total_steps: As in `compile_pretraining`.
        learning_rate: As in `compile_pretraining`. The study: 0.001 to 0.03.
        warmup_steps: Weight updates until the peak. `None` for the study's,
            `keras_augreg.recipe.finetuning_warmup(total_steps)`.
        loss: As in `compile_pretraining`.
        label_smoothing: As in `compile_pretraining`.
        freeze: Layers that are not trained until the model is compiled again:
            `"backbone"` or `True` for all but the classifier (a linear
            probe); a number of Transformer blocks, counted from the input,
            with what is before them; or a list of names of layers. Layers
            whose `trainable` you set to `False` stay frozen in any case.
            Dropout stays active.
        layer_decay: Factor in (0, 1] by which each block's learning rate is
            that of the block after it; `None` for 1, as in the study.
        gradient_accumulation_steps: As in `compile_pretraining`.
        ema_momentum: As in `compile_pretraining`.
        momentum_dtype: As in `compile_pretraining`.
        remat: As in `compile_pretraining`.
        **kwargs: As in `compile_pretraining`.

    Returns:
        As in `compile_pretraining`.

    Raises:
        TypeError, ValueError: As in `compile_pretraining`.

    Example:
    >>> model = keras_augreg.ViT_S16(weights="augreg-in21k", classes=37)
    >>> keras_augreg.compile_finetuning(
    ...     model, total_steps=500, learning_rate=0.003)
    >>> model.fit(dataset, steps_per_epoch=100, epochs=5)
    """
    _check_model(model)
    if warmup_steps is None:
        warmup_steps = finetuning_warmup(total_steps or 0)
    freeze_layers(model, freeze)
    optimizer = optimizers.SGD(
        _rate(learning_rate, total_steps, warmup_steps),
        momentum=0.9,
        global_clipnorm=CLIP_NORM,
        gradient_accumulation_steps=gradient_accumulation_steps,
        layer_decay=layer_decay,
        momentum_dtype=momentum_dtype,
        use_ema=ema_momentum is not None,
        ema_momentum=ema_momentum or 0.0,
    )
    _compile(model, optimizer, loss, label_smoothing, remat=remat, **kwargs)


def _check_model(model: Any) -> None:
    if not isinstance(model, VisionTransformer) or not model.include_top:
        raise TypeError(
            "Expected a model with a classifier from a builder of "
            "keras_augreg, built without `input_tensor` or on a plain "
            "`keras.Input`. For a head of your own, build one of zeros with "
            "include_top=True and classes=N; or call Keras's `compile` with "
            "keras_augreg.training.optimizers.SGD and "
            f"keras_augreg.training.schedules. Received: {model!r}"
        )


def _rate(learning_rate: Any, total_steps: Any, warmup_steps: int) -> Any:
    schedule = keras.optimizers.schedules.LearningRateSchedule
    if isinstance(learning_rate, schedule):
        if total_steps is not None:
            raise ValueError(
                "A schedule has steps of its own. Pass total_steps=None, or a "
                f"number as `learning_rate`. Received: {total_steps=}"
            )
        return learning_rate
    if callable(learning_rate) or not _is_positive(learning_rate):
        raise ValueError(
            "`learning_rate` must be a number above 0 or a "
            "keras.optimizers.schedules.LearningRateSchedule. Received: "
            f"learning_rate={learning_rate!r}"
        )
    if total_steps is None:
        return float(learning_rate)
    if isinstance(total_steps, (bool, str)) or not _is_positive(total_steps):
        raise ValueError(
            "`total_steps` must be an integer of at least 1, or None for a "
            f"constant rate. Received: total_steps={total_steps!r}"
        )
    return schedules.warmup_cosine(learning_rate, total_steps, warmup_steps)


def _is_positive(value: Any) -> bool:
    try:
        return bool(value > 0)
    except TypeError:
        return False


def _loss(model: Any, loss: Any, label_smoothing: float) -> keras.losses.Loss:
    function = losses.as_loss(loss, label_smoothing)
    if losses.takes_probabilities(function) and (
        model.classifier_activation is None
    ):
        hint = "Build the model with a `classifier_activation`"
        if hasattr(function, "from_logits"):
            hint = "Make it with from_logits=True"
        raise ValueError(
            f"{type(function).__name__} expects probabilities, and the model "
            f"returns logits. {hint}."
        )
    softmax = model.classifier_activation in (
        "softmax",
        keras.activations.softmax,
    )
    if model.classes == 1 and (
        softmax or isinstance(function, losses.AMONG_CLASSES)
    ):
        raise ValueError(
            "With one class, softmax always predicts it. For a decision, "
            "build the model with classifier_activation='sigmoid' and pass "
            "loss='sigmoid'; for a regression, classifier_activation=None and, "
            "for example, keras.losses.MeanSquaredError(). Received: "
            f"classifier_activation={model.classifier_activation!r}, "
            f"loss={loss!r}"
        )
    return function


def _compile(
    model: Any,
    optimizer: Any,
    loss: Any,
    label_smoothing: float,
    /,
    **kwargs: Any,
) -> None:
    own = inspect.signature(type(model).compile).parameters.keys()
    fixed = {"self", "optimizer", "loss"}
    known = _OF_KERAS - fixed
    unknown = kwargs.keys() - known - (own - fixed)
    if unknown:
        raise TypeError(
            "The optimizer, its weight decay and what is frozen come from the "
            "arguments of `compile_pretraining` (with its recipe) and "
            "`compile_finetuning`; what is left to Keras's `compile` is "
            f"{', '.join(sorted(known))}. For an optimizer of your own, call "
            f"`model.compile`. Received: {', '.join(sorted(unknown))}"
        )
    _check_head(model)
    function = _loss(model, loss, label_smoothing)
    on_logits = getattr(function, "from_logits", False)
    steps = kwargs.get("steps_per_execution", 1)
    if steps != 1 and keras.backend.backend() == "torch":
        raise ValueError(
            "Keras runs one step at a time on PyTorch. Received: "
            f"steps_per_execution={steps}. Leave it at 1."
        )
    if kwargs.get("augment") is not None:
        losses.check_takes_columns(function)
    unweighted, weighted = (
        losses.as_metrics(kwargs.pop(name, None), function, on_logits)
        for name in ("metrics", "weighted_metrics")
    )
    if unweighted is weighted is None and losses.of_classes(function):
        weighted = [losses.Accuracy(on_logits)]
    for metric in [*(unweighted or ()), *(weighted or ())]:
        if (
            not on_logits
            and model.classifier_activation
            and (takes_logits(metric))
        ):
            raise ValueError(
                f"{type(metric).__name__} was told to expect logits, and the "
                f"model gives {type(function).__name__} predictions. Make "
                "both with from_logits=True, or both without. Received: "
                f"{metric!r}"
            )
    if loss == "sigmoid" and model.classes > 1:
        _set_prior(model)
    model.compile(
        optimizer,
        function,
        on_logits=on_logits,
        metrics=unweighted,
        weighted_metrics=weighted,
        **kwargs,
    )
    model.optimizer.build(model.trainable_variables)


def _check_head(model: Any) -> None:
    """Raises a `ValueError` if no gradient passes the classifier."""
    head = model.get_layer("head")
    if getattr(head, "quantization_mode", None) not in ("int8", "int4"):
        return
    # What is stored need not be zero where the kernel is.
    ones = ops.ones((1, model.sizes.width), head.compute_dtype)
    if not ops.any(head(ones) != head.bias):
        raise ValueError(
            "The classifier is new, all zeros, and quantized: its kernel "
            "cannot be trained, and no gradient passes it. Leave it in "
            "floating point (model.quantize(mode, filters='^(qkv|out|mlp)'), "
            "with a newer Keras than 3.12), or quantize after training."
        )


def _set_prior(model: Any) -> None:
    """Sets a fresh classifier's bias to -ln(classes)."""
    head = model.get_layer("head")
    if not any(bool(ops.any(weight != 0)) for weight in head.weights):
        prior = -math.log(model.classes)
        head.bias.assign(ops.full(head.bias.shape, prior))
