"""The front door: `load`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.data import sources, tfds
from keras_augreg.data.datasets import DATASETS, PaperDataset
from keras_augreg.data.decode import CROPS, SMALLER_SIDE, Preprocess
from keras_augreg.data.order import Order
from keras_augreg.data.report import Skipped, none_excluded
from keras_augreg.data.sources import Examples
from keras_augreg.data.targets import Targets
from keras_augreg.data.tfds import Records
from keras_augreg.labels import _classes

ENGINES = ("auto", "tensorflow", "python")


@dataclasses.dataclass(frozen=True)
class Info:
    """What a data set holds.

    Attributes:
        num_classes: How many classes there are.
        num_examples: How many examples the split has, of all hosts together
            and without those that `exclude` names.
        class_names: What each label means.
        steps_per_epoch: Batches of one epoch.
        engine: The route that was taken, "tensorflow" or "python".
        skipped: With `on_error="skip"`, `skipped.names` lists what the latest
            complete epoch left out; otherwise `None`.
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
    sample_weight: str | Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    split_seed: int = 0,
    exclude: str | os.PathLike[str] | Iterable[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
    cache: bool = False,
    shuffle_buffer: int = 10_000,
    pad: bool | None = None,
    host: tuple[int, int] = (0, 1),
    on_error: str = "raise",
    engine: str = "auto",
) -> tuple[Any, Info]:
    """Loads images and labels for `fit`, `evaluate` and `predict`.

    Batches hold uint8 images (batch, height, width, 3) and int32 labels
    (batch,). A pass over the data set is one epoch; every training epoch has
    its own random order, crops and flips, all drawn from `seed`: a run gets
    the same batches whenever it is repeated, and both engines give the same
    ones to within one grey level.

    What to read:

    Args:
        source: One of
            - `"digits"`: scikit-learn's handwritten digits;
            - a folder with one folder of images for each class, or with such
              a folder for each split (`train/CLASS/x.jpg`, `test/CLASS/...`;
              a `pathlib.Path` is always a folder):
              JPEG, PNG, WebP, BMP, and of GIF the first frame; grey, CMYK,
              16-bit, rotated (EXIF) and transparent (on white) files become
              the RGB picture that a person sees;
            - a data set of the paper or of VTAB-1k: `data.DATASETS`;
            - a name of TensorFlow Datasets (prepared as `tfds.load` does), or
              a directory that it wrote, also on `gs://`.
        split: A split's folder; `"train"`, `"test"` (a fifth of every class)
            or `"all"` where there are none, and of digits; a split of a
            paper's data set; TFDS's split syntax. `"train[:10%]"` takes a
            part: of a folder and digits, every class alike; of a paper's
            data set (also `"train[:100]"`), the row's split, not TFDS's of
            that name.
        image_size: Side of the images, or (height, width), in pixels.
        batch_size: Of all hosts together, at least 1.
        training: Random order, crop and flip, and full batches only;
            otherwise every example once, in the source's order.
        crop: `"inception"` (training only: 5% to 100% of the area, width over
            height 0.75 to 1.33), `"resize_small"` (the smaller side to
            `smaller_side`, then a random or, in evaluation, central crop) or
            `"resize"` (straight to `image_size`). `None` is what the source's
            row says, `"resize"` for digits, and otherwise `"inception"` in
            training and `"resize_small"` in evaluation.
        smaller_side: In pixels; defaults to 256/224 of the image's smaller
            side. big_vision fine-tunes at 384 with 448.
        flip: Whether training mirrors half of the images. Defaults to yes,
            except for digits and where the source's row says otherwise.
        seed: Of order, crops and flips, from 0 to 2**32 - 1.
        start_step: Training begins with the batch that a run from 0 would
            get at this step.
        steps: Batches of a pass, in training; defaults to one epoch. With
            the length of a whole run and `fit(steps_per_epoch=...)`, there
            is one pass and no pause between epochs.
        one_hot: Labels as float32 vectors (batch, num_classes).
        class_weight: Class -> weight, 1 where missing. Batches become
            (images, labels, weights).
        sample_weight: One weight for each example of a folder's or digits'
            split (or part), in the order of evaluation, without those that
            `exclude` names; or the name of a feature of a TFDS data set.
            Batches become (images, labels, weights).
        class_names: The class folders in the order of their labels, instead
            of alphabetically (those of `train`, if there is one).
        split_seed: Of the split where the source has none, the same for
            "train" and "test", and of a part of a folder's or digits' split.
        exclude: Names of examples to leave out (`CLASS/file.jpg`, or TFDS's
            `tfds_id`), or a file of them, a line each:
            `keras_augreg.data.dedup` writes one.
        data_dir: TFDS's directory; with it, a name is never a folder's. For
            `"imagenet-21k"`: its folder, or the directory that TFDS wrote.
        cache: Keep the encoded files in memory.
        shuffle_buffer: Of TFDS training data: records, in memory, among which
            the next one is drawn. Other sources shuffle all of their data.
        pad: Whether the last evaluation batch is filled up with examples of
            weight 0, and batches are (images, labels, weights); then metrics
            belong into `compile(weighted_metrics=...)`. `None` pads with
            several hosts and where a `keras.distribution` is set.
        host: (number of this host from 0, number of hosts): each reads its
            own slice of every batch, with the same number of steps.
        on_error: `"raise"`: a broken file is an error that names it.
            `"skip"`: it is left out (in training, the next image of the batch
            takes its place), counted in `info.skipped`, and a warning at the
            end of the epoch says how many there were; then the TensorFlow
            engine decodes whole pictures in Python, too, and takes longer. A
            batch without any image is an error, unless it is padded.
        engine: `"tensorflow"` (a `tf.data.Dataset`), `"python"` (a
            `keras.utils.PyDataset`, without TensorFlow) or `"auto"`: Python
            where TensorFlow is not installed, and for digits where it is not
            the backend. Python is refused in the scope of a `tf.distribute`
            strategy.

    Returns:
        `(dataset, info)`: the data set, whose `cardinality()` is its number
        of batches, and an `Info`.

    Raises:
        ValueError: If an argument, the source or a file is not as described.
        ImportError: If the source needs a package that is not installed.

    Example:
    ```python
    from keras_augreg import data

    train, info = data.load(
        "digits", "train", image_size=32, batch_size=128, training=True
    )
    images, labels = next(iter(train))
    assert images.shape == (128, 32, 32, 3) and info.num_classes == 10
    ```
    """
    number, hosts = host
    if batch_size < 1 or hosts < 1 or batch_size % hosts:
        raise ValueError(
            "`batch_size` is of all hosts together, at least 1 and divisible "
            f"by their number. Received: batch_size={batch_size}, host={host}"
        )
    if not 0 <= number < hosts:
        raise ValueError(
            f"`host` is (number from 0, number of hosts). Received: host={host}"
        )
    for argument, value, choices in (
        ("on_error", on_error, ("raise", "skip")),
        ("engine", engine, ENGINES),
    ):
        if value not in choices:
            raise ValueError(
                f"`{argument}` is one of {choices}. Received: "
                f"{argument}={value!r}"
            )
    for name, its_value in (("seed", seed), ("split_seed", split_seed)):
        if not _is_integer(its_value) or not 0 <= its_value < 2**32:
            raise ValueError(
                f"`{name}` is an integer from 0 to 2**32 - 1. Received: "
                f"{name}={its_value!r}"
            )
    for name, count in (("start_step", start_step), ("steps", steps)):
        if count is not None and not _is_integer(count):
            raise ValueError(
                f"`{name}` is an integer. Received: {name}={count!r}"
            )
    # NumPy's integers would draw from other streams.
    seed, split_seed, start_step = int(seed), int(split_seed), int(start_step)
    if pad is False and hosts > 1 and not training:
        raise ValueError(
            "Several hosts have batches of one size: evaluate with `pad=True` "
            f"or `None`. Received: pad=False, host={host}"
        )
    if not training and (start_step or steps is not None):
        raise ValueError(
            "`start_step` and `steps` belong to training; an evaluation is "
            f"one pass. Received: start_step={start_step}, steps={steps}"
        )
    if start_step < 0 or (steps is not None and steps < 1):
        raise ValueError(
            "`start_step` is at least 0 and `steps` at least 1. Received: "
            f"start_step={start_step}, steps={steps}"
        )
    row, path, kind = _locate(source, data_dir)
    preprocess = _preprocess(
        row, image_size, training, crop, smaller_side, flip
    )
    engine = _engine(engine, kind, path)
    found = find(
        source,
        split,
        sample_weight=sample_weight,
        class_names=class_names,
        split_seed=split_seed,
        exclude=exclude,
        data_dir=data_dir,
        cache=cache,
        shuffle_buffer=shuffle_buffer,
        host=host,
        on_error=on_error,
    )
    in_order = len(found)
    if isinstance(found, Records):
        share = found.smallest_share if training else found.largest_share
        in_order = share * hosts
    names = found.class_names
    vectors = found.labels.ndim == 2
    if vectors and (one_hot or class_weight):
        raise ValueError(
            f"The labels of {str(source)!r} are vectors of several classes: "
            "`one_hot` and `class_weight` do not apply."
        )
    if pad is None:
        pad = hosts > 1 or keras.distribution.distribution() is not None
    order = Order(
        in_order, batch_size, training, seed, pad and not training, number,
        hosts,
    )  # fmt: skip
    if order.steps == 0:
        raise ValueError(
            f"The split {split!r} of {str(source)!r} has {len(found)} "
            f"examples: too few for a batch of {batch_size}."
        )
    skipped = Skipped(found.left_out) if on_error == "skip" else None
    targets = Targets(
        num_classes=len(names),
        training=training,
        pad=order.pad,
        one_hot=one_hot,
        class_weights=_class_weights(class_weight, len(names)),
        weighted=sample_weight is not None or vectors,
        skipped=skipped,
    )
    num_batches = steps or order.steps
    arguments = (order, preprocess, targets, start_step, num_batches)
    if engine == "tensorflow":
        from keras_augreg.data import engine_tensorflow

        dataset = engine_tensorflow.build(found, *arguments)
    else:
        from keras_augreg.data.engine_python import Batches

        assert isinstance(found, Examples)
        dataset = Batches(found, *arguments)
    info = Info(len(names), len(found), names, order.steps, engine, skipped)
    return dataset, info


def find(
    source: str | os.PathLike[str],
    split: str,
    *,
    sample_weight: str | Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    split_seed: int = 0,
    exclude: str | os.PathLike[str] | Iterable[str] = (),
    data_dir: str | os.PathLike[str] | None = None,
    cache: bool = False,
    shuffle_buffer: int = 1,
    host: tuple[int, int] = (0, 1),
    on_error: str = "raise",
) -> Examples | Records:
    """Finds what `load` reads; the arguments are `load`'s."""
    row, path, kind = _locate(source, data_dir)
    if isinstance(exclude, (str, os.PathLike)):
        exclude = sources.read_names(exclude)
    excluded = frozenset(exclude)
    if kind == "tfds":
        if sample_weight is not None and not isinstance(sample_weight, str):
            raise ValueError(
                "`sample_weight` of a TFDS data set is the name of a feature. "
                f"Received: {type(sample_weight).__name__}"
            )
        return _records(
            path,
            row,
            split,
            None if data_dir is None else str(data_dir),
            sample_weight=sample_weight,
            excluded=excluded,
            host=host[0],
            hosts=host[1],
            shuffle_buffer=shuffle_buffer,
            cache=cache,
        )
    name, percent = sources.part(split)
    if kind == "bundled":
        found = sources.digits(name, split_seed)
    else:
        if row.num_classes and class_names is None:
            # The release's order.
            class_names = [synset for synset, _ in _classes(row.num_classes)]
        found = sources.folder(path, name, split_seed, class_names, on_error)
    if percent != (0, 100):
        found = sources.take(found, percent, split_seed)
    if excluded:
        everything = len(found)
        found = found.subset(
            i
            for i, name in enumerate(found.names)
            if excluded.isdisjoint((name, sources.line_of(name)))
        )
        if len(found) == everything:
            none_excluded(excluded)
    if sample_weight is not None:
        weights = np.asarray(sample_weight)
        if weights.shape != (len(found),) or weights.dtype.kind not in "fiub":
            raise ValueError(
                f"`sample_weight` has one number for each of the {len(found)} "
                f"examples. Received: {sample_weight!r}"
            )
        found.weights = weights.astype(np.float32)
    if cache:
        found.read = functools.cache(found.read)
    return found


def _locate(
    source: str | os.PathLike[str], data_dir: str | os.PathLike[str] | None
) -> tuple[PaperDataset, str, str]:
    """The source's row, where to read, and how.

    Sources that are no data set of the paper have a row without splits and
    classes; the third is "bundled", "folder" or "tfds".
    """
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
        if "://" not in source:  # It is no name, which "./" says.
            source = os.path.join(".", source)
    if source in sources.BUNDLED:
        row = PaperDataset(source, None, {}, 0, "resize", "resize", False)
        return row, source, "bundled"
    row = DATASETS.get(source, PaperDataset(source, None, {}, 0))
    if row.tfds is not None:
        return row, row.tfds, "tfds"
    path = source
    if source in DATASETS:
        if data_dir is None:
            raise ValueError(
                f"{source!r} has no public TFDS data set: pass `data_dir`, a "
                "folder of class folders or a directory that TFDS wrote."
            )
        path = str(data_dir)
    if tfds.is_prepared_directory(path):
        return row, path, "tfds"
    looks_like_path = path.startswith((".", "/", "~")) or "://" in path
    # With TFDS's directory, a name is TFDS's.
    a_name = data_dir is not None and path == source and not looks_like_path
    if pathlib.Path(path).is_dir() and not a_name:
        return row, path, "folder"
    if looks_like_path or source in DATASETS:
        raise ValueError(
            f"No folder {path!r}. Expected a folder of class folders, or a "
            "directory that TFDS wrote (with dataset_info.json)."
        )
    return row, path, "tfds"


def _is_integer(value: Any) -> bool:
    """Whether a value is a whole number, and not a truth value."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _engine(engine: str, kind: str, path: str) -> str:
    installed = importlib.util.find_spec("tensorflow") is not None
    if engine == "auto":
        if kind == "tfds":
            return "tensorflow"
        fits = kind == "folder" or keras.backend.backend() == "tensorflow"
        return "tensorflow" if installed and fits else "python"
    if engine == "python" and kind == "tfds":
        raise ValueError(
            f"{path!r} is read through TensorFlow Datasets, which "
            'engine="python" cannot. Pass engine="tensorflow" or a folder.'
        )
    if engine == "python" and keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if tf.distribute.has_strategy():
            raise ValueError(
                "Under a tf.distribute strategy Keras begins a pass over a "
                "PyDataset beside one that it has left, and batches get lost. "
                'Pass engine="tensorflow" or "auto". Received: engine="python"'
            )
    if engine == "tensorflow" and not installed:
        raise ImportError(
            'engine="tensorflow" needs pip install tensorflow; '
            'engine="python" does without.'
        )
    return engine


def _preprocess(
    row: PaperDataset,
    image_size: int | tuple[int, int],
    training: bool,
    crop: str | None,
    smaller_side: int | None,
    flip: bool | None,
) -> Preprocess:
    sides: tuple[Any, ...] = (
        image_size if isinstance(image_size, Sequence) else (image_size,) * 2
    )
    if len(sides) != 2 or not all(
        _is_integer(side) and side >= 1 for side in sides
    ):
        raise ValueError(
            "`image_size` is a side or (height, width), in pixels. Received: "
            f"image_size={image_size}"
        )
    size = (int(sides[0]), int(sides[1]))
    if crop is None:
        crop = row.crop if training else row.eval_crop
    if crop not in CROPS or (crop == "inception" and not training):
        raise ValueError(
            f'`crop` is one of {CROPS}, and "inception" is for training. '
            f"Received: crop={crop!r}, training={training}"
        )
    if smaller_side is None:
        smaller_side = round(SMALLER_SIDE * min(size))
    elif crop != "resize_small" or smaller_side < min(size):
        raise ValueError(
            '`smaller_side` belongs to crop="resize_small" and is at least '
            f"the smaller side of `image_size`. Received: smaller_side="
            f"{smaller_side}, crop={crop!r}, image_size={image_size}"
        )
    return Preprocess(
        size, crop, training, row.flip if flip is None else flip, smaller_side
    )


def _records(
    path: str,
    row: PaperDataset,
    split: str,
    data_dir: str | None,
    **arguments: Any,
) -> Records:
    builder = tfds.open_builder(path, data_dir)
    split = "+".join(
        _of_row(builder, row, summand) for summand in split.split("+")
    )
    records = tfds.open_records(
        builder,
        split,
        label=row.label,
        label_features=row.label_features,
        num_classes=row.num_classes,
        brightness=row.brightness,
        **arguments,
    )
    if row.num_classes and len(records.class_names) != row.num_classes:
        raise ValueError(
            f"{row.name!r} has {row.num_classes} classes, but what was found "
            f"at {path!r} has {len(records.class_names)}."
        )
    return records


def _of_row(builder: Any, row: PaperDataset, split: str) -> str:
    """TFDS's expression for a row's split, or a part of one."""
    name, bracket, part = split.partition("[")
    if name not in row.splits:
        return split
    # TFDS's split of the same name may hold the row's test set.
    split = row.splits[name]
    if "{p}" in split:
        first = row.held_out * builder.info.splits["train"].num_examples // 100
        split = split.format(p=first, p200=first + 200)
    return tfds.part_of(builder, split, part) if bracket else split


def _class_weights(
    class_weight: Mapping[int, float] | None, num_classes: int
) -> np.ndarray | None:
    if class_weight is None:
        return None
    unknown = [c for c in class_weight if c not in range(num_classes)]
    if unknown:
        raise ValueError(
            f"`class_weight` has weights for classes 0 to {num_classes - 1}. "
            f"Received: {unknown[0]!r}"
        )
    weights = np.ones(num_classes, np.float32)
    for label, weight in class_weight.items():
        weights[label] = weight
    return weights
