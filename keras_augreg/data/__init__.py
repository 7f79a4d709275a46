"""From images to `model.fit`: data sets, the paper's crops, two routes."""

from keras_augreg.data.loading import Info, load

__all__ = ["Info", "load"]
