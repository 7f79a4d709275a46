"""The learning-rate schedule of the study: linear warm-up, cosine to zero."""

from __future__ import annotations

import keras


def warmup_cosine(
    learning_rate: float, total_steps: int, warmup_steps: int
) -> keras.optimizers.schedules.LearningRateSchedule:
    """Rises linearly from 0 to `learning_rate`, then falls to 0 along a cosine.

    `create_learning_rate_schedule` of google-research/vision_transformer
    (`vit_jax/utils.py`) and of big_vision (`utils.py`); the very first step
    has rate 0.

    The optimizers of `keras_augreg.training.optimizers` evaluate it at the
    number of weight updates, under gradient accumulation too; Keras's own
    count batches.

    Args:
        learning_rate: Peak of the learning rate, above 0.
        total_steps: Weight updates until the rate is back to 0.
        warmup_steps: Weight updates until the peak, at least 0 and fewer than
            `total_steps`.

    Returns:
        A Keras schedule: step -> rate, serializable.

    Raises:
        ValueError: The steps or the rate are out of these ranges.

    Example:
    >>> schedule = warmup_cosine(0.01, total_steps=20, warmup_steps=10)
    >>> [round(float(schedule(step)), 4) for step in (0, 5, 10, 15, 20)]
    [0.0, 0.005, 0.01, 0.005, 0.0]
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(
            "`warmup_steps` must be at least 0 and less than `total_steps`. "
            f"Received: warmup_steps={warmup_steps}, total_steps="
            f"{total_steps}. Both count weight updates."
        )
    if not learning_rate > 0:
        raise ValueError(
            "`learning_rate` must be above 0. Received: "
            f"learning_rate={learning_rate}"
        )
    # A data set's `cardinality()` may be a tensor, which is not saved.
    total_steps, warmup_steps = int(total_steps), int(warmup_steps)
    if not warmup_steps:
        return keras.optimizers.schedules.CosineDecay(
            float(learning_rate), total_steps
        )
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        total_steps - warmup_steps,
        warmup_target=float(learning_rate),
        warmup_steps=warmup_steps,
    )
