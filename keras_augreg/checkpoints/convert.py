"""From the arrays of a checkpoint file to the weights of a model.

One table says what each weight of a model is called in each kind of file.
Pure NumPy; `load` puts the results into a model.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_augreg.checkpoints.archive import Archive, open_archive
from keras_augreg.positions import resample_positions
from keras_augreg.variants import Sizes, identify

# Weight of the model | release (.npz) | timm (.safetensors) | Keras (.h5).
#
# timm's names are those of its `VisionTransformer` and `ResNetV2` (1.0.31). A
# Keras file numbers the layers of a class ("block", "block_1", ...) and the
# weights of a layer. Several sources of one weight, for which {q} stands, are
# stacked.
Row = tuple[str, tuple[str, ...], str, str]
KINDS = {"npz": 1, "safetensors": 2, "h5": 3}


def _rows(text: str, *prefixes: str) -> list[Row]:
    """Reads a table with a line for each weight; a column has one prefix."""
    rows = []
    for line in text.strip().splitlines():
        key, release, timm, h5 = map(str.__add__, prefixes, line.split())
        kinds = ("query", "key", "value") if "{q}" in release else ("",)
        sources = tuple(release.replace("{q}", kind) for kind in kinds)
        rows.append((key, sources, timm, h5))
    return rows


POSITIONS = "posembed_input/pos_embedding"
_OUTER: list[Row] = [
    ("embedding/kernel", ("embedding/kernel",),
     "patch_embed.proj.weight", "patch_embedding/vars/0"),
    ("embedding/bias", ("embedding/bias",),
     "patch_embed.proj.bias", "patch_embedding/vars/1"),
    (POSITIONS, (f"Transformer/{POSITIONS}",),
     "pos_embed", "position_embedding/vars/0"),
    ("posembed_input/cls", ("cls",),
     "cls_token", "position_embedding/vars/1"),
    ("encoder_norm/gamma", ("Transformer/encoder_norm/scale",),
     "norm.weight", "layer_normalization/vars/0"),
    ("encoder_norm/beta", ("Transformer/encoder_norm/bias",),
     "norm.bias", "layer_normalization/vars/1"),
    ("head/kernel", ("head/kernel",), "head.weight", "dense/vars/0"),
    ("head/bias", ("head/bias",), "head.bias", "dense/vars/1"),
]  # fmt: skip
_ENCODERBLOCK = _rows(
    """
    norm1/gamma          LayerNorm_0/scale  norm1.weight     norm1/vars/0
    norm1/beta           LayerNorm_0/bias   norm1.bias       norm1/vars/1
    attention/qkv_kernel {a}/{q}/kernel     attn.qkv.weight  attention/vars/0
    attention/qkv_bias   {a}/{q}/bias       attn.qkv.bias    attention/vars/1
    attention/out_kernel {a}/out/kernel     attn.proj.weight attention/vars/2
    attention/out_bias   {a}/out/bias       attn.proj.bias   attention/vars/3
    norm2/gamma          LayerNorm_2/scale  norm2.weight     norm2/vars/0
    norm2/beta           LayerNorm_2/bias   norm2.bias       norm2/vars/1
    mlp_kernel1          {m}/Dense_0/kernel mlp.fc1.weight   vars/0
    mlp_bias1            {m}/Dense_0/bias   mlp.fc1.bias     vars/1
    mlp_kernel2          {m}/Dense_1/kernel mlp.fc2.weight   vars/2
    mlp_bias2            {m}/Dense_1/bias   mlp.fc2.bias     vars/3
    """,
    "encoderblock_{i}/", "Transformer/encoderblock_{i}/",
    "blocks.{i}.", "block{h}/",
)  # fmt: skip
_ROOT = _rows(
    """
    conv/kernel  conv_root/kernel  conv.weight  conv/vars/0
    norm/gamma   gn_root/scale     norm.weight  norm/vars/0
    norm/beta    gn_root/bias      norm.bias    norm/vars/1
    """,
    "root/", "", "patch_embed.backbone.stem.", "res_net_root/",
)  # fmt: skip
_UNIT = _rows(
    """
    conv1/kernel      conv1/kernel      conv1.weight            conv1/vars/0
    norm1/gamma       gn1/scale         norm1.weight            norm1/vars/0
    norm1/beta        gn1/bias          norm1.bias              norm1/vars/1
    conv2/kernel      conv2/kernel      conv2.weight            conv2/vars/0
    norm2/gamma       gn2/scale         norm2.weight            norm2/vars/0
    norm2/beta        gn2/bias          norm2.bias              norm2/vars/1
    conv3/kernel      conv3/kernel      conv3.weight            conv3/vars/0
    norm3/gamma       gn3/scale         norm3.weight            norm3/vars/0
    norm3/beta        gn3/bias          norm3.bias              norm3/vars/1
    conv_proj/kernel  conv_proj/kernel  downsample.conv.weight  conv_proj/vars/0
    norm_proj/gamma   gn_proj/scale     downsample.norm.weight  norm_proj/vars/0
    norm_proj/beta    gn_proj/bias      downsample.norm.bias    norm_proj/vars/1
    """,
    "block{s}_unit{u}/", "block{s}/unit{u}/", "{t}.", "bottleneck_unit{h}/",
)  # fmt: skip


def _first_name(row: Row, column: int) -> str:
    """The name of a row's weight, or of the first of its arrays, in a file."""
    name = row[column]
    return name if isinstance(name, str) else name[0]


def layout(sizes: Sizes) -> list[Row]:
    """Returns the table's rows for every weight of an architecture."""

    def fill(rows: list[Row], **fields: object) -> list[Row]:
        return [
            (
                key.format(**fields),
                tuple(name.format(**fields) for name in release),
                timm.format(**fields),
                h5.format(**fields),
            )
            for key, release, timm, h5 in rows
        ]

    rows = list(_OUTER)
    modules = {"a": "MultiHeadDotProductAttention_1", "m": "MlpBlock_3"}
    for i in range(sizes.depth):
        rows += fill(_ENCODERBLOCK, i=i, h=f"_{i}" if i else "", **modules)
    if sizes.stages is None:
        return rows
    for key, release, timm, h5 in _ROOT:
        if not sizes.stages:  # timm's backbone is then the stem itself
            timm = timm.replace(".stem.", ".")
        rows.append((key, release, timm, h5))
    number = 0
    for stage, units in enumerate(sizes.stages):
        for unit in range(units):
            rows += fill(
                # The first unit of a stage changes the number of channels.
                _UNIT if unit == 0 else _UNIT[:9],
                s=stage + 1,
                u=unit + 1,
                t=f"patch_embed.backbone.stages.{stage}.blocks.{unit}",
                h=f"_{number}" if number else "",
            )
            number += 1
    return rows


def first_kernel(sizes: Sizes) -> str:
    """The table's name of the weight that reads the channels of images."""
    return "embedding/kernel" if sizes.stages is None else "root/conv/kernel"


def adapt_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Makes a kernel (height, width, 3, filters) read other channels.

    As timm's `adapt_input_conv` (timm/models/_manipulate.py, 1.0.31): for one
    channel the sum over red, green and blue, so that a grey image gives what
    its RGB form gave; for others red, green and blue in turn, times 3 /
    `channels`.

    >>> adapt_channels(np.ones((1, 1, 3, 1)), 4).ravel()
    array([0.75, 0.75, 0.75, 0.75])
    """
    if channels == kernel.shape[2]:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    repeated = kernel[:, :, np.arange(channels) % 3]
    return (repeated * (3 / channels)).astype(kernel.dtype)


def variables(model: Any, head: bool) -> Iterator[tuple[Row, Any]]:
    """Yields the table's rows with the variables of a model."""
    for row in layout(model.sizes):
        if row[0].startswith("head/") and not head:
            continue
        if row[0] == "posembed_input/cls" and not model.class_token:
            continue
        layer, *attributes = row[0].split("/")
        yield row, functools.reduce(getattr, attributes, model.get_layer(layer))


# Linen's module names inside a block (big_vision's files) -> the older names
# that the release uses.
_LINEN = {
    "LayerNorm_1/": "LayerNorm_2/", "MlpBlock_0/": "MlpBlock_3/",
    "MultiHeadDotProductAttention_0/": "MultiHeadDotProductAttention_1/",
}  # fmt: skip
_ROWS = {row[0]: row for row in layout(Sizes(0, 0, 1, 0, 0))}
# The number of a block in the names of its arrays.
_BLOCKS = {
    "npz": r"Transformer/encoderblock_(\d+)/",
    "safetensors": r"blocks\.(\d+)\.",
    "h5": r"block(_\d+|)/",
}
# GroupNorm's vectors, which have three more axes in some files.
GROUP_NORM = re.compile(r"(root|block\d+_unit\d+)/norm")
# A tanh layer before the head, in the older ViT release and in big_vision.
_HIDDEN = ("pre_logits/kernel", "pre_logits/bias")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a checkpoint file holds, before any array is read."""

    archive: Archive
    names: dict[str, str]  # the table's name -> the file's
    sizes: Sizes
    class_token: bool
    positions: int  # rows of the position embedding
    classes: int | None  # `None` without a head
    hidden_head: bool  # whether a hidden layer comes before the head
    channels: int  # of the images

    @property
    def positions_without_class(self) -> bool:
        """Whether the class token has no row in the position embedding."""
        return self.names.get(f"Transformer/{POSITIONS}") == "pos_embedding"

    @property
    def class_row(self) -> int:
        """Number of rows that the class token has in `positions`: 0 or 1."""
        return int(self.class_token and not self.positions_without_class)

    @property
    def patch_grid(self) -> tuple[int, int] | None:
        """Rows and columns of patches, `None` if nothing tells them."""
        return self.archive.patch_grid(self.positions - self.class_row)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the outputs of the head mean; see `Archive.class_names`."""
        return self.archive.class_names

    def has_classes(self, names: Sequence[str] | None) -> bool:
        """Whether the head's classes are known to be these, in this order."""
        return names is not None and self.class_names == tuple(names)

    def require(self, expected: Sizes) -> None:
        """Raises a `ValueError` if the file has another architecture."""
        found = self.sizes
        if self.archive.kind == "safetensors":
            found = dataclasses.replace(found, num_heads=expected.num_heads)
        if found == expected:
            return
        differences = [
            f"{name}={value} instead of {getattr(expected, name)}"
            for name, value in vars(found).items()
            if value != getattr(expected, name)
        ]
        named, wanted = identify(self.sizes), identify(expected)
        raise ValueError(
            f"{self.archive.path} holds another architecture than "
            f"{wanted.name if wanted else 'the model'}: "
            f"{', '.join(differences)}"
            + (f" (that is keras_augreg.{named.name})." if named else ".")
        )


def inspect(path: str | pathlib.Path) -> Contents:
    """Finds out what a checkpoint file holds, without reading its arrays."""
    archive = open_archive(path)
    names = _table_names(archive)
    rows = dict(_ROWS)

    def file_name(key: str) -> str:
        return _first_name(rows[key], KINDS[archive.kind])

    def shape(key: str, rank: int) -> tuple[int, ...]:
        name = file_name(key)
        if name not in names:
            raise ValueError(
                f"{archive.path}: array {name!r} is missing, expected in every "
                "ViT checkpoint. Is this file one, and complete?"
            )
        found = archive.headers[names[name]].shape
        if len(found) != rank:
            raise ValueError(
                f"{archive.path}: array {names[name]!r} has shape {found}, "
                f"expected {rank} axes."
            )
        return found

    blocks = re.compile(_BLOCKS[archive.kind])
    patch_size, _, _, width = shape("embedding/kernel", 4)
    if archive.kind == "safetensors":
        width, _, patch_size, _ = shape("embedding/kernel", 4)
        num_heads = width // 64  # as in the release; its arrays do not tell
    else:
        rank = 2 if archive.kind == "npz" else 3
        num_heads = shape("encoderblock_0/attention/qkv_bias", rank)[-2]
    sizes = Sizes(
        patch_size=patch_size,
        width=width,
        depth=len({m[1] for name in names if (m := blocks.match(name))}),
        num_heads=num_heads,
        mlp_dim=shape("encoderblock_0/mlp_bias1", 1)[0],
        stages=_stages(archive, names),
    )
    stem = layout(dataclasses.replace(sizes, depth=0))
    rows.update((row[0], row) for row in stem)
    axis = 1 if archive.kind == "safetensors" else 2
    head = [file_name("head/kernel"), file_name("head/bias")]
    has_head = head[1] in names
    if (head[0] in names) != has_head:
        lost, there = head if has_head else head[::-1]
        raise ValueError(
            f"{archive.path}: array {lost!r} is missing, expected beside "
            f"{names[there]!r}."
        )
    contents = Contents(
        archive,
        names,
        sizes,
        class_token=file_name("posembed_input/cls") in names,
        positions=shape(POSITIONS, 3)[1],
        classes=shape("head/bias", 1)[0] if has_head else None,
        hidden_head=_HIDDEN[0] in names,
        channels=shape(first_kernel(sizes), 4)[axis],
    )
    _check_positions(contents, file_name("posembed_input/cls"))
    return contents


def _table_names(archive: Archive) -> dict[str, str]:
    """From the names in the table to those in a file."""
    names: dict[str, str] = {}
    for name in archive.headers:
        table_name = name
        if archive.kind == "h5":
            table_name = name.removeprefix("layers/")
        elif archive.kind == "npz":
            for linen, old in _LINEN.items():
                table_name = table_name.replace(linen, old)
            if name == "pos_embedding":
                table_name = f"Transformer/{POSITIONS}"
        if table_name in names:
            raise ValueError(
                f"{archive.path}: arrays {names[table_name]!r} and {name!r} "
                "mean the same weight, expected one of them."
            )
        names[table_name] = name
    return names


def _check_positions(contents: Contents, cls: str) -> None:
    """Raises a `ValueError` if there cannot be as many positions."""
    path, positions = contents.archive.path, contents.positions
    if positions <= contents.class_row:
        raise ValueError(
            f"{path}: the position embedding has {positions} rows, expected "
            f"{contents.class_row} for the class token and at least one for a "
            "patch."
        )
    grid = contents.patch_grid  # Raises if the file states a wrong one.
    lost = contents.archive.kind != "h5" and not contents.class_token
    square = math.isqrt(positions - 1) ** 2 == positions - 1
    if lost and grid is None and square:
        raise ValueError(
            f"{path}: array {cls!r} is missing, expected with {positions} "
            f"positions: {positions - 1} patches and a class token."
        )


def _stages(archive: Archive, names: dict[str, str]) -> tuple[int, ...] | None:
    """Finds the number of units in each stage of the ResNet stem."""
    column = KINDS[archive.kind]
    root = _first_name(_ROOT[0], column)
    if not names.keys() & {root, root.replace(".stem.", ".")}:
        return None
    pattern = {
        "npz": r"block(\d{1,3})/unit\d+/conv1/kernel",
        "safetensors": r"patch_embed\.backbone\.stages\.(\d{1,3})\.blocks\.\d+"
        r"\.conv1\.weight",
        # The stage shows in the number of channels.
        "h5": r"bottleneck_unit(?:_\d+)?/conv1()/vars/0",
    }[archive.kind]
    units = collections.Counter(
        (int(m[1]),) if m[1] else archive.headers[file_name].shape[-1:]
        for name, file_name in names.items()
        if (m := re.fullmatch(pattern, name))
    )
    return tuple(units[stage] for stage in sorted(units))


def match(
    contents: Contents, shapes: dict[str, tuple[int, ...]], keep_head: bool
) -> dict[str, tuple[str, ...]]:
    """Returns each weight's arrays, exactly those that a file should hold.

    `shapes` are the model's, by the names in the table. Raises a `ValueError`
    if an array is missing, unexpected or of another shape.
    """
    archive, names = contents.archive, contents.names
    column = KINDS[archive.kind]
    if keep_head and contents.hidden_head:
        raise ValueError(
            f"{archive.path} has a hidden layer 'pre_logits' before its head; "
            "these models do not. Pass `classes=N` for a new head of N "
            "classes or `include_top=False` for none."
        )
    ignored = set(_HIDDEN if archive.kind == "npz" else ())
    sources: dict[str, tuple[str, ...]] = {}
    for row in layout(contents.sizes):
        source = row[column]
        source = source if isinstance(source, tuple) else (source,)
        if row[0].startswith("head/") and not keep_head:
            ignored.update(source)
        elif row[0] != "posembed_input/cls" or contents.class_token:
            sources[row[0]] = source
    wanted = {name for source in sources.values() for name in source}
    named = identify(contents.sizes)
    missing = sorted(wanted - names.keys())
    unexpected = sorted(names.keys() - wanted - ignored)
    for problem, which in [("lacks", missing), ("also holds", unexpected)]:
        if which:
            more = f" and {len(which) - 5} more" if len(which) > 5 else ""
            if any("lora_" in name for name in which):
                more += (
                    " (it was saved with adapters: load the model as a whole "
                    "with keras.saving.load_model, or save it after "
                    "merge_lora())"
                )
            raise ValueError(
                f"{archive.path} {problem} "
                f"{', '.join(map(repr, which[:5]))}{more}; expected exactly "
                f"the arrays of {named.name if named else 'its architecture'}."
            )
    for key, source in sources.items():
        for name in source:
            found = archive.headers[names[name]].shape
            shape = shapes[key]
            if key == POSITIONS:
                shape = (1, contents.positions, shape[2])
            allowed = _file_shapes(archive.kind, key, shape, len(source))
            if found not in allowed:
                raise ValueError(
                    f"{archive.path}: array {names[name]!r} has shape {found}, "
                    f"expected {' or '.join(map(str, allowed))}."
                )
    return {k: tuple(names[n] for n in source) for k, source in sources.items()}


def as_timm(key: str, weight: np.ndarray) -> np.ndarray:
    """A weight as timm stores it: (out, in) or (out, in, height, width)."""
    if key.endswith("qkv_kernel"):
        weight = weight.reshape(len(weight), -1)
    elif key.endswith("out_kernel"):
        weight = weight.reshape(-1, weight.shape[-1])
    elif key.endswith("qkv_bias"):
        weight = weight.reshape(-1)
    if weight.ndim == 4:
        return weight.transpose(3, 2, 0, 1)
    return weight.T if weight.ndim == 2 else weight


def _file_shapes(
    kind: str, key: str, shape: tuple[int, ...], parts: int
) -> list[tuple[int, ...]]:
    """The shapes that an array may have in a file, from the weight's shape."""
    if kind == "safetensors":
        return [as_timm(key, np.empty(shape, np.uint8)).shape]
    if parts > 1:
        # (W, 3, H, D) and (3, H, D) are stacked from (W, H, D) and (H, D).
        return [shape[:-3] + shape[-2:]]
    if kind == "npz" and GROUP_NORM.match(key):
        return [shape, (1, 1, 1, *shape)]
    return [shape]


def read(
    contents: Contents,
    source: tuple[str, ...],
    shape: tuple[int, ...],
    grid: tuple[int, int] | None = None,
) -> np.ndarray:
    """Reads a weight from its arrays; positions are resampled to a `grid`."""
    array, *others = map(contents.archive.read, source)
    if others:
        array = np.stack([array, *others], axis=array.ndim - 2)
    elif contents.archive.kind == "safetensors":
        array = array.T if array.ndim == 2 else array
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array
    if grid is None:
        return array.reshape(shape)
    if contents.class_token and contents.positions_without_class:
        array = np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)
    old = contents.patch_grid
    if old is None:
        raise ValueError(
            f"{contents.archive.path}: array {source[0]!r} has "
            f"{contents.positions} positions, which make no square grid, and "
            "the file does not state their rows and columns to resample them "
            f"to {grid[0]} x {grid[1]} patches. Export it again."
        )
    return resample_positions(array, old, grid, int(contents.class_token))
