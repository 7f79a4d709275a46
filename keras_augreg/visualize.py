"""Looking instead of reading: pictures of models, recipes and runs.

The functions that draw return a `matplotlib.figure.Figure` (extra `study`): a
notebook shows it after `%matplotlib inline`, `figure.savefig("name.png")`
writes it. pyplot and its global state are not used.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_augreg.augment import OPERATIONS, AugRegAugment, apply_op
from keras_augreg.models import VisionTransformer, scale_integers
from keras_augreg.preprocessing import preprocess_input
from keras_augreg.recipe import LEVELS, AugReg
from keras_augreg.training.workdir import Workdir
from keras_augreg.vit import Block, dense, flatten


def predictions(
    images: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    columns: int = 8,
) -> Any:
    """Draws images with their predicted classes, wrong ones in red.

    Args:
        images: uint8 array (N, height, width, 3).
        labels: Integer array (N,): the true classes.
        scores: Float array (N, classes): probabilities.
        class_names: Names of the classes.
        columns: Images in a row, at least 1.

    Returns:
        A `matplotlib.figure.Figure`; `figure.savefig("predictions.png")`.

    Example:
    ```python
    import numpy as np
    from keras_augreg import visualize

    images = np.zeros((2, 8, 8, 3), "uint8")
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])
    figure = visualize.predictions(images, [0, 1], scores, ["cat", "dog"])
    ```
    """
    columns = min(columns, len(images))
    figure, axes = _grid(-(-len(images) // columns), columns, height=1.75)
    predicted = scores.argmax(axis=1)
    for axis, image, label, guess, score in zip(
        axes.flat, images, labels, predicted, scores.max(axis=1), strict=False
    ):
        axis.imshow(image)
        right = guess == label
        title = f"{class_names[guess]} {score:.0%}"
        if not right:
            title += f"\n(is {class_names[label]})"
        axis.set_title(title, fontsize=9, color="black" if right else "red")
    return figure


def attention_weights(
    model: VisionTransformer, images: Any
) -> list[np.ndarray]:
    """Computes who looks at whom: the softmax of every block's attention.

    The model's own code never holds these numbers (fused attention does not
    make them), so they are computed anew, in float32, from each block's input
    and its query and key weights.

    Args:
        model: A `keras_augreg.VisionTransformer`; B images become T tokens,
            the class token first where there is one.
        images: (B, height, width, 3) of the model's size: integers from 0 to
            255, or floats in [-1, 1].

    Returns:
        One float32 array (B, heads, Q, T) for each block, whose rows sum to
        1. Q is T, except in the last block of a model that reads the class
        token alone: there Q is 1.

    Raises:
        TypeError: If it is no such model.
        ValueError: If the images are not of its size.

    Example:
    ```python
    import keras_augreg, numpy as np

    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32,
        input_shape=(32, 32, 3), classes=10,
    )
    images = np.zeros((1, 32, 32, 3), "uint8")
    first, last = keras_augreg.visualize.attention_weights(model, images)
    assert first.shape == (1, 2, 17, 17) and last.shape == (1, 2, 1, 17)
    ```
    """
    _check_model(model)
    images = np.asarray(images)
    if images.shape[1:] != model.image_shape:
        raise ValueError(
            "Expected a batch of images of the model's size, (B, "
            f"{', '.join(map(str, model.image_shape))}). Received: shape="
            f"{images.shape}. Resize the images, or build the model with "
            "their `input_shape`."
        )
    blocks = [layer for layer in model.layers if isinstance(layer, Block)]
    inputs = keras.Model(model.input, [block.input for block in blocks])
    tokens = inputs(scale_integers(images), training=False)
    return [_softmax(block, x) for block, x in zip(blocks, tokens, strict=True)]


def _softmax(block: Block, tokens: Any) -> np.ndarray:
    attention = block.attention
    x = ops.cast(block.norm1(tokens), "float32")
    query, key = (
        _heads(y, attention.qkv_kernel[:, i], attention.qkv_bias[i])
        for i, y in enumerate([x[:, : attention.queries], x])
    )
    scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))
    scores = ops.softmax(scores / query.shape[-1] ** 0.5, axis=-1)
    return np.asarray(ops.convert_to_numpy(scores))


def _heads(x: Any, kernel: Any, bias: Any) -> Any:
    """Products of `x` with a (W, H, D) kernel: (B, H, T, D)."""
    kernel, bias = ops.cast(kernel, "float32"), ops.cast(bias, "float32")
    y = dense(flatten(x), kernel, bias)
    y = ops.reshape(y, (-1, x.shape[1], *bias.shape))
    return ops.transpose(y, (0, 2, 1, 3))


def rollout(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Multiplies the attention of all blocks into one: attention rollout.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (arXiv
    2005.00928), section 3: the mean over heads, half of it replaced by the
    identity for the residual connection, multiplied over the blocks.

    Args:
        weights: What `attention_weights` returns, the first block first.

    Returns:
        A float array (B, Q, T): how much each input token has to do with the
        Q tokens that the last block computes. Rows sum to 1.

    Example:
    ```python
    import numpy as np
    from keras_augreg import visualize

    one_block = [np.full((1, 1, 2, 2), 0.5)]
    flow = visualize.rollout(one_block)
    assert np.allclose(flow, [[[0.75, 0.25], [0.25, 0.75]]])
    ```
    """
    steps = []
    for block in weights:
        mean = block.mean(axis=1)
        steps.append((mean + np.eye(*mean.shape[1:])) / 2)
    return functools.reduce(np.matmul, reversed(steps))


def attention_maps(
    model: VisionTransformer, image: Any, blocks: Sequence[int] = (-1,)
) -> Any:
    """Draws where each head of some blocks looks.

    A map is the class token's row of `attention_weights`; of a model without
    class token, the mean over all tokens' rows. Each map has its own scale,
    from its least to its greatest weight, which its title tells in per cent.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        image: (height, width, 3) of the model's size: integers from 0 to 255,
            or floats in [-1, 1].
        blocks: Their numbers from 0, a row of the figure each; -1 is the
            last.

    Returns:
        A `matplotlib.figure.Figure`: the image, then a map for each head.

    Raises:
        TypeError: If it is no such model.
        ValueError: If the image is not of its size, or it has no such block.

    Example:
    ```python
    import keras_augreg, numpy as np

    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32,
        input_shape=(32, 32, 3), classes=10,
    )
    image = np.zeros((32, 32, 3), "uint8")
    figure = keras_augreg.visualize.attention_maps(model, image, blocks=[0, 1])
    figure.savefig("attention.png")
    ```
    """
    image = np.asarray(image)
    weights = attention_weights(model, image[None])
    wrong = [i for i in blocks if not -len(weights) <= i < len(weights)]
    if wrong or not len(blocks):
        raise ValueError(
            f"`blocks` are numbers from {-len(weights)} to {len(weights) - 1}, "
            f"one at least. Received: blocks={list(blocks)}"
        )
    heads = weights[0].shape[1]
    figure, axes = _grid(len(blocks), 1 + heads, height=1.75)
    for row, i in zip(axes, blocks, strict=True):
        row[0].imshow(_pixels(image))
        row[0].set_ylabel(f"block {i % len(weights)}")
        maps = _patches(model, weights[i])[0]
        for head, (axis, weight) in enumerate(zip(row[1:], maps, strict=True)):
            axis.imshow(weight)
            least, most = weight.min(), weight.max()
            axis.set_title(
                f"head {head}\n{least:.1%} to {most:.1%}", fontsize=8
            )
    return figure


def attention_rollout(model: VisionTransformer, images: Any) -> Any:
    """Draws `rollout` over images: what the whole model looks at.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        images: (N, height, width, 3) of the model's size: integers from 0 to
            255, or floats in [-1, 1].

    Returns:
        A `matplotlib.figure.Figure`: the images above, below each its map,
        bright where the class token (without one: the mean over all tokens)
        draws most from. Each map has its own scale.

    Raises:
        TypeError: If it is no such model.
        ValueError: If the images are not of its size.

    Example:
    ```python
    import keras_augreg, numpy as np

    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=2, num_heads=2, mlp_dim=32,
        input_shape=(32, 32, 3), classes=10,
    )
    images = np.zeros((3, 32, 32, 3), "uint8")
    figure = keras_augreg.visualize.attention_rollout(model, images)
    ```
    """
    images = np.asarray(images)
    flow = _patches(model, rollout(attention_weights(model, images)))
    figure, axes = _grid(2, len(images))
    for column, image, weight in zip(axes.T, images, flow, strict=True):
        height, width, _ = image.shape
        column[0].imshow(_pixels(image))
        column[1].imshow(_pixels(image).mean(axis=2), cmap="gray")
        column[1].imshow(
            weight,
            alpha=0.6,
            extent=(0, width, height, 0),
            interpolation="bilinear",
        )
    return figure


def position_similarity(model: VisionTransformer) -> Any:
    """Draws how alike the position embeddings are, each against all others.

    As figure 7 (middle) of "An Image is Worth 16x16 Words" (arXiv
    2010.11929): tile (i, j) holds the cosines between the embedding of patch
    (i, j) and that of every patch. In a trained model they show that it found
    out what lies beside what.

    Args:
        model: A `keras_augreg.VisionTransformer`.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        TypeError: If it is no such model.

    Example:
    ```python
    import keras_augreg

    model = keras_augreg.VisionTransformer(
        patch_size=8, width=16, depth=1, num_heads=2, mlp_dim=32,
        input_shape=(32, 32, 3), classes=10,
    )
    figure = keras_augreg.visualize.position_similarity(model)
    ```
    """
    _check_model(model)
    layer = model.get_layer("posembed_input")
    x = _numpy(layer.pos_embedding)[0, int(model.class_token) :]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    rows, columns = model.grid
    # A gap of one cell between tiles; NaN stays white.
    tiles = np.full((rows, columns, rows + 1, columns + 1), np.nan)
    tiles[:, :, :-1, :-1] = (x @ x.T).reshape(rows, columns, rows, columns)
    picture = tiles.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), -1)
    figure, axes = _grid(1, 1, width=6.5, height=5.5)
    axis = axes[0, 0]
    drawn = axis.imshow(picture[:-1, :-1], vmin=-1, vmax=1)
    axis.set(xlabel="column of the patch", ylabel="row of the patch")
    figure.colorbar(drawn, ax=axis, label="cosine")
    return figure


def patch_filters(model: VisionTransformer, count: int = 28) -> Any:
    """Draws what the first layer looks for: its filters' main components.

    As figure 7 (left) of "An Image is Worth 16x16 Words" (arXiv 2010.11929),
    which shows 28: the principal components of the filters that project
    patches of pixels; of a hybrid, those of its stem's first convolution.
    Each is scaled to the full range of colours, and its title tells its share
    of the filters' variance.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        count: Components, at least 1 and at most what the filters have:
            pixels x 3, or their number.

    Returns:
        A `matplotlib.figure.Figure`.

    Raises:
        TypeError: If it is no such model.
        ValueError: If there are not `count` components.

    Example:
    ```python
    import keras_augreg

    model = keras_augreg.VisionTransformer(
        patch_size=8, width=64, depth=1, num_heads=2, mlp_dim=32,
        input_shape=(32, 32, 3), classes=10,
    )
    figure = keras_augreg.visualize.patch_filters(model, count=14)
    ```
    """
    _check_model(model)
    if model.sizes.stages is None:
        layer = model.get_layer("embedding")
    else:
        layer = model.get_layer("root").conv
    kernel = _numpy(layer.kernel)
    filters = kernel.reshape(-1, kernel.shape[-1]).T
    if not 1 <= count <= min(filters.shape):
        raise ValueError(
            f"{model.name} has {filters.shape[0]} filters of "
            f"{filters.shape[1]} numbers: `count` is from 1 to "
            f"{min(filters.shape)}. Received: count={count}"
        )
    _, sizes, components = np.linalg.svd(
        filters - filters.mean(axis=0), full_matrices=False
    )
    shares = sizes**2 / max((sizes**2).sum(), 1e-12)
    columns = min(count, 7)
    figure, axes = _grid(-(-count // columns), columns, 1.1, 1.25)
    for axis, component, share in zip(
        axes.flat, components[:count], shares, strict=False
    ):
        least, most = component.min(), component.max()
        picture = (component - least) / max(most - least, 1e-12)
        axis.imshow(picture.reshape(kernel.shape[:3]))
        axis.set_title(f"{share:.1%}", fontsize=8)
    return figure


def operation_gallery(
    photo: np.ndarray, magnitudes: Sequence[float] = (0, 10, 15, 20)
) -> Any:
    """Draws what each of RandAugment's 16 operations does to a photo.

    Args:
        photo: uint8 (height, width, 3).
        magnitudes: A column of the figure each. The study's are the default;
            0 is not nothing (see `keras_augreg.augment.apply_op`).

    Returns:
        A `matplotlib.figure.Figure`, in two halves beside each other.

    Example:
    ```python
    import numpy as np
    from keras_augreg import visualize

    photo = np.zeros((32, 32, 3), "uint8")
    figure = visualize.operation_gallery(photo, magnitudes=[10])
    ```
    """
    # One centre for Cutout: the face, in NASA's portrait of Eileen Collins.
    center = (photo.shape[0] // 4, photo.shape[1] * 3 // 7)
    titles = ["original", *(f"m = {m:g}" for m in magnitudes)]
    half = len(OPERATIONS) // 2
    figure, axes = _grid(half, 2 * len(titles))
    for i, op in enumerate(OPERATIONS):
        place = i // half * len(titles)
        row = axes[i % half, place : place + len(titles)]
        row[0].set_ylabel(op)
        row[0].imshow(photo)
        for axis, magnitude in zip(row[1:], magnitudes, strict=True):
            image = apply_op(photo[None], op, magnitude, center=center)
            axis.imshow(ops.convert_to_numpy(image)[0])
    for axis, title in zip(axes[0], 2 * titles, strict=True):
        axis.set_title(title, fontsize=9)
    return figure


def recipe_gallery(
    photo: np.ndarray,
    recipes: Sequence[AugReg] | None = None,
    draws: int = 8,
    seed: int = 0,
) -> Any:
    """Draws some draws of recipes: what a model sees of a photo in training.

    Mixup mixes the photo with its mirror image.

    Args:
        photo: uint8 (height, width, 3).
        recipes: A row of the figure each; `None` for the seven levels.
        draws: Columns of the figure, at least 1.
        seed: Integer in [0, 2^31).

    Returns:
        A `matplotlib.figure.Figure`.

    Example:
    ```python
    import keras_augreg, numpy as np

    photo = np.zeros((32, 32, 3), "uint8")
    figure = keras_augreg.visualize.recipe_gallery(
        photo, [keras_augreg.AugReg("medium1")], draws=2
    )
    ```
    """
    recipes = recipes or [AugReg(level) for level in LEVELS]
    labels = np.arange(draws) % 2
    batch = np.where(labels[:, None, None, None], photo[:, ::-1], photo)
    figure, axes = _grid(len(recipes), draws)
    for row, recipe in zip(axes, recipes, strict=True):
        augment = AugRegAugment(recipe, 2, seed=seed)
        images, _ = augment(batch, labels, step=0)
        for axis, image in zip(row, ops.convert_to_numpy(images), strict=True):
            axis.imshow(_pixels(image))
        drawn = recipe.randaugment
        layers = "({}, {})".format(*drawn) if drawn else "no"
        row[0].set_ylabel(
            f"{recipe.augment}\nRandAugment {layers}\nMixup {recipe.mixup:g}",
            fontsize=8,
        )
    for i, axis in enumerate(axes[0]):
        axis.set_title(f"draw {i + 1}", fontsize=9)
    return figure


def training_curves(
    run: keras.callbacks.History | Workdir | str | os.PathLike[str],
) -> Any:
    """Draws how loss and metrics went, training and validation together.

    Args:
        run: What `model.fit` returns; or a `keras_augreg.training.Workdir`, or
            the path of one (`--workdir` of the recipes), while it is being
            written too.

    Returns:
        A `matplotlib.figure.Figure`, one plot for each metric.

    Raises:
        FileNotFoundError: If the directory has no `metrics.jsonl`.
        ValueError: If nothing has been recorded yet.

    Example:
    ```python
    import keras
    from keras_augreg import visualize

    history = keras.callbacks.History()
    history.epoch = [0, 1]
    history.history = {"loss": [0.9, 0.7], "val_loss": [0.8, 0.75]}
    figure = visualize.training_curves(history)
    ```
    """
    if isinstance(run, keras.callbacks.History):
        unit = "epoch"
        points = {
            # `fit(validation_freq=k)` records every k-th epoch.
            key: [
                (epoch + 1, value)
                for epoch, value in zip(
                    run.epoch[every - 1 :: every], values, strict=False
                )
            ]
            for key, values in run.history.items()
            for every in [max(len(run.epoch) // max(len(values), 1), 1)]
        }
    else:
        unit = "step"
        path = run.path if isinstance(run, Workdir) else pathlib.Path(run)
        file = path / "metrics.jsonl"
        if not file.exists():
            raise FileNotFoundError(
                f"There is no {file}. Expected the `--workdir` of a run whose "
                "first interval has ended."
            )
        points = {}
        for line in file.read_text().splitlines():
            logs = json.loads(line)
            step = logs.pop(unit)
            for key, value in logs.items():
                points.setdefault(key, []).append((step, value))
    names = list(dict.fromkeys(key.removeprefix("val_") for key in points))
    if not names:
        raise ValueError(
            "Nothing has been recorded yet: this run has no finished epoch."
        )
    figure, axes = _grid(1, len(names), width=4.0, height=3.0, bare=False)
    for axis, name in zip(axes[0], names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if points.get(key):
                x, y = zip(*points[key], strict=True)
                axis.plot(x, y, marker=".", label=label)
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel=unit, title=name.replace("_", " "))
        axis.legend()
    return figure


def _grid(
    rows: int,
    columns: int,
    width: float = 1.5,
    height: float = 1.5,
    bare: bool = True,
) -> tuple[Any, Any]:
    """A figure of axes (rows, columns), each so many inches wide and high.

    `bare` takes ticks and frames away.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "keras_augreg.visualize draws with matplotlib, which is not "
            "installed: pip install matplotlib"
        ) from error
    figure = Figure(
        figsize=(width * columns, height * rows), layout="constrained"
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    if bare:
        for axis in axes.flat:
            axis.set(xticks=[], yticks=[], frame_on=False)
    return figure, axes


def _check_model(model: Any) -> None:
    if not isinstance(model, VisionTransformer):
        raise TypeError(
            "Expected a model from a builder of keras_augreg, built without "
            "`input_tensor` or on a plain `keras.Input`. Received: "
            f"{type(model).__name__}"
        )


def _numpy(variable: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.cast(variable, "float32")))


def _patches(model: VisionTransformer, weights: np.ndarray) -> np.ndarray:
    """Of (..., Q, T) what reads the patches: (..., rows, columns)."""
    if model.class_token:
        weights = weights[..., :1, 1:]
    return weights.mean(axis=-2).reshape(*weights.shape[:-2], *model.grid)


def _pixels(image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1], of 0 to 255 integers or floats in [-1, 1]."""
    if np.issubdtype(image.dtype, np.integer):
        image = preprocess_input(image)
    return np.clip((image + 1) / 2, 0, 1)
