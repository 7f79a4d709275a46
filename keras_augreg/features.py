"""What the blocks of a model make of images: tokens or maps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_augreg.checks import is_integer
from keras_augreg.jax_state import KeepsState
from keras_augreg.layer import Layer
from keras_augreg.preprocessing import only
from keras_augreg.variants import Sizes

Blocks = int | str | Sequence[int | str]
Shape = tuple[Any, ...]  # with a batch axis, which may be None


@keras.saving.register_keras_serializable(package="keras_augreg")
class Grid(Layer):
    """Puts patch tokens back to where their patches are in the image.

    Args:
        stride: Side of a patch in pixels.
        prefix: Number of leading tokens to leave out: 1 for a class token.

    Input: tokens (B, T, W) and their images (B, height, width, channels).
    Output: (B, height / stride, width / stride, W).
    """

    def __init__(self, stride: int, prefix: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stride = stride
        self.prefix = prefix

    def call(self, tokens: Any, images: Any) -> Any:
        _, height, width, _ = ops.shape(images)
        sides = (height // self.stride, width // self.stride)
        tokens = tokens[:, self.prefix :]
        return ops.reshape(tokens, (-1, *sides, tokens.shape[-1]))

    def compute_output_shape(
        self, tokens_shape: Shape, images_shape: Shape
    ) -> Shape:
        sides = (n and n // self.stride for n in images_shape[1:3])
        return (tokens_shape[0], *sides, tokens_shape[-1])


def _watching(name: str) -> Any:
    @functools.wraps(getattr(keras.Model, name))
    def method(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Any:
        with self._source()._watched(x) as x:
            return getattr(super(FeatureExtractor, self), name)(
                x, *args, **kwargs
            )

    return method


def _tracing(name: str) -> Any:
    """Makes a function of Keras anew if the variables are others."""
    seen = f"_variables_of_{name}"

    @functools.wraps(getattr(keras.Model, name))
    def method(self: Any, force: bool = False) -> Any:
        now = (*map(id, self.variables),)
        force = force or now != vars(self).get(seen, now)
        vars(self)[seen] = now
        return getattr(super(FeatureExtractor, self), name)(force)

    return method


@keras.saving.register_keras_serializable(package="keras_augreg")
class FeatureExtractor(KeepsState):
    """A model that returns what blocks of a `VisionTransformer` compute.

    It shares the layers of `model`, preprocessing included: training one
    trains the other. It is a functional model to build on, and is saved and
    loaded without `model`.

    Args:
        model: A `keras_augreg.VisionTransformer`, with or without classifier.
        blocks: Which outputs: indices of blocks, from 0; negative ones count
            from the end. Also names of layers before the blocks:
            `"posembed_input"` for the first block's input, and in hybrids
            `"root"` or `"block1_unit2"` for maps of the stem.
        grid: Whether to return the patch tokens as maps, without the class
            token.
        norm: Whether to apply the final LayerNorm to the outputs of blocks,
            as the model does to those of its last.
        name: Name of the model.
        trainable: Whether the weights are trained.

    Returns:
        For a single block, its tokens (B, T, W), the class token first, or
        with `grid` its map (B, rows, columns, W); a list of them if `blocks`
        is a list. Maps of the stem are (B, height, width, channels).

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.
        ValueError: If the model has no such block or layer.

    Example:
    ```python
    import numpy as np
    import keras_augreg

    model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 96, 3))
    extractor = keras_augreg.FeatureExtractor(model, [5, -1], grid=True)
    middle, last = extractor(np.zeros((1, 64, 96, 3), "uint8"))
    assert middle.shape == last.shape == (1, 2, 3, 192)
    ```
    """

    # They check images, as the model's own do.
    fit = _watching("fit")
    evaluate = _watching("evaluate")
    predict = _watching("predict")
    train_on_batch = _watching("train_on_batch")
    test_on_batch = _watching("test_on_batch")
    predict_on_batch = _watching("predict_on_batch")

    def __init__(
        self,
        model: Any,
        blocks: Blocks = -1,
        grid: bool = False,
        norm: bool = False,
        name: str = "feature_extractor",
        trainable: bool = True,
    ) -> None:
        if not isinstance(getattr(model, "sizes", None), Sizes):
            raise TypeError(
                "`model` must be a keras_augreg.VisionTransformer. Received: "
                f"{type(model).__name__}"
            )
        single = not isinstance(blocks, Sequence) or isinstance(blocks, str)
        chosen = [blocks] if single else list(blocks)  # type: ignore[arg-type]
        names = [_layer_name(model, block) for block in chosen]
        if not names:
            raise ValueError("`blocks` must name at least one block.")
        with keras.RematScope(mode=None):
            outputs = [_output(model, name, grid, norm) for name in names]
            super().__init__(
                model.input, outputs[0] if single else outputs, name=name
            )
        if not trainable:  # Keras would also set what is true already.
            self.trainable = False
        self.blocks = blocks if single else tuple(chosen)
        self.grid = grid
        self.norm = norm
        # Behind a function, or Keras would take the head for a layer of this.
        self._source = lambda: model

    def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = only(inputs)
        with self._source()._watched(inputs):
            return super().__call__(inputs, *args, **kwargs)

    @property
    def include_preprocessing(self) -> bool:
        """Whether it takes pixels from 0 to 255."""
        return bool(self._source().include_preprocessing)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the images that the position embeddings are for."""
        shape: tuple[int, int, int] = self._source().image_shape
        return shape

    # They trace again if adapters came or went: TensorFlow would not.
    make_train_function = _tracing("make_train_function")
    make_test_function = _tracing("make_test_function")
    make_predict_function = _tracing("make_predict_function")

    def get_config(self) -> dict[str, Any]:
        model = keras.saving.serialize_keras_object(self._source())
        model.pop("compile_config", None)
        same = ("blocks", "grid", "norm", "name", "trainable")
        return {"model": model, **{key: getattr(self, key) for key in same}}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Any = None
    ) -> FeatureExtractor:
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})


def _layer_name(model: Any, block: Any) -> str:
    """The name of the layer that an entry of `blocks` stands for."""
    depth = model.sizes.depth
    if is_integer(block) and -depth <= block < depth:
        return f"encoderblock_{block % depth}"
    names = [layer.name for layer in model.layers]
    names = names[: names.index("encoder_norm")]
    layers = [n for n in names if n not in ("preprocessing", names[0])]
    if isinstance(block, str) and block in layers:
        return block
    raise ValueError(
        f"`blocks` must be indices from {-depth} to {depth - 1} or names of "
        f"layers among {', '.join(layers)}. Received: {block!r}"
    )


def _output(model: Any, name: str, grid: bool, norm: bool) -> Any:
    layer = model.get_layer(name)
    x = layer.output
    if getattr(layer, "queries", None) is not None:
        # The last block of a classifier computes only the class token.
        x = layer(layer.input, all_tokens=True)
    if norm and name.startswith("encoderblock_"):
        x = model.get_layer("encoder_norm")(x)
    if grid and len(x.shape) == 3:
        prefix = int(model.class_token and name != "embedding")
        grid_layer = Grid(model.sizes.stride, prefix, dtype=model.dtype_policy)
        x = grid_layer(x, model.input)
    return x
