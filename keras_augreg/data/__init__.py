"""From images to `model.fit`: data sets, the paper's crops, two engines."""

from keras_augreg.data.datasets import DATASETS, PaperDataset
from keras_augreg.data.decode import ImageError
from keras_augreg.data.loading import Info, load
from keras_augreg.data.locate import evaluation_split, find
from keras_augreg.data.options import Options, Preprocess

__all__ = [
    "DATASETS",
    "ImageError",
    "Info",
    "Options",
    "PaperDataset",
    "Preprocess",
    "evaluation_split",
    "find",
    "load",
]
