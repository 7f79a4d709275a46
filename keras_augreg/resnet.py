"""The ResNet stem of the R+ViT hybrids.

Follows `vit_jax/models_resnet.py` of google-research/vision_transformer:
standardised convolutions without bias, GroupNorm of 32 groups and epsilon
1e-6, post-activation bottleneck units whose projection has a GroupNorm of its
own, SAME padding throughout.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_augreg.layer import Layer

ROOT_KERNEL, ROOT_CHANNELS = 7, 64
EXPANSION = 4  # of a unit's channels in its output

Shape = tuple[Any, ...]  # with a batch axis, which may be None


def _strided(shape: Shape, strides: int, channels: int) -> Shape:
    """The shape of (B, height, width, any) after a stride; `None` stays."""
    batch, *sides, _ = shape
    sides = [n if n is None else -(-n // strides) for n in sides]
    return (batch, *sides, channels)


@keras.saving.register_keras_serializable(package="keras_augreg")
class StandardizedConv(Layer):
    """A convolution whose kernel is standardised over all but its last axis.

    Args:
        filters: Output channels.
        kernel_size: Side of the kernel.
        strides: Stride in both directions.

    Input: (B, height, width, channels). Output: (B, height / strides rounded
    up, width / strides rounded up, filters).
    """

    def __init__(
        self, filters: int, kernel_size: int, strides: int = 1, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides

    def build(self, input_shape: Shape) -> None:
        shape = (*[self.kernel_size] * 2, input_shape[-1], self.filters)
        # Standardised in full precision under mixed precision too.
        self.kernel = self.weight(
            "kernel", shape, "lecun_normal", autocast=False
        )

    def call(self, x: Any) -> Any:
        kernel = ops.convert_to_tensor(self.kernel)
        kernel = kernel - ops.mean(kernel, axis=(0, 1, 2), keepdims=True)
        variance = ops.mean(ops.square(kernel), axis=(0, 1, 2), keepdims=True)
        # Added to the standard deviation, not to the variance.
        kernel = kernel / (ops.sqrt(variance) + 1e-5)
        y = ops.conv(
            x,
            ops.cast(kernel, self.compute_dtype),
            strides=self.strides,
            padding="same",
            data_format="channels_last",
        )
        # TensorFlow 2.21 with oneDNN gives an empty batch its input's shape.
        return ops.reshape(y, self.compute_output_shape(ops.shape(x)))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return _strided(input_shape, self.strides, self.filters)


@keras.saving.register_keras_serializable(package="keras_augreg")
class GroupNorm(keras.layers.GroupNormalization):
    """GroupNormalization of (B, height, width, C) whose C is never split.

    Keras splits it into groups and channels of a group; a TPU then fills only
    2 to 64 of a tile's 128 columns. The variance is E[x²] - E[x]², as in Flax
    and the original.
    """

    def call(self, inputs: Any) -> Any:
        dtype = keras.backend.result_type(inputs.dtype, "float32")
        x = ops.cast(inputs, dtype)
        channels = inputs.shape[-1]
        shape = ops.shape(inputs)
        if keras.backend.backend() == "tensorflow":
            # Its graphs drop the reshaping of a convolution's empty batch.
            x = ops.reshape(x, (shape[0], shape[1] * shape[2], 1, channels))
        size = channels // self.groups

        def group_mean(y: Any) -> Any:  # (B, H, W, C) -> (B, 1, 1, C)
            y = ops.reshape(ops.mean(y, axis=(1, 2)), (-1, self.groups, size))
            y = ops.tile(ops.mean(y, axis=-1, keepdims=True), (1, 1, size))
            return ops.reshape(y, (-1, 1, 1, channels))

        mean = group_mean(x)
        variance = group_mean(ops.square(x)) - ops.square(mean)
        scale = ops.rsqrt(ops.maximum(variance, 0.0) + self.epsilon)
        y = (x - mean) * (scale * ops.cast(self.gamma, dtype))
        y = y + ops.cast(self.beta, dtype)
        return ops.reshape(ops.cast(y, self.compute_dtype), shape)


def group_norm(name: str, **kwargs: Any) -> GroupNorm:
    """GroupNorm as the original configures it."""
    return GroupNorm(groups=32, axis=-1, epsilon=1e-6, name=name, **kwargs)


@keras.saving.register_keras_serializable(package="keras_augreg")
class ResNetRoot(Layer):
    """7x7 stride-2 convolution, GroupNorm, ReLU, 3x3 stride-2 max-pool.

    Input: (B, height, width, 3). Output: (B, height / 4, width / 4, 64).
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        dtype = self.dtype_policy
        self.conv = StandardizedConv(
            ROOT_CHANNELS, ROOT_KERNEL, 2, dtype=dtype, name="conv"
        )
        self.norm = group_norm("norm", dtype=dtype)

    def build(self, input_shape: Shape) -> None:
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

    def call(self, x: Any) -> Any:
        x = ops.relu(self.norm(self.conv(x)))
        return ops.max_pool(
            x, 3, strides=2, padding="same", data_format="channels_last"
        )

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return _strided(input_shape, 4, ROOT_CHANNELS)


@keras.saving.register_keras_serializable(package="keras_augreg")
class BottleneckUnit(Layer):
    """1x1, 3x3 and 1x1 convolution, added to the input or its projection.

    Args:
        channels: Channels of the first two convolutions; the output has four
            times as many.
        strides: Stride of the 3x3 convolution and the projection.

    Input: (B, height, width, any). Output: (B, height / strides,
    width / strides, 4 * channels).
    """

    def __init__(self, channels: int, strides: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channels = channels
        self.strides = strides
        dtype = self.dtype_policy
        wide = EXPANSION * channels
        self.conv1 = StandardizedConv(channels, 1, dtype=dtype, name="conv1")
        self.conv2 = StandardizedConv(
            channels, 3, strides, dtype=dtype, name="conv2"
        )
        self.conv3 = StandardizedConv(wide, 1, dtype=dtype, name="conv3")
        self.norm1 = group_norm("norm1", dtype=dtype)
        self.norm2 = group_norm("norm2", dtype=dtype)
        # The unit starts as the identity.
        self.norm3 = group_norm("norm3", dtype=dtype, gamma_initializer="zeros")
        self.conv_proj: Any = None
        self.norm_proj: Any = None

    def build(self, input_shape: Shape) -> None:
        wide = EXPANSION * self.channels
        if input_shape[-1] != wide or self.strides != 1:
            dtype = self.dtype_policy
            self.conv_proj = StandardizedConv(
                wide, 1, self.strides, dtype=dtype, name="conv_proj"
            )
            self.conv_proj.build(input_shape)
            self.norm_proj = group_norm("norm_proj", dtype=dtype)
            self.norm_proj.build(self.compute_output_shape(input_shape))
        for conv, norm in [
            (self.conv1, self.norm1),
            (self.conv2, self.norm2),
            (self.conv3, self.norm3),
        ]:
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)
            norm.build(input_shape)

    def call(self, x: Any) -> Any:
        y = ops.relu(self.norm1(self.conv1(x)))
        y = ops.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        if self.conv_proj is not None:
            x = self.norm_proj(self.conv_proj(x))
        return ops.relu(ops.add(x, y))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return _strided(input_shape, self.strides, EXPANSION * self.channels)


def resnet_stem(x: Any, stages: tuple[int, ...], dtype: Any = None) -> Any:
    """Applies the root, then `stages[i]` units for each stage i, to images.

    Every stage after the first halves the resolution and doubles the channels.
    """
    x = ResNetRoot(dtype=dtype, name="root")(x)
    for i, units in enumerate(stages):
        for j in range(units):
            x = BottleneckUnit(
                ROOT_CHANNELS * 2**i,
                strides=2 if i and not j else 1,
                dtype=dtype,
                name=f"block{i + 1}_unit{j + 1}",
            )(x)
    return x
