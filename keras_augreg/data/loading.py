"""The entry point of the data side: `load`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_augreg.data import report
from keras_augreg.data.datasets import DATASETS
from keras_augreg.data.feed import Feed
from keras_augreg.data.locate import locate
from keras_augreg.data.options import (
    Options,
    Preprocess,
    check_seed,
    choose_engine,
    is_weight,
)
from keras_augreg.data.report import Skipped
from keras_augreg.data.tfds import Records

# Largest side of small images, in pixels, which are not cropped by default:
# cropping 28-pixel images costs 14 points of accuracy or more in short training
# runs (docs/data.md). For 32 pixels (CIFAR), the paper's own crop is milder.
SMALL_SIDE = 32


@dataclasses.dataclass(frozen=True)
class Info:
    """What a data set holds.

    Attributes:
        num_classes: Number of classes.
        num_examples: Number of examples in the split, over all shards and
            without those that `exclude` names.
        class_names: The name of each label.
        steps_per_epoch: Batches per epoch.
        engine: The engine that reads, "tensorflow" or "python".
        skipped: With `on_error="skip"`, `skipped.names` lists what the latest
            complete epoch left out; otherwise `None`.
        unread: Extension -> number of files in the class folders that are not
            images or cannot be read by the installed Pillow.
    """

    num_classes: int
    num_examples: int
    class_names: list[str]
    steps_per_epoch: int
    engine: str
    skipped: Skipped | None
    unread: dict[str, int]


def load(
    source: Any,
    split: str,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    training: bool,
    preprocess: str | Preprocess | None = None,
    seed: int = 0,
    class_names: Sequence[str] | None = None,
    class_weight: Mapping[int, float] | str | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    options: Options | None = None,
) -> tuple[Any, Info]:
    """Loads images and labels for `fit`, `evaluate` and `predict`.

    Batches hold uint8 images (batch, height, width, 3) and int32 labels
    (batch,). A pass over the data set is one epoch; every training epoch has
    its own random order, crops and flips, all drawn from `seed`. A run gets
    the same batches whenever it is repeated, and both engines give the same
    batches to within one grey level.

    Args:
        source: One of

            - `"digits"`: scikit-learn's handwritten digits;
            - a folder, local or `gs://BUCKET/FOLDER`, with one folder of
              images per class, or with one such folder per split
              (`train/CLASS/x.jpg`, `test/CLASS/...`; a `pathlib.Path` is
              always a folder): JPEG, PNG, WebP, BMP, TIFF,
              the first frame of GIF files, and what else Pillow reads
              (docs/data.md). Grey, CMYK, 16-bit, rotated (EXIF) and
              transparent (on white) files become the RGB image that a person
              sees;
            - a table, a `.csv` or `.tsv` file or a DataFrame of pandas, with
              a row for each image of the folder `data_dir` (by default the
              file's): `options.image` and `options.label` name its columns;
            - an object with `__len__` and `__getitem__` whose items are
              mappings, or pairs of an image and a label: a data set of
              Hugging Face's `datasets`, of PyTorch, Grain or TFDS
              (`tfds.data_source`), a list; or a mapping from splits to them.
              `options.image` and `options.label` name keys. An image is a
              file's bytes, a path, a picture of Pillow or a uint8 array;
              a label is the number of a class, its name, or several of them;
            - a folder that `save_to_disk` of `datasets` wrote;
            - tar files in WebDataset's form: one, a folder of them, or a
              pattern (`"photos/train-{000..127}.tar"`);
            - a data set of the paper or of VTAB-1k: see `data.DATASETS`;
            - a name of TensorFlow Datasets (prepared as `tfds.load` does), or
              a directory that it wrote, also on `gs://`.
        split: The folder of a split; `"train"`, `"test"` (a fifth of every
            class) or `"all"` for digits, tables, and folders and objects
            without splits; the split that an object is, or one of a mapping;
            `"train"` or `"validation"` with `options.folds`; a split
            of the paper's data set; or TFDS's split syntax. `"train[:10%]"`
            takes a part: of folders and digits, the same share of every
            class; of a paper's data set, of the row's split (which can differ
            from TFDS's split of that name).
        image_size: Side of the images, or (height, width), in pixels.
        batch_size: Number of examples per step, over all shards.
        training: Whether to use a random order, crop and flip, and full
            batches only. Otherwise every example comes once, in order.
        preprocess: How to crop and flip: a `data.Preprocess`, or the name of
            its crop: `"inception"`, `"resize_small"` or `"resize"`.
        seed: Seed of order, crops and flips, from 0 to 2**32 - 1.
        class_names: The class folders in the order of their labels; `None`
            for alphabetical order (of those in `train`, if it exists).
        class_weight: Class -> weight, 1 where missing; or `"balanced"`, so
            that all classes count alike: n images in k classes give one with
            m images the weight n / (k m). Batches become (images, labels,
            weights).
        data_dir: TFDS's directory; with it, a name never means a folder. For
            `"imagenet-21k"`: its folder, or the directory that TFDS wrote.
            For a table: the folder of its images.
        options: Further settings, as a `data.Options`.

    Returns:
        `(dataset, info)`. The data set is a `tf.data.Dataset` or a
        `keras.utils.PyDataset`, with these methods besides its own:

        - `cardinality()`: its number of batches;
        - `at(step, steps=None)` (training): the same run from batch `step`
          on, in passes of `steps` batches (default: an epoch);
        - `sharded(index, count)`: the slice of every batch for one of `count`
          processes, with the same number of steps; evaluation is padded.

        `info` is a `data.Info`.

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
    rest = train.at(step=100)  # resume a run
    part = train.sharded(index=0, count=2)  # one of two processes
    ```
    """
    check_seed("seed", seed)
    options = Options() if options is None else options
    if not isinstance(options, Options):
        raise TypeError(
            "`options` must be a `keras_augreg.data.Options`. Received: "
            f"options={options!r}"
        )
    if not isinstance(preprocess, Preprocess):
        preprocess = Preprocess(preprocess)
    location = locate(source, data_dir)
    cropping = preprocess.cropping(image_size, training, location.row)
    examples = location.read(split, class_names, options)
    skip = options.on_error == "skip"
    if isinstance(examples, Records):
        engine = choose_engine(options.engine, "records")
    else:
        engine = choose_engine(options.engine, location.kind)
        if isinstance(class_weight, str):
            examples = examples.labelled(skip)
    names = examples.class_names
    if preprocess.crop is None and location.row.name not in DATASETS:
        side = examples.smaller_side()
        if location.kind != "bundled" and side and side <= SMALL_SIDE:
            report.once(
                f"Images of {location.path!r} are small ({side} pixels): "
                'preprocess="resize", without cropping, is their default. '
                "Pass `preprocess` to choose."
            )
            preprocess = dataclasses.replace(preprocess, crop="resize")
            cropping = preprocess.cropping(image_size, training, location.row)
    if examples.label_shape and (options.one_hot or class_weight):
        raise ValueError(
            f"The labels of {location.row.name!r} are vectors of several "
            "classes: `one_hot` and `class_weight` do not apply."
        )
    one = location.kind not in ("bundled", "tfds") and len(names) == 1
    if one and class_names is None:
        raise ValueError(
            f"Found images of only one class, {names[0]!r}, in "
            f"{location.path!r}. Expected at least two "
            + (
                "in its labels"
                if location.kind != "folder"
                else "class folders, or folders of splits that hold them"
            )
            + f". If there is only one class, pass class_names={names}."
        )
    skipped = Skipped(examples.left_out) if skip else None
    weights = _class_weights(class_weight, examples)
    seed = int(seed)  # NumPy's integers would draw from other streams.
    feed = Feed(examples, cropping, batch_size, seed, options, weights, skipped)
    info = Info(
        len(names), len(examples), names, feed.order.steps, engine, skipped,
        getattr(examples, "unread", {}),
    )  # fmt: skip
    if engine == "tensorflow":
        from keras_augreg.data.engine_tensorflow import Pipeline

        return Pipeline(feed).dataset(), info
    from keras_augreg.data.engine_python import Batches

    return Batches(feed), info


def _class_weights(
    class_weight: Mapping[int, float] | str | None, examples: Any
) -> np.ndarray | None:
    num_classes = len(examples.class_names)
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        if class_weight != "balanced" or examples.labels is None:
            raise ValueError(
                "`class_weight` is a dict of weights by class, or 'balanced' "
                "where labels can be read without images (those of TFRecord "
                f"files cannot). Received: class_weight={class_weight!r}"
            )
        known = examples.labels[examples.labels >= 0]
        counts = np.bincount(known, minlength=num_classes)
        weights = len(examples) / (num_classes * np.maximum(counts, 1))
        return weights.astype(np.float32)
    if not isinstance(class_weight, Mapping):  # scikit-learn returns arrays.
        class_weight = dict(enumerate(class_weight))
    unknown = [c for c in class_weight if c not in range(num_classes)]
    if unknown:
        raise ValueError(
            f"`class_weight` has weights for classes 0 to {num_classes - 1}. "
            f"Received: {unknown[0]!r}"
        )
    weights = np.ones(num_classes, np.float32)
    for label, weight in class_weight.items():
        weights[label] = weight
    if not is_weight(weights).all():
        raise ValueError(
            "`class_weight` must be finite numbers of at least 0. Received: "
            f"{class_weight}"
        )
    return weights
