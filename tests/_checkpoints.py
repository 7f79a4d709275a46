"""Checkpoints of small models in every dialect, for the tests of loading.

The arrays are named and shaped after `golden/augreg_shapes.json`, and the
other dialects are made from them here, without the package's own table.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import pathlib
import re
from typing import Any

import numpy as np

import keras_augreg
from keras_augreg.variants import VARIANTS

GOLDEN = pathlib.Path(__file__).with_name("golden")
SHAPES = json.loads((GOLDEN / "augreg_shapes.json").read_text())
# The header of the release's index.csv, in `vit_jax_augreg.ipynb`.
INDEX_HEADER = [
    "name", "ds", "epochs", "lr", "aug", "wd", "do", "sd", "best_val",
    "final_val", "final_test", "adapt_ds", "adapt_lr", "adapt_steps",
    "adapt_resolution", "adapt_final_val", "adapt_final_test", "params",
    "infer_samples_per_sec", "filename", "adapt_filename",
]  # fmt: skip
BY_RELEASE = {v.release: v for v in VARIANTS.values()}

_spec = importlib.util.spec_from_file_location(
    "make_npz", GOLDEN / "make_npz.py"
)
make_npz: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(make_npz)

WIDTH, DEPTH, HEADS, MLP, CLASSES = 12, 2, 3, 20, 5
TINY = {
    "patch_size": 4,
    "width": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "mlp_dim": MLP,
    "input_shape": (16, 16, 3),
    "classes": CLASSES,
    "classifier_activation": None,
    # The tests' images are floats in [-1, 1], as those of the golden data.
    "include_preprocessing": False,
    "name": "tiny",
}
HYBRID = {
    **TINY,
    "patch_size": 1,
    "stages": (2, 1),
    "input_shape": (32, 32, 3),
    "name": "tiny_hybrid",
}


def tiny(**kwargs: Any) -> keras_augreg.VisionTransformer:
    """A model of the smallest sizes that still have everything."""
    return keras_augreg.VisionTransformer(**{**TINY, **kwargs})


def hybrid(**kwargs: Any) -> keras_augreg.VisionTransformer:
    """The same with a ResNet stem of stages of two and one units."""
    return keras_augreg.VisionTransformer(**{**HYBRID, **kwargs})


def sizes(**kwargs: Any) -> dict[str, Any]:
    """Arguments of a named architecture for `VisionTransformer`."""
    variant = BY_RELEASE[kwargs.pop("release")]
    return {**dataclasses.asdict(variant.sizes), **kwargs}


def release(
    stages: tuple[int, ...] | None = None,
    seed: int = 0,
    grid: tuple[int, int] = (4, 4),
    classes: int = CLASSES,
    patch: int = 4,
) -> dict[str, np.ndarray]:
    """Arrays of a tiny checkpoint in the naming of the release."""
    model = "Ti_16" if stages is None else "R26_S_32"
    arrays = SHAPES[model]["arrays"]
    width, mlp = (192, 768) if stages is None else (384, 1536)
    replaced = {
        width: WIDTH,
        mlp: MLP,
        "tokens": math.prod(grid) + 1,
        "classes": classes,
    }
    if stages is not None:
        patch = 1
        replaced[2048] = 256 * 2 ** (len(stages) - 1)
    made = {}
    rng = np.random.default_rng(seed)
    for name, shape in arrays.items():
        found = re.match(r"Transformer/encoderblock_(\d+)/", name)
        if found and int(found[1]) >= DEPTH:
            continue
        found = re.match(r"block(\d+)/unit(\d+)/", name)
        if found:
            stage, unit = int(found[1]), int(found[2])
            if stage > len(stages) or unit > stages[stage - 1]:
                continue
        elif "/query/" in name or "/key/" in name or "/value/" in name:
            size = (HEADS, WIDTH // HEADS)
            shape = size if name.endswith("bias") else (WIDTH, *size)
        elif name.endswith("/out/kernel"):
            shape = (HEADS, WIDTH // HEADS, WIDTH)
        elif name == "embedding/kernel":
            shape = (patch, patch, replaced.get(shape[2], shape[2]), WIDTH)
        elif not name.startswith(("conv_root", "gn_root")):
            shape = [replaced.get(n, n) for n in shape]
        x = rng.standard_normal(shape)
        if name.endswith("scale"):
            x = 1 + 0.1 * x
        elif name.endswith("bias"):
            x = 0.1 * x
        elif name.endswith("kernel") and not name.startswith("head"):
            x = x / math.sqrt(math.prod(shape[:-1]))
        made[name] = x.astype(np.float32)
    return made


def linen(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names that Flax Linen gives the same modules."""
    return {
        name.replace("LayerNorm_2", "LayerNorm_1")
        .replace("MlpBlock_3", "MlpBlock_0")
        .replace(
            "MultiHeadDotProductAttention_1", "MultiHeadDotProductAttention_0"
        ): array
        for name, array in arrays.items()
    }


def big_vision(
    arrays: dict[str, np.ndarray], cls: bool = True
) -> dict[str, np.ndarray]:
    """big_vision's: the position embedding of patches only, at the top."""
    arrays = linen(arrays)
    positions = arrays.pop("Transformer/posembed_input/pos_embedding")
    arrays["pos_embedding"] = positions[:, 1:]
    if not cls:
        del arrays["cls"]
    return arrays


def timm(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """timm's names and axes (PyTorch: outputs first)."""
    made: dict[str, np.ndarray] = {}
    attention = "Transformer/encoderblock_{}/MultiHeadDotProductAttention_1"
    depth = len({n.split("/")[1] for n in arrays if "encoderblock" in n})
    for i in range(depth):
        qkv = [
            (
                arrays[f"{attention.format(i)}/{x}/kernel"],
                arrays[f"{attention.format(i)}/{x}/bias"],
            )
            for x in ("query", "key", "value")
        ]
        width = len(qkv[0][0])
        made[f"blocks.{i}.attn.qkv.weight"] = np.concatenate(
            [kernel.reshape(width, -1).T for kernel, _ in qkv]
        )
        made[f"blocks.{i}.attn.qkv.bias"] = np.concatenate(
            [bias.reshape(-1) for _, bias in qkv]
        )
    simple = {
        r"cls": "cls_token",
        r"Transformer/posembed_input/pos_embedding": "pos_embed",
        r"Transformer/encoder_norm/": "norm.",
        r"Transformer/encoderblock_(\d+)/LayerNorm_0/": r"blocks.\1.norm1.",
        r"Transformer/encoderblock_(\d+)/LayerNorm_2/": r"blocks.\1.norm2.",
        r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_0/": (
            r"blocks.\1.mlp.fc1."
        ),
        r"Transformer/encoderblock_(\d+)/MlpBlock_3/Dense_1/": (
            r"blocks.\1.mlp.fc2."
        ),
        r"Transformer/encoderblock_(\d+)/MultiHead\w+/out/": (
            r"blocks.\1.attn.proj."
        ),
        r"embedding/": "patch_embed.proj.",
        r"head/": "head.",
        r"conv_root/": "patch_embed.backbone.stem.conv.",
        r"gn_root/": "patch_embed.backbone.stem.norm.",
    }
    for name, array in arrays.items():
        if re.search("/(query|key|value)/", name):
            continue
        if unit := re.fullmatch(
            r"block(\d+)/unit(\d+)/(conv|gn)(\d|_proj)/(\w+)", name
        ):
            kind = {"conv": "conv", "gn": "norm"}[unit[3]]
            part = f"downsample.{kind}" if unit[4] == "_proj" else kind
            part += "" if unit[4] == "_proj" else unit[4]
            new = (
                f"patch_embed.backbone.stages.{int(unit[1]) - 1}."
                f"blocks.{int(unit[2]) - 1}.{part}.{unit[5]}"
            )
        else:
            for old, replacement in simple.items():
                if re.match(old + ("$" if old in ("cls",) else ""), name):
                    new = re.sub(old, replacement, name)
                    break
            else:
                raise AssertionError(name)
        if "/gn" in name or name.startswith("gn"):
            array = array.reshape(-1)
        elif name.endswith("/out/kernel"):
            array = array.reshape(-1, array.shape[-1]).T
        elif name.endswith("kernel"):
            array = array.T if array.ndim == 2 else array.transpose(3, 2, 0, 1)
        new = re.sub(r"\b(kernel|scale)$", "weight", new)
        made[new] = array
    # safetensors writes the bytes as they lie, whatever the order.
    return {name: np.ascontiguousarray(array) for name, array in made.items()}


def forward(arrays: dict[str, np.ndarray], images: np.ndarray) -> np.ndarray:
    """Logits of a ViT in NumPy and float64, from arrays in Linen's names.

    Without `cls` the mean of the tokens is read, as big_vision's "gap" does;
    `pre_logits` is a tanh layer.
    """
    p = {name: array.astype(np.float64) for name, array in arrays.items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * p[f"{name}/scale"] + p[f"{name}/bias"]

    def project(x: np.ndarray, name: str) -> np.ndarray:
        kernel = p[f"{name}/kernel"]
        return (
            np.tensordot(x, kernel, len(p[f"{name}/kernel"].shape) - 1)
            if name.endswith("/out")
            else np.tensordot(x, kernel, 1)
        ) + p[f"{name}/bias"]

    kernel = p["embedding/kernel"]
    size = len(kernel)
    b, h, w, c = images.shape
    x = images.astype(np.float64)
    x = x.reshape(b, h // size, size, w // size, size, c)
    x = x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, size * size * c)
    x = x @ kernel.reshape(size * size * c, -1) + p["embedding/bias"]
    if "pos_embedding" in p:
        x = x + p["pos_embedding"]
    if "cls" in p:
        x = np.concatenate([np.repeat(p["cls"], b, 0), x], 1)
    if "pos_embedding" not in p:
        x = x + p["Transformer/posembed_input/pos_embedding"]
    i = 0
    while f"Transformer/encoderblock_{i}/LayerNorm_0/bias" in p:
        block = f"Transformer/encoderblock_{i}"
        name = f"{block}/MultiHeadDotProductAttention_0"
        y = norm(x, f"{block}/LayerNorm_0")
        q, k, v = (project(y, f"{name}/{x}") for x in ("query", "key", "value"))
        a = np.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
        a = np.exp(a - a.max(-1, keepdims=True))
        a = a / a.sum(-1, keepdims=True)
        y = np.einsum("bhqk,bkhd->bqhd", a, v)
        x = x + (
            np.einsum("bqhd,hdw->bqw", y, p[f"{name}/out/kernel"])
            + p[f"{name}/out/bias"]
        )
        y = norm(x, f"{block}/LayerNorm_1")
        y = project(y, f"{block}/MlpBlock_0/Dense_0")
        y = (
            y
            / 2
            * (1 + np.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
        )
        x = x + project(y, f"{block}/MlpBlock_0/Dense_1")
        i += 1
    x = norm(x, "Transformer/encoder_norm")
    x = x[:, 0] if "cls" in p else x.mean(1)
    if "pre_logits/kernel" in p:
        x = np.tanh(project(x, "pre_logits"))
    return project(x, "head")


def images(shape: tuple[int, ...] = (16, 16, 3), n: int = 2) -> np.ndarray:
    """Float images in [-1, 1]."""
    rng = np.random.default_rng(7)
    return rng.uniform(-1, 1, (n, *shape)).astype(np.float32)


def weights(model: Any) -> dict[str, np.ndarray]:
    """Copies of a model's weights by path."""
    return {w.path: np.array(w.numpy()) for w in model.weights}


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two models' weights are bit-identical."""
    return one.keys() == other.keys() and all(
        a.dtype == other[k].dtype
        and a.shape == other[k].shape
        and a.tobytes() == other[k].tobytes()
        for k, a in one.items()
    )
