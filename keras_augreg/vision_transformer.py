"""The model class: a Vision Transformer as a functional Keras model."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import keras
import numpy as np

from keras_augreg.checkpoints import lora
from keras_augreg.checks import check_argument_names, is_integer
from keras_augreg.dataset_names import CLASSES
from keras_augreg.features import Blocks, FeatureExtractor
from keras_augreg.layer import (
    Owner,
    adopt_layer_state,
    layer_state,
    named_layers,
    note_configs,
    restore_layer_state,
    set_frozen,
    thaw,
)
from keras_augreg.preprocessing import (
    Preprocessing,
    check_shape,
    first_images,
    images_of,
    only,
    warn_if_scaled,
)
from keras_augreg.projection import (
    check_not_quantized,
    projections,
    quantization_modes,
)
from keras_augreg.recipe import (
    PRETRAINING_RESOLUTION,
    AugReg,
    check_recipe,
)
from keras_augreg.resnet import resnet_stem
from keras_augreg.trainstep import Predictions, TrainStep
from keras_augreg.variants import Sizes
from keras_augreg.vit import (
    COLUMNS,
    TARGETS,
    Block,
    PatchEmbedding,
    Pool,
    PositionEmbedding,
    layer_norm,
)

DEFAULT_RESOLUTION = PRETRAINING_RESOLUTION
DEFAULT_CLASSES = CLASSES["imagenet-1k"]

_Constructor = TypeVar("_Constructor", bound=Callable[..., None])

# Arguments that a model has as attributes of the same name.
_ARGUMENTS = (
    "include_top", "pooling", "classes", "classifier_activation",
    "include_preprocessing", "class_token", "dropout", "stochastic_depth",
    "seed", "dynamic_image_size",
)  # fmt: skip


def _clonable(init: _Constructor) -> _Constructor:
    """Lets a constructor also take what `keras.Model` takes.

    `keras.models.clone_model` calls it so if it takes *args and **kwargs.
    """

    @functools.wraps(init)
    def constructor(self: Any, *args: Any, **kwargs: Any) -> None:
        if _takes_graph(args):
            self._init_clone(*args, **kwargs)
        else:
            init(self, *args, **kwargs)

    return constructor  # type: ignore[return-value]


def _takes_graph(args: tuple[Any, ...]) -> bool:
    return len(args) == 2 and isinstance(args[0], keras.KerasTensor)


def _original(inputs: Any, outputs: Any) -> VisionTransformer | None:
    """The model whose graph `clone_model` copied; `None` if it changed it."""

    def graph(model: Any) -> Any:
        _, *operations = model.operations  # Inputs may have other names.
        names = [(type(x), x.name) for x in operations]
        return names, model.input_shape, [w.shape for w in model.weights]

    clone = keras.Model(inputs, outputs)
    owners = [getattr(layer, "owner", None) for layer in clone.layers]
    for model in (owner.model() for owner in owners if owner):
        if model is not None and graph(model) == graph(clone):
            return model
    return None


@keras.saving.register_keras_serializable(package="keras_augreg")
class VisionTransformer(TrainStep):
    """A Vision Transformer of any size, with or without a ResNet stem.

    The named builders (`keras_augreg.ViT_B16` and the others) return one with
    the paper's sizes; call this for other sizes. It is a functional model:
    `get_layer("encoderblock_3").output` is there to build on.

    Images hold values from 0 to 255, in any dtype; the layer "preprocessing"
    scales them. Floats that all lie in [-1, 1] look as if they had been scaled
    before: the model warns.

    Args:
        patch_size: Side of a patch in pixels; with a ResNet stem, in cells of
            the stem's output.
        width: Size of a token.
        depth: Number of Transformer blocks, at least 1.
        num_heads: Attention heads of a block; it divides `width`.
        mlp_dim: Hidden units of a block's MLP.
        stages: `None` without a ResNet stem; otherwise the number of
            bottleneck units of each stage, `()` for only the stem's root.
        include_top: Whether the model ends in a classifier.
        input_tensor: A `keras.Input` of shape (H, W, C) to build on.
        input_shape: (H, W, C); the effective stride divides H and W. Images
            of other than 3 channels hold values in the same range. Defaults
            to (224, 224, 3), or to that of `input_tensor`.
        pooling: With `include_top=False`: `None` for all tokens (B, T, width),
            `"token"` for the class token (B, width), `"avg"` or `"max"` for
            the mean or the maximum of the patch tokens (B, width).
        classes: Units of the classifier, whose weights start at zero. `None`
            for the number of `class_names` or, without them, 1,000.
        classifier_activation: Activation of the classifier; `None` for
            logits.
        include_preprocessing: Whether the model scales its images. `False`
            for a model that takes floats in [-1, 1].
        class_token: Whether there is a class token. Without one, the
            classifier reads the mean of the patch tokens.
        recipe: A `keras_augreg.AugReg`, whose `dropout` and
            `stochastic_depth` the model gets.
        dropout: Rate in [0, 1) after the position embedding, the attention
            and both layers of the MLP.
        stochastic_depth: Rate in [0, 1) of the last block; the rate of block
            l of L is `stochastic_depth * l / (L - 1)`, an interpretation of
            the paper's "linearly increasing".
        seed: Integer seed of dropout and stochastic depth. `None` draws one
            from Keras's global seed (`keras.utils.set_random_seed`).
        class_names: Names of the classifier's outputs, one string for each;
            stored in every saved file. `model.class_names = [...]` sets them
            later.
        name: Name of the model.
        dtype: Dtype or dtype policy, or a `DTypePolicyMap` of layers' paths;
            `None` for Keras's global policy.
        trainable: Whether the weights are trained.
        dynamic_image_size: Whether the model takes images of any height and
            width that the stride divides, all of a batch of the same size. It
            resamples the position embedding of `input_shape` to them, as
            loading a checkpoint does. Each size is compiled separately.

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

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        check_argument_names(cls.__name__, kwargs)
        if _takes_graph(args) and _original(*args) is None:
            return keras.Model(*args, **kwargs)
        return super().__new__(cls, *args, **kwargs)

    @_clonable
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
        classes: int | None = None,
        classifier_activation: str | None = "softmax",
        include_preprocessing: bool = True,
        class_token: bool = True,
        recipe: AugReg | None = None,
        dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        seed: int | None = None,
        class_names: Sequence[str] | None = None,
        name: str = "vision_transformer",
        dtype: Any = None,
        trainable: bool = True,
        dynamic_image_size: bool = False,
    ) -> None:
        stages = None if stages is None else tuple(stages)
        sizes = Sizes(patch_size, width, depth, num_heads, mlp_dim, stages)
        _check_sizes(sizes)
        classes = number_of_classes(class_names, classes)
        reads = _reads(include_top, pooling, class_token, classes)
        dropout, stochastic_depth = _rates(recipe, dropout, stochastic_depth)
        if input_tensor is not None:
            _check_dtype(input_tensor, include_preprocessing)
            any_size = dynamic_image_size
            input_shape = _shape_of(input_tensor, input_shape, any_size)
        input_shape = check_input_shape(input_shape, sizes)
        policy = _policy(dtype)
        blocks = _blocks(
            sizes, reads == "token", dropout, stochastic_depth, seed, policy
        )
        # `keras.RematScope` applies to the blocks only, which recompute
        # themselves: Keras's way fails in TensorFlow's graphs
        # (keras-team/keras 21207).
        with keras.RematScope(mode=None):
            inputs = _input(input_tensor, input_shape, dynamic_image_size)
            x = _embed(inputs, sizes, include_preprocessing, policy)
            grid = [side // sizes.stride for side in input_shape[:2]]
            stride = sizes.stride if dynamic_image_size else None
            x = PositionEmbedding(
                class_token, dropout, seed, patch_grid=grid, stride=stride,
                dtype=policy, name="posembed_input",
            )(x, images=inputs if dynamic_image_size else None)  # fmt: skip
            for block in blocks:
                x = block(x)
            x = layer_norm("encoder_norm", policy)(x)
            if reads is not None:
                x = Pool(reads, class_token, dtype=policy, name="pool")(x)
            if include_top:
                x = _classifier(x, classes, classifier_activation, policy)
            super().__init__(
                inputs=inputs, outputs=x, name=name, trainable=trainable
            )
        self.dtype_policy = policy
        self.sizes = sizes
        self.include_top = include_top
        self.image_shape = input_shape
        self.dynamic_image_size = dynamic_image_size
        self.pooling = pooling
        self.classes = classes if include_top else None
        self.classifier_activation = classifier_activation
        self.include_preprocessing = include_preprocessing
        self.class_token = class_token
        self.dropout = dropout
        self.stochastic_depth = stochastic_depth
        self.seed = seed
        self.class_names = class_names
        self.frozen_by_compile: tuple[str, ...] = ()  # paths of layers
        note_configs(self)
        _set_policies(self, dtype)
        self._finish()

    # For `help` and editors, which would show its *args and **kwargs.
    __new__.__wrapped__ = __init__.__wrapped__  # type: ignore[attr-defined]

    def _init_clone(self, inputs: Any, outputs: Any, name: str) -> None:
        """Takes layers that `keras.models.clone_model` made of a model's."""
        original: Any = _original(inputs, outputs)
        super().__init__(inputs=inputs, outputs=outputs, name=name)
        same = ("dtype_policy", "sizes", "image_shape", "class_names")
        for attribute in (*_ARGUMENTS, *same):
            setattr(self, attribute, getattr(original, attribute))
        last = self.layers[-1]
        if isinstance(last, Predictions):  # `clone_function` may change it.
            own = keras.activations.serialize(last.activation)
            self.classifier_activation = own
        adopt_layer_state(self, original)
        self._finish()

    def _finish(self) -> None:
        self._called = True  # For Keras's ONNX export: the graph is complete.
        self._watching = False
        self._extractor = functools.lru_cache(8)(self._make_extractor)
        embedding = self.get_layer("embedding")
        owner = embedding.owner
        shared = owner and embedding in getattr(owner.model(), "layers", ())
        if not shared:  # A `clone_function` may return a layer itself.
            embedding.owner = Owner(self)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Names of the classifier's outputs."""
        return self._class_names

    @class_names.setter
    def class_names(self, names: Sequence[str] | None) -> None:
        if names is not None and (
            isinstance(names, str)
            or not all(isinstance(name, str) for name in names)
            or len(names) != self.classes
        ):
            raise ValueError(
                "`class_names` must be a list of strings, one for each of the "
                f"{self.classes or 0} outputs of the classifier. Received: "
                f"{len(names)} names, {str(names)[:80]}"
            )
        self._class_names = None if names is None else tuple(names)

    @property
    def patch_grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        height, width, _ = self.image_shape
        return height // self.sizes.stride, width // self.sizes.stride

    def features(
        self,
        images: Any,
        blocks: Blocks = -1,
        grid: bool = False,
        norm: bool = False,
        batch_size: int = 32,
    ) -> Any:
        """Computes what blocks make of images, as a `FeatureExtractor` does.

        Args:
            images: What `predict` takes: an array or tensor of images, or a
                data set.
            blocks: Index of a block or name of a layer, or a list of these.
            grid: Whether to return maps instead of tokens.
            norm: Whether to apply the final LayerNorm.
            batch_size: Images of an array that are computed at once.

        Returns:
            NumPy arrays: tokens (B, T, W), or maps (B, rows, columns, W) with
            `grid`. A list of these if `blocks` is one.

        Raises:
            ValueError: If the model has no such block, or the images do not
                fit it.

        Example:
        ```python
        import numpy as np
        import keras_augreg

        model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 64, 3))
        images = np.zeros((2, 64, 64, 3), "uint8")
        assert model.features(images, grid=True).shape == (2, 2, 2, 192)
        ```
        """
        if isinstance(blocks, (list, np.ndarray)):
            blocks = tuple(blocks)
        if isinstance(images, list) and images and hasattr(images[0], "shape"):
            images = images[0] if len(images) == 1 else np.stack(images)
        state = json.dumps(layer_state(self), sort_keys=True)
        extractor = self._extractor(blocks, grid, norm, state)
        with self._watched(images) as images:
            images = only(images)
            if getattr(images, "shape", (None,))[0] == 0:
                return extractor.predict_on_batch(images)
            return extractor.predict(images, batch_size, verbose=0)

    def _make_extractor(
        self, blocks: Blocks, grid: bool, norm: bool, state: str
    ) -> FeatureExtractor:
        """Cached with the `state` of layers: what is compiled depends on it."""
        return FeatureExtractor(self, blocks, grid, norm)

    def enable_lora(
        self,
        rank: int,
        targets: str | Sequence[str] = TARGETS,
        alpha: float | None = None,
    ) -> None:
        """Freezes the model but for adapters of its kernels, and the head.

        To each target's product with a kernel W, x W, an adapter (LoRA,
        arXiv 2106.09685) adds (alpha / rank) x A B. B starts at zero: at
        first the model computes what it did. Compile the model after it.
        Calling `model.trainable = True` trains everything again.

        Args:
            rank: Columns of A and rows of B, from 1 to `width`.
            targets: Which kernels of every block: one or more of `"qkv"`
                (query, key and value as one product), `"out"` (the
                attention's output), `"mlp1"` and `"mlp2"`. Defaults to all.
            alpha: Scale of what is added, times `rank`. Defaults to `rank`.

        Raises:
            ValueError: If an argument is out of range, or LoRA is enabled.

        Example:
        ```python
        model = keras_augreg.ViT_Ti16(weights=None, classes=10)
        model.enable_lora(rank=8)
        keras_augreg.compile_finetuning(
            model, total_steps=100, learning_rate=0.003
        )
        # model.fit(...)
        model.save_lora_weights("adapters.safetensors")
        ```
        """
        several = isinstance(targets, (list, tuple, set))
        chosen = list(targets) if several else [targets]
        if not chosen or not set(chosen) <= set(TARGETS):
            raise ValueError(
                f"`targets` must be one or more of {', '.join(TARGETS)}. "
                f"Received: targets={targets!r}"
            )
        if not is_integer(rank) or not 1 <= rank <= self.sizes.width:
            raise ValueError(
                "`rank` must be an integer from 1 to the model's width, "
                f"{self.sizes.width}. Received: rank={rank!r}"
            )
        if alpha is not None and not alpha > 0:
            raise ValueError(
                f"`alpha` must be a number above 0. Received: alpha={alpha!r}"
            )
        adapted = {
            name: projection
            for name, projection in projections(self).items()
            if projection.name in chosen
        }
        # Before any has changed.
        for projection in projections(self).values():
            projection.check_lora()
        for projection in adapted.values():
            projection.enable_lora(int(rank), alpha)
        layers = dict(named_layers(self))
        # What a call of `compile_finetuning` froze is not the user's choice;
        # the next call must not train the kernels again.
        thaw(self)
        frozen = {n for n, layer in layers.items() if not layer.trainable}
        others = layers.keys() - adapted.keys() - {"head"}
        if not self.trainable:  # What is inside could not be trained.
            self.trainable: Any = True
        set_frozen(self, (frozen - adapted.keys()) | others)
        self._forget_functions()

    def merge_lora(self) -> None:
        """Adds the adapters to the kernels and removes them.

        The logits stay the same up to rounding, and cost what they did
        without adapters. Exports of weights (`checkpoints.to_npz` and others)
        merge by themselves. What was frozen stays so.

        Raises:
            ValueError: If there are no adapters, or the model is quantized.
        """
        check_not_quantized(self)
        for projection in lora.adapters(self).values():
            projection.merge_lora()
        self._forget_functions()

    def save_lora_weights(self, path: str | pathlib.Path) -> pathlib.Path:
        """Writes the adapters and the head into a small file.

        Args:
            path: The file, which ends in `.safetensors`. One that exists is
                replaced.

        Returns:
            The path.

        Raises:
            ValueError: If there are no adapters, or `path` ends otherwise.
            FileNotFoundError: If the folder of `path` does not exist.
        """
        return lora.save(self, path)

    def load_lora_weights(self, path: str | pathlib.Path) -> None:
        """Reads what `save_lora_weights` wrote into the same base model.

        Args:
            path: The file. The model needs the saved one's `enable_lora`.

        Raises:
            ValueError: If the file's rank, targets, alpha, sizes or classes
                are not the model's. The model is unchanged then.
            FileNotFoundError: If there is no such file.
        """
        lora.load(self, path)

    def quantize(
        self, mode: Any = None, config: Any = None, filters: Any = None
    ) -> None:
        """Quantizes the kernels of blocks, patch embedding and head.

        As `keras.Model.quantize`. Norms, biases, embeddings and a ResNet stem
        stay as they are. Export weights (`checkpoints.to_npz` and others)
        before it.

        Args:
            mode: `"int8"`; `"int4"`; `"float8"` for training.
            config: A `keras.quantizers.QuantizationConfig`, which sets the
                mode if it is `None`: for example weights only,
                `Int8QuantizationConfig(activation_quantizer=None)`. This and
                `filters` need a newer Keras than 3.12.
            filters: Regular expressions of layers' names (`"qkv"`, `"out"`,
                `"mlp1"`, `"mlp2"`, `"projection"` of the patch embedding,
                `"head"`), or a function of the layer. `None` for all.

        Raises:
            ValueError: If Keras has no such mode for this model, or it is
                already quantized.

        Example:
        ```python
        model = keras_augreg.ViT_Ti16(weights=None, classes=10)
        model.quantize("int8")
        model.save("small.keras")
        ```
        """
        for projection in projections(self).values():
            projection.check_mode(getattr(config, "mode", mode))
        with warnings.catch_warnings():
            # Of layers that have no kernel.
            warnings.filterwarnings("ignore", ".*have a `quantize` method")
            # Keras 3.12 has no `filters`.
            chosen = {} if filters is None else {"filters": filters}
            before = quantization_modes(self)
            super().quantize(mode, config=config, **chosen)
        if quantization_modes(self) == before:
            raise ValueError(
                "No layer was quantized: `filters` matches none. Its names "
                f"are qkv, out, mlp1, mlp2, projection and head. Received: "
                f"filters={filters!r}"
            )
        self._forget_functions()

    def _forget_functions(self) -> None:
        """Makes Keras trace anew: the model computes with other weights."""
        self.train_function = self.test_function = self.predict_function = None
        self._extractor.cache_clear()

    def get_config(self) -> dict[str, Any]:
        same = (*_ARGUMENTS, "name", "trainable")
        state = layer_state(self)
        return {
            **({"layer_state": state} if state else {}),
            **dataclasses.asdict(self.sizes),
            **{key: getattr(self, key) for key in same},
            "input_shape": self.image_shape,
            "class_names": self.class_names and list(self.class_names),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            **self._input_config(),
        }

    def _input_config(self) -> dict[str, Any]:
        """The config of an input that is not the default one."""
        layer = self.layers[0]
        sides = (None, None) if self.dynamic_image_size else self.image_shape
        usual = _input(None, (*sides[:2], self.image_shape[2]), False)
        config = layer.get_config()
        same = config == usual._keras_history.operation.get_config()
        return {} if same else {"input": config}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> VisionTransformer:
        config = dict(config)
        state = config.pop("layer_state", {})
        if "input" in config:
            layer = keras.layers.InputLayer.from_config(config.pop("input"))
            config["input_tensor"] = layer.output
        model = cls(**config)
        restore_layer_state(model, state)
        return model

    @contextlib.contextmanager
    def _watched(
        self, data: Any, batch: bool = False, shape_only: bool = False
    ) -> Iterator[Any]:
        """`data` with its first images checked; not again in calls inside."""
        if self._watching:
            yield data
            return
        self._watching = True
        check = self._shape_check if shape_only else self._check_images
        try:
            if batch:
                check(images_of(data))
            else:
                data = first_images(data, check)
            yield data
        finally:
            self._watching = False

    @property
    def _takes_parts(self) -> bool:
        # Ti/16 and S/32 are slower so; of stems, it is not known.
        fills = self.sizes.width % COLUMNS == 0
        many = math.prod(self.patch_grid) > COLUMNS
        # The gradients of float8's scales are new values, not to be added.
        added = not any(
            getattr(v, "overwrite_with_gradient", False)
            for v in self.trainable_variables
        )
        return fills and many and self.sizes.stages is None and added

    @property
    def _shape_check(self) -> Any:
        """What refuses images of another shape; workers can unpickle it."""
        stride = self.sizes.stride if self.dynamic_image_size else None
        return functools.partial(check_shape, self.image_shape, stride)

    def _check_images(self, images: Any) -> None:
        self._shape_check(images)
        if self.include_preprocessing:
            warn_if_scaled(images)
        elif hasattr(images, "dtype"):
            _check_dtype(images, self.include_preprocessing)

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = only(inputs)
        with self._watched(inputs):
            return super().__call__(inputs, *args, **kwargs)


def _policy(dtype: Any) -> Any:
    """The policy of the model; of a map, that of layers without their own."""
    if isinstance(dtype, keras.dtype_policies.DTypePolicyMap):
        dtype = dtype.default_policy
    policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
    if policy.quantization_mode is not None:
        raise ValueError(
            "Build the model in floating point, then call model.quantize(). "
            f"Received: dtype={policy.name!r}"
        )
    return policy


def _set_policies(model: keras.Model, policies: Any) -> None:
    """Gives the layers that a map names their policies."""
    if isinstance(policies, keras.dtype_policies.DTypePolicyMap):
        for path, layer in named_layers(model):
            if policies[path] != policies.default_policy:
                layer.dtype_policy = _policy(policies[path])


def _shape_of(
    tensor: Any, shape: tuple[int, int, int] | None, any_size: bool
) -> tuple[int, int, int]:
    """The shape of an input tensor's images; the positions' if of any size."""
    if not any_size:
        return tuple(tensor.shape[1:])
    channels = tensor.shape[-1]
    sides = (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION)
    shape = tuple(shape or (*sides, channels))
    if shape[-1] != channels:
        raise ValueError(
            f"`input_tensor` has images of {channels} channels, `input_shape` "
            f"says {shape}."
        )
    return shape


def _input(tensor: Any, shape: tuple[int, int, int], any_size: bool) -> Any:
    if tensor is not None:
        return tensor
    sides = (None, None) if any_size else shape[:2]
    return keras.Input((*sides, shape[2]), name="image")


def _embed(
    x: Any, sizes: Sizes, include_preprocessing: bool, policy: Any
) -> Any:
    """Scales images; embeds their patches, or those of the stem's output."""
    if include_preprocessing:
        x = Preprocessing(name="preprocessing")(x)
    if sizes.stages is not None:
        x = resnet_stem(x, sizes.stages, dtype=policy)
    return PatchEmbedding(
        sizes.patch_size, sizes.width, dtype=policy, name="embedding"
    )(x)


def _blocks(
    sizes: Sizes,
    only_class_token: bool,
    dropout: float,
    stochastic_depth: float,
    seed: int | None,
    policy: Any,
) -> list[Block]:
    """Makes the blocks; the last computes only the tokens that are read."""
    last = sizes.depth - 1
    return [
        Block(
            sizes.num_heads,
            sizes.mlp_dim,
            dropout,
            stochastic_depth * i / max(last, 1),
            queries=1 if only_class_token and i == last else None,
            seed=None if seed is None else seed + 1 + i,
            dtype=policy,
            name=f"encoderblock_{i}",
        )
        for i in range(sizes.depth)
    ]


def _classifier(
    x: Any, classes: int, activation: str | None, policy: Any
) -> Any:
    """Logits or predictions, in full precision under mixed precision."""
    dtype = policy.variable_dtype
    x = keras.layers.Dense(
        classes, kernel_initializer="zeros", dtype=dtype, name="head"
    )(x)
    if activation is not None:
        x = Predictions(activation, dtype=dtype, name="predictions")(x)
    return x


def _check_sizes(sizes: Sizes) -> None:
    for argument, value in dataclasses.asdict(sizes).items():
        if argument != "stages" and (not isinstance(value, int) or value < 1):
            raise ValueError(
                f"`{argument}` must be a positive integer. Received: "
                f"{argument}={value!r}"
            )
    if sizes.width % sizes.num_heads:
        raise ValueError(
            f"`num_heads` must divide `width`. Received: width={sizes.width}, "
            f"num_heads={sizes.num_heads}"
        )


def _check_dtype(images: Any, include_preprocessing: bool) -> None:
    dtype = keras.backend.standardize_dtype(images.dtype)
    if "int" in dtype and not include_preprocessing:
        raise ValueError(
            "A model without preprocessing takes floats in [-1, 1]. Scale "
            "pixels with keras_augreg.preprocess_input, or build the model "
            f"with include_preprocessing=True. Received: dtype={dtype}"
        )


def _rates(
    recipe: AugReg | None, dropout: float, stochastic_depth: float
) -> tuple[float, float]:
    """Checks (dropout, stochastic depth), which a recipe sets."""
    if recipe is not None:
        check_recipe(recipe)
        if dropout or stochastic_depth:
            raise ValueError(
                "`recipe` sets dropout and stochastic depth. Pass it without "
                f"them. Received: {recipe}, dropout={dropout}, "
                f"stochastic_depth={stochastic_depth}"
            )
        return recipe.dropout, recipe.stochastic_depth
    rates = {"dropout": dropout, "stochastic_depth": stochastic_depth}
    for argument, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(
                f"`{argument}` is a probability, at least 0 and below 1. "
                f"Received: {argument}={rate}"
            )
    return dropout, stochastic_depth


def number_of_classes(
    class_names: Sequence[str] | None, classes: int | None
) -> int:
    """The classes: as many as their names, if both are given."""
    if class_names is None:
        return DEFAULT_CLASSES if classes is None else classes
    if isinstance(class_names, str) or classes not in (None, len(class_names)):
        raise ValueError(
            "`class_names` must be a list of strings, one for each of the "
            f"{'' if classes is None else f'{classes} '}outputs of the "
            f"classifier. Received: class_names={str(class_names)[:80]}, "
            f"classes={classes}"
        )
    return len(class_names)


def _reads(
    include_top: bool, pooling: str | None, class_token: bool, classes: Any
) -> str | None:
    """Checks the head's arguments; returns the pooling before the head."""
    if pooling not in (None, "token", "avg", "max"):
        raise ValueError(
            "`pooling` must be None (all tokens), 'token' (the class token), "
            "'avg' or 'max' (of the patch tokens). Received: "
            f"pooling={pooling!r}"
        )
    if include_top and pooling is not None:
        raise ValueError(
            "`pooling` is for models without classifier. Pass "
            f"include_top=False with pooling={pooling!r}, or leave it out."
        )
    if pooling == "token" and not class_token:
        raise ValueError(
            "This model has no class token to return (its checkpoint has "
            "none, or class_token=False). Pass pooling='avg'."
        )
    if include_top and (not isinstance(classes, int) or classes < 1):
        raise ValueError(
            "`classes` must be a positive integer. Received: "
            f"classes={classes!r}"
        )
    if include_top:
        return "token" if class_token else "avg"
    return pooling


def check_input_shape(
    input_shape: tuple[int, ...] | None, sizes: Sizes
) -> tuple[int, int, int]:
    """Returns (H, W, C) if an architecture can take such images.

    Raises:
        ValueError: If the stride does not divide H and W, or Keras is set to
            channels first.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "These models take images with channels last, (B, H, W, 3). Call "
            "keras.config.set_image_data_format('channels_last') first, and "
            "transpose images of shape (B, 3, H, W) with "
            "keras.ops.transpose(images, (0, 2, 3, 1))."
        )
    shape = input_shape or (DEFAULT_RESOLUTION, DEFAULT_RESOLUTION, 3)
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) != 3
        or not all(isinstance(n, int) and n > 0 for n in shape)
        or (shape[0] in (1, 3) and shape[2] not in (1, 3))  # channels first
    ):
        raise ValueError(
            "`input_shape` must be (height, width, channels) with a fixed "
            "height and width; a model with dynamic_image_size=True takes "
            f"other sizes too. Received: input_shape={input_shape}"
        )
    *sides, channels = shape
    if any(n % sizes.stride for n in sides):
        near = tuple(max(round(n / sizes.stride), 1) * sizes.stride
                     for n in sides)  # fmt: skip
        raise ValueError(
            f"The stride of this architecture, {sizes.stride} pixels, must "
            f"divide height and width. Received: input_shape={shape}; the "
            f"nearest possible one is {(*near, channels)}"
        )
    height, width = sides
    return height, width, channels
