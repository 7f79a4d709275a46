"""From images to `model.fit`: data sets, the paper's crops, two routes."""

from keras_augreg.data.datasets import DATASETS, PaperDataset
from keras_augreg.data.decode import ImageError
from keras_augreg.data.loading import Info, load

__all__ = ["DATASETS", "ImageError", "Info", "PaperDataset", "load"]
