"""The release's checkpoints: find, choose, download, and out again."""

from keras_augreg.checkpoints.archive import class_names
from keras_augreg.checkpoints.download import DownloadError, download
from keras_augreg.checkpoints.export import to_hf, to_keras_hub, to_npz, to_timm
from keras_augreg.checkpoints.index import best, search
from keras_augreg.checkpoints.load import load
from keras_augreg.checkpoints.lora import to_peft
from keras_augreg.checkpoints.names import parse, resolve

__all__ = [
    "DownloadError", "best", "class_names", "download", "load", "parse",
    "resolve", "search", "to_hf", "to_keras_hub", "to_npz", "to_peft",
    "to_timm",
]  # fmt: skip
