"""Adapters (LoRA) in files: ours, which `peft` reads on timm's model.

Names and axes are those that peft 0.21 gives the adapters of timm's
VisionTransformer: `base_model.model.blocks.0.attn.qkv.lora_A.weight`,
(rank, in), and `lora_B`, (out, rank); the head, which is trained as a whole,
is under `base_model.model.head`.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import keras
import numpy as np

from keras_augreg.atomic import replacing
from keras_augreg.checkpoints import convert, export
from keras_augreg.checkpoints.archive import (
    CLASS_NAMES,
    LORA_ALPHA,
    open_archive,
)
from keras_augreg.projection import Projection, projections

_PREFIX = "base_model.model."


def save(model: Any, path: str | pathlib.Path) -> pathlib.Path:
    """Writes the adapters and the head: `model.save_lora_weights`."""
    path = export.check_path(path, ".safetensors")
    _, alpha = _rank_and_alpha(model)
    arrays = {
        name: _array(weight).T.copy()
        for name, weight in _weights(model).items()
    }
    metadata = {LORA_ALPHA: alpha}
    if model.include_top and model.class_names:
        metadata[CLASS_NAMES] = model.class_names
    export.write_safetensors(path, arrays, metadata)
    return path


def load(model: Any, path: str | pathlib.Path) -> None:
    """Reads what `save` wrote: `model.load_lora_weights`."""
    path = export.check_path(path, ".safetensors")
    archive = open_archive(path)
    shapes = {name: header.shape for name, header in archive.headers.items()}
    expected = {
        name: tuple(weight.shape)[::-1]
        for name, weight in _weights(model).items()
    }
    wrong = [
        f"{name}: {shapes.get(name, 'not')} in the file, "
        f"{expected.get(name, 'not')} in the model"
        for name in [*expected, *shapes]
        if shapes.get(name) != expected.get(name)
    ]
    alpha = archive.metadata.get(LORA_ALPHA)
    wrong += [
        f"lora_alpha: {alpha} in the file, {p.lora_alpha} in the model"
        for p in adapters(model).values()
        if p.lora_alpha != alpha
    ]
    names = archive.class_names
    if names and model.include_top and names != (model.class_names or names):
        raise ValueError(
            f"{path} has the head of other classes, or of the same in another "
            f"order: {names[:3]}... Received: a model with "
            f"class_names={model.class_names[:3]}..."
        )
    if wrong:
        raise ValueError(
            f"{path} has other adapters than the model ({len(wrong)} "
            f"differences, the first: {wrong[0]}). Call enable_lora with the "
            "rank, targets and alpha of the saved model, on a model of the "
            "same sizes and classes."
        )
    arrays = {name: archive.read(name).T for name in expected}
    for name, weight in _weights(model).items():
        weight.assign(arrays[name])


def to_peft(model: Any, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes the adapters for the library `peft` on timm's model.

    `adapter_config.json` and `adapter_model.safetensors`. The base is timm's
    model with the weights from before `enable_lora`; `to_timm` writes them
    merged with the adapters instead.

    Args:
        model: A `keras_augreg.VisionTransformer` after `enable_lora`.
        folder: The folder, made if need be; files that exist are replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If `model` is not one, or has no adapters.

    Example:
    ```python
    model = keras_augreg.ViT_Ti16(weights=None, classes=10)
    keras_augreg.checkpoints.to_timm(model, "base.safetensors")
    model.enable_lora(rank=4)  # and compile, and fit
    keras_augreg.checkpoints.to_peft(model, "adapters")
    # base = timm.create_model("vit_tiny_patch16_224", num_classes=10,
    #     act_layer="gelu_tanh", checkpoint_path="base.safetensors")
    # peft.PeftModel.from_pretrained(base, "adapters")
    ```
    """
    export.check_model(model)
    found = adapters(model)
    timm = _timm_names(model)
    rank, alpha = _rank_and_alpha(model)
    if model.include_top and model.get_layer("head").quantization_mode:
        raise ValueError(
            "peft keeps the head as a whole, in floating point, and the "
            "model's is quantized. Call enable_lora on the model in floating "
            "point, or quantize without the head (`filters`)."
        )
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        # "attn.qkv" for "blocks.0.attn.qkv"
        "target_modules": sorted({timm[n].split(".", 2)[2] for n in found}),
        "modules_to_save": ["head"] if model.include_top else None,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "adapter_model.safetensors")
    with replacing(folder / "adapter_config.json") as file:
        file.write((json.dumps(config, indent=2) + "\n").encode())
    return folder


def adapters(model: Any) -> dict[str, Projection]:
    """The projections that have adapters, by path."""
    found = {n: p for n, p in projections(model).items() if p.lora_enabled}
    if not found:
        raise ValueError(
            f"The model {model.name!r} has no adapters. Call "
            "model.enable_lora(rank) first."
        )
    return found


def _rank_and_alpha(model: Any) -> tuple[int, float]:
    """The rank and alpha that all adapters share."""
    found = {(p.lora_rank, p.lora_alpha) for p in adapters(model).values()}
    if len(found) > 1:
        raise ValueError(
            "A file holds adapters of one rank and alpha. Received: "
            f"(rank, alpha) of {', '.join(map(str, sorted(found)))}"
        )
    return found.pop()


def _weights(model: Any) -> dict[str, Any]:
    """The weights that LoRA trains, by their names in the file."""
    timm, weights = _timm_names(model), {}
    for name, projection in adapters(model).items():
        module = _PREFIX + timm[name]
        weights[f"{module}.lora_A.weight"] = projection.lora_kernel_a
        weights[f"{module}.lora_B.weight"] = projection.lora_kernel_b
    if model.include_top:
        head = model.get_layer("head")
        if not head.quantization_mode:  # Otherwise only its bias is trained.
            weights[f"{_PREFIX}head.weight"] = head.kernel
        weights[f"{_PREFIX}head.bias"] = head.bias
    return weights


def _timm_names(model: Any) -> dict[str, str]:
    """From paths of projections to names of timm's modules."""
    rows = {row[0]: row[2] for row in convert.layout(model.sizes)}
    return {
        name: rows[f"{name.rpartition('/')[0]}/{p.kernel_name}"].removesuffix(
            ".weight"
        )
        for name, p in projections(model).items()
    }


def _array(weight: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(weight), np.float32)
