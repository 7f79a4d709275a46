"""The release's checkpoints: find one, choose one, download it."""

from keras_augreg.checkpoints.files import download
from keras_augreg.checkpoints.names import parse, resolve

__all__ = ["download", "parse", "resolve"]
