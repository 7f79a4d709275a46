"""The named builders, one for each architecture of the study."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import keras

from keras_augreg.checkpoints import names
from keras_augreg.checkpoints.convert import Contents
from keras_augreg.checkpoints.load import load, open_weights
from keras_augreg.checks import check_argument_names, warn
from keras_augreg.dataset_names import CLASSES
from keras_augreg.initialization import zero_weights
from keras_augreg.recipe import AugReg
from keras_augreg.variants import VARIANTS, Variant
from keras_augreg.vision_transformer import (
    VisionTransformer,
    check_input_shape,
    number_of_classes,
)


class Builder(Protocol):
    """The signature that all named builders share."""

    __name__: str

    def __call__(
        self,
        include_top: bool = True,
        weights: str | pathlib.Path | None = ...,
        input_tensor: Any = None,
        input_shape: tuple[int, int, int] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: str | None = "softmax",
        include_preprocessing: bool = True,
        recipe: AugReg | None = None,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        name: str | None = None,
        class_names: Sequence[str] | None = None,
        dynamic_image_size: bool = False,
    ) -> keras.Model: ...


_DOCSTRING = """{title}.

    {sizes}.
    Sizes: "How to train your ViT?" (arXiv 2106.10270), Tables 1 and 2.

    Args:
        include_top: Whether the model ends in a classifier.
        weights: `None` for random weights; an alias ({aliases});
            the full name of a released checkpoint, such as
            `"S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"`;
            the path of a `.npz`, timm `.safetensors`, `.weights.h5` or
            `.keras` file; `"hf://timm/NAME"`. Defaults to {default!r}.
        input_tensor: A Keras tensor of shape (B, H, W, C) to build on.
        input_shape: (H, W, C), square or not; {stride} divides H and W.
            Position embeddings are resampled to it, and a checkpoint's first
            kernel is adapted to other than 3 channels, as timm does. Defaults
            to the checkpoint's resolution, (224, 224, 3) without one.
        pooling: With `include_top=False`: `None` for all tokens
            (B, T, {width}), `"token"` for the class token (B, {width}),
            `"avg"` or `"max"` for the mean or the maximum of the patch tokens
            (B, {width}).
        classes: Units of the classifier. `None` keeps the checkpoint's (1000
            without one); another number than the checkpoint's makes a new
            classifier, whose weights start at zero. Prefer `class_names`,
            which tells other classes of the same number.
        classifier_activation: Activation of the classifier, `None` for
            logits.
        include_preprocessing: Whether the model takes pixels from 0 to 255,
            of any dtype, and scales them in a layer of its own. `False` for
            a model that takes floats in [-1, 1].
        recipe: A `keras_augreg.AugReg`, whose `dropout` and
            `stochastic_depth` the model gets.
        dropout: Dropout rate in [0, 1), used only in training.
        stochastic_depth: Rate in [0, 1) at which the last block's residual
            branches are dropped, used only in training; it rises linearly
            from 0 at the first block.
        name: Name of the model. Defaults to {lower!r}.
        class_names: Names of the classes, one for each unit. The checkpoint's
            classifier is kept if it has these names, in this order; otherwise
            the model gets a new one, whose weights start at zero. For a file
            without names, leave this out and set `model.class_names` after.
        dynamic_image_size: Whether the model takes images of any height and
            width that {stride} divides, besides `input_shape`: it resamples
            the position embeddings to the size that comes.

    Returns:
        A `keras_augreg.VisionTransformer`, a functional `keras.Model`. With
        an `input_tensor` behind other layers, a `keras.Model` that holds it.

    Raises:
        ValueError: If an argument is out of range, or the checkpoint is
            unknown, damaged or of another architecture.
        FileNotFoundError: If `weights` is a path and no such file exists.

    Example:

    ```python
    import numpy as np
    import keras_augreg

    model = keras_augreg.{name}(weights=None, classes=10)
    scores = model.predict(np.zeros((1, 224, 224, 3), "uint8"))
    assert scores.shape == (1, 10)
    ```
    """


def _hinting(builder: Builder) -> Builder:
    """Adds to errors what an argument of another library is called here."""

    @functools.wraps(builder)
    def call(*args: Any, **kwargs: Any) -> keras.Model:
        check_argument_names(builder.__name__, kwargs)
        return builder(*args, **kwargs)

    return call


def _builder(name: str) -> Builder:
    variant = VARIANTS[name]
    default_weights = names.default_weights(variant.name)

    def builder(
        include_top: bool = True,
        weights: str | pathlib.Path | None = default_weights,
        input_tensor: Any = None,
        input_shape: tuple[int, int, int] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: str | None = "softmax",
        include_preprocessing: bool = True,
        recipe: AugReg | None = None,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        name: str | None = None,
        class_names: Sequence[str] | None = None,
        dynamic_image_size: bool = False,
    ) -> keras.Model:
        if class_names is not None:
            classes = number_of_classes(class_names, classes)
        if not include_top and classes is not None:
            raise ValueError(
                "A model without classifier has no `classes`. Pass "
                f"include_top=True with classes={classes}, or leave it out."
            )
        if input_tensor is not None:
            input_shape = _tensor_shape(
                input_tensor, input_shape, dynamic_image_size
            )
        if input_shape is not None:
            input_shape = check_input_shape(input_shape, variant.sizes)
        checkpoint = None
        head = "new"
        if weights is not None:
            checkpoint = _checkpoint(weights, variant, input_shape)
            if class_names is not None:
                if checkpoint.has_classes(class_names):
                    head = "keep"
                else:
                    _warn_of_lost_classes(class_names, checkpoint)
            elif include_top and classes in (None, checkpoint.classes):
                if classes is not None:
                    _warn_of_kept_classes(classes, checkpoint.class_names)
                head, classes = "keep", _kept_classes(checkpoint)
                class_names = checkpoint.class_names
            if input_shape is None and checkpoint.patch_grid is not None:
                channels = checkpoint.channels
                if input_tensor is not None:
                    channels = input_tensor.shape[-1]
                stride = variant.sizes.stride
                rows, columns = (n * stride for n in checkpoint.patch_grid)
                input_shape = (rows, columns, channels)
        # The model is built on a plain input, and called on any other tensor.
        derived = input_tensor is not None and not isinstance(
            input_tensor._keras_history.operation, keras.layers.InputLayer
        )
        with zero_weights() if checkpoint else contextlib.nullcontext():
            model = VisionTransformer(
                **dataclasses.asdict(variant.sizes),
                include_top=include_top,
                input_tensor=None if derived else input_tensor,
                input_shape=input_shape,
                pooling=pooling,
                classes=classes,
                classifier_activation=classifier_activation,
                include_preprocessing=include_preprocessing,
                class_token=checkpoint.class_token if checkpoint else True,
                recipe=recipe,
                dropout=dropout,
                stochastic_depth=stochastic_depth,
                class_names=class_names,
                dynamic_image_size=dynamic_image_size,
                name=name or variant.name.lower(),
            )
        if checkpoint is not None:
            load(model, checkpoint, head)
        return _called_on(input_tensor, model) if derived else model

    builder.__doc__ = _docstring(variant, default_weights)
    builder.__name__ = builder.__qualname__ = variant.name
    return _hinting(builder)


def _docstring(variant: Variant, default_weights: str | None) -> str:
    stem, sizes = "", variant.sizes
    if sizes.stages is not None:
        units = ", ".join(map(str, sizes.stages)) or "no"
        stem = f" behind a ResNet stem with {units} bottleneck units"
    return _DOCSTRING.format(
        title=variant.name.replace("_ViT_", "+ViT-").replace("ViT_", "ViT-"),
        sizes=f"{sizes.depth} blocks of width {sizes.width} with "
        f"{sizes.num_heads} heads\n    and {sizes.mlp_dim} MLP units, one "
        f"token for {sizes.stride} x {sizes.stride} pixels{stem}",
        aliases=", ".join(f'`"{a}"`' for a in names.aliases(variant.name))
        or "none has been released",
        default=default_weights,
        stride=sizes.stride,
        width=sizes.width,
        lower=variant.name.lower(),
        name=variant.name,
    )


def _tensor_shape(
    tensor: Any, input_shape: tuple[int, int, int] | None, dynamic: bool
) -> tuple[int, int, int] | None:
    """The shape of an input tensor's images; as given if it is dynamic."""
    if not isinstance(tensor, keras.KerasTensor):
        raise ValueError(
            "`input_tensor` is a Keras tensor, such as keras.Input((224, "
            f"224, 3)). Received: {type(tensor).__name__}"
        )
    shape = tuple(tensor.shape[1:])
    if dynamic and None in shape[:2]:
        return input_shape
    if input_shape is not None and tuple(input_shape) != shape:
        raise ValueError(
            f"`input_tensor` has images of shape {shape}, `input_shape` "
            f"says {tuple(input_shape)}. Pass one of them."
        )
    return shape


def _called_on(tensor: Any, model: keras.Model) -> keras.Model:
    """The model from what the tensor was computed from."""
    sources = keras.utils.get_source_inputs(tensor)
    return keras.Model(
        sources if len(sources) > 1 else sources[0],
        model(tensor),
        name=model.name,
    )


def _checkpoint(
    weights: str | pathlib.Path,
    variant: Variant,
    input_shape: tuple[int, int, int] | None,
) -> Contents:
    """Finds and opens the checkpoint that `weights` names."""
    resolution = input_shape and max(input_shape[:2])
    checkpoint = open_weights(weights, variant, resolution)
    checkpoint.require(variant.sizes)
    return checkpoint


def _kept_classes(checkpoint: Contents) -> int:
    if checkpoint.classes is None:
        raise ValueError(
            f"{checkpoint.archive.path} has no classifier to keep. Pass "
            "`classes=N` for a new one of N classes, or include_top=False "
            "for none."
        )
    return checkpoint.classes


def _warn_of_lost_classes(wanted: Sequence[str], checkpoint: Contents) -> None:
    """Warns where the classifier that is replaced may be the wanted one."""
    path, known = checkpoint.archive.path, checkpoint.class_names
    if known is None and path.name.removesuffix(".npz") in names.table():
        return  # A release's classes are known to be others.
    if known is None and checkpoint.classes == len(wanted):
        why = f"does not say what its {checkpoint.classes} classes are"
    elif known is not None and sorted(known) == sorted(wanted):
        first = ", ".join(known[:3])
        why = f"has these classes in another order ({first}, ...)"
    else:
        return
    warn(
        f"{path} {why}, so the model gets a new classifier, whose weights "
        "start at zero. To keep the file's, leave `class_names` and `classes` "
        "out. If it has no names, set model.class_names = [...] then, in the "
        "order of its outputs; saved files hold them."
    )


def _warn_of_kept_classes(count: int, names: Sequence[str] | None) -> None:
    if names is None and count in CLASSES.values():
        return  # ImageNet's, as of the release.
    shown = "without names"
    if names is not None:
        shown = ", ".join(names[:3]) + (", ..." if count > 3 else "")
    warn(
        f"The model keeps the checkpoint's classifier of {count} classes "
        f"({shown}). For {count} other classes, pass class_names=[...] with "
        "their names: the model then gets a new classifier. Leave out "
        "`classes` to keep it without this warning."
    )


ViT_Ti16 = _builder("ViT_Ti16")
ViT_Ti32 = _builder("ViT_Ti32")
ViT_S16 = _builder("ViT_S16")
ViT_S32 = _builder("ViT_S32")
ViT_B8 = _builder("ViT_B8")
ViT_B16 = _builder("ViT_B16")
ViT_B32 = _builder("ViT_B32")
ViT_L16 = _builder("ViT_L16")
ViT_L32 = _builder("ViT_L32")
R_ViT_Ti16 = _builder("R_ViT_Ti16")
R26_ViT_S32 = _builder("R26_ViT_S32")
R26_ViT_B32 = _builder("R26_ViT_B32")
R50_ViT_B16 = _builder("R50_ViT_B16")
R50_ViT_L32 = _builder("R50_ViT_L32")
