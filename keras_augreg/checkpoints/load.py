"""Puts a checkpoint into a model."""

from __future__ import annotations

import pathlib
from typing import Any

from keras_augreg.checkpoints import convert, names
from keras_augreg.checkpoints.download import download
from keras_augreg.projection import check_not_quantized
from keras_augreg.variants import Variant

FILE_SUFFIXES = (".npz", ".safetensors", ".h5", ".keras")


def open_weights(
    weights: str | pathlib.Path, variant: Variant, resolution: int | None
) -> convert.Contents:
    """Opens the file that a builder's `weights` stand for; may download it."""
    text = str(weights)
    if text.startswith("hf://"):
        return convert.inspect(download(text))
    path = pathlib.Path(weights).expanduser()
    # Text that looks like a release name is taken as one, unless a file of
    # that name exists.
    stem = text.removesuffix(".npz")
    released = stem in names.table() or (path.name == text and "-lr_" in stem)
    if (
        isinstance(weights, pathlib.Path)
        or path.is_file()
        or (text.endswith(FILE_SUFFIXES) and not released)
    ):
        return convert.inspect(path)
    name = names.resolve(variant.name, text, resolution)
    return convert.inspect(download(name))


def load(
    model: Any, path: str | pathlib.Path | convert.Contents, head: str = "keep"
) -> None:
    """Loads a checkpoint file into a model, resampling its positions.

    Everything is read and checked before the first weight changes, so an
    error leaves the model unchanged.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        path: A `.npz` of the AugReg release or of big_vision, a timm
            `.safetensors`, a `.weights.h5` or `.keras` file of a
            `VisionTransformer`, or the `Contents` of one of these.
        head: `"keep"` loads the file's classifier and the names of its
            classes, `"new"` keeps the model's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, of another architecture, or its
            arrays are not exactly the model's; the message names the array.

    Example:
    ```python
    model = keras_augreg.VisionTransformer(
        patch_size=16, width=192, depth=12, num_heads=3, mlp_dim=768,
        classes=10,
    )
    keras_augreg.checkpoints.load(model, "Ti_16.npz", head="new")
    ```
    """
    if head not in ("keep", "new"):
        raise ValueError(
            f"`head` is 'keep' (load the file's classifier) or 'new' (keep the "
            f"model's). Received: head={head!r}"
        )
    check_not_quantized(model)
    contents = path
    if not isinstance(contents, convert.Contents):
        contents = convert.inspect(contents)
    contents.require(model.sizes)
    file = contents.archive.path
    if contents.class_token != model.class_token:
        raise ValueError(
            f"{file} has {'a' if contents.class_token else 'no'} class token, "
            f"the model has {'one' if model.class_token else 'none'}. Build "
            f"it with class_token={contents.class_token}."
        )
    keep_head = head == "keep" and model.include_top
    if keep_head and contents.classes != model.classes:
        raise ValueError(
            f"{file} has {contents.classes or 'no'} classes, the model has "
            f"{model.classes}. Pass head='new' to keep the model's own head."
        )
    names = contents.class_names if keep_head else None
    if (
        names
        and model.class_names
        and not contents.has_classes(model.class_names)
    ):
        raise ValueError(
            f"{file} has a classifier of other classes, {names[:3]}..., than "
            f"the model's, {model.class_names[:3]}... Pass head='new' to keep "
            "the model's own head."
        )
    variables = {
        row[0]: variable
        for row, variable in convert.variables(model, keep_head)
    }
    shapes = {key: tuple(v.shape) for key, v in variables.items()}
    first, channels = convert.first_kernel(model.sizes), model.image_shape[2]
    if contents.channels not in (3, channels):
        raise ValueError(
            f"{file} is for images of {contents.channels} channels, the model "
            f"takes {channels}. Only kernels of RGB can be adapted."
        )
    side, _, _, filters = shapes[first]
    shapes[first] = (side, side, contents.channels, filters)
    sources = convert.match(contents, shapes, keep_head)
    grids = {convert.POSITIONS: model.patch_grid}
    arrays = {
        key: convert.read(contents, source, shapes[key], grids.get(key))
        for key, source in sources.items()
    }
    if channels != contents.channels:
        arrays[first] = convert.adapt_channels(arrays[first], channels)
        how = "their sum" if channels == 1 else f"these in turn x 3/{channels}"
        print(
            f"{file.name} was trained on RGB images, the model takes "
            f"{channels} channel(s). Its first kernel is made of those of red, "
            f"green and blue, {how}, as timm does."
        )
    for key, variable in variables.items():
        variable.assign(arrays.pop(key))
    if names:
        model.class_names = names
