"""The costs, the origin and the published figures of a model."""

from __future__ import annotations

import dataclasses
import math
import operator
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import keras

from keras_augreg import variants
from keras_augreg.checkpoints import index
from keras_augreg.dataset_names import CLASSES, choose
from keras_augreg.projection import projections, quantization_modes
from keras_augreg.recipe import AugReg
from keras_augreg.resnet import EXPANSION, ROOT_CHANNELS, ROOT_KERNEL
from keras_augreg.variants import VARIANTS, Sizes, identify
from keras_augreg.vision_transformer import (
    DEFAULT_CLASSES,
    DEFAULT_RESOLUTION,
    check_input_shape,
)


@dataclasses.dataclass(frozen=True, repr=False)
class Description:
    """The result of `describe`; prints as a table."""

    name: str  # of the model or checkpoint
    architecture: str | None  # the builder's name; `None` for custom sizes
    input_shape: tuple[int, int, int]
    classes: int | None  # `None` without a classifier
    tokens: int  # of an image, including the class token
    parameters: int  # of the architecture, without adapters
    flops: int  # of the forward pass for one image
    dtype: str  # the policy that the memory is for
    batch_size: int  # that the memory is for
    inference_bytes: int
    training_bytes: int
    lora_bytes: int  # of training with `enable_lora(lora_rank)`
    lora_rank: int
    checkpoint: str | None = None  # full name of the released one
    recipe: AugReg | None = None  # of its pre-training
    # The checkpoint's `figures` in the release's index.
    published: dict[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        height, width, _ = self.input_shape
        setting = f"{self.dtype}, batch {self.batch_size:,}"
        figures = (f"{key} {value:g}" for key, value in self.published.items())
        rows = {
            "architecture": self.architecture or "custom sizes",
            "images": f"{height} x {width}, {self.tokens:,} tokens",
            "classes": f"{self.classes:,}" if self.classes else "no classifier",
            "parameters": f"{self.parameters:,}",
            "forward pass": f"{self.flops / 1e9:,.2f} GFLOPs an image "
            f"({self.flops / 2e9:,.2f} G multiply-adds)",
            "inference": f"about {_bytes(self.inference_bytes)} ({setting})",
            "training": f"about {_bytes(self.training_bytes)} ({setting}, "
            "Adam)",
            "LoRA": f"about {_bytes(self.lora_bytes)} (rank {self.lora_rank})",
            "recipe": self.recipe and str(self.recipe),
            "published": ", ".join(figures),
        }
        lines = [self.name]
        lines += [f"  {key:<14}{value}" for key, value in rows.items() if value]
        return "\n".join(lines)


def describe(
    model: Any,
    *,
    input_shape: tuple[int, int, int] | None = None,
    batch_size: int = 1,
    dtype: str | None = None,
    lora_rank: int | None = None,
) -> Description:
    """Tells what a model costs, where it came from and how well it does.

    Nothing is built or downloaded.

    FLOPs are two for each multiply-add of a matrix product or convolution;
    norms, GELU and softmax are not counted. The last block of a classifier
    computes only the class token and is counted so; timm and others count all
    tokens. A training step takes about three times as many.

    The memory is an estimate, within a factor of two of what JAX and PyTorch
    report on a CPU (0.4 to 0.9 times for JAX in mixed precision, whose CPU
    backend computes bfloat16 in float32): weights, images and activations,
    attention scores included, although fused kernels do not store them; in
    training also gradients and Adam's two moments, with LoRA only those of the
    adapters and the head.

    Args:
        model: A `keras_augreg.VisionTransformer`; an architecture in any
            spelling, such as `"B/16"`; or the full name of a released
            checkpoint, which `checkpoints.resolve` gives for an alias.
        input_shape: (height, width, 3) of the images. Defaults to the
            model's, or to the checkpoint's resolution, 224 without one.
        batch_size: Images in a batch, at least 1.
        dtype: A dtype policy: `"float32"`, `"mixed_bfloat16"`, `"bfloat16"`,
            `"mixed_float16"` or `"float16"`. Defaults to the model's, or to
            Keras's global policy.
        lora_rank: Rank of the adapters, at least 1, on all kernels of blocks.
            Defaults to that of the model's adapters, or to 8.

    Returns:
        A `Description`, which prints as a table.

    Raises:
        ValueError: If there is no such name, or an argument is out of range.

    Example:
    >>> print(keras_augreg.describe("ViT_S16", batch_size=64))
    ViT_S16
      architecture  ViT_S16
      images        224 x 224, 197 tokens
      ...
    """
    release: dict[str, Any] = {}
    stored = None  # bytes of quantized weights
    top: dict[str, Any] = {"include_top": True, "class_token": True}
    if isinstance(model, str):
        name, resolution = model, DEFAULT_RESOLUTION
        if named := variants.match(model):
            sizes, top["classes"] = named.sizes, DEFAULT_CLASSES
        else:
            found = index.lookup(model)
            fields = found.fields
            release = {
                "checkpoint": found.name,
                "recipe": AugReg.from_checkpoint(found.name),
                "published": found.figures,
            }
            sizes = VARIANTS[fields.variant].sizes
            resolution = fields.adapt_resolution or resolution
            dataset = fields.adapt_dataset or fields.dataset
            # "i21k_30" is ImageNet-21k for 30 epochs.
            dataset = choose(dataset.removesuffix("_30"), CLASSES)
            top["classes"] = CLASSES[dataset]
        shape: tuple[int, ...] = (resolution, resolution, 3)
        dtype = dtype or keras.config.dtype_policy()
    elif isinstance(getattr(model, "sizes", None), Sizes):
        name, sizes, shape = model.name, model.sizes, model.image_shape
        dtype = dtype or model.dtype_policy
        names = ("include_top", "class_token", "classes", "pooling")
        top = {name: getattr(model, name) for name in names}
        adapted = projections(model).values()
        ranks = [p.lora_rank for p in adapted if p.lora_enabled]
        if lora_rank is None:
            lora_rank = max(ranks, default=None)
        if quantization_modes(model):  # The weights are smaller.
            bits = [int(re.sub(r"\D+(\d+).*", r"\1", v.dtype))
                    for v in model.weights]  # fmt: skip
            counts = [math.prod(v.shape) for v in model.weights]
            stored = math.ceil(sum(map(operator.mul, bits, counts)) / 8)
    else:
        raise ValueError(
            "Expected a keras_augreg.VisionTransformer, an architecture "
            f"({', '.join(VARIANTS)}) or the full name of a released "
            f"checkpoint. Received: {type(model).__name__}"
        )
    shape = check_input_shape(tuple(input_shape or shape), sizes)
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(
            f"`batch_size` is a positive integer. Received: {batch_size!r}"
        )
    variant = identify(sizes)
    costs = _Costs(sizes, *shape, **top)
    policy = keras.dtype_policies.get(dtype)
    lora_rank = 8 if lora_rank is None else lora_rank
    if not isinstance(lora_rank, int) or lora_rank < 1:
        raise ValueError(
            f"`lora_rank` is a positive integer. Received: {lora_rank!r}"
        )
    memory = costs.memory(batch_size, policy, lora_rank, stored)
    return Description(
        name=name, architecture=variant.name if variant else None,
        input_shape=shape, classes=costs.classes,
        tokens=costs.tokens, parameters=costs.parameters(),
        flops=2 * costs.multiply_adds(), dtype=policy.name,
        batch_size=batch_size, inference_bytes=memory[0],
        training_bytes=memory[1], lora_bytes=memory[2], lora_rank=lora_rank,
        **release,
    )  # fmt: skip


class _Convolution(NamedTuple):
    """One standardised convolution of the stem, and the GroupNorm after it."""

    kernel: int
    inputs: int
    filters: int
    height: int
    width: int

    def weights(self) -> int:
        return self.kernel**2 * self.inputs * self.filters

    def outputs(self) -> int:
        return self.height * self.width * self.filters


@dataclasses.dataclass(frozen=True)
class _Costs:
    """The numbers of an architecture for images of one size."""

    sizes: Sizes
    height: int
    width: int
    image_channels: int
    include_top: bool
    class_token: bool
    classes: int | None
    pooling: str | None = None

    @property
    def patches(self) -> int:
        stride = self.sizes.stride
        return (self.height // stride) * (self.width // stride)

    @property
    def tokens(self) -> int:
        return self.patches + self.class_token

    @property
    def queries(self) -> int:  # tokens that the last block computes
        reads_one = self.include_top or self.pooling == "token"
        return 1 if self.class_token and reads_one else self.tokens

    @property
    def patch(self) -> int:  # numbers in a patch
        *_, channels = (
            self.image_channels,
            *(c.filters for c in self.convolutions()),
        )
        return self.sizes.patch_size**2 * channels

    def convolutions(self) -> Iterator[_Convolution]:
        """The stem's convolutions in order, projections first."""
        if self.sizes.stages is None:
            return
        height, width = -(-self.height // 2), -(-self.width // 2)
        yield _Convolution(
            ROOT_KERNEL, self.image_channels, ROOT_CHANNELS, height, width
        )
        height, width = -(-height // 2), -(-width // 2)
        channels = ROOT_CHANNELS
        for stage, units in enumerate(self.sizes.stages):
            narrow = ROOT_CHANNELS * 2**stage
            wide = EXPANSION * narrow
            for unit in range(units):
                small = (-(-height // 2), -(-width // 2))
                strided = small if stage and not unit else (height, width)
                if channels != wide or strided != (height, width):
                    yield _Convolution(1, channels, wide, *strided)
                yield _Convolution(1, channels, narrow, height, width)
                yield _Convolution(3, narrow, narrow, *strided)
                yield _Convolution(1, narrow, wide, *strided)
                (height, width), channels = strided, wide

    def parameters(self) -> int:
        s = self.sizes
        w, m = s.width, s.mlp_dim
        block = 4 * w * (w + 1) + 2 * w * m + m + w + 4 * w
        return (
            sum(c.weights() + 2 * c.filters for c in self.convolutions())
            + (self.patch + 1) * w
            + (self.tokens + self.class_token) * w
            + s.depth * block
            + 2 * w
            + (w + 1) * (self.classes or 0)
        )

    def multiply_adds(self) -> int:
        """Multiply-adds of the forward pass for one image."""
        s, t = self.sizes, self.tokens
        w, m = s.width, s.mlp_dim

        def block(queries: int) -> int:
            keys = 2 * t * w * w
            return keys + queries * (2 * t * w + 2 * w * w + 2 * w * m)

        return (
            sum(c.weights() * c.height * c.width for c in self.convolutions())
            + self.patches * self.patch * w
            + (s.depth - 1) * block(t)
            + block(self.queries)
            + w * (self.classes or 0)
        )

    def memory(
        self, batch: int, policy: Any, rank: int, stored: int | None
    ) -> list[int]:
        """Estimates of bytes for inference, training, and with LoRA."""
        s, t = self.sizes, self.tokens
        w, m = s.width, s.mlp_dim
        variable, compute = (
            16 if "16" in dtype else 32
            for dtype in (policy.variable_dtype, policy.compute_dtype)
        )
        scores = s.num_heads * t
        # The forward pass holds the residual stream with query, key, value and
        # scores, or with the MLP's hidden layer before and after GELU. The
        # backward pass needs inputs and outputs of both norms, query, key,
        # value, attention's output, scores and hidden layer.
        alive = t * (2 * w + max(4 * w + scores, 2 * m))
        kept = (s.depth - 1) * t * (8 * w + 2 * m + scores)
        kept += t * 4 * w + self.queries * (4 * w + 2 * m + scores)
        kept += self.patches * self.patch
        # The output of each convolution, also normalised and after ReLU.
        outputs = [3 * c.outputs() for c in self.convolutions()]
        alive, kept = max(alive, *outputs, 0), kept + sum(outputs)
        weights = self.parameters()
        pixels = self.height * self.width * self.image_channels
        shared = batch * pixels * 32  # the images
        if compute != variable:
            shared += weights * compute
        held = weights * variable if stored is None else 8 * stored
        inference = shared + held + batch * alive * compute
        shared += held + batch * kept * compute
        adapters = s.depth * rank * (4 * w + 2 * w + 2 * (w + m))
        head = (w + 1) * (self.classes or 0)
        # A weight's gradient and two moments; an adapter is in float32.
        training = shared + 3 * weights * variable
        with_lora = shared + 4 * adapters * 32 + 3 * head * variable
        return [math.ceil(n / 8) for n in (inference, training, with_lora)]


def _bytes(count: int) -> str:
    if count < 2**30:
        return f"{count / 2**20:,.0f} MiB"
    return f"{count / 2**30:,.1f} GiB"
