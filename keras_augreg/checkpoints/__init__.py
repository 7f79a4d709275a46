"""The release's checkpoints: find one, choose one, download it."""

from keras_augreg.checkpoints.files import download
from keras_augreg.checkpoints.index import best, search
from keras_augreg.checkpoints.names import parse, resolve
from keras_augreg.checkpoints.transfer import DownloadError

__all__ = ["DownloadError", "best", "download", "parse", "resolve", "search"]
