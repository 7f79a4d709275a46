"""What the scripts that train share: flags, data, arguments of `compile_*`."""

from __future__ import annotations

from typing import Any

import keras
import precision
from absl import app, flags

from keras_augreg import data
from keras_augreg.data.decode import CROPS
from keras_augreg.data.options import ON_ERROR

FLAGS = flags.FLAGS
flags.DEFINE_string("train_split", "train", "Or train[:10%].")
flags.DEFINE_string("data_dir", None, "TFDS's directory; see `data.load`.")
flags.DEFINE_enum(
    "crop", None, CROPS, "In training; by default the data set's."
)
flags.DEFINE_bool("flip", None, "Mirror half of the images, or not.")
flags.DEFINE_string("class_weight", None, "'balanced', or as '0=1,1=2.5'.")
flags.DEFINE_enum("on_error", "raise", ON_ERROR, "skip: leave out bad images.")
flags.DEFINE_integer(
    "seed", 0, "Seed of weights, order, crops and augmentation."
)
flags.DEFINE_string("dtype", "auto", "A dtype policy; see precision.py.")
flags.DEFINE_integer("warmup_steps", None, "By default the study's.")
flags.DEFINE_integer("accumulation", 1, "Parts of a batch, one at a time.")
flags.DEFINE_float("ema", None, "Momentum of an average of the weights.")
flags.DEFINE_bool("remat", False, "Less memory, a second forward pass.")
flags.DEFINE_string(
    "momentum_dtype", None, "Dtype of the optimizer's momentum."
)
flags.DEFINE_integer("save_every", 100, "Updates between checkpoints.")
flags.DEFINE_bool("restore_best", False, "End with the best checkpoint.")
flags.DEFINE_string("distribute", "auto", "See `distribute`.")
flags.DEFINE_string("workdir", None, "Output folder; by default runs/SCRIPT.")
flags.DEFINE_bool("tensorboard", False, "Files for it, by tensorboardX.")


def apply(settings: dict[str, Any]) -> None:
    """Sets flags that were not given on the command line."""
    for name, value in settings.items():
        if not FLAGS[name].present:
            FLAGS[name].value = value


def start() -> None:
    """Sets seed and dtype; call it after `distribute`."""
    keras.utils.set_random_seed(FLAGS.seed)
    # The settings of the run say which it was.
    FLAGS.dtype = precision.choose(FLAGS.dtype)


def compile_options(warmup_steps: int) -> dict[str, Any]:
    """What the flags say to `compile_pretraining` and `compile_finetuning`."""
    parts = FLAGS.accumulation
    given = FLAGS.warmup_steps
    return {
        "warmup_steps": warmup_steps if given is None else given,
        "gradient_accumulation_steps": parts if parts > 1 else None,
        "ema_momentum": FLAGS.ema,
        "remat": FLAGS.remat,
        "momentum_dtype": FLAGS.momentum_dtype,
    }


def load(
    source: str, shard: tuple[int, int], batch_size: int, **options: Any
) -> tuple[Any, Any, Any]:
    """The training set, what to evaluate on, and the former's `data.Info`.

    Their batches are one of the `--accumulation` parts of `batch_size`.
    """
    if batch_size % FLAGS.accumulation:
        raise app.UsageError(
            f"--accumulation={FLAGS.accumulation} must divide the batch size, "
            f"{batch_size}."
        )
    options |= {
        "batch_size": batch_size // FLAGS.accumulation,
        "data_dir": FLAGS.data_dir,
        "options": data.Options(on_error=FLAGS.on_error),
    }
    train_split, test_split = data.evaluation_split(
        source, FLAGS.train_split, FLAGS.data_dir
    )
    train, info = data.load(
        source,
        train_split,
        training=True,
        seed=FLAGS.seed,
        preprocess=data.Preprocess(FLAGS.crop, FLAGS.flip),
        class_weight=_class_weight(FLAGS.class_weight),
        **options,
    )
    test, _ = data.load(
        source,
        test_split,
        training=False,
        preprocess=None if FLAGS.crop == "inception" else FLAGS.crop,
        class_names=info.class_names,
        **options,
    )
    return train.sharded(*shard), test.sharded(*shard), info


def unaugmented(source: str, **options: Any) -> Any:
    """The training images in order, without those that are evaluated on."""
    split, _ = data.evaluation_split(source, FLAGS.train_split, FLAGS.data_dir)
    return data.load(
        source, split, training=False, data_dir=FLAGS.data_dir, **options
    )[0]


def _class_weight(text: str | None) -> Any:
    if text in (None, "balanced"):
        return text
    try:
        pairs = (part.split("=") for part in str(text).split(","))
        return {int(label): float(weight) for label, weight in pairs}
    except ValueError:
        raise app.UsageError(
            "--class_weight is 'balanced', or weights by class as "
            f"'0=1,1=2.5'. Received: {text!r}"
        ) from None
