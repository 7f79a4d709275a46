"""All the maths of a Vision Transformer.

Follows `vit_jax/models_vit.py` of google-research/vision_transformer, which
defines what the numbers of a released checkpoint mean: pre-norm blocks,
LayerNorm epsilon 1e-6, tanh GELU, dropout after the position embedding, after
the attention's output and after both layers of the MLP, never on the
attention weights.

Shapes are written with B images, T tokens, W the width of a token, H heads of
size D = W / H.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_augreg import distribution
from keras_augreg.checks import check_choice
from keras_augreg.layer import Freezable, Layer
from keras_augreg.positions import resample_positions
from keras_augreg.projection import Projection

Shape = tuple[Any, ...]  # with a batch axis, which may be None


# Set by `products`.
_products = contextvars.ContextVar("products", default="auto")
PRODUCTS = ("auto", "batched", "flat")

# Columns of a TPU's tiles.
COLUMNS = 128
# The most images of a chip that `in_parts` computes at once, and the most
# parts it makes: each is compiled by itself.
PART, PARTS = 64, 4
# Set by `in_parts`: the numbers of devices and of parts, and which part it is.
_part: contextvars.ContextVar[tuple[int, int, int] | None]
_part = contextvars.ContextVar("part", default=None)

# Projections of a block that LoRA can adapt.
TARGETS = ("qkv", "out", "mlp1", "mlp2")


@contextlib.contextmanager
def products(form: str) -> Iterator[None]:
    """Chooses the form of a block's products; the results do not depend on it.

    `"flat"` multiplies the tokens of all images as one matrix, (B T, W), by
    query, key and value at once: the fastest on CPUs, where XLA vectorizes
    GELU on (N, W) but not on (B, T, W). `"batched"` keeps (B, T, W), computes
    query, key and value separately and patches by a convolution: a TPU would
    have to copy 197 tokens in and out of its tiles of 8 x 128. `"auto"`: the
    latter on accelerators under JAX. docs/performance.md has the numbers.

    Example:
    >>> with vit.products("batched"):
    ...     model.fit(dataset)
    """
    check_choice("form", form, PRODUCTS)
    token = _products.set(form)
    try:
        yield
    finally:
        _products.reset(token)


def _current(setting: contextvars.ContextVar[Any]) -> Any:
    """A setting of this step; `None` for PyTorch's compiler.

    It cannot read context variables, and would break its graph.
    """
    if keras.config.backend() == "torch":
        import torch

        if torch.compiler.is_compiling():
            return None
    return setting.get()


def batched() -> bool:
    """Whether products keep the axis of images, on what runs the step."""
    form = _current(_products)
    if form in (None, "auto"):
        jax = keras.config.backend() == "jax"
        return jax and not distribution.on_cpu()
    return form == "batched"


@keras.saving.register_keras_serializable(package="keras_augreg")
class LayerNormalization(Freezable, keras.layers.LayerNormalization):
    """LayerNorm whose statistics need one pass, where passes take the time.

    Flax's, and so the original, computes the variance as E[x^2] - E[x]^2 too.
    """

    def call(self, x: Any) -> Any:
        if not batched():
            return super().call(x)
        wide = ops.cast(x, "float32")
        mean = ops.mean(wide, axis=-1, keepdims=True)
        square = ops.mean(ops.square(wide), axis=-1, keepdims=True)
        variance = ops.maximum(square - ops.square(mean), 0.0)
        scale = ops.rsqrt(variance + self.epsilon)
        scale = scale * ops.cast(self.gamma, "float32")
        y = (wide - mean) * scale + ops.cast(self.beta, "float32")
        return ops.cast(y, self.compute_dtype)


def layer_norm(name: str, dtype: Any) -> LayerNormalization:
    """LayerNorm as the original configures it."""
    return LayerNormalization(epsilon=1e-6, dtype=dtype, name=name)


def dense(x: Any, kernel: Any, bias: Any) -> Any:
    """Multiplies tokens (..., in) by a kernel, reshaped to (in, out).

    After `flatten`, one product over all tokens of the batch is the fastest
    form on CPUs: TensorFlow's broadcasting product of a 3-D by a 2-D tensor
    is slower and not fused with the bias; PyTorch's `addmm` does both at once.
    """
    width = x.shape[-1]
    kernel, bias = ops.reshape(kernel, (width, -1)), ops.reshape(bias, (-1,))
    if keras.config.backend() == "torch" and len(x.shape) == 2:
        import torch

        return torch.addmm(bias, x, kernel)
    return ops.add(ops.matmul(x, kernel), bias)


def project(x: Any, projection: Projection, bias: Any) -> Any:
    """`dense` with the kernel of a projection, adapted and quantized or not."""
    if projection.quantization_mode is not None:
        return ops.add(projection(x), ops.reshape(bias, (-1,)))
    y = dense(x, projection.weight, bias)
    return ops.add(y, projection(x)) if projection.lora_enabled else y


def flatten(x: Any) -> Any:
    """(B, T, W) to (B T, W), unless products keep the axis of images."""
    return x if batched() else ops.reshape(x, (-1, x.shape[-1]))


def attention(query: Any, key: Any, value: Any) -> Any:
    """Scaled dot-product attention of (B, T, H, D) tensors, softmax in float32.

    PyTorch's fused kernel covers every device and dtype, but Keras copies its
    arguments first. JAX has one for 16-bit floats on GPUs, which Keras picks.
    On a TPU, `_attention_by_columns` is the fastest form known. On a CPU,
    dividing by the softmax's sum after the second product, where fewer
    numbers are left, makes a whole S/16 9% faster on JAX than
    `ops.dot_product_attention`, and no slower on TensorFlow.
    """
    backend = keras.config.backend()
    half = "16" in keras.backend.standardize_dtype(query.dtype)
    if backend == "torch":
        import torch

        heads_first = (x.transpose(1, 2) for x in (query, key, value))
        x = torch.nn.functional.scaled_dot_product_attention(*heads_first)
        return x.transpose(1, 2)
    if backend == "jax" and half and distribution.platform() == "gpu":
        return ops.dot_product_attention(query, key, value)
    query = ops.multiply(query, 1 / math.sqrt(query.shape[-1]))
    if batched():
        if backend == "jax" and query.shape[1] == key.shape[1]:
            return _attention_by_columns()(query, key, value)
        scores = ops.einsum("bqhd,bkhd->bhqk", query, key)
        scores = ops.softmax(ops.cast(scores, "float32"), axis=-1)
        scores = ops.cast(scores, value.dtype)
        return ops.einsum("bhqk,bkhd->bqhd", scores, value)
    query, key, value = (
        ops.transpose(x, (0, 2, 1, 3)) for x in (query, key, value)
    )
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    if half:
        scores = ops.cast(scores, "float32")
    # Subtracting the maximum only prevents overflow: no gradient needed.
    # `initial`, as Keras on TensorFlow refuses the maximum of an empty batch.
    top = ops.max(scores, axis=-1, keepdims=True, initial=-math.inf)
    top = ops.stop_gradient(top)
    scores = ops.exp(ops.subtract(scores, top))
    total = ops.sum(scores, axis=-1, keepdims=True)
    x = ops.matmul(ops.cast(scores, value.dtype), value)
    x = ops.divide(x, ops.cast(total, x.dtype))
    return ops.transpose(x, (0, 2, 1, 3))


@functools.cache
def _attention_by_columns() -> Callable[[Any, Any, Any], Any]:
    """Attention of JAX in which each column of the scores is a query.

    On a TPU, passes over the scores take most of a block's time. Of the plain
    form, forward and backward, XLA makes seven; of this one six, which do
    less: the softmax's sum is one more row of the second product, and its
    gradient takes from the output, which has fewer numbers, what would be
    summed over the scores (as in FlashAttention: arXiv 2205.14135, appendix
    B.2). Tokens come last: 197 fill tiles of 128 columns better than 64
    features do.
    """
    import jax
    import jax.numpy as jnp

    def forward(query: Any, key: Any, value: Any) -> tuple[Any, Any]:
        query, key, value = (
            jnp.transpose(x, (0, 2, 3, 1)) for x in (query, key, value)
        )
        scores = jnp.einsum("bhdk,bhdq->bhkq", key, query)
        top = jnp.max(scores, axis=2, keepdims=True)
        powers = jnp.exp((scores - top).astype("float32")).astype(value.dtype)
        ones = jnp.ones_like(value[:, :, :1])
        sums = jnp.einsum(
            "bhdk,bhkq->bhdq",
            jnp.concatenate([value, ones], axis=2),
            powers,
            preferred_element_type="float32",
        )
        total = sums[:, :, -1:]
        y = (sums[:, :, :-1] / total).astype(value.dtype)
        kept = query, key, value, scores, top, total, y
        return jnp.transpose(y, (0, 3, 1, 2)), kept

    def backward(kept: Any, dy: Any) -> tuple[Any, Any, Any]:
        query, key, value, *kept, y = kept
        # Without it, XLA would keep the powers instead of computing them anew.
        scores, top, total = jax.lax.optimization_barrier(kept)
        dy = jnp.transpose(dy, (0, 2, 3, 1))
        mean = dy.astype("float32") * y.astype("float32")
        share = jnp.exp((scores - top).astype("float32")) / total
        d_share = jnp.einsum("bhdk,bhdq->bhkq", value, dy).astype("float32")
        d_scores = share * (d_share - jnp.sum(mean, axis=2, keepdims=True))
        d_scores = d_scores.astype(y.dtype)
        return (
            jnp.einsum("bhdk,bhkq->bqhd", key, d_scores),
            jnp.einsum("bhdq,bhkq->bkhd", query, d_scores),
            jnp.einsum("bhdq,bhkq->bkhd", dy, share.astype(y.dtype)),
        )

    attend = jax.custom_vjp(lambda *parts: forward(*parts)[0])
    attend.defvjp(forward, backward)
    return attend


def _for_tpu() -> bool:
    """Whether a step is computed as on a TPU, each image by one device.

    Not in `"model"` mode: XLA would gather an array that has a layout and is
    split over two axes.
    """
    jax = keras.config.backend() == "jax" and batched()
    gpu = jax and distribution.platform() == "gpu"
    return jax and not gpu and not distribution.splits_model()


def in_rows(x: Any) -> Any:
    """Keeps a tile's rows for tokens on a TPU; the values stay the same.

    XLA would put the batch's images into the rows, as 197 tokens do not fill
    them, and copy in and out of the attention, which needs tokens there.
    """
    if not _for_tpu():
        return x
    from jax.experimental.layout import Layout, with_layout_constraint

    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def in_parts(call: Callable[[Any], Any], images: Any) -> list[Any]:
    """Calls a model on parts of each chip's images, in one step of a TPU.

    128 images fill a tile's columns, where XLA then puts them, and copies in
    and out of the attention; and more of what 64 images need stays in the
    fast memory. Random draws are those of the whole batch.

    Returns:
        What the calls returned, whose batches `joined` joins.
    """
    if not _for_tpu():
        return [call(images)]
    devices = distribution.batch_shards()
    each = keras.tree.flatten(images)[0].shape[0] / devices
    count = max(math.ceil(each / PART), 1)
    while each % count and count <= PARTS:
        count += 1
    if not 1 < count <= PARTS:
        return [call(images)]
    outputs = []
    for index in range(count):
        part = (devices, count, index)
        take = functools.partial(_take, part)
        token = _part.set(part)
        try:
            outputs.append(call(keras.tree.map_structure(take, images)))
        finally:
            _part.reset(token)
    return outputs


def _take(part: tuple[int, int, int], x: Any) -> Any:
    """One part of a batch."""
    devices, count, index = part
    parts = ops.reshape(x, (devices, count, -1, *x.shape[1:]))
    return ops.reshape(parts[:, index], (-1, *x.shape[1:]))


def joined(*parts: Any) -> Any:
    """The batch of which `in_parts` made these."""
    if len(parts) == 1:
        return parts[0]
    devices, shape = distribution.batch_shards(), parts[0].shape[1:]
    split = [ops.reshape(x, (devices, -1, *shape)) for x in parts]
    return ops.reshape(ops.concatenate(split, axis=1), (-1, *shape))


def dropout(x: Any, rate: float, seed: Any, axes: int | None = None) -> Any:
    """Zeroes entries of `x` with probability `rate`, scales the others up.

    Only the first `axes` axes are drawn independently: all by default, 1 for
    whole images (stochastic depth).
    """
    if not rate:
        return x
    shape = ops.shape(x)
    if axes is not None:
        shape = (*shape[:axes], *(1 for _ in shape[axes:]))
    part = _current(_part)
    if part:  # The draws are those of the whole batch.
        shape = (part[1] * shape[0], *shape[1:])
    keep = keras.random.uniform(shape, seed=seed) >= rate
    if part:
        keep = _take(part, keep)
    scaled = ops.multiply(x, ops.cast(1.0 / (1.0 - rate), x.dtype))
    return ops.where(keep, scaled, ops.zeros_like(x))


@keras.saving.register_keras_serializable(package="keras_augreg")
class PatchEmbedding(Layer):
    """Cuts an image or feature map into patches and projects each to a token.

    A convolution whose stride is its kernel size, or one matrix product
    (`products`).

    Args:
        patch_size: Side of a patch; it divides height and width of the input.
        width: Size of a token.

    Input: (B, height, width, channels). Output: (B, number of patches, W).
    """

    def __init__(self, patch_size: int, width: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.patch_size = patch_size
        self.width = width

    def build(self, input_shape: Shape) -> None:
        p = self.patch_size
        shape = (p, p, input_shape[-1], self.width)
        self.kernel_shape = shape
        self.kernel = self.weight("kernel", shape, "lecun_normal")
        self.bias = self.weight("bias", (self.width,))
        self.projection = Projection(self, "kernel", 3, "projection")
        self.restore_parts()

    def call(self, x: Any) -> Any:
        p = self.patch_size
        expected = self.kernel_shape[2]
        if len(x.shape) != 4 or x.shape[3] not in (None, expected):
            raise ValueError(
                f"Expected images of shape (batch, height, width, {expected}), "
                f"channels last. Received: shape={tuple(x.shape)}"
            )
        _, height, width, channels = ops.shape(x)
        if any(isinstance(n, int) and n % p for n in (height, width)):
            raise ValueError(
                f"Patches of {p} x {p} pixels must fill an image. Pad or "
                f"resize the images. Received: shape={tuple(x.shape)}"
            )
        rows, columns = height // p, width // p
        if batched() and not self.projection.adapted:
            x = ops.conv(x, ops.convert_to_tensor(self.kernel), p, "valid")
            x = ops.reshape(x, (-1, rows * columns, self.width))
            return ops.add(x, self.bias)
        x = ops.reshape(x, (-1, rows, p, columns, p, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        x = ops.reshape(x, (-1, p * p * channels))
        x = project(x, self.projection, self.bias)
        return ops.reshape(x, (-1, rows * columns, self.width))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, height, width, _ = input_shape
        p, patches = self.patch_size, None
        if height is not None and width is not None:
            patches = (height // p) * (width // p)
        return (batch, patches, self.width)


@keras.saving.register_keras_serializable(package="keras_augreg")
class PositionEmbedding(Layer):
    """Prepends the class token, adds the position embedding, drops out.

    Args:
        class_token: Whether there is a class token.
        dropout: Rate in [0, 1).
        seed: Integer seed of the dropout, or `None`.
        patch_grid: Rows and columns of patches, which saved files state:
            4 x 16 patches are as many as 8 x 8. `None` if unknown.
        stride: Side of a patch in pixels, for images of any size; else `None`.

    Input: (B, number of patches, W); with a `stride` also the images, to
    whose grid of patches the position embedding is resampled. Output:
    (B, T, W), T one more where there is a class token.
    """

    def __init__(
        self,
        class_token: bool = True,
        dropout: float = 0.0,
        seed: int | None = None,
        patch_grid: Sequence[int] | None = None,
        stride: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.stride = stride
        self.class_token = class_token
        self.dropout = dropout
        self.seed = seed
        self.patch_grid: Any = patch_grid and tuple(patch_grid)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape: Shape) -> None:
        _, tokens, width = input_shape
        if self.stride is not None:
            tokens = math.prod(self.patch_grid)
        self.pos_embedding = self.weight(
            "pos_embedding",
            (1, tokens + self.class_token, width),
            keras.initializers.RandomNormal(stddev=0.02),
        )
        if self.class_token:
            self.cls = self.weight("cls", (1, 1, width))
        self.restore_parts()

    def call(
        self, x: Any, training: bool | None = None, images: Any = None
    ) -> Any:
        positions = self.pos_embedding
        if self.stride is not None:
            _, height, width, _ = ops.shape(images)
            positions = resample_positions(
                ops.convert_to_tensor(positions),
                self.patch_grid,
                (height // self.stride, width // self.stride),
                int(self.class_token),
                ops,
            )
        expected = self.pos_embedding.shape[1] - self.class_token
        if self.stride is None and x.shape[1] not in (None, expected):
            rows, columns = self.patch_grid or (expected, 1)
            raise ValueError(
                f"The model was built for images of {rows} x {columns} "
                f"patches, {expected} in all. Received: images of {x.shape[1]} "
                "patches. Resize them, or build the model with their "
                "`input_shape` or dynamic_image_size=True."
            )
        if self.class_token:
            cls = ops.broadcast_to(
                ops.convert_to_tensor(self.cls),
                (ops.shape(x)[0], 1, x.shape[-1]),
            )
            x = ops.concatenate([cls, x], axis=1)
        x = ops.add(x, positions)
        rate = self.dropout if training else 0.0
        return dropout(x, rate, self.seed_generator)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        batch, tokens, width = input_shape
        return (batch, tokens and tokens + self.class_token, width)

    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.patch_grid is not None:
            store["patch_grid"] = np.array(self.patch_grid)

    def load_own_variables(self, store: Any) -> None:
        arrays = {key: store[key] for key in store.keys()}  # noqa: SIM118
        grid = arrays.pop("patch_grid", None)
        if grid is not None and self.patch_grid is not None:
            found = tuple(int(side) for side in np.array(grid))
            if found != self.patch_grid:
                raise ValueError(
                    f"The file has {found[0]} x {found[1]} patches, the model "
                    f"{self.patch_grid[0]} x {self.patch_grid[1]}. Load it "
                    "with keras_augreg.checkpoints.load, which resamples the "
                    "position embedding."
                )
        super().load_own_variables(arrays)


@keras.saving.register_keras_serializable(package="keras_augreg")
class Attention(Layer):
    """Multi-head self-attention.

    Args:
        num_heads: Number of heads; it divides the width of the input.
        queries: Number of leading tokens to use as queries; `None` for all.

    Input: (B, T, W). Output: (B, queries or T, W); T if the layer is called
    with `all_tokens=True`.
    """

    def __init__(
        self, num_heads: int, queries: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.queries = queries

    def build(self, input_shape: Shape) -> None:
        width, heads = input_shape[-1], self.num_heads
        size = width // heads
        # Glorot-uniform for each of the three (W, W) matrices: Keras would
        # derive other fans from a kernel of this rank.
        limit = math.sqrt(6 / (width + width))
        uniform = keras.initializers.RandomUniform(-limit, limit)
        self.qkv_kernel = self.weight(
            "qkv_kernel", (width, 3, heads, size), uniform
        )
        self.qkv_bias = self.weight("qkv_bias", (3, heads, size))
        self.out_kernel = self.weight(
            "out_kernel", (heads, size, width), uniform.clone()
        )
        self.out_bias = self.weight("out_bias", (width,))
        self.qkv = Projection(self, "qkv_kernel", 1, "qkv")
        self.out = Projection(self, "out_kernel", 2, "out")
        self.restore_parts()

    def call(self, x: Any, all_tokens: bool = False) -> Any:
        if self.queries is None or all_tokens:
            query, key, value = self._project(x)
        else:
            (query,) = self._project(x[:, : self.queries], slice(0, 1))
            key, value = self._project(x, slice(1, 3))
        x = attention(query, key, value)
        if batched() and not self.out.adapted:
            x = ops.einsum("bthd,hdw->btw", x, self.out_kernel)
            return ops.add(x, self.out_bias)
        x = ops.reshape(x, (-1, self.out.inputs))
        x = project(x, self.out, self.out_bias)
        return ops.reshape(x, (-1, ops.shape(query)[1], self.out.units))

    def _project(self, x: Any, parts: slice | None = None) -> list[Any]:
        """Query, key and value of `x`, or some of them: (B, T, H, D) each."""
        if self.qkv.quantization_mode is not None:
            y = project(flatten(x), self.qkv, self.qkv_bias)
            return self._heads(y, x)[parts or slice(3)]
        kernel, bias = map(
            ops.convert_to_tensor, (self.qkv_kernel, self.qkv_bias)
        )
        if parts is not None:
            kernel, bias = kernel[:, parts], bias[parts]
        products = self._products(x, kernel, bias)
        if not self.qkv.lora_enabled:
            return products
        added = self._heads(self.qkv(flatten(x)), x)[parts or slice(3)]
        return list(map(ops.add, products, added))

    def _heads(self, y: Any, x: Any) -> list[Any]:
        """(..., 3 W) to query, key and value of the tokens `x`."""
        shape = (-1, ops.shape(x)[1], *self.qkv_bias.shape[1:])
        return [ops.reshape(part, shape) for part in ops.split(y, 3, axis=-1)]

    def _products(self, x: Any, kernel: Any, bias: Any) -> list[Any]:
        """Products of `x` with each of n (W, H, D) kernels: (B, T, H, D)."""
        _, n, heads, size = kernel.shape
        if batched():
            pairs = zip(
                ops.split(kernel, int(n), axis=1),
                ops.split(bias, int(n)),
                strict=True,
            )
            products = [
                ops.add(ops.einsum("btw,whd->bthd", x, k[:, 0]), b)
                for k, b in pairs
            ]
            return [distribution.shared(y, 2) for y in products]
        shape = (-1, ops.shape(x)[1], heads, size)
        x = dense(flatten(x), kernel, bias)
        # The gradient of `split` is one concatenation, whereas JAX would add
        # up those of three slices. While PyTorch traces, n is a tensor.
        return [ops.reshape(y, shape) for y in ops.split(x, int(n), axis=-1)]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], self.queries or input_shape[1], input_shape[2])


@keras.saving.register_keras_serializable(package="keras_augreg")
class Block(Layer):
    """One Transformer block: attention and MLP, each a pre-norm residual.

    Args:
        num_heads: Attention heads.
        mlp_dim: Hidden units of the MLP.
        dropout: Rate in [0, 1) after the attention and both MLP layers.
        stochastic_depth: Probability p in [0, 1) of dropping a residual
            branch, drawn for each image and branch; kept branches are divided
            by 1 - p.
        queries: Number of leading tokens to compute; `None` for all. The last
            block of a classifier computes only the class token, because
            nothing reads the others.
        seed: Integer seed of both kinds of dropout, or `None`.

    Input: (B, T, W). Output: (B, queries or T, W); T if the layer is called
    with `all_tokens=True`.
    """

    # Whether training keeps only the input and recomputes the rest for the
    # backward pass. Set by `compile`: results do not depend on it.
    remat = False

    def __init__(
        self,
        num_heads: int,
        mlp_dim: int,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        queries: int | None = None,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_heads = num_heads
        self.queries = queries
        self.mlp_dim = mlp_dim
        self.dropout = dropout
        self.stochastic_depth = stochastic_depth
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        with keras.RematScope(mode=None):  # Only whole blocks recompute.
            self.norm1 = layer_norm("norm1", self.dtype_policy)
            self.attention = Attention(
                num_heads, queries, dtype=self.dtype_policy, name="attention"
            )
            self.norm2 = layer_norm("norm2", self.dtype_policy)

    def build(self, input_shape: Shape) -> None:
        width, hidden = input_shape[-1], self.mlp_dim
        self.norm1.build(input_shape)
        self.attention.build(input_shape)
        self.norm2.build(input_shape)
        normal, glorot = keras.initializers.RandomNormal, "glorot_uniform"
        self.mlp_kernel1 = self.weight("mlp_kernel1", (width, hidden), glorot)
        self.mlp_bias1 = self.weight("mlp_bias1", (hidden,), normal(0, 1e-6))
        self.mlp_kernel2 = self.weight("mlp_kernel2", (hidden, width), glorot)
        self.mlp_bias2 = self.weight("mlp_bias2", (width,), normal(0, 1e-6))
        self.mlp1 = Projection(self, "mlp_kernel1", 1, "mlp1")
        self.mlp2 = Projection(self, "mlp_kernel2", 1, "mlp2")
        self.restore_parts()

    def call(
        self,
        x: Any,
        training: bool | None = None,
        remat: bool | None = None,
        all_tokens: bool = False,
    ) -> Any:
        rate = self.dropout if training else 0.0
        depth_rate = self.stochastic_depth if training else 0.0
        if training and (self.remat if remat is None else remat):
            draws = 3 * bool(rate) + 2 * bool(depth_rate)
            return self._recomputed(x, draws, all_tokens)

        # What is exported, by jax.export, cannot have layouts.
        # Ti/16's 192 features do not fill a tile's columns: with tokens in the
        # rows, it takes a quarter longer.
        fills = x.shape[-1] % COLUMNS == 0
        rows = in_rows if training and fills else lambda x: x
        seed = self.seed_generator
        y = self.attention(self.norm1(x), all_tokens=all_tokens)
        y = dropout(y, rate, seed)
        if self.queries is not None and not all_tokens:
            x = x[:, : self.queries]
        # Not `ops.add`, which on TensorFlow takes one token each of an empty
        # batch for a bias.
        x = rows(x + dropout(y, depth_rate, seed, axes=1))
        x = distribution.shared(x, None)

        y = project(flatten(self.norm2(x)), self.mlp1, self.mlp_bias1)
        y = distribution.shared(y, -1)
        y = dropout(ops.gelu(rows(y), approximate=True), rate, seed)
        y = project(y, self.mlp2, self.mlp_bias2)
        y = ops.reshape(dropout(y, rate, seed), (-1, *ops.shape(x)[1:]))
        x = x + dropout(y, depth_rate, seed, axes=1)
        return distribution.shared(x, None)

    def rematerialized_call(
        self, layer_call: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Makes `keras.RematScope` use `_recomputed`."""
        chosen = super().rematerialized_call(layer_call, *args, **kwargs)
        if chosen is layer_call:
            return layer_call
        return lambda *args, **kwargs: layer_call(
            *args, **{"remat": True, **kwargs}
        )

    def _recomputed(self, x: Any, draws: int, all_tokens: bool) -> Any:
        """Calls the layer in training so that only its input is kept.

        Weights are passed as arguments: TensorFlow's graphs cannot read
        variables again for the backward pass (keras-team/keras issue 21207).
        Both passes draw from the same seed state, which is advanced by `draws`
        afterwards.
        """
        # Not `trainable_variables`, which has no adapters of a frozen block.
        weights = [v for v in self.variables if v.trainable]
        # Copy the seed: PyTorch and TensorFlow assign to it in place.
        seeds = self.seed_generator.state
        state = [
            (v, ops.copy(v) if v is seeds else ops.convert_to_tensor(v))
            for v in self.variables
            if not v.trainable
        ]

        def pure(x: Any, *values: Any) -> Any:
            pairs = [*zip(weights, values, strict=True), *state]
            with keras.StatelessScope(pairs):
                return self(
                    x, training=True, remat=False, all_tokens=all_tokens
                )

        y = keras.remat(pure)(x, *map(ops.convert_to_tensor, weights))
        for _ in range(draws):
            self.seed_generator.next()
        return y

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return self.attention.compute_output_shape(input_shape)

    def compute_output_spec(
        self, x: Any, *args: Any, all_tokens: bool = False, **kwargs: Any
    ) -> Any:
        if all_tokens:
            return keras.KerasTensor(x.shape, dtype=self.compute_dtype)
        return super().compute_output_spec(x, *args, **kwargs)


@keras.saving.register_keras_serializable(package="keras_augreg")
class Pool(Layer):
    """Reduces the tokens of an image to one vector.

    Args:
        kind: `"token"` for the class token, `"avg"` or `"max"` for the mean
            or the maximum of the patch tokens.
        class_token: Whether the first token is the class token.

    Input: (B, T, W). Output: (B, W).
    """

    def __init__(
        self, kind: str, class_token: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.kind = kind
        self.class_token = class_token

    def call(self, x: Any) -> Any:
        if self.kind == "token":
            return x[:, 0]
        reduce = ops.max if self.kind == "max" else ops.mean
        return reduce(x[:, 1:] if self.class_token else x, axis=1)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (input_shape[0], input_shape[2])
