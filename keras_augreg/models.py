"""The Vision Transformers: one model class and the named builders."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any, Protocol

import keras

from keras_augreg.checkpoints import names
from keras_augreg.checkpoints.load import find, load
from keras_augreg.initialization import zero_weights
from keras_augreg.preprocessing import preprocess_input
from keras_augreg.resnet import resnet_stem
from keras_augreg.trainstep import Predictions, TrainStep
from keras_augreg.variants import VARIANTS, Sizes, Variant
from keras_augreg.vit import (
    LAYER_NORM_EPSILON,
    Block,
    PatchEmbedding,
    Pool,
    PositionEmbedding,
)

DEFAULT_RESOLUTION = 224
DEFAULT_CLASSES = 1000


@keras.saving.register_keras_serializable(package="keras_augreg")
class VisionTransformer(TrainStep):
    """A Vision Transformer of any size, with or without a ResNet stem.

    The named builders (`keras_augreg.ViT_B16` and the others) return one with
    the paper's sizes; call this for other sizes. It is a functional model:
    `get_layer("encoderblock_3").output` is there to build on.

    Integer images (0 to 255) are scaled to [-1, 1] by the model itself, in
    `fit`, `evaluate`, `predict` and when called; float images are taken as
    scaled already.

    Args:
        patch_size: Side of a patch in pixels; with a ResNet stem, in cells of
            the stem's output.
        width: Size of a token.
        depth: Number of Transformer blocks, at least 1.
        num_heads: Attention heads of a block; it divides `width`.
        mlp_dim: Hidden units of a block's MLP.
        stages: `None` without a ResNet stem; otherwise the number of
            bottleneck units of each stage, `()` for the stem's root alone.
        include_top: Whether the model ends in a classifier.
        input_tensor: A `keras.Input` of shape (H, W, 3) to build on.
        input_shape: (H, W, 3); the effective stride divides H and W.
            Defaults to (224, 224, 3), or to that of `input_tensor`.
        pooling: With `include_top=False`: `None` for all tokens (B, T, width),
            `"token"` for the class token (B, width), `"avg"` for the mean of
            the patch tokens (B, width).
        classes: Units of the classifier, whose weights start at zero.
        classifier_activation: Activation of the classifier; `None` for
            logits.
        class_token: Whether there is a class token. Without one, the
            classifier reads the mean of the patch tokens.
        dropout: Rate in [0, 1) after the position embedding, the attention
            and both layers of the MLP.
        stochastic_depth: Rate in [0, 1) of the last block; the rate of block
            l of L is `stochastic_depth * l / (L - 1)`, as the paper's
            "linearly increasing" is read here.
        seed: Integer seed of dropout and stochastic depth. `None` draws one
            from Keras's global seed (`keras.utils.set_random_seed`).
        class_names: What the outputs of the classifier mean, one string for
            each; kept in every saved file. `model.class_names = [...]` sets
            them later.
        name: Name of the model.
        dtype: Dtype or dtype policy; `None` for Keras's global policy.

    Raises:
        ValueError: If a size does not fit the others.

    Example:
    ```python
    import numpy as np
    import keras_augreg

    model = keras_augreg.VisionTransformer(
        patch_size=4, width=64, depth=3, num_heads=2, mlp_dim=128,
        input_shape=(32, 32, 3), classes=10,
    )
    images = np.zeros((2, 32, 32, 3), "uint8")
    assert model.predict(images, verbose=0).shape == (2, 10)
    ```
    """

    def __init__(
        self,
        patch_size: int,
        width: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        stages: tuple[int, ...] | None = None,
        include_top: bool = True,
        input_tensor: Any = None,
        input_shape: tuple[int, int, int] | None = None,
        pooling: str | None = None,
        classes: int = DEFAULT_CLASSES,
        classifier_activation: str | None = "softmax",
        class_token: bool = True,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        seed: int | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "vision_transformer",
        dtype: Any = None,
        trainable: bool = True,
    ) -> None:
        sizes = Sizes(
            patch_size, width, depth, num_heads, mlp_dim,
            None if stages is None else tuple(stages),
        )  # fmt: skip
        _check_sizes(sizes)
        _check_top(include_top, pooling, class_token, classes)
        for argument, rate in [
            ("dropout", dropout),
            ("stochastic_depth", stochastic_depth),
        ]:
            if not 0 <= rate < 1:
                raise ValueError(
                    f"`{argument}` is the probability to drop, at least 0 and "
                    f"below 1. Received: {argument}={rate}"
                )
        if input_tensor is not None:
            if _is_integer(input_tensor):
                raise ValueError(
                    "`input_tensor` holds floats in [-1, 1]. For integer "
                    "images, call the model on the tensor. Received: "
                    f"dtype={input_tensor.dtype}"
                )
            input_shape = tuple(input_tensor.shape[1:])
        input_shape = check_input_shape(input_shape, sizes)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())

        # A classifier reads the class token alone.
        reads = pooling
        if include_top:
            reads = "token" if class_token else "avg"
        blocks = [
            Block(
                num_heads,
                mlp_dim,
                dropout,
                stochastic_depth * i / max(depth - 1, 1),
                queries=1 if reads == "token" and i == depth - 1 else None,
                seed=None if seed is None else seed + 1 + i,
                dtype=policy,
                name=f"encoderblock_{i}",
            )
            for i in range(depth)
        ]
        # Under `keras.RematScope`, blocks are recomputed, in their own way:
        # Keras's fails in TensorFlow's graphs (keras-team/keras 21207).
        with keras.RematScope(mode=None):
            inputs = input_tensor
            if inputs is None:
                inputs = keras.Input(input_shape, name="image")
            x = inputs
            if stages is not None:
                x = resnet_stem(x, tuple(stages), dtype=policy)
            x = PatchEmbedding(
                patch_size, width, dtype=policy, name="embedding"
            )(x)
            x = PositionEmbedding(
                class_token, dropout, seed, dtype=policy, name="posembed_input"
            )(x)
            for block in blocks:
                x = block(x)
            x = keras.layers.LayerNormalization(
                epsilon=LAYER_NORM_EPSILON, dtype=policy, name="encoder_norm"
            )(x)
            if reads is not None:
                x = Pool(reads, class_token, dtype=policy, name="pool")(x)
            if include_top:
                # Logits and softmax in full precision under mixed precision.
                x = keras.layers.Dense(
                    classes,
                    kernel_initializer="zeros",
                    dtype=policy.variable_dtype,
                    name="head",
                )(x)
                if classifier_activation is not None:
                    x = Predictions(
                        classifier_activation,
                        dtype=policy.variable_dtype,
                        name="predictions",
                    )(x)
            super().__init__(
                inputs=inputs, outputs=x, name=name, trainable=trainable
            )
        self.dtype_policy = policy
        self.sizes = sizes
        self.include_top = include_top
        self.image_shape = input_shape
        self.pooling = pooling
        self.classes = classes if include_top else None
        self.classifier_activation = classifier_activation
        self.class_token = class_token
        self.dropout = dropout
        self.stochastic_depth = stochastic_depth
        self.seed = seed
        self.class_names = class_names

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        return super().call(scale_integers(inputs), training, mask)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """What the outputs of the classifier mean."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        if names is not None and (
            isinstance(names, str)
            or not all(isinstance(name, str) for name in names)
            or len(names) != self.classes
        ):
            raise ValueError(
                "`class_names` is a list of strings, one for each of the "
                f"{self.classes or 0} outputs of the classifier. Received: "
                f"{len(names)} names, {str(names)[:80]}"
            )
        self._class_names = None if names is None else tuple(names)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        return height // self.sizes.stride, width // self.sizes.stride

    def get_config(self) -> dict[str, Any]:
        return {
            "patch_size": self.sizes.patch_size,
            "width": self.sizes.width,
            "depth": self.sizes.depth,
            "num_heads": self.sizes.num_heads,
            "mlp_dim": self.sizes.mlp_dim,
            "stages": self.sizes.stages,
            "include_top": self.include_top,
            "input_shape": self.image_shape,
            "pooling": self.pooling,
            "classes": self.classes,
            "classifier_activation": self.classifier_activation,
            "class_token": self.class_token,
            "dropout": self.dropout,
            "stochastic_depth": self.stochastic_depth,
            "seed": self.seed,
            "class_names": self.class_names and list(self.class_names),
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "trainable": self.trainable,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> VisionTransformer:
        return cls(**config)


def scale_integers(images: Any) -> Any:
    """Scales integer images to [-1, 1]; float images stay as they are."""
    return preprocess_input(images) if _is_integer(images) else images


def _is_integer(x: Any) -> bool:
    return "int" in keras.backend.standardize_dtype(x.dtype)


def _check_sizes(sizes: Sizes) -> None:
    numbers = {
        "patch_size": sizes.patch_size,
        "width": sizes.width,
        "depth": sizes.depth,
        "num_heads": sizes.num_heads,
        "mlp_dim": sizes.mlp_dim,
    }
    for argument, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(
                f"`{argument}` is a positive integer. Received: "
                f"{argument}={value!r}"
            )
    if sizes.width % sizes.num_heads:
        raise ValueError(
            f"`num_heads` divides `width`. Received: width={sizes.width}, "
            f"num_heads={sizes.num_heads}"
        )


def _check_top(
    include_top: bool, pooling: str | None, class_token: bool, classes: Any
) -> None:
    if pooling not in (None, "token", "avg"):
        raise ValueError(
            "`pooling` is None (all tokens), 'token' (the class token) or "
            f"'avg' (the mean of the patch tokens). Received: {pooling!r}"
        )
    if include_top and pooling is not None:
        raise ValueError(
            "`pooling` says what a model without classifier returns. Pass "
            f"include_top=False with pooling={pooling!r}, or leave it out."
        )
    if pooling == "token" and not class_token:
        raise ValueError(
            "This model has no class token to return (its checkpoint has "
            "none, or class_token=False). Pass pooling='avg'."
        )
    if include_top and (not isinstance(classes, int) or classes < 1):
        raise ValueError(
            f"`classes` is a positive integer. Received: classes={classes!r}"
        )


def check_input_shape(
    input_shape: tuple[int, int, int] | None, sizes: Sizes
) -> tuple[int, int, int]:
    """Returns (H, W, 3) if an architecture can take such images.

    Raises:
        ValueError: If the stride does not divide H and W, there are not three
            channels, or Keras is set to channels first.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "These models take images with channels last, (B, H, W, 3). Call "
            "keras.config.set_image_data_format('channels_last') first, and "
            "transpose images of shape (B, 3, H, W) with "
            "keras.ops.transpose(images, (0, 2, 3, 1))."
        )
    shape = input_shape or (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION, 3)
    sides = shape[:2]
    if (
        len(shape) != 3
        or shape[2] != 3
        or not all(isinstance(n, int) and n > 0 for n in sides)
    ):
        raise ValueError(
            "`input_shape` is (height, width, 3) with a fixed height and "
            f"width. Received: input_shape={input_shape}"
        )
    if any(n % sizes.stride for n in sides):
        near = tuple(max(round(n / sizes.stride), 1) * sizes.stride
                     for n in sides)  # fmt: skip
        raise ValueError(
            f"The stride of this architecture, {sizes.stride} pixels, divides "
            f"height and width. Received: input_shape={shape}; near to it is "
            f"{(*near, 3)}"
        )
    height, width = sides
    return height, width, 3


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
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        name: str | None = None,
    ) -> keras.Model: ...


_DOCSTRING = """{title}.

    {sizes}. Sizes: "How to train your ViT?" (arXiv 2106.10270), Table 2.

    Args:
        include_top: Whether the model ends in a classifier.
        weights: `None` for random weights; an alias ({aliases});
            the full name of a released checkpoint, such as
            `"S_16-i21k-300ep-lr_0.001-aug_light1-wd_0.03-do_0.0-sd_0.0"`;
            the path of a `.npz`, timm `.safetensors`, `.weights.h5` or
            `.keras` file; `"hf://timm/NAME"`. Defaults to {default!r}.
        input_tensor: A Keras tensor of shape (B, H, W, 3) to build on.
        input_shape: (H, W, 3), square or not; {stride} divides H and W.
            Position embeddings are resampled to it. Defaults to the
            checkpoint's resolution, (224, 224, 3) without one.
        pooling: With `include_top=False`: `None` for all tokens
            (B, T, {width}), `"token"` for the class token (B, {width}),
            `"avg"` for the mean of the patch tokens (B, {width}).
        classes: Units of the classifier. `None` keeps the checkpoint's (1000
            without one); another number than the checkpoint's makes a new
            classifier, whose weights start at zero.
        classifier_activation: Activation of the classifier, `None` for
            logits.
        dropout: Dropout rate in [0, 1), used in training alone.
        stochastic_depth: Rate in [0, 1) at which the last block's residual
            branches are dropped, used in training alone; it rises linearly
            from 0 at the first block.
        name: Name of the model. Defaults to {lower!r}.

    Returns:
        A `keras_augreg.VisionTransformer`, a functional `keras.Model`. It
        scales integer images to [-1, 1] itself; float images are in [-1, 1].
        With an `input_tensor` behind other layers, a `keras.Model` that
        holds it.

    Raises:
        ValueError: If an argument is out of range, or the checkpoint is
            unknown, damaged or of another architecture.
        FileNotFoundError: If `weights` is a path of no file.

    Example:

    ```python
    import numpy as np
    import keras_augreg

    model = keras_augreg.{name}(weights=None, classes=10)
    scores = model.predict(np.zeros((1, 224, 224, 3), "uint8"))
    assert scores.shape == (1, 10)
    ```
    """


def _builder(variant: Variant) -> Builder:
    default = names.default_weights(variant.name)

    def builder(
        include_top: bool = True,
        weights: str | pathlib.Path | None = default,
        input_tensor: Any = None,
        input_shape: tuple[int, int, int] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: str | None = "softmax",
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        name: str | None = None,
    ) -> keras.Model:
        return _build(
            variant,
            include_top,
            weights,
            input_tensor,
            input_shape,
            pooling,
            classes,
            classifier_activation,
            dropout,
            stochastic_depth,
            name,
        )

    stem, s = "", variant.sizes
    if s.stages is not None:
        units = ", ".join(map(str, s.stages)) or "no"
        stem = f" behind a ResNet stem with {units} bottleneck units"
    builder.__doc__ = _DOCSTRING.format(
        title=variant.name.replace("_ViT_", "+ViT-").replace("ViT_", "ViT-"),
        sizes=f"{s.depth} blocks of width {s.width} with "
        f"{s.num_heads} heads\n    and {s.mlp_dim} MLP units, one "
        f"token for {s.stride} x {s.stride} pixels{stem}",
        aliases=", ".join(f'`"{a}"`' for a in names.aliases(variant.name))
        or "none has been released",
        default=default,
        stride=s.stride,
        width=s.width,
        lower=variant.name.lower(),
        name=variant.name,
    )
    builder.__name__ = builder.__qualname__ = variant.name
    return builder


def _build(
    variant: Variant,
    include_top: bool,
    weights: str | pathlib.Path | None,
    input_tensor: Any,
    input_shape: tuple[int, int, int] | None,
    pooling: str | None,
    classes: int | None,
    classifier_activation: str | None,
    dropout: float,
    stochastic_depth: float,
    name: str | None,
) -> keras.Model:
    if not include_top and classes is not None:
        raise ValueError(
            "A model without classifier has no `classes`. Pass "
            f"include_top=True with classes={classes}, or leave it out."
        )
    if input_tensor is not None:
        if not isinstance(input_tensor, keras.KerasTensor):
            raise ValueError(
                "`input_tensor` is a Keras tensor, such as keras.Input((224, "
                f"224, 3)). Received: {type(input_tensor).__name__}"
            )
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != shape:
            raise ValueError(
                f"`input_tensor` has images of shape {shape}, `input_shape` "
                f"says {tuple(input_shape)}. Pass one of them."
            )
        input_shape = shape
    if input_shape is not None:
        input_shape = check_input_shape(input_shape, variant.sizes)
    checkpoint = None
    head = "keep"
    class_token = True
    if weights is not None:
        resolution = input_shape and max(input_shape[:2])
        checkpoint = find(weights, variant, resolution)
        checkpoint.require(variant.sizes)
        class_token = checkpoint.class_token
        if include_top and classes is None and checkpoint.classes is None:
            raise ValueError(
                f"{checkpoint.archive.path} has no classifier to keep. Pass "
                "`classes=N` for a new one of N classes, or include_top=False "
                "for none."
            )
        if classes not in (None, checkpoint.classes):
            head = "new"
        elif include_top:
            classes = checkpoint.classes
        if input_shape is None and checkpoint.patch_grid is not None:
            rows, columns = checkpoint.patch_grid
            stride = variant.sizes.stride
            input_shape = (rows * stride, columns * stride, 3)
    # A plain input of floats becomes the model's own; another stays outside.
    derived = input_tensor is not None and (
        input_tensor._keras_history.operation.__class__
        is not keras.layers.InputLayer
        or _is_integer(input_tensor)
    )
    with zero_weights() if checkpoint else contextlib.nullcontext():
        model = VisionTransformer(
            **dataclasses.asdict(variant.sizes),
            include_top=include_top,
            input_tensor=None if derived else input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes or DEFAULT_CLASSES,
            classifier_activation=classifier_activation,
            class_token=class_token,
            dropout=dropout,
            stochastic_depth=stochastic_depth,
            name=name or variant.name.lower(),
        )
    if checkpoint is not None:
        load(model, checkpoint, head)
        if include_top and head == "keep":
            model.class_names = checkpoint.class_names
    if derived:
        sources = keras.utils.get_source_inputs(input_tensor)
        return keras.Model(
            sources if len(sources) > 1 else sources[0],
            model(input_tensor),
            name=model.name,
        )
    return model


ViT_Ti16 = _builder(VARIANTS["ViT_Ti16"])
ViT_Ti32 = _builder(VARIANTS["ViT_Ti32"])
ViT_S16 = _builder(VARIANTS["ViT_S16"])
ViT_S32 = _builder(VARIANTS["ViT_S32"])
ViT_B8 = _builder(VARIANTS["ViT_B8"])
ViT_B16 = _builder(VARIANTS["ViT_B16"])
ViT_B32 = _builder(VARIANTS["ViT_B32"])
ViT_L16 = _builder(VARIANTS["ViT_L16"])
ViT_L32 = _builder(VARIANTS["ViT_L32"])
R_ViT_Ti16 = _builder(VARIANTS["R_ViT_Ti16"])
R26_ViT_S32 = _builder(VARIANTS["R26_ViT_S32"])
R26_ViT_B32 = _builder(VARIANTS["R26_ViT_B32"])
R50_ViT_B16 = _builder(VARIANTS["R50_ViT_B16"])
R50_ViT_L32 = _builder(VARIANTS["R50_ViT_L32"])
