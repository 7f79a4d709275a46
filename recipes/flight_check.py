r"""Asks the TPU's compiler what a training step would cost; needs no TPU.

    python recipes/flight_check.py --model=L/16 --topology=v5e:16x16 \
        --batch_size=4096 --distribute=data,fsdp

compiles the step that `fit` runs, once for each way to distribute it, and
prints bytes a chip, collectives, FLOPs, estimated cycles and where they go;
`keras_augreg.flight_check.check` documents the figures. Cycles are the
compiler's estimate, not a measurement. --workdir gets `flight_check.json`,
`flight_check.md` and `flight_check.png`; the last line on stdout is JSON.

Needs `pip install "keras_augreg[tpu,study]"` on an x86 machine with Linux.
Duration: for 12 blocks, minutes on two CPU cores; --depth=2 takes a sixth.
Numbers: docs/performance.md.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"  # Here the step is compiled, not run.

import arguments
import keras
from absl import flags

from keras_augreg import (
    AugReg,
    VisionTransformer,
    compile_finetuning,
    compile_pretraining,
    flight_check,
    visualize,
)
from keras_augreg.atomic import as_path, replacing
from keras_augreg.initialization import zero_weights
from keras_augreg.recipe import PRETRAINING_RESOLUTION as RESOLUTION
from keras_augreg.variants import find

_MODEL = flags.DEFINE_string("model", "ViT_S16", "As 'B/16' or 'ViT_B16'.")
_DEPTH = flags.DEFINE_integer("depth", None, "Blocks, if not the model's.")
_CLASSES = flags.DEFINE_integer("classes", 1000, "Units of the classifier.")
_SIZE = flags.DEFINE_integer("image_size", RESOLUTION, "Side in pixels.")
_DTYPE = flags.DEFINE_string("dtype", "mixed_bfloat16", "A dtype policy.")
_TASK = flags.DEFINE_enum(
    "task", "pretrain", ["pretrain", "finetune"], "How to compile it."
)
_AUGMENT = flags.DEFINE_string("augment", "medium1", "Level of the recipe.")
_RATE = flags.DEFINE_float("dropout", 0.0, "And stochastic depth.")
_AUGMENT_ON = flags.DEFINE_string("augment_on", "auto", "device, host, auto.")
_OPTIONS = flags.DEFINE_string(
    "options",
    "{}",
    "Of `compile_*`, as JSON: "
    '\'{"remat": true, "gradient_accumulation_steps": 4}\'.',
)
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "Generation and chips.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 1024, "Images per step, of all chips."
)
_KINDS = flags.DEFINE_list("distribute", "data", "data, fsdp, model.")
_DEVICES = flags.DEFINE_integer("model_devices", None, "See `distribute`.")
_WORKDIR = flags.DEFINE_string("workdir", "runs/flight_check", "Output folder.")


def build() -> VisionTransformer:
    """The model, compiled as the flags say."""
    sizes = find(_MODEL.value).sizes
    sizes = dataclasses.replace(sizes, depth=_DEPTH.value or sizes.depth)
    rates = (_RATE.value, _RATE.value)
    recipe = AugReg(_AUGMENT.value, *rates)
    if _TASK.value == "finetune":
        recipe = AugReg("none", *rates)
    with zero_weights():
        net = VisionTransformer(
            **dataclasses.asdict(sizes),
            input_shape=(_SIZE.value, _SIZE.value, 3),
            classes=_CLASSES.value,
            recipe=recipe,
        )
    options = {"total_steps": 100_000, **json.loads(_OPTIONS.value)}
    if _TASK.value == "finetune":
        compile_finetuning(net, **options)
    else:
        options = {"augment_on": _AUGMENT_ON.value, **options}
        compile_pretraining(net, recipe, **options)
    return net


def main(argv: list[str]) -> None:
    """Compiles the step for each distribution and writes the reports."""
    del argv
    keras.config.set_dtype_policy(_DTYPE.value)
    net = build()
    reports = []
    for kind in _KINDS.value:
        report = flight_check.check(
            net,
            batch_size=_BATCH_SIZE.value,
            topology=_TOPOLOGY.value,
            kind=kind,
            model_devices=_DEVICES.value if kind == "model" else None,
        )
        print(flight_check.table(report), file=sys.stderr)
        reports.append({"model": _MODEL.value, **report})
    workdir = as_path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    with replacing(workdir / "flight_check.json") as file:
        file.write(json.dumps(reports, indent=1).encode())
    with replacing(workdir / "flight_check.md") as file:
        file.write("\n".join(map(flight_check.table, reports)).encode())
    if fitting := [report for report in reports if report["fits"]]:
        figure = visualize.plot_flight_check(fitting)
        with replacing(workdir / "flight_check.png") as file:
            figure.savefig(file, format="png", dpi=120)
    fits = {report["kind"]: report["fits"] for report in reports}
    print(json.dumps({"fits": fits, "workdir": str(workdir)}))


if __name__ == "__main__":
    arguments.run(main)
