"""What a training step costs on a TPU, by the TPU's compiler, without a TPU.

`recipes/flight_check.py` does it from the command line. The package `libtpu`
holds the compiler, which compiles for a described topology on any x86 machine:
`pip install "keras_augreg[tpu]"`.
"""

from __future__ import annotations

import collections
import contextlib
import math
import os
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_augreg import distribution
from keras_augreg.checks import check_choice
from keras_augreg.trainstep import inner_optimizer
from keras_augreg.vision_transformer import VisionTransformer

KINDS = ("data", "fsdp", "model")


class Chip(NamedTuple):
    """One device of a TPU: a core of v4, a chip of the others."""

    clock: float  # Hz
    flops: float  # bfloat16, a cycle
    options: dict[str, Any] = {}  # noqa: RUF012


# Clock times FLOPs a cycle is the published peak (cloud.google.com/tpu/docs):
# 275, 197, 459 and 918 TFLOP/s a chip. Both cores of v4 are one device, as
# where it trains.
_MEGACORE = {"chip_config_name": "megacore"}
CHIPS = {
    "v4": Chip(1.05e9, 2**18, _MEGACORE),
    "v5e": Chip(1.5e9, 2**17),
    "v5p": Chip(1.75e9, 2**18),
    "v6e": Chip(1.75e9, 2**19),
}

# What an operation is part of, by its path in the model; the first that fits.
PARTS = {
    "augmentation": r"rand_augment|mix_?up|aug_?reg",
    "optimizer": r"(^|/)(adam|sgd)\b|loss_scale_optimizer",
    "attention": r"/attention\b",
    "LayerNorm": r"/norm\d|encoder_norm",
    "MLP": r"encoderblock_\d+",
    "embedding": r"embedding|posembed_input|preprocessing",
    "ResNet stem": r"(^|/)root\b|\bblock\d+_unit",
    "head and loss": r"\bhead\b|compile_loss|predictions|pool|accuracy",
    "other": r"",
}

COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "collective-permute",
    "reduce-scatter",
)  # fmt: skip
_BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8}


def check(
    model: Any,
    *,
    batch_size: int,
    topology: str = "v5e:2x4",
    kind: str = "data",
    model_devices: int | None = None,
) -> dict[str, Any]:
    """Compiles the step that `fit` runs for a TPU, without needing one.

    The cycles are the compiler's own estimate, **not a measurement**. They do
    not include waiting for other chips, nor for the host.

    Args:
        model: A model of keras_augreg, compiled with `compile_pretraining` or
            `compile_finetuning`, and built outside of `distribute`. Its
            weights are neither read nor changed.
        batch_size: Images of a step, of all chips together.
        topology: Generation (v4, v5e, v5p, v6e) and chips along each axis:
            `"v5e:2x4"`, `"v5p:4x4x4"`; `"v5e:1x1"` is one chip.
        kind: As in `keras_augreg.distribute`: `"data"`, `"fsdp"`, `"model"`.
        model_devices: As in `keras_augreg.distribute`.

    Returns:
        A dictionary that JSON can hold; figures are those of one chip:

        - `"topology"`, `"chips"`, `"kind"`, `"batch_size"`, `"images"`;
        - `"bytes"`: of `"arguments"` (weights, optimizer, batch),
          `"temporaries"` and `"program"`, and their sum, `"total"`;
        - `"fits"`: whether the memory holds them. If not, what follows is
          `None`, and `"bytes"` has the compiler's sum alone;
        - `"collectives"`: by kind, the `"count"` and `"bytes"` of results;
        - `"gflops"`: 10^9 floating-point operations;
        - `"cycles"`: estimated; `"seconds"`: the same at the chip's clock;
        - `"share"`: of the bfloat16 peak, at these cycles;
        - `"parts"`: share of the cycles by part of the model (a fusion counts
          where its last operation belongs), and `"copies"`: share that only
          changes layouts;
        - `"advice"`: what would help, a list of sentences;
        - `"compile_s"`: seconds that compiling took.

    Raises:
        ImportError: `libtpu` is not installed, or the backend is not JAX.
        TypeError: `model` is not a compiled model of keras_augreg.
        ValueError: There is no such topology or kind, or the devices do not
            divide the batch.

    Example:
    ```python
    from keras_augreg import flight_check

    report = flight_check.check(model, batch_size=1024, topology="v5e:2x4")
    print(flight_check.table(report))
    ```
    """
    _check_model(model)
    check_choice("kind", kind, KINDS)
    chip, devices = _describe(topology)
    layout, parts = distribution.keras_distribution(
        kind, devices, model_devices
    )
    if batch_size < 1 or batch_size % parts:
        near = max(round(batch_size / parts), 1) * parts
        raise ValueError(
            f"The batch is split into {parts} parts, which must divide it. "
            f"Received: batch_size={batch_size}; the nearest possible one is "
            f"{near}"
        )
    start = time.perf_counter()
    report: dict[str, Any] = {
        "topology": topology, "chips": len(devices), "kind": kind,
        "batch_size": batch_size, "images": batch_size // parts,
    }  # fmt: skip
    with layout.scope(), _lowered(model, layout, batch_size) as lowered:
        try:
            compiled = lowered.compile()
        except Exception as error:
            report |= _too_large(error)
        else:
            report |= _figures(compiled, chip)
    report["compile_s"] = time.perf_counter() - start
    report["advice"] = _advice(report, model)
    return report


def _check_model(model: Any) -> None:
    if keras.config.backend() != "jax":
        raise ImportError(
            "Only JAX can compile for an absent TPU. Set "
            "KERAS_BACKEND=jax before Python starts. Received: "
            f"{keras.config.backend()}"
        )
    if not isinstance(model, VisionTransformer) or not model.compiled:
        raise TypeError(
            "Expected a model of keras_augreg, compiled with "
            "keras_augreg.compile_pretraining or compile_finetuning. "
            f"Received: {model!r}"
        )


def _describe(topology: str) -> tuple[Chip, list[Any]]:
    """The chip and the devices of a topology, in words."""
    generation, _, shape = topology.partition(":")
    sizes = re.fullmatch(r"\d+(x\d+){1,2}", shape)
    if generation not in CHIPS or not sizes:
        raise ValueError(
            f"`topology` must be one of {', '.join(CHIPS)} and the chips along "
            "each axis, as in 'v5e:2x4' or 'v5p:4x4x4'. Received: "
            f"topology={topology!r}"
        )
    # Otherwise libtpu looks for a TPU and for the metadata of a cloud.
    for key, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5e-8",
    }.items():
        os.environ.setdefault(key, value)
    from jax.experimental import topologies

    chip = CHIPS[generation]
    options = dict(chip.options)
    if math.prod(map(int, shape.split("x"))) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        )
    except Exception as error:
        if "libtpu" in str(error) or "PJRT_Api" in str(error):
            raise ImportError(
                "The TPU's compiler is in libtpu, which is not installed: "
                'pip install "keras_augreg[tpu]"'
            ) from error
        raise ValueError(
            f"There is no such TPU: topology={topology!r}. Possible are, for "
            "example, 'v5e:1x1', 'v5e:2x4', 'v5e:16x16', 'v5p:2x2x1' and "
            f"'v5p:4x4x4'. The compiler says: {str(error).splitlines()[0]}"
        ) from error
    return chip, list(found.devices)


@contextlib.contextmanager
def _lowered(model: Any, layout: Any, batch_size: int) -> Iterator[Any]:
    """Yields the step of `fit`, lowered; the model is as before afterwards."""
    import jax

    placed = _layouts(model, layout)
    # Keras makes the variables of metrics from a first batch.
    shapes = _batch(model, batch_size)
    model._symbolic_build(
        data_batch=tuple(keras.ops.zeros((1, *s[1:]), d) for s, d in shapes)
    )

    def struct(shape: Any, dtype: Any, where: Any) -> Any:
        return jax.ShapeDtypeStruct(
            tuple(shape), dtype, sharding=where.backend_layout
        )

    state = tuple(
        [struct(v.shape, v.dtype, placed(v)) for v in variables]
        for variables in (
            model.trainable_variables, model.non_trainable_variables,
            model.optimizer.variables, model.metrics_variables,
        )
    )  # fmt: skip
    batch = tuple(struct(s, d, layout.get_data_layout(s)) for s, d in shapes)
    model._get_state_sharding_spec = lambda: jax.tree.map(
        lambda x: x.sharding, state
    )
    # The step alone, without the loop that feeds it.
    model._make_function = lambda step, *_: step
    # Programs for described devices can be written to JAX's cache, but not
    # read again.
    limit = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", math.inf)
    try:
        model._augment_where(distribution.augments_on_host())
        model.make_train_function(force=True)
        yield model.train_function.lower(state, batch)
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", limit)
        del model._get_state_sharding_spec, model._make_function
        model.train_function = None


def _layouts(model: Any, layout: Any) -> Any:
    """Returns the function from a variable to its layout."""
    optimizer = inner_optimizer(model)
    slots = [
        *zip(*optimizer._slots, strict=True),
        getattr(optimizer, "_accumulated_gradients", ()),
        getattr(optimizer, "_model_variables_moving_average", ()),
    ]
    owners = {
        id(slot): owner
        for group in slots
        for slot, owner in zip(group, model.trainable_variables, strict=False)
    }
    return lambda v: layout.get_variable_layout(owners.get(id(v), v))


def _batch(model: Any, batch_size: int) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of what `fit` gets from the data set or the host."""
    augmented = model._options.augment is not None and model._on_host
    soft = augmented or model.classes == 1
    labels = (batch_size, model.classes) if soft else (batch_size,)
    raw = model.include_preprocessing and not augmented
    return [
        ((batch_size, *model.image_shape), "uint8" if raw else "float32"),
        (labels, "float32" if soft else "int32"),
    ]


def _too_large(error: Exception) -> dict[str, Any]:
    """The report of a step that the memory does not hold."""
    size = r"([\d.]+)([KMG])"
    found = re.search(rf"[Uu]sed {size} of {size}", str(error)) or re.search(
        rf"\({size}\) exceeds available HBM \({size}\)", str(error)
    )
    if "RESOURCE_EXHAUSTED" not in str(error) or not found:
        raise error
    unit = {"K": 2**10, "M": 2**20, "G": 2**30}
    used, memory = (int(float(found[i]) * unit[found[i + 1]]) for i in (1, 3))
    none = dict.fromkeys(
        ("collectives", "gflops", "cycles", "seconds", "share", "parts",
         "copies")
    )  # fmt: skip
    return {"bytes": {"total": used}, "hbm": memory, "fits": False, **none}


def _figures(compiled: Any, chip: Chip) -> dict[str, Any]:
    memory = compiled.memory_analysis()
    # What the step gives back takes the place of what it got.
    size = {
        "arguments": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    cycles, copies, collectives = _read(compiled.as_text())
    total = sum(cycles.values())
    flops = compiled.cost_analysis()["flops"]
    return {
        "bytes": {**size, "total": sum(size.values())},
        "fits": True,
        "collectives": collectives,
        "gflops": flops / 1e9,
        "cycles": total,
        "seconds": total / chip.clock,
        "share": flops / (total * chip.flops),
        "parts": {k: v / total for k, v in cycles.most_common()},
        "copies": copies / total,
    }


def _read(program: str) -> tuple[Any, int, dict[str, dict[str, int]]]:
    """Cycles by part, cycles of copies, and collectives of a program."""
    cycles: collections.Counter[str] = collections.Counter()
    copies = 0
    collectives: dict[str, dict[str, int]] = {}
    for line in program.splitlines():
        left, _, right = line.partition(" = ")
        if estimate := re.search(r'"estimated_cycles":"(\d+)"', right):
            count = int(estimate[1])
            name = re.search(r'op_name="([^"]*)"', right)
            cycles[_part(name[1] if name else "")] += count
            if re.match(r"\s*(ROOT )?%(copy|transpose)[\w.-]*$", left):
                copies += count
        found = re.search(r"[)}\]] ([a-z-]+?)(-start)?\(", right)
        if found and found[1] in COLLECTIVES:
            shapes = right[: found.start() + 1]
            if found[2] and found[1] != "all-reduce":
                # (what goes in, what comes out, ...)
                shapes = shapes.partition("}, ")[2]
            sums = collectives.setdefault(found[1], {"count": 0, "bytes": 0})
            sums["count"] += 1
            sums["bytes"] += _size(shapes)
    return cycles, copies, collectives


def _part(path: str) -> str:
    """The part of the model that an operation's path belongs to."""
    path = re.sub(r"jit\([\w<>]*\)/|jvp\(|transpose\(|checkpoint|\)", "", path)
    return next(k for k, form in PARTS.items() if re.search(form, path))


def _size(shapes: str) -> int:
    """Bytes of all arrays in a text like "(f32[8,2]{1,0}, bf16[3])"."""
    return sum(
        math.prod(int(n) for n in sides.split(",") if n)
        * _BYTES.get(dtype, max(int(re.sub(r"\D", "", dtype) or 8) // 8, 1))
        for dtype, sides in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    )


def _advice(report: dict[str, Any], model: Any) -> list[str]:
    """What would help, as sentences."""
    said, options = [], model._options
    if not report["fits"]:
        if not options.remat:
            said.append("remat=True recomputes blocks instead of keeping them.")
        said += [
            "A batch of half the size, with gradient_accumulation_steps=2 (or "
            "twice as many), halves what a step keeps.",
            "More chips share the batch.",
        ]
        if report["kind"] == "data":
            said.append("kind='fsdp' splits weights and optimizer.")
        return said
    if "bfloat16" not in model.dtype_policy.name:
        said.append("The dtype policy 'mixed_bfloat16' halves the work.")
    if report["parts"].get("augmentation", 0) > 0.05:
        said.append(
            "augment_on='host' takes RandAugment and Mixup off the chip."
        )
    if options.remat:
        said.append("If memory allows, remat=False saves a forward pass.")
    if report["images"] % 8:
        said.append(
            "Batches of a multiple of 8 images a chip fill the tiles; these "
            f"have {report['images']}."
        )
    return said


def table(report: dict[str, Any]) -> str:
    """Formats a report of `check` as a Markdown table.

    Example:
    >>> print(flight_check.table(report))
    """
    from keras_augreg.output import markdown_table

    gib = 2**30
    rows: list[list[object]] = [
        [f"{key}, GiB a chip", value / gib]
        for key, value in report["bytes"].items()
    ]
    rows.append(["fits the memory", "yes" if report["fits"] else "NO"])
    if report["fits"]:
        rows += [
            [f"{kind}, number and MiB a chip",
             f"{sums['count']}, {sums['bytes'] / 2**20:.1f}"]
            for kind, sums in report["collectives"].items()
        ]  # fmt: skip
        parts: list[list[object]] = [
            [f"cycles: {k}", f"{v:.1%}"] for k, v in report["parts"].items()
        ]
        rows += [
            ["GFLOP a chip", report["gflops"]],
            ["estimated cycles, million", report["cycles"] / 1e6],
            ["estimated ms", report["seconds"] * 1e3],
            ["share of the bfloat16 peak", f"{report['share']:.1%}"],
            *parts,
            ["of these, copies to other layouts", f"{report['copies']:.1%}"],
        ]
    head = (
        f"{report['images']} images a chip",
        f"{report['topology']}, {report['kind']}",
    )
    notes = [
        "Cycles are the compiler's estimate, not a measurement, and without "
        "waiting for other chips or the host.",
        *report["advice"],
    ]
    return "\n".join([markdown_table(head, rows), *notes]) + "\n"
