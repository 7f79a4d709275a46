"""Training: compile a model, run it, stop and resume it."""

from keras_augreg.training.compile import (
    compile_finetuning,
    compile_pretraining,
)
from keras_augreg.training.distill import Distiller
from keras_augreg.training.fewshot import FewShot, fewshot_accuracy
from keras_augreg.training.workdir import Workdir

__all__ = [
    "Distiller",
    "FewShot",
    "Workdir",
    "compile_finetuning",
    "compile_pretraining",
    "fewshot_accuracy",
]
