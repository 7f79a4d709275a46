"""From a model to the files and models of other libraries.

Names come from `convert`'s table, read backwards. Files are written to a
temporary name and renamed: one with its final name is complete.

Sources of the formats: `vit_jax/checkpoint.py` of
google-research/vision_transformer (`.npz`); the safetensors format's own
description; `models/_hub.py` and `models/vision_transformer*.py` of timm
1.0.31 (`config.json`, arguments); `models/vit` of keras-hub 0.32.
"""

from __future__ import annotations

import json
import math
import pathlib
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.atomic import replacing
from keras_augreg.checkpoints import convert
from keras_augreg.checkpoints.archive import CLASS_NAMES, PATCH_GRID
from keras_augreg.projection import check_not_quantized, projections
from keras_augreg.variants import Sizes, identify

# timm's names of our variants, of other plain ViTs, and of hybrids by stages.
_TIMM = {
    "ViT_Ti16": "vit_tiny_patch16_224", "ViT_S16": "vit_small_patch16_224",
    "ViT_S32": "vit_small_patch32_224", "ViT_B8": "vit_base_patch8_224",
    "ViT_B16": "vit_base_patch16_224", "ViT_B32": "vit_base_patch32_224",
    "ViT_L16": "vit_large_patch16_224", "ViT_L32": "vit_large_patch32_224",
}  # fmt: skip
_TIMM_PLAIN = "vit_base_patch16_224"
_TIMM_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}

_MAX_COMMENT = 2**16 - 1  # bytes; set by the zip format


def to_npz(model: Any, path: str | pathlib.Path) -> pathlib.Path:
    """Writes a model in the release's format, which the original code loads.

    Names and shapes are those of the released files: a checkpoint that was
    loaded at its own resolution comes out bit for bit.
    `model.class_names` go into the archive's comment, which readers of the
    arrays do not see, a grid of patches that is not square into an array
    `patch_grid`.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        path: The file, which ends in `.npz`. One that exists is replaced.

    Returns:
        The path.

    Raises:
        ValueError: If `model` is not one, `path` ends otherwise, the class
            names do not fit.
        FileNotFoundError: If the folder of `path` does not exist.

    Example:
    ```python
    model = keras_augreg.ViT_Ti16(weights=None, classes=10)
    keras_augreg.checkpoints.to_npz(model, "mine.npz")
    again = keras_augreg.ViT_Ti16(weights="mine.npz")
    ```
    """
    check_model(model)
    path = check_path(path, ".npz")
    rows, columns = model.patch_grid
    if rows != columns:
        warnings.warn(
            f"{path} has a grid of {rows} x {columns} patches. Only "
            "keras_augreg reads that from a .npz: other programs take every "
            "grid for a square.",
            stacklevel=2,
        )
    comment = _comment(model.class_names)
    with (
        replacing(path) as file,
        zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
    ):
        archive.comment = comment
        for name, array in _release_arrays(model):
            # ZipInfo's own date, so that equal weights give equal files.
            info = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(
                    member, np.ascontiguousarray(array), allow_pickle=False
                )
    return path


def to_timm(
    model: Any, path: str | pathlib.Path | None = None
) -> dict[str, np.ndarray]:
    """Converts a model to the state dictionary of timm's VisionTransformer.

    timm computes GELU exactly, the AugReg models by the tanh approximation:
    with `act_layer="gelu_tanh"` timm's logits equal ours up to rounding,
    without it they differ in the fourth decimal. `to_hf` writes timm's
    arguments to a file.

    Args:
        model: A `keras_augreg.VisionTransformer`, hybrids included.
        path: A file to write too, which ends in `.safetensors`. It holds
            `model.class_names` in its metadata. One that exists is replaced.

    Returns:
        From timm's names to float32 arrays.

    Raises:
        ValueError: If `model` is not one, or `path` ends otherwise.
        FileNotFoundError: If the folder of `path` does not exist.

    Example:
    ```python
    import timm

    model = keras_augreg.ViT_Ti16(weights=None, classes=10)
    keras_augreg.checkpoints.to_timm(model, "mine.safetensors")
    again = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=10,
        act_layer="gelu_tanh",
        checkpoint_path="mine.safetensors",
    )
    ```
    """
    check_model(model)
    if path is not None:
        path = check_path(path, ".safetensors")
    arrays = {
        row[2]: np.ascontiguousarray(convert.as_timm(row[0], weight))
        for row, weight in _weights(model)
    }
    if path is not None:
        metadata: dict[str, Any] = {}
        if model.class_names is not None:
            metadata[CLASS_NAMES] = model.class_names
        if model.patch_grid[0] != model.patch_grid[1]:
            metadata[PATCH_GRID] = model.patch_grid
        write_safetensors(path, arrays, metadata)
    return arrays


def to_hf(model: Any, folder: str | pathlib.Path) -> pathlib.Path:
    """Writes a folder that is ready for the Hugging Face hub.

    It holds `model.safetensors` and `config.json`, from which
    `timm.create_model("local-dir:FOLDER", pretrained=True)` makes the model
    with the same logits (uploaded: `"hf-hub:OWNER/NAME"`), and `README.md`, a
    model card to be completed. `model.class_names` are the `label_names`.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        folder: The folder, made if need be. A `README.md` that exists is
            left as it is, the other two files are replaced.

    Returns:
        The folder.

    Raises:
        ValueError: If `model` is not one, or timm has no architecture with
            its ResNet stem.

    Example:
    ```python
    model = keras_augreg.ViT_Ti16(weights=None, classes=2)
    model.class_names = ["cat", "dog"]
    keras_augreg.checkpoints.to_hf(model, "cats-and-dogs")
    # hf upload OWNER/cats-and-dogs cats-and-dogs
    ```
    """
    check_model(model)
    config = json.dumps(_config(model), indent=2) + "\n"
    folder = pathlib.Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    to_timm(model, folder / "model.safetensors")
    texts = {"config.json": config}
    if not (folder / "README.md").exists():
        texts["README.md"] = _card(model)
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    return folder


def to_keras_hub(model: Any) -> Any:
    """Converts a model to KerasHub's.

    KerasHub computes GELU exactly, the AugReg models by the tanh
    approximation: its logits differ from ours in the fourth decimal. It has
    no stochastic depth, which only matters for further training, and no place
    for class names.

    Args:
        model: A `keras_augreg.VisionTransformer` without ResNet stem.

    Returns:
        A `keras_hub.models.ViTImageClassifier` with a preprocessor for
        images from 0 to 255; without classifier, a
        `keras_hub.models.ViTBackbone`, which returns all tokens and takes
        images in [-1, 1].

    Raises:
        ValueError: If `model` is not one, or has a ResNet stem.
        ImportError: If KerasHub is not installed.

    Example:
    ```python
    model = keras_augreg.ViT_Ti16(weights=None, classes=10)
    task = keras_augreg.checkpoints.to_keras_hub(model)
    task.save_to_preset("mine")
    ```
    """
    check_model(model)
    sizes = model.sizes
    if sizes.stages is not None:
        raise ValueError(
            "KerasHub has no hybrids, and this model has a ResNet stem "
            f"(stages={sizes.stages}). Use to_timm or to_hf."
        )
    try:
        import keras_hub
    except ImportError as error:
        message = "to_keras_hub needs KerasHub: pip install keras-hub"
        raise ImportError(message) from error
    backbone = keras_hub.models.ViTBackbone(
        image_shape=model.image_shape, patch_size=sizes.patch_size,
        num_layers=sizes.depth, num_heads=sizes.num_heads,
        hidden_dim=sizes.width, mlp_dim=sizes.mlp_dim,
        dropout_rate=model.dropout, use_class_token=model.class_token,
        dtype=model.dtype_policy,
    )  # fmt: skip
    hub = backbone
    if model.include_top:
        converter = keras_hub.layers.ViTImageConverter(
            image_size=model.image_shape[:2], scale=1 / 127.5, offset=-1.0
        )
        preprocess = keras_hub.models.ViTImageClassifierPreprocessor
        hub = keras_hub.models.ViTImageClassifier(
            backbone,
            model.classes,
            preprocessor=preprocess(converter),
            pooling="token" if model.class_token else "gap",
            activation=model.classifier_activation,
            head_dtype=model.dtype_policy.variable_dtype,
        )
    weights = {weight.path: weight for weight in hub.weights}
    for row, weight in _weights(model):
        for path, array in _keras_hub(row[0], weight).items():
            weights.pop(path).assign(array)
    return hub


def check_model(model: Any) -> None:
    """Raises a `ValueError` unless it is a VisionTransformer."""
    if isinstance(getattr(model, "sizes", None), Sizes):
        return
    received = type(model).__name__
    for layer in getattr(model, "layers", ()):
        if isinstance(getattr(layer, "sizes", None), Sizes):
            received += f"; pass its model.get_layer({layer.name!r})"
    raise ValueError(
        f"Expected a keras_augreg.VisionTransformer. Received: {received}."
    )


def check_path(path: str | pathlib.Path, suffix: str) -> pathlib.Path:
    """Checks the name and the folder of a file to be written."""
    path = pathlib.Path(path).expanduser()
    if path.suffix != suffix:
        raise ValueError(
            f"`path` must end in {suffix}: readers infer the format from the "
            f"extension. Received: {str(path)!r}"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"The folder {str(path.parent)!r} for {path.name} does not exist: "
            "create it first."
        )
    return path


def _weights(model: Any) -> Iterator[tuple[convert.Row, np.ndarray]]:
    """Rows of `convert`'s table with a model's weights, merged, in float32.

    Raises:
        ValueError: If the model is quantized.
    """
    check_not_quantized(model)
    adapters = {
        id(projection.weight): projection
        for projection in projections(model).values()
        if projection.lora_enabled
    }
    to_numpy = keras.ops.convert_to_numpy
    for row, weight in convert.variables(model, model.include_top):
        # A copy: PyTorch's would change with the model.
        array = np.array(to_numpy(weight), np.float32)
        if id(weight) in adapters:
            array += to_numpy(adapters[id(weight)].delta())
        yield row, array


def _release(row: convert.Row, weight: np.ndarray) -> dict[str, np.ndarray]:
    """A weight as the arrays of a released file."""
    names = row[1]
    if len(names) > 1:  # (W, 3, H, D) and (3, H, D): query, key and value
        parts = np.moveaxis(weight, -3, 0)
        return dict(zip(names, parts, strict=True))
    if convert.GROUP_NORM.match(row[0]):
        weight = weight.reshape(1, 1, 1, -1)
    return {names[0]: weight}


# From our names to KerasHub's paths; {} is query, key or value.
_HUB = {
    r"^posembed_input/": "vit_patching_and_embedding/",
    r"/cls$": "/class_token",
    r"/pos_embedding$": "/position_embedding/embeddings",
    r"^embedding/": "vit_patching_and_embedding/patch_embedding/",
    r"^encoder_norm/": "vit_encoder/ln/",
    r"^head/": "predictions/",
    r"/norm([12])/": r"/ln_\1/",
    r"/attention/out_": "/mha/attention_output/",
    r"/attention/qkv_": "/mha/{}/",
    r"/mlp_(kernel|bias)([12])$": r"/mlp/dense_\2/\1",
}


def _keras_hub(key: str, weight: np.ndarray) -> dict[str, np.ndarray]:
    """A weight as KerasHub's weights, by their paths."""
    path = key
    if block := re.match(r"encoderblock_(\d+)", key):
        number = int(block[1]) + 1
        path = f"vit_encoder/transformer_block_{number}{key[block.end() :]}"
    for ours, theirs in _HUB.items():
        path = re.sub(ours, theirs, path)
    if "{}" in path:
        kinds, parts = ("query", "key", "value"), np.moveaxis(weight, -3, 0)
        return dict(zip(map(path.format, kinds), parts, strict=True))
    return {path: weight[0] if key.endswith("/pos_embedding") else weight}


def _comment(class_names: Sequence[str] | None) -> bytes:
    """The comment of a `.npz` archive."""
    if class_names is None:
        return b""
    names = {CLASS_NAMES: list(class_names)}
    text = json.dumps(names, ensure_ascii=False).encode()
    if len(text) > _MAX_COMMENT:
        raise ValueError(
            f"A .npz has room for {_MAX_COMMENT:,} bytes of class names; these "
            f"take {len(text):,}. Shorten them, use to_timm, which has no "
            "limit, or set model.class_names = None."
        )
    return text


def _release_arrays(model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of a `.npz`, one weight after the other."""
    for row, weight in _weights(model):
        yield from _release(row, weight).items()
    rows, columns = model.patch_grid
    if rows != columns:
        yield PATCH_GRID, np.array(model.patch_grid)


def write_safetensors(
    path: pathlib.Path, arrays: dict[str, np.ndarray], metadata: dict[str, Any]
) -> None:
    """Writes float32 arrays, and metadata as JSON, to a safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for key, value in metadata.items():
        header["__metadata__"][key] = json.dumps(value, ensure_ascii=False)
    end = 0
    for name, array in arrays.items():
        start, end = end, end + array.nbytes
        place = {"shape": array.shape, "data_offsets": [start, end]}
        header[name] = {"dtype": "F32", **place}
    text = json.dumps(header, ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)  # aligns the arrays
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for array in arrays.values():
            file.write(array.astype("<f4", copy=False).data)


def _config(model: Any) -> dict[str, Any]:
    """What `config.json` says: architecture, arguments and input in timm."""
    sizes, (height, width, channels) = model.sizes, model.image_shape
    variant = identify(sizes)
    architecture = _TIMM.get(variant.name if variant else "", _TIMM_PLAIN)
    first = "patch_embed.proj"
    if sizes.stages is not None:
        if sizes.stages not in _TIMM_HYBRIDS:
            raise ValueError(
                f"timm has no architecture with stages={sizes.stages}, only "
                f"with {', '.join(map(str, _TIMM_HYBRIDS))}. Use to_timm, for "
                "a VisionTransformer that you build from timm's parts."
            )
        architecture = _TIMM_HYBRIDS[sizes.stages]
        stem = "stem.conv" if sizes.stages else "conv"
        first = f"patch_embed.backbone.{stem}"
    pooling = "token" if model.class_token else "avg"
    if not model.include_top:
        pooling = model.pooling or ""
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": model.classes or 0,
        "num_features": sizes.width,
        "global_pool": pooling,
        # With all of them the architecture's name only matters for the stem.
        "model_args": {
            "img_size": [height, width], "in_chans": channels,
            "patch_size": sizes.patch_size,
            "embed_dim": sizes.width, "depth": sizes.depth,
            "num_heads": sizes.num_heads,
            "mlp_ratio": sizes.mlp_dim / sizes.width,
            "class_token": model.class_token, "global_pool": pooling,
            "fc_norm": False, "act_layer": "gelu_tanh",
        },
        "pretrained_cfg": {
            "custom_load": False, "fixed_input_size": True,
            "input_size": [channels, height, width],
            # How vit_jax evaluates fine-tuned models.
            "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash",
            "mean": [0.5] * channels, "std": [0.5] * channels,
            "num_classes": model.classes or 0, "pool_size": None,
            "first_conv": first, "classifier": "head",
        },
    }  # fmt: skip
    if model.class_names is not None:
        config["label_names"] = list(model.class_names)
    return config


_CARD = """---
library_name: timm
pipeline_tag: {task}
tags:
- keras_augreg
- timm
- {task}
---

# {name}

[What it is for, what it was trained on, how, and how well it does.]

A Vision Transformer, trained with keras_augreg.

{facts}

With timm (GELU is the tanh approximation, as `config.json` says):

```python
import timm

model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True)
```
{keras}
License: [yours, and that of the weights it started from].
"""
_CARD_KERAS = """
With Keras on JAX, TensorFlow or PyTorch:

```python
import keras_augreg

model = keras_augreg.{builder}(weights="hf://OWNER/NAME"{top})
```
"""


def _card(model: Any) -> str:
    """The model card, with placeholders in brackets."""
    sizes, (height, width, _) = model.sizes, model.image_shape
    variant = identify(sizes)
    count = sum(math.prod(weight.shape) for _, weight in _weights(model))
    facts = [
        f"{variant.release if variant else 'ViT'}: {sizes.depth} blocks of "
        f"width {sizes.width}, {sizes.num_heads} heads, one token for "
        f"{sizes.stride} x {sizes.stride} pixels; {count:,} parameters",
        f"images: {height} x {width} pixels, scaled from 0..255 to -1..1",
        "no classifier",
    ]
    if model.include_top:
        facts[-1] = f"{model.classes:,} classes"
        if model.class_names is not None and len(model.class_names) <= 100:
            facts[-1] += ": " + ", ".join(model.class_names)
    top = "" if model.include_top else ", include_top=False"
    return _CARD.format(
        task="image-classification"
        if model.include_top
        else "image-feature-extraction",
        name=model.name,
        facts="\n".join(f"- {fact}" for fact in facts),
        keras=_CARD_KERAS.format(builder=variant.name, top=top)
        if variant
        else "",
    )
