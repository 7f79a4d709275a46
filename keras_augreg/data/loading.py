"""The front door: `load`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

from keras_augreg.data import sources
from keras_augreg.data.decode import SMALLER_SIDE, Preprocess
from keras_augreg.data.order import Order
from keras_augreg.data.report import Skipped
from keras_augreg.data.targets import Targets


@dataclasses.dataclass(frozen=True)
class Info:
    """What a data set holds.

    Attributes:
        num_classes: How many classes there are.
        num_examples: How many examples the split has, of all hosts together.
        class_names: What each label means.
        steps_per_epoch: Batches of one epoch.
        engine: The route that was taken, "tensorflow" or "python".
        skipped: `skipped.names` are the names of what the latest complete
            pass left out; `None` unless `on_error="skip"`.
    """

    num_classes: int
    num_examples: int
    class_names: list[str]
    steps_per_epoch: int
    engine: str
    skipped: Skipped | None


def load(
    source: str | os.PathLike[str],
    split: str,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    training: bool,
    crop: str | None = None,
    smaller_side: int | None = None,
    flip: bool | None = None,
    seed: int = 0,
    start_step: int = 0,
    steps: int | None = None,
    one_hot: bool = False,
    class_weight: Mapping[int, float] | None = None,
    sample_weight: Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    split_seed: int = 0,
    cache: bool = False,
    pad: bool | None = None,
    host: tuple[int, int] = (0, 1),
    on_error: str = "raise",
    engine: str = "auto",
) -> tuple[Any, Info]:
    """Loads a data set of images and labels for `fit` and `evaluate`."""
    size = _pair(image_size)
    if crop is None:
        crop = "inception" if training else "resize_small"
        if source in sources.BUNDLED:
            crop = "resize"
    if smaller_side is None:
        smaller_side = round(SMALLER_SIDE * min(size))
    if source in sources.BUNDLED:
        examples = sources.digits(split, split_seed)
        flip = False if flip is None else flip
    else:
        examples = sources.folder(
            source, split, split_seed, class_names, on_error
        )
    if cache:
        examples.read = functools.cache(examples.read)
    pad = host[1] > 1 if pad is None else pad
    order = Order(len(examples), batch_size, training, seed, pad, *host)
    skipped = Skipped(examples.left_out) if on_error == "skip" else None
    targets = Targets(
        len(examples.class_names),
        training,
        pad,
        one_hot,
        None,
        sample_weight is not None,
        skipped,
    )
    preprocess = Preprocess(
        size, crop, training, True if flip is None else flip, smaller_side
    )
    from keras_augreg.data.python_route import Batches

    dataset = Batches(
        examples, order, preprocess, targets, start_step, steps or order.steps
    )
    info = Info(
        len(examples.class_names),
        len(examples),
        examples.class_names,
        order.steps,
        "python",
        skipped,
    )
    return dataset, info


def _pair(image_size: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(image_size, int):
        return image_size, image_size
    return image_size
