"""Pictures of predictions, attention, weights, recipes, runs and benchmarks.

Every `plot_*` function returns a `matplotlib.figure.Figure` (extra `study`): a
notebook shows it after `%matplotlib inline`, `figure.savefig("name.png")`
writes it. pyplot and its global state are not used.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops

from keras_augreg.atomic import as_path
from keras_augreg.augment import OPERATIONS, AugRegAugment, apply_op
from keras_augreg.features import FeatureExtractor
from keras_augreg.output import subplots
from keras_augreg.projection import check_not_quantized
from keras_augreg.recipe import LEVELS, AugReg
from keras_augreg.training.rundir import read_log
from keras_augreg.training.workdir import Workdir
from keras_augreg.vision_transformer import VisionTransformer
from keras_augreg.vit import Block

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Confusions of more classes are drawn without their names.
MOST_NAMED = 30


def plot_predictions(
    images: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    class_names: Sequence[str],
    columns: int = 8,
) -> Figure:
    """Plots images with their predicted classes, wrong ones in red.

    Args:
        images: uint8 array (N, height, width, 3).
        labels: Integer array (N,): the true classes.
        scores: Float array (N, classes): probabilities.
        class_names: Names of the classes.
        columns: Images in a row, at least 1.

    Example:
    ```python
    import numpy as np
    from keras_augreg import visualize

    images = np.zeros((2, 8, 8, 3), "uint8")
    scores = np.array([[0.9, 0.1], [0.8, 0.2]])
    figure = visualize.plot_predictions(images, [0, 1], scores, ["cat", "dog"])
    figure.savefig("predictions.png")
    ```
    """
    columns = min(columns, len(images))
    figure, axes = _tiles(-(-len(images) // columns), columns, height=1.75)
    for axis, image, label, row in zip(
        axes.flat, images, labels, scores, strict=False
    ):
        guess = row.argmax()
        title, color = f"{class_names[guess]} {row[guess]:.0%}", "black"
        if guess != label:
            title, color = f"{title}\n(is {class_names[label]})", "red"
        axis.imshow(image)
        axis.set_title(title, fontsize=9, color=color)
    return figure


def plot_confusions(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str]
) -> Figure:
    """Plots how often each class is predicted for the images of each class.

    A row for each class, a column for each predicted class, coloured as
    shares of the row. Up to 30 classes have their names and counts.

    Args:
        labels: Integer array (N,) of classes, or array (N, classes) that is
            above 0 where an image has the class.
        predicted: Integer array (N,): the predicted classes.
        class_names: Names of the classes.

    Example:
    ```python
    from keras_augreg import visualize

    figure = visualize.plot_confusions([0, 0, 1], [0, 1, 1], ["cat", "dog"])
    ```
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    classes = len(class_names)
    images, true = np.arange(len(labels)), labels
    if labels.ndim == 2:
        images, true = np.nonzero(labels > 0)
    counts = np.zeros((classes, classes), "float32")
    np.add.at(counts, (true, predicted[images]), 1)
    figure, axes = subplots(1, 1, 6.0, 6.0)
    axis = axes[0, 0]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, vmin=0, vmax=1)
    axis.set(xlabel="predicted class", ylabel="class")
    if classes <= MOST_NAMED:
        axis.set_xticks(range(classes), class_names, rotation=90)
        axis.set_yticks(range(classes), class_names)
        for row, column in zip(*np.nonzero(counts), strict=True):
            # Dark on the colour map's bright upper half.
            color = "black" if shares[row, column] > 0.5 else "white"
            axis.text(
                column, row, f"{counts[row, column]:.0f}",
                ha="center", va="center", fontsize=8, color=color,
            )  # fmt: skip
    return figure


def attention_weights(
    model: VisionTransformer, images: Any
) -> list[np.ndarray]:
    """Computes the attention weights of every block: softmax of the scores.

    The model never holds them, as fused attention does not make them; so they
    are computed again, in float32, from each block's input.

    Args:
        model: A `keras_augreg.VisionTransformer`; B images become T tokens,
            the class token first where there is one.
        images: (B, height, width, 3) of the model's size and its range of
            values: 0 to 255 unless `include_preprocessing=False`.

    Returns:
        One float32 array (B, heads, Q, T) for each block, whose rows sum to
        1. Q is T, except in the last block of a model that reads only the
        class token: there Q is 1.

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.
        ValueError: If the images do not have the model's size.

    Example:
    ```python
    import keras_augreg, numpy as np

    model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 64, 3))
    images = np.zeros((1, 64, 64, 3), "uint8")
    weights = keras_augreg.visualize.attention_weights(model, images)
    assert weights[0].shape == (1, 3, 5, 5)
    assert weights[-1].shape == (1, 3, 1, 5)
    ```
    """
    _check_model(model)
    images = np.asarray(images)
    if images.shape[1:] != model.image_shape:
        raise ValueError(
            "Expected images of the model's size, (B, "
            f"{', '.join(map(str, model.image_shape))}). Received: shape="
            f"{images.shape}. Resize them, or build with their `input_shape`."
        )
    blocks = [layer for layer in model.layers if isinstance(layer, Block)]
    before = ["posembed_input", *range(len(blocks) - 1)]
    inputs = FeatureExtractor(model, before)
    tokens = inputs(images, training=False)
    return [_softmax(block, x) for block, x in zip(blocks, tokens, strict=True)]


def rollout(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Multiplies the attention of all blocks: attention rollout.

    Abnar and Zuidema, "Quantifying Attention Flow in Transformers" (arXiv
    2005.00928), section 3: the mean over heads, averaged with the identity
    for the residual connection, multiplied over the blocks.

    Args:
        weights: The result of `attention_weights`, first block first.

    Returns:
        A float array (B, Q, T): how much each input token contributes to the
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
    means = [block.mean(axis=1) for block in weights]
    steps = [(mean + np.eye(*mean.shape[1:])) / 2 for mean in means]
    return functools.reduce(np.matmul, reversed(steps))


def plot_attention(
    model: VisionTransformer, image: Any, blocks: Sequence[int] = (-1,)
) -> Figure:
    """Plots an image and where each attention head of some blocks looks.

    A map is the class token's row of `attention_weights`; the mean over the
    rows of all tokens if the model has no class token. Each map has its own
    colour scale; its title gives the least and the greatest weight.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        image: (height, width, 3) of the model's size and range of values.
        blocks: Indices of blocks, one for each row; -1 is the last.

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.
        ValueError: If the image does not have the model's size, or the model
            has no such block.

    Example:
    ```python
    import keras_augreg, numpy as np

    model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 64, 3))
    image = np.zeros((64, 64, 3), "uint8")
    figure = keras_augreg.visualize.plot_attention(model, image, blocks=[0, 11])
    ```
    """
    image = np.asarray(image)
    weights = attention_weights(model, image[None])
    wrong = [i for i in blocks if not -len(weights) <= i < len(weights)]
    if wrong or not len(blocks):
        raise ValueError(
            f"`blocks` must be indices from {-len(weights)} to "
            f"{len(weights) - 1}, at least one. Received: blocks={[*blocks]}"
        )
    figure, axes = _tiles(len(blocks), 1 + weights[0].shape[1], height=1.75)
    for row, i in zip(axes, blocks, strict=True):
        row[0].imshow(_pixels(model, image))
        row[0].set_ylabel(f"block {i % len(weights)}")
        for head, weight in enumerate(_patches(model, weights[i])[0]):
            row[1 + head].imshow(weight)
            title = f"head {head}\n{weight.min():.1%} to {weight.max():.1%}"
            row[1 + head].set_title(title, fontsize=8)
    return figure


def plot_rollout(model: VisionTransformer, images: Any) -> Figure:
    """Plots what the whole model looks at: `rollout` over images.

    Each image is above its map, bright where the class token (the mean over
    all tokens if the model has none) attends most. Each map has its own
    colour scale.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        images: (N, height, width, 3) of the model's size and its range of
            values: 0 to 255 unless `include_preprocessing=False`.

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.
        ValueError: If the images do not have the model's size.

    Example:
    ```python
    import keras_augreg, numpy as np

    model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 64, 3))
    images = np.zeros((3, 64, 64, 3), "uint8")
    figure = keras_augreg.visualize.plot_rollout(model, images)
    ```
    """
    images = np.asarray(images)
    flow = _patches(model, rollout(attention_weights(model, images)))
    figure, axes = _tiles(2, len(images))
    height, width, _ = model.image_shape
    over = {"alpha": 0.6, "extent": (0, width, height, 0)}
    for (above, below), image, weight in zip(axes.T, images, flow, strict=True):
        pixels = _pixels(model, image)
        above.imshow(pixels)
        below.imshow(pixels.mean(axis=2), cmap="gray")
        below.imshow(weight, interpolation="bilinear", **over)
    return figure


def plot_position_embeddings(model: VisionTransformer) -> Figure:
    """Plots the similarity of each position embedding to all others.

    As figure 7 (middle) of "An Image is Worth 16x16 Words" (arXiv
    2010.11929): tile (i, j) holds the cosines between the embedding of patch
    (i, j) and that of every patch. In a trained model, neighbours are alike.

    Args:
        model: A `keras_augreg.VisionTransformer`.

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.

    Example:
    ```python
    import keras_augreg

    model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 64, 3))
    figure = keras_augreg.visualize.plot_position_embeddings(model)
    ```
    """
    _check_model(model)
    layer = model.get_layer("posembed_input")
    x = _numpy(layer.pos_embedding)[0, int(model.class_token) :]
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    rows, columns = model.patch_grid
    # A gap of one cell between tiles; NaN stays white.
    tiles = np.full((rows, columns, rows + 1, columns + 1), np.nan)
    tiles[:, :, :-1, :-1] = (x @ x.T).reshape(rows, columns, rows, columns)
    picture = tiles.transpose(0, 2, 1, 3).reshape(rows * (rows + 1), -1)
    figure, axes = _tiles(1, 1, width=6.5, height=5.5)
    drawn = axes[0, 0].imshow(picture[:-1, :-1], vmin=-1, vmax=1)
    axes[0, 0].set(xlabel="column of the patch", ylabel="row of the patch")
    figure.colorbar(drawn, ax=axes[0, 0], label="cosine")
    return figure


def plot_filters(model: VisionTransformer, count: int = 28) -> Figure:
    """Plots the principal components of the first layer's filters.

    As figure 7 (left) of "An Image is Worth 16x16 Words" (arXiv 2010.11929),
    which shows 28: the filters that project patches of pixels; in a hybrid,
    those of the stem's first convolution. Each component is scaled to the
    full range of colours; its title gives its share of the filters' variance.

    Args:
        model: A `keras_augreg.VisionTransformer`.
        count: Number of components, at least 1 and at most the number of
            filters or their size (pixels x 3), whichever is less.

    Raises:
        TypeError: If `model` is not a `VisionTransformer`.
        ValueError: If there are fewer than `count` components.

    Example:
    ```python
    import keras_augreg

    model = keras_augreg.ViT_Ti32(weights=None, input_shape=(64, 64, 3))
    figure = keras_augreg.visualize.plot_filters(model, count=14)
    ```
    """
    _check_model(model)
    check_not_quantized(model)
    hybrid = model.sizes.stages is not None
    layer = (
        model.get_layer("root").conv if hybrid else model.get_layer("embedding")
    )
    kernel = _numpy(layer.kernel)
    filters = kernel.reshape(-1, kernel.shape[-1]).T
    if not 1 <= count <= min(filters.shape):
        raise ValueError(
            f"`count` must be from 1 to {min(filters.shape)}, as {model.name} "
            f"has {filters.shape[0]} filters of {filters.shape[1]} numbers. "
            f"Received: count={count}"
        )
    filters = filters - filters.mean(axis=0)
    _, sizes, components = np.linalg.svd(filters, full_matrices=False)
    shares = sizes**2 / max((sizes**2).sum(), 1e-12)
    columns = min(count, 7)
    figure, axes = _tiles(-(-count // columns), columns, 1.1, 1.25)
    for i, axis in enumerate(axes.flat[:count]):
        picture = components[i] - components[i].min()
        picture = picture / max(picture.max(), 1e-12)
        picture = picture.reshape(kernel.shape[:3])
        if picture.shape[2] != 3:  # not colours
            picture = picture.mean(axis=2)
        axis.imshow(picture)
        axis.set_title(f"{shares[i]:.1%}", fontsize=8)
    return figure


def plot_operations(
    photo: np.ndarray, magnitudes: Sequence[float] = (0, 10, 15, 20)
) -> Figure:
    """Plots what each of RandAugment's 16 operations does, in two halves.

    Args:
        photo: uint8 (height, width, 3).
        magnitudes: One for each column; the study's by default. Magnitude 0
            is not the identity (see `keras_augreg.augment.apply_op`).

    Example:
    ```python
    import numpy as np
    from keras_augreg import visualize

    photo = np.zeros((32, 32, 3), "uint8")
    figure = visualize.plot_operations(photo, magnitudes=[10])
    ```
    """
    # One centre for Cutout: the face, in NASA's portrait of Eileen Collins.
    center = (photo.shape[0] // 4, photo.shape[1] * 3 // 7)
    titles = ["original", *(f"m = {m:g}" for m in magnitudes)]
    half = len(OPERATIONS) // 2
    figure, axes = _tiles(half, 2 * len(titles))
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


def plot_recipes(
    photo: np.ndarray,
    recipes: Sequence[AugReg] | None = None,
    draws: int = 8,
    seed: int = 0,
) -> Figure:
    """Plots random samples of each recipe: what a model sees in training.

    Mixup mixes the photo with its mirror image.

    Args:
        photo: uint8 (height, width, 3).
        recipes: One for each row; `None` for the seven levels.
        draws: Samples of each recipe, at least 1.
        seed: Integer in [0, 2^31).

    Example:
    ```python
    import keras_augreg, numpy as np

    photo = np.zeros((32, 32, 3), "uint8")
    figure = keras_augreg.visualize.plot_recipes(
        photo, [keras_augreg.AugReg("medium1")], draws=2
    )
    ```
    """
    recipes = recipes or [AugReg(level) for level in LEVELS]
    labels = np.arange(draws) % 2
    batch = np.where(labels[:, None, None, None], photo[:, ::-1], photo)
    figure, axes = _tiles(len(recipes), draws)
    for row, recipe in zip(axes, recipes, strict=True):
        augment = AugRegAugment(recipe, 2, seed=seed)
        images, _ = augment(batch, labels, step=0)
        for axis, image in zip(row, ops.convert_to_numpy(images), strict=True):
            axis.imshow(image / 255)
        lines = (recipe.label, f"RandAugment {recipe.randaugment or 'no'}",
                 f"Mixup {recipe.mixup:g}")  # fmt: skip
        row[0].set_ylabel("\n".join(lines), fontsize=8)
    for i, axis in enumerate(axes[0]):
        axis.set_title(f"draw {i + 1}", fontsize=9)
    return figure


def plot_training(
    run: keras.callbacks.History | Workdir | str | os.PathLike[str],
) -> Figure:
    """Plots loss and each metric over time, in training and validation.

    Args:
        run: The result of `model.fit`; or a `keras_augreg.training.Workdir`
            or its path (`--workdir` of the recipes), also during the run.

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
    figure = visualize.plot_training(history)
    ```
    """
    unit = "epoch" if isinstance(run, keras.callbacks.History) else "step"
    points = _points(run)
    names = list(dict.fromkeys(key.removeprefix("val_") for key in points))
    if not names:
        raise ValueError(
            "Nothing has been recorded yet: the first epoch of this run has "
            "not ended."
        )
    figure, axes = subplots(1, len(names), width=4.0, height=3.0)
    for axis, name in zip(axes[0], names, strict=True):
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if points.get(key):
                x, y = zip(*points[key], strict=True)
                axis.plot(x, y, marker=".", label=label)
        axis.locator_params(axis="x", integer=True)
        axis.set(xlabel=unit, title=name.replace("_", " "))
        axis.legend()
    return figure


def plot_benchmark(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots a bar for each measurement over the paper's axis: images/s.

    Args:
        rows: Results of `keras_augreg.benchmark.measure`.

    Example:
    ```python
    from keras_augreg import visualize

    row = {"task": "infer", "model": "ViT_S16", "image_size": 224,
           "batch_size": 16, "backend": "jax", "dtype": "float32",
           "images_per_second": 19.4}
    figure = visualize.plot_benchmark([row])
    ```
    """
    figure, axes = subplots(1, 1, 8.0, 1 + 0.32 * len(rows))
    axis = axes[0, 0]
    form = (
        "{task} {model} {image_size} px, batch {batch_size}, {backend} {dtype}"
    )
    names = [form.format(**row) for row in rows]
    speeds = [row["images_per_second"] for row in rows]
    colors = {"jax": "C0", "tensorflow": "C1", "torch": "C3"}
    places = list(range(len(rows)))[::-1]
    bars = axis.barh(places, speeds, color=[colors[r["backend"]] for r in rows])
    axis.bar_label(bars, fmt="%.3g", padding=3)
    axis.set(xscale="log", xlabel="images/s", yticks=places, yticklabels=names)
    axis.margins(x=0.1)
    return figure


def plot_flight_check(reports: Sequence[Mapping[str, Any]]) -> Figure:
    """Plots where the estimated cycles of training steps go, a bar for each.

    Args:
        reports: Results of `keras_augreg.flight_check.check` that fit.

    Example:
    ```python
    from keras_augreg import visualize

    report = {"topology": "v5e:2x4", "kind": "data", "cycles": 2_000_000,
              "parts": {"attention": 0.6, "MLP": 0.4}}
    figure = visualize.plot_flight_check([report])
    ```
    """
    figure, axes = subplots(1, 1, 9.0, 1.6 + 0.5 * len(reports))
    axis = axes[0, 0]
    names = ["{topology}, {kind}".format(**report) for report in reports]
    parts = dict.fromkeys(part for r in reports for part in r["parts"])
    left = [0.0] * len(reports)
    for part in parts:
        million = [
            r["parts"].get(part, 0.0) * r["cycles"] / 1e6 for r in reports
        ]
        axis.barh(range(len(reports)), million, left=left, label=part)
        left = [a + b for a, b in zip(left, million, strict=True)]
    axis.set_yticks(range(len(reports)), names)
    axis.set_xlabel("million cycles a chip and step (the compiler's estimate)")
    axis.invert_yaxis()
    figure.legend(loc="outside upper center", ncols=5, frameon=False)
    return figure


def _tiles(
    rows: int, columns: int, width: float = 1.5, height: float = 1.5
) -> tuple[Any, Any]:
    """Axes without ticks and frames, for pictures."""
    figure, axes = subplots(rows, columns, width, height)
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


def _softmax(block: Block, tokens: Any) -> np.ndarray:
    check_not_quantized(block)
    attention = block.attention
    x = ops.cast(block.norm1(tokens), "float32")
    kernel = attention.qkv.merged()  # (W, 3, H, D)
    bias = ops.cast(attention.qkv_bias, "float32")  # (3, H, D)
    query, key = (
        ops.einsum("btw,whd->bhtd", y, kernel[:, i]) + bias[i][:, None]
        for i, y in enumerate([x[:, : attention.queries], x])
    )
    scores = ops.einsum("bhqd,bhkd->bhqk", query, key)
    scores = ops.softmax(scores / query.shape[-1] ** 0.5, axis=-1)
    return np.asarray(ops.convert_to_numpy(scores))


def _patches(model: VisionTransformer, weights: np.ndarray) -> np.ndarray:
    """(..., Q, T) -> (..., rows, columns): the weights of the patches."""
    if model.class_token:
        weights = weights[..., :1, 1:]
    return weights.mean(axis=-2).reshape(*weights.shape[:-2], *model.patch_grid)


def _numpy(variable: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(ops.cast(variable, "float32")))


def _pixels(model: VisionTransformer, image: np.ndarray) -> np.ndarray:
    """Floats in [0, 1] from the values that the model takes."""
    scaled = image / 255 if model.include_preprocessing else (image + 1) / 2
    if image.shape[-1] != 3:  # shown in grey
        scaled = np.repeat(scaled.mean(axis=-1, keepdims=True), 3, axis=-1)
    return np.clip(scaled, 0, 1)


def _points(run: Any) -> dict[str, list[tuple[float, float]]]:
    """Metric -> (epoch or step, value)."""
    points: dict[str, list[tuple[float, float]]] = {}
    if isinstance(run, keras.callbacks.History):
        for key, values in run.history.items():
            # `fit(validation_freq=k)` records every k-th epoch.
            every = max(len(run.epoch) // max(len(values), 1), 1)
            epochs = (epoch + 1 for epoch in run.epoch[every - 1 :: every])
            points[key] = list(zip(epochs, values, strict=False))
        return points
    path = run.path if isinstance(run, Workdir) else as_path(run)
    file = path / "metrics.jsonl"
    if not file.exists():
        raise FileNotFoundError(
            f"No such file: {file}. Expected the `--workdir` of a run whose "
            "first interval has ended."
        )
    for logs in read_log(file):
        step = logs.pop("step")
        for key, value in logs.items():
            points.setdefault(key, []).append((step, value))
    return points
