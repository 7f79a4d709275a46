"""What LoRA and quantization make of a layer's kernel."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_augreg.initialization import random_weights
from keras_augreg.layer import named_layers

QUANTIZATION_MODES = ("int8", "int4", "float8")


def projections(model: Any) -> dict[str, Projection]:
    """All projections inside a model, by their path in it."""
    return {
        name: layer
        for name, layer in named_layers(model)
        if isinstance(layer, Projection)
    }


def quantization_modes(model: Any) -> dict[str, str]:
    """The modes of the layers that are quantized, by their path."""
    return {
        name: mode
        for name, layer in named_layers(model)
        if (mode := getattr(layer, "quantization_mode", None))
    }


def check_not_quantized(model: Any) -> None:
    """Raises a `ValueError` unless all weights are in floating point."""
    for name, mode in quantization_modes(model).items():
        raise ValueError(
            f"The layer {name!r} of the model is quantized ({mode}), and "
            "this needs floating-point weights. Do it before "
            "model.quantize()."
        )


class Projection(keras.layers.Dense):
    """The part of a layer that adapts or quantizes one of its kernels.

    It starts without weights: the kernel belongs to `owner`, which multiplies
    by it (`vit.project`), so that names and files are those of a plain model.
    `enable_lora` adds the weights of Keras's `Dense.enable_lora`; calling the
    projection then gives what they add to the product. `quantize` takes the
    kernel from `owner` and keeps it as Keras's `Dense` does, in two axes;
    calling the projection then gives the whole product, without bias.

    Args:
        owner: The layer that it is a part of.
        kernel: Name of the kernel among the attributes of `owner`.
        input_axes: Number of the kernel's leading axes that are summed over.
        name: Name of the projection.

    Input: (..., product of the first axes). Output: (..., product of the
    other axes).
    """

    lora_rank: Any
    lora_alpha: Any

    def __init__(
        self, owner: Any, kernel: str, input_axes: int, name: str
    ) -> None:
        shape = getattr(owner, kernel).shape
        self.kernel_shape = tuple(shape)
        self.inputs = math.prod(shape[:input_axes])
        with keras.RematScope(mode=None):  # Only whole blocks recompute.
            super().__init__(
                math.prod(shape[input_axes:]),
                use_bias=False,
                dtype=owner.dtype_policy,
                name=name,
            )
        self.kernel_name = kernel
        # In a function, because Keras would take a layer for a part.
        self._owner = lambda: owner
        self.build((None, self.inputs))

    def build(self, input_shape: Any) -> None:
        self.bias = None
        self.built = True

    @property
    def weight(self) -> Any:
        """The owner's kernel, which `quantize` takes away."""
        return getattr(self._owner(), self.kernel_name)

    @property
    def adapted(self) -> bool:
        """Whether the product differs from that with the owner's kernel."""
        return self.lora_enabled or self.quantization_mode is not None

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        # In a model that is all in bfloat16, Keras casts no weights.
        a, b = (
            ops.cast(x, inputs.dtype)
            for x in (self.lora_kernel_a, self.lora_kernel_b)
        )
        scale = self.lora_alpha / self.lora_rank
        return ops.multiply(ops.matmul(ops.matmul(inputs, a), b), scale)

    def merged(self) -> Any:
        """The owner's kernel in float32, with what LoRA adds to it."""
        kernel = ops.cast(self.weight, "float32")
        return ops.add(kernel, self.delta()) if self.lora_enabled else kernel

    def delta(self) -> Any:
        """What LoRA adds to the kernel, in the kernel's shape and float32."""
        a, b = map(
            ops.convert_to_tensor, (self.lora_kernel_a, self.lora_kernel_b)
        )
        scale = self.lora_alpha / self.lora_rank
        return ops.reshape(ops.matmul(a, b) * scale, self.kernel_shape)

    def check_lora(self) -> None:
        """Raises a `ValueError` if LoRA is enabled or impossible."""
        if self.lora_enabled:
            raise ValueError(
                f"LoRA is already enabled on {self.path} with rank "
                f"{self.lora_rank}. Call merge_lora() first."
            )
        if self.quantization_mode == "float8":
            raise ValueError(
                "Keras has no LoRA for kernels in float8. Enable it on a "
                "model that is in floating point, int8 or int4."
            )

    def enable_lora(
        self,
        rank: int,
        lora_alpha: float | None = None,
        a_initializer: Any = "he_uniform",
        b_initializer: Any = "zeros",
    ) -> None:
        self.check_lora()
        self._tracker.unlock()
        shapes = {
            "a": (self.inputs, rank, a_initializer),
            "b": (rank, self.units, b_initializer),
        }
        for part, (rows, columns, initializer) in shapes.items():
            name = f"lora_kernel_{part}"
            weight = self.add_weight(
                name=name,
                shape=(rows, columns),
                initializer=random_weights(initializer),
                dtype="float32",  # as Keras: updates are small
            )
            setattr(self, name, weight)
        self._tracker.lock()
        self.lora_enabled = True
        self.lora_rank = rank
        self.lora_alpha = rank if lora_alpha is None else lora_alpha

    def merge_lora(self) -> None:
        """Adds what LoRA has learned to the kernel, and removes it."""
        self.weight.assign(self.merged())
        for name in ("lora_kernel_a", "lora_kernel_b"):
            _remove(self, name)
        self.lora_enabled = False
        self.lora_rank = self.lora_alpha = None

    def check_mode(self, mode: Any) -> None:
        """Raises a `ValueError` unless the kernel can be quantized so."""
        if mode not in QUANTIZATION_MODES:
            raise ValueError(
                "The quantization mode must be one of "
                f"{', '.join(map(repr, QUANTIZATION_MODES))}: 'gptq' and 'awq' "
                f"calibrate language models. Received: {mode!r}"
            )
        if mode == "float8" and self.lora_enabled:
            raise ValueError(
                "Keras has no LoRA for kernels in float8. Call merge_lora() "
                "before quantize('float8')."
            )

    def quantize(
        self, mode: Any = None, type_check: bool = True, config: Any = None
    ) -> None:
        self.check_mode(mode)
        shape = (self.inputs, self.units)
        kernel = ops.convert_to_numpy(self.weight).reshape(shape)
        _remove(self._owner(), self.kernel_name)
        self._kernel = kernel
        if mode == "float8":  # The only mode that keeps it as a weight.
            self._kernel = self.add_weight(name="kernel", shape=shape)
            self._kernel.assign(kernel)
        super().quantize(mode, type_check=False, config=config)

    # By name, and what LoRA learns as it is: Keras's `Dense` would merge it
    # and go on from zeros, whose gradients are zero.
    def save_own_variables(self, store: Any) -> None:
        for variable in self.variables:
            store[variable.name] = variable

    def load_own_variables(self, store: Any) -> None:
        expected = {variable.name for variable in self.variables}
        found = set(store.keys())
        if found != expected:
            raise ValueError(
                f"The file holds {sorted(found) or 'no weights'} for "
                f"{self.path}, the model {sorted(expected) or 'none'}. Call "
                "enable_lora or quantize on the model as on the saved one, or "
                "load a whole model with keras.saving.load_model."
            )
        for variable in self.variables:
            variable.assign(store[variable.name])


def _remove(layer: Any, name: str) -> None:
    """Deletes a weight; `del` would collect garbage for each."""
    layer._untrack_variable(getattr(layer, name))
    vars(layer).pop(name)
