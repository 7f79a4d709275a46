"""RandAugment and Mixup as the AugReg study used them, as Keras layers."""

from keras_augreg.augment.augreg import AugRegAugment
from keras_augreg.augment.keras_cv import keras_cv_layers
from keras_augreg.augment.mixup import MixUp
from keras_augreg.augment.ops import OPERATIONS, apply_op
from keras_augreg.augment.randaugment import RandAugment

__all__ = [
    "OPERATIONS",
    "AugRegAugment",
    "MixUp",
    "RandAugment",
    "apply_op",
    "keras_cv_layers",
]
