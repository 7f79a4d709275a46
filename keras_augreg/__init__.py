"""Vision Transformers with the AugReg recipes and checkpoints for Keras 3."""

from keras_augreg import checkpoints
from keras_augreg.labels import decode_predictions
from keras_augreg.models import (
    R26_ViT_B32,
    R26_ViT_S32,
    R50_ViT_B16,
    R50_ViT_L32,
    R_ViT_Ti16,
    VisionTransformer,
    ViT_B8,
    ViT_B16,
    ViT_B32,
    ViT_L16,
    ViT_L32,
    ViT_S16,
    ViT_S32,
    ViT_Ti16,
    ViT_Ti32,
)
from keras_augreg.preprocessing import preprocess_input

__version__ = "0.1.0"

__all__ = [
    "R26_ViT_B32",
    "R26_ViT_S32",
    "R50_ViT_B16",
    "R50_ViT_L32",
    "R_ViT_Ti16",
    "ViT_B8",
    "ViT_B16",
    "ViT_B32",
    "ViT_L16",
    "ViT_L32",
    "ViT_S16",
    "ViT_S32",
    "ViT_Ti16",
    "ViT_Ti32",
    "VisionTransformer",
    "checkpoints",
    "decode_predictions",
    "preprocess_input",
]
