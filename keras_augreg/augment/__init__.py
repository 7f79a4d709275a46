"""RandAugment and Mixup as the AugReg study used them, as Keras layers."""

from keras_augreg.augment.ops import OPERATIONS, apply_op
from keras_augreg.augment.randaugment import RandAugment

__all__ = ["OPERATIONS", "RandAugment", "apply_op"]
