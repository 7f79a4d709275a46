"""Compiles models for the study's pre-training and fine-tuning.

Sources of the constants: Steiner et al., "How to train your ViT?" (TMLR 2022,
arXiv 2106.10270; "paper" below); `vit_jax/configs/augreg.py` and
`vit_jax/train.py` of google-research/vision_transformer ("vit_jax");
`configs/vit_i1k.py`, `configs/vit_i21k.py` and `configs/transfer.py` of
google-research/big_vision ("big_vision").
"""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_augreg.augment import AugRegAugment
from keras_augreg.models import VisionTransformer
from keras_augreg.recipe import (
    CLIP_NORM,
    PRETRAINING_LEARNING_RATE,
    PRETRAINING_WARMUP,
    AugReg,
    finetuning_warmup,
)
from keras_augreg.training import losses, optimizers, schedules


def compile_pretraining(
    model: Any,
    recipe: AugReg,
    *,
    total_steps: int,
    learning_rate: float = PRETRAINING_LEARNING_RATE,
    warmup_steps: int = PRETRAINING_WARMUP,
    loss: str = "sigmoid",
    augment: str = "device",
    seed: int | None = None,
    gradient_accumulation_steps: int | None = None,
    ema: float | None = None,
    momentum_dtype: str | None = None,
    remat: bool = False,
    steps_per_execution: int = 1,
    **kwargs: Any,
) -> Any:
    """Compiles a model for the study's pre-training.

    Adam (0.9, 0.999, 1e-8), decoupled weight decay of kernels alone, linear
    warm-up and cosine to 0, gradients clipped at norm 1. The study's batch is
    4,096. Decay takes off `recipe.weight_decay` times the learning rate: at
    the study's 1e-3, big_vision's 1e-4 times the schedule.

    A fresh classifier (all zeros) starts at bias -ln(classes) under the
    sigmoid loss: about the -6.9 and -10 of big_vision's configurations.

    Mixed precision: `keras.config.set_dtype_policy("mixed_bfloat16")` before
    the model is built.

    Args:
        model: A `keras_augreg` model with classifier, built with the recipe's
            `dropout` and `stochastic_depth`.
        recipe: A `keras_augreg.AugReg`.
        total_steps: Weight updates of the whole training.
        learning_rate: Peak of the learning rate.
        warmup_steps: Weight updates until the peak.
        augment: Where the recipe's augmentation runs: `"device"`, inside the
            compiled training step, or `"host"`, inside the `tf.data.Dataset`
            of integer images and labels that is given to `fit`.
        seed: Integer seed in [0, 2^31) of the augmentation. `None` takes one
            from `keras.utils.set_random_seed`'s stream.
        loss: `"sigmoid"`: a binary decision for each class, summed over
            classes; `"softmax"`: one class of all. Both are the mean over the
            batch, of logits, whatever the `classifier_activation` is.
        gradient_accumulation_steps: Batches for each weight update, at least
            2; `None` for one. The effective batch is that many times larger.
        ema: Momentum in [0, 1) of a moving average of the weights, for
            example 0.9999; `None` for none. `fit` ends with the averages in
            the model, as Keras does; to validate with them too, pass
            `keras.callbacks.SwapEMAWeights()`.
        momentum_dtype: Dtype that the optimizer's momentum is stored in;
            `None` for float32. vit_jax and big_vision use `"bfloat16"`, to
            save memory.
        remat: Whether each Transformer block keeps its input alone for the
            backward pass and computes the rest again (gradient
            checkpointing): less memory, the forward pass twice, the same
            result.
        steps_per_execution: As of `keras.Model.compile`; 1 on PyTorch.
        **kwargs: `run_eagerly` and `jit_compile` of `keras.Model.compile`.

    Returns:
        The same model, compiled. `fit` takes batches of images, uint8 of
        shape (B, H, W, 3), and labels, integers (B,) or soft labels
        (B, classes).

    Raises:
        TypeError: If the model is no `VisionTransformer` with classifier.
        ValueError: If an argument is not as above, or the backend cannot.

    Example:
    >>> recipe = keras_augreg.AugReg("medium1")
    >>> model = keras_augreg.ViT_S16(weights=None, classes=10)
    >>> model = keras_augreg.compile_pretraining(
    ...     model, recipe, total_steps=90_000)
    >>> model.fit(dataset, epochs=300)
    """
    _check_model(model)
    rates = (model.dropout, model.stochastic_depth)
    if rates != (recipe.dropout, recipe.stochastic_depth):
        raise ValueError(
            "Dropout and stochastic depth are part of the model, and the "
            "recipe's are others. Received: a model with dropout="
            f"{rates[0]}, stochastic_depth={rates[1]}, a recipe with dropout="
            f"{recipe.dropout}, stochastic_depth={recipe.stochastic_depth}. "
            "Build the model with the recipe's."
        )
    if augment not in ("device", "host"):
        raise ValueError(
            "`augment` says where the augmentation runs, 'device' or 'host'. "
            f"Received: augment={augment!r}"
        )
    layer = None
    if recipe.randaugment or recipe.mixup:
        layer = AugRegAugment(recipe, model.classes, seed=seed)
    optimizer = optimizers.Adam(
        schedules.warmup_cosine(learning_rate, total_steps, warmup_steps),
        weight_decay=recipe.weight_decay,
        global_clipnorm=CLIP_NORM,
        gradient_accumulation_steps=gradient_accumulation_steps,
        momentum_dtype=momentum_dtype,
        **_average(ema),
    )
    return _compile(
        model,
        optimizer,
        loss,
        steps_per_execution,
        augment=layer,
        augment_on=augment,
        remat=remat,
        **kwargs,
    )


def compile_finetuning(
    model: Any,
    *,
    total_steps: int,
    learning_rate: float,
    warmup_steps: int | None = None,
    loss: str = "softmax",
    freeze: bool = False,
    layer_decay: float | None = None,
    gradient_accumulation_steps: int | None = None,
    ema: float | None = None,
    momentum_dtype: str | None = None,
    remat: bool = False,
    steps_per_execution: int = 1,
    **kwargs: Any,
) -> Any:
    """Compiles a model for the study's fine-tuning.

    SGD with momentum 0.9 and no weight decay, linear warm-up and cosine to 0,
    gradients clipped at norm 1. No RandAugment, no Mixup. The study's batch
    is 512, its steps and rates are in `keras_augreg.recipe.FINETUNING_RUNS`,
    and its models had dropout 0 and a new classifier (`classes=`), all zeros.

    Class weights: `fit(..., class_weight=...)`.

    Args:
        model: A `keras_augreg` model with classifier.
        total_steps: Weight updates of the whole training.
        learning_rate: Peak of the learning rate. The study: 0.001 to 0.03.
        warmup_steps: Weight updates until the peak. `None` for the study's:
            500, or 100 where `total_steps` is at most 500.
        freeze: Whether only the classifier is trained (a linear probe).
            Dropout stays active.
        layer_decay: Factor in (0, 1] on the learning rate from one block to
            the one before; `None` for none, as in the study.
        loss: As in `compile_pretraining`.
        gradient_accumulation_steps: As in `compile_pretraining`.
        ema: As in `compile_pretraining`.
        momentum_dtype: As in `compile_pretraining`.
        remat: As in `compile_pretraining`.
        steps_per_execution: As in `compile_pretraining`.
        **kwargs: As in `compile_pretraining`.

    Returns:
        The same model, compiled. `fit` takes batches of images, uint8 of
        shape (B, H, W, 3), and labels, integers (B,) or soft labels
        (B, classes).

    Raises:
        TypeError: If the model is no `VisionTransformer` with classifier.
        ValueError: If an argument is not as above, or the backend cannot.

    Example:
    >>> model = keras_augreg.ViT_S16(weights="augreg-in21k", classes=37)
    >>> model = keras_augreg.compile_finetuning(
    ...     model, total_steps=500, learning_rate=0.003)
    >>> model.fit(dataset, steps_per_epoch=100, epochs=5)
    """
    _check_model(model)
    if warmup_steps is None:
        warmup_steps = finetuning_warmup(total_steps)
    for layer in model.layers:
        layer.trainable = not freeze or layer.name == "head"
    optimizer = optimizers.SGD(
        schedules.warmup_cosine(learning_rate, total_steps, warmup_steps),
        momentum=0.9,
        global_clipnorm=CLIP_NORM,
        gradient_accumulation_steps=gradient_accumulation_steps,
        layer_decay=layer_decay,
        momentum_dtype=momentum_dtype,
        **_average(ema),
    )
    return _compile(
        model, optimizer, loss, steps_per_execution, remat=remat, **kwargs
    )


def _check_model(model: Any) -> None:
    if not isinstance(model, VisionTransformer) or not model.include_top:
        raise TypeError(
            "Expected a model with classifier from a builder of keras_augreg, "
            "built without `input_tensor` or on a plain `keras.Input`. "
            f"Received: {model!r}"
        )


def _average(ema: float | None) -> dict[str, Any]:
    return {} if ema is None else {"use_ema": True, "ema_momentum": ema}


def _compile(
    model: Any,
    optimizer: Any,
    loss: str,
    steps_per_execution: int,
    **kwargs: Any,
) -> Any:
    makers = {
        "sigmoid": losses.SigmoidCrossentropy,
        "softmax": losses.SoftmaxCrossentropy,
    }
    if loss not in makers:
        raise ValueError(
            f"`loss` is 'sigmoid' or 'softmax'. Received: loss={loss!r}"
        )
    if steps_per_execution > 1 and keras.backend.backend() == "torch":
        raise ValueError(
            "Keras on PyTorch runs one step at a time. Received: "
            f"steps_per_execution={steps_per_execution}. Leave it at 1."
        )
    if loss == "sigmoid":
        _set_prior(model)
    model.compile(
        optimizer,
        makers[loss](),
        # Padding examples of an evaluation weigh nothing.
        weighted_metrics=[
            losses.Accuracy(),
            losses.MeanLoss(makers[loss]()),
        ],
        on_logits=True,
        steps_per_execution=steps_per_execution,
        **kwargs,
    )
    model.optimizer.build(model.trainable_variables)
    return model


def _set_prior(model: Any) -> None:
    """Starts a fresh classifier at the frequency of one class in many.

    big_vision's `init_head_bias`, -6.9 for 1,000 classes and -10 for 21,843.
    """
    head = model.get_layer("head")
    if not any(bool(ops.any(weight != 0)) for weight in head.weights):
        prior = -math.log(model.classes)
        head.bias.assign(ops.full(head.bias.shape, prior))
