"""The data sets of the paper and of VTAB, by name, in one table.

Sources of the columns, where a row does not say otherwise:

- Rows up to Flowers: google-research/big_vision at 0127fb6,
  `configs/transfer.py` (splits, classes, crop).
- Rows from Resisc45 on: google-research/task_adaptation at d7630d3, the code
  of the VTAB benchmark, `data/*.py` (splits, labels), `data_loader.py`
  (plain resize, no flip) and `scripts/run_all_tasks.sh` (which tasks). The
  AugReg paper's splits of Resisc45 (60%, 20%, 20%) and Kitti (the official
  ones) agree (section 3.1).
- `tfds`: the name in TensorFlow Datasets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_augreg.dataset_names import CLASSES


@dataclasses.dataclass(frozen=True)
class PaperDataset:
    """One row.

    Attributes:
        name: Its name in `load`.
        tfds: Its TFDS name; `None` if users build it themselves.
        splits: Name -> TFDS split. `{p}` stands for the first example of the
            held-out part of the training set, `{p200}` for 200 more.
        num_classes: Number of classes.
        crop: The crop in training.
        eval_crop: The crop in evaluation.
        flip: Whether training mirrors images.
        held_out: Position of `{p}` in percent of the training set.
        label: The feature that is the label, or a function of an example;
            `None` for the data set's own.
        label_features: The features that the function needs.
        brightness: Factor of the pixel values.
    """

    name: str
    tfds: str | None
    splits: Mapping[str, str]
    num_classes: int
    crop: str = "inception"
    eval_crop: str = "resize_small"
    flip: bool = True
    held_out: int = 0
    label: str | Callable[[Any], Any] | None = None
    label_features: tuple[str, ...] = ()
    brightness: int = 1


# What VTAB computes from an example of NumPy arrays, which may be empty lists.


def _bin(value: float, edges: list[float]) -> int:
    """Number of edges after the first that lie strictly below a value."""
    return sum(edge < value for edge in edges[1:])


def kitti_distance(example: Any) -> int:
    """VTAB's class of the distance to the closest vehicle.

    Vehicles are the types 0 to 2 (car, van, truck); the distance is the
    third coordinate of an object's location, in metres. Bins: up to 8, up to
    20, farther, no vehicle (`data/kitti.py`).
    """
    objects = example["objects"]
    locations = np.asarray(objects["location"], np.float32).reshape(-1, 3)
    distance = locations[np.asarray(objects["type"]) < 3, 2]
    return _bin(min([*distance, 1000.0]), [-100.0, 8.0, 20.0, 999.0])


def clevr_count(example: Any) -> int:
    """VTAB's class of the number of objects, 3 to 10 (`data/clevr.py`)."""
    return len(example["objects"]["size"]) - 3


def clevr_distance(example: Any) -> int:
    """VTAB's class of the distance to the closest object (`data/clevr.py`)."""
    nearest = np.asarray(example["objects"]["pixel_coords"])[:, 2].min()
    return _bin(nearest, [0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])


def dsprites_x(example: Any) -> int:
    """VTAB's class of the x position: 32 in pairs (`data/dsprites.py`)."""
    return int(example["label_x_position"]) // 2


def dsprites_orientation(example: Any) -> int:
    """VTAB's class of the orientation: 40 in 16 bins (`data/dsprites.py`)."""
    return int(int(example["label_orientation"]) // (40 / 16))


def _splits(*own: str, val200: str) -> dict[str, str]:
    """Adds VTAB-1k's: 800 examples to train on, 200 to choose settings on."""
    vtab_1k = ("train[:800]", val200, f"train[:800]+{val200}")
    names = ("train", "val", "trainval", "test", "train800", "val200")
    return dict(zip((*names, "train800val200"), own + vtab_1k, strict=True))


_HELD = "train[{p}:{p200}]"
_HELD_OUT = _splits("train[:{p}]", "train[{p}:]", "train", "test", val200=_HELD)
_VALIDATION = _splits(
    "train", "validation", "train+validation", "test",
    val200="validation[:200]",
)  # fmt: skip
# 60% or 80% to train on, the rest in halves, all of TFDS's one split.
_ONE_SPLIT_60 = _splits(
    "train[:{p}]", "train[60%:80%]", "train[:80%]", "train[80%:]", val200=_HELD
)
_ONE_SPLIT_80 = _splits(
    "train[:{p}]", "train[80%:90%]", "train[:90%]", "train[90%:]", val200=_HELD
)
_NORB = _splits(
    "train", "test[:50%]", "train+test[:50%]", "test[50%:]",
    val200="test[:200]",
)  # fmt: skip
_CLEVR = {**_HELD_OUT, "test": "validation"}
_1K = CLASSES["imagenet-1k"]


def _transfer(train: int, test: str = "test") -> dict[str, str]:
    rest = f"train[{train}%:]"
    return {"train": f"train[:{train}%]", "minival": rest, "test": test}


def _row(
    name: str,
    tfds: str | None,
    splits: Mapping[str, str],
    classes: int = 0,
    **more: Any,
) -> PaperDataset:
    """Makes a row; classes that others know too come from their table."""
    classes = classes or CLASSES[name.removeprefix("vtab-")]
    return PaperDataset(name, tfds, splits, classes, **more)


def _vtab(*row: Any, **more: Any) -> PaperDataset:
    more.update(crop="resize", eval_crop="resize", flip=False)
    return _row(*row, **more)


def _computed(label: Callable[[Any], Any], feature: str) -> dict[str, Any]:
    return {"label": label, "label_features": (feature,)}


_ROWS = (
    _row("imagenet-1k", "imagenet2012", _transfer(99, "validation")),
    # No public TFDS data set: `data_dir` is a folder or what TFDS wrote.
    # 21,843 classes in the release's order (`assets/README.md`); splits
    # of big_vision's `vit_i21k.py` are "full" and slices of it.
    _row("imagenet-21k", None, {}),
    _row("imagenet-v2", "imagenet_v2", {"test": "test"}, _1K),
    # Labels are vectors with a one for every right class.
    _row("imagenet-real", "imagenet2012_real", {"test": "validation"}, _1K,
         label="real_label"),
    _row("cifar-10", "cifar10", _transfer(98), 10, crop="resize_small"),
    _row("cifar-100", "cifar100", _transfer(98), crop="resize_small"),
    _row("pets", "oxford_iiit_pet", _transfer(90)),
    _row("flowers", "oxford_flowers102", _transfer(90)),
    _vtab("resisc45", "resisc45", _ONE_SPLIT_60, held_out=60),
    _vtab("kitti-distance", "kitti", _VALIDATION,
          **_computed(kitti_distance, "objects")),
    _vtab("vtab-caltech101", "caltech101", _HELD_OUT, 102, held_out=90),
    _vtab("vtab-cifar-100", "cifar100", _HELD_OUT, held_out=90),
    _vtab("vtab-dtd", "dtd", _VALIDATION, 47),
    _vtab("vtab-flowers", "oxford_flowers102", _VALIDATION),
    _vtab("vtab-pets", "oxford_iiit_pet", _HELD_OUT, held_out=80),
    _vtab("vtab-sun397", "sun397/tfds", _VALIDATION, 397),
    _vtab("vtab-svhn", "svhn_cropped", _HELD_OUT, 10, held_out=90),
    _vtab("vtab-eurosat", "eurosat/rgb", _ONE_SPLIT_60, 10, held_out=60),
    _vtab("vtab-camelyon", "patch_camelyon", _VALIDATION, 2),
    _vtab("vtab-retinopathy", "diabetic_retinopathy_detection/btgraham-300",
          _VALIDATION, 5),
    _vtab("vtab-clevr-count", "clevr", _CLEVR, 8, held_out=90,
          **_computed(clevr_count, "objects")),
    _vtab("vtab-clevr-distance", "clevr", _CLEVR, 6, held_out=90,
          **_computed(clevr_distance, "objects")),
    _vtab("vtab-dmlab", "dmlab", _VALIDATION, 6),
    # Its pixels are 0 and 1.
    _vtab("vtab-dsprites-x", "dsprites", _ONE_SPLIT_80, 16, held_out=80,
          **_computed(dsprites_x, "label_x_position"), brightness=255),
    _vtab("vtab-dsprites-orientation", "dsprites", _ONE_SPLIT_80, 16,
          **_computed(dsprites_orientation, "label_orientation"),
          held_out=80, brightness=255),
    _vtab("vtab-norb-azimuth", "smallnorb", _NORB, 18, label="label_azimuth"),
    _vtab("vtab-norb-elevation", "smallnorb", _NORB, 9,
          label="label_elevation"),
)  # fmt: skip
DATASETS: dict[str, PaperDataset] = {row.name: row for row in _ROWS}
