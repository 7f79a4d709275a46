"""Pictures show what is computed by hand here."""

from __future__ import annotations

import inspect
import json

import keras
import numpy as np
import pytest
import skimage.data
from _checkpoints import hybrid, images, tiny

import keras_augreg
from keras_augreg import visualize
from keras_augreg.initialization import zero_weights
from keras_augreg.training.workdir import Workdir

PUBLIC = [
    name
    for name, function in inspect.getmembers(visualize, inspect.isfunction)
    if function.__module__ == visualize.__name__ and not name.startswith("_")
]


@pytest.fixture(scope="module")
def photo():
    return skimage.data.astronaut()[:160:10, 150:310:10]


def drawn(figure):
    """Draws a figure and checks that it is not a white page."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]
    assert pixels.std() > 1
    return pixels


def shown(figure):
    """The arrays that a figure draws as pictures, axis by axis."""
    return [np.asarray(i.get_array()) for a in figure.axes for i in a.images]


def randomised(make=tiny, **kwargs):
    """A model in which every weight matters; quicker than initializers."""
    with zero_weights():
        model = make(**kwargs)
    rng = np.random.default_rng(0)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0, 0.5, weight.shape).astype("float32"))
    return model


def by_hand(model, x):
    """Attention weights of every block, in NumPy and float64."""

    def array(weight):
        return keras.ops.convert_to_numpy(weight).astype("float64")

    def norm(x, layer):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * array(layer.gamma) + array(layer.beta)

    embedding = model.get_layer("embedding")
    position = model.get_layer("posembed_input")
    kernel = array(embedding.kernel)
    p = len(kernel)
    b, h, w, _ = x.shape
    x = x.reshape(b, h // p, p, w // p, p, 3).transpose(0, 1, 3, 2, 4, 5)
    x = x.reshape(b, -1, p * p * 3) @ kernel.reshape(p * p * 3, -1)
    x = x + array(embedding.bias)
    if model.class_token:
        x = np.concatenate([np.repeat(array(position.cls), b, 0), x], 1)
    x = x + array(position.pos_embedding)
    found = []
    for i in range(model.sizes.depth):
        block = model.get_layer(f"encoderblock_{i}")
        layer = block.attention
        y = norm(x, block.norm1)
        q, k, v = (
            np.einsum("btw,whd->bhtd", y, array(layer.qkv_kernel)[:, j])
            + array(layer.qkv_bias)[j][:, None]
            for j in range(3)
        )
        a = np.exp(np.einsum("bhqd,bhkd->bhqk", q, k) / q.shape[-1] ** 0.5)
        a = a / a.sum(-1, keepdims=True)
        found.append(a[:, :, : block.queries])
        y = np.einsum("bhqk,bhkd,hdw->bqw", a, v, array(layer.out_kernel))
        x = x + y + array(layer.out_bias)
        y = norm(x, block.norm2) @ array(block.mlp_kernel1)
        y = y + array(block.mlp_bias1)
        y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
        x = x + y @ array(block.mlp_kernel2) + array(block.mlp_bias2)
    return found


# Attention


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"depth": 3, "input_shape": (8, 16, 3)},
        {"class_token": False},
        {"include_top": False},
    ],
    ids=["classifier", "not square", "no class token", "all tokens"],
)
def test_attention_is_that_of_the_definition(kwargs):
    model = randomised(**kwargs)
    x = images(model.image_shape)
    found = visualize.attention_weights(model, x)
    expected = by_hand(model, x.astype("float64"))
    assert len(found) == model.sizes.depth
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, atol=1e-5)
        np.testing.assert_allclose(one.sum(-1), 1, atol=1e-5)
    one = model.include_top and model.class_token
    assert found[-1].shape[2] == (1 if one else found[0].shape[2])


def test_attention_of_pixels_is_that_of_scaled_images():
    model = randomised(include_preprocessing=True)
    x = np.random.default_rng(1).integers(0, 256, (2, 16, 16, 3), "uint8")
    scaled = keras_augreg.preprocess_input(x)
    for one, other in zip(
        visualize.attention_weights(model, x),
        visualize.attention_weights(randomised(), scaled),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_attention_in_mixed_precision_has_rows_of_one():
    model = randomised(dtype="mixed_bfloat16")
    first, _ = visualize.attention_weights(model, images())
    assert first.dtype == np.float32
    np.testing.assert_allclose(first.sum(-1), 1, atol=1e-5)


def test_attention_changes_nothing():
    model = randomised()
    before = model.predict(images(), verbose=0)
    visualize.attention_weights(model, images())
    np.testing.assert_array_equal(model.predict(images(), verbose=0), before)


def test_rollout_of_one_block():
    weights = np.array([[[[0.2, 0.8], [1.0, 0.0]], [[0.6, 0.4], [0.0, 1.0]]]])
    # The mean of both heads is [[0.4, 0.6], [0.5, 0.5]].
    expected = [[[0.7, 0.3], [0.25, 0.75]]]
    np.testing.assert_allclose(visualize.rollout([weights]), expected)


def test_rollout_multiplies_from_the_last_block_to_the_first():
    first = np.array([[[[0.2, 0.8], [1.0, 0.0]]]])
    last = np.array([[[[0.5, 0.5]]]])  # only the class token
    # (0.75, 0.25) times ((0.6, 0.4), (0.5, 0.5))
    flow = visualize.rollout([first, last])
    np.testing.assert_allclose(flow, [[[0.575, 0.425]]])


def test_plot_attention():
    model = randomised()
    x = images()[0]
    figure = visualize.plot_attention(model, x, blocks=[0, -1])
    picture, *maps = shown(figure)
    np.testing.assert_allclose(picture, (x + 1) / 2, atol=1e-6)
    first, last = visualize.attention_weights(model, x[None])
    np.testing.assert_allclose(maps[0], first[0, 0, 0, 1:].reshape(4, 4))
    np.testing.assert_allclose(maps[-1], last[0, -1, 0, 1:].reshape(4, 4))
    assert len(maps) == 3 + 1 + 3
    drawn(figure)


def test_plot_rollout():
    model = randomised(class_token=False)
    x = images(n=3)
    figure = visualize.plot_rollout(model, x)
    flow = visualize.rollout(visualize.attention_weights(model, x))
    # All tokens are read: the mean of the rows.
    maps = shown(figure)[4::2]
    np.testing.assert_allclose(
        maps, flow.mean(axis=1).reshape(3, 4, 4), rtol=1e-5
    )
    drawn(figure)


def test_attention_of_a_hybrid():
    model = randomised(hybrid)
    figure = visualize.plot_rollout(model, images((32, 32, 3)))
    assert shown(figure)[3].shape == model.patch_grid == (4, 4)


def test_attention_says_what_is_wrong():
    model = randomised()
    with pytest.raises(ValueError, match=r"\(B, 16, 16, 3\)"):
        visualize.attention_weights(model, images()[0])
    with pytest.raises(ValueError, match=r"shape=\(2, 8, 8, 3\)"):
        visualize.plot_rollout(model, images((8, 8, 3)))
    for blocks in ([2], [-3], []):
        with pytest.raises(
            ValueError, match="`blocks` must be indices from -2"
        ):
            visualize.plot_attention(model, images()[0], blocks)


@pytest.mark.parametrize(
    "function",
    [
        lambda model: visualize.attention_weights(model, images()),
        visualize.plot_position_embeddings,
        visualize.plot_filters,
    ],
)
def test_another_model_is_refused(function):
    with pytest.raises(TypeError, match=r"builder of keras_augreg.*Sequential"):
        function(keras.Sequential())


# Weights


def test_position_embeddings():
    model = randomised(input_shape=(8, 16, 3))
    position = model.get_layer("posembed_input").pos_embedding
    values = np.zeros(position.shape, "float32")
    values[0, 0] = 7  # the class token's, which is left out
    values[0, 1:, :2] = [[1, 0], [0, 2], [3, 0], [-1, 0]] * 2
    position.assign(values)
    figure = visualize.plot_position_embeddings(model)
    (picture,) = shown(figure)[:1]
    assert picture.shape == (2 * 3 - 1, 4 * 5 - 1)
    tile = [[1, 0, 1, -1], [1, 0, 1, -1]]  # of the patch at (0, 0)
    np.testing.assert_allclose(picture[:2, :4], tile, atol=1e-6)
    np.testing.assert_allclose(picture[3:, 15:], -np.array(tile), atol=1e-6)
    assert np.isnan(picture[2]).all()  # the gap between tiles
    drawn(figure)


def test_filters():
    model = randomised()
    kernel = model.get_layer("embedding").kernel
    # All filters lie on one line: the first component has all the variance.
    ramp = np.linspace(0, 1, 4 * 4 * 3).reshape(4, 4, 3)
    kernel.assign(ramp[..., None] * np.linspace(-1, 1, 12))
    figure = visualize.plot_filters(model, count=3)
    assert figure.axes[0].get_title() == "100.0%"
    first = shown(figure)[0]
    # The sign of a component is free.
    assert np.allclose(first, ramp, atol=1e-4) or np.allclose(
        first, 1 - ramp, atol=1e-4
    )
    drawn(figure)


def test_filters_of_a_hybrid_are_its_stems():
    figure = visualize.plot_filters(randomised(hybrid))
    assert [x.shape for x in shown(figure)] == [(7, 7, 3)] * 28


@pytest.mark.parametrize("count", [0, 13])
def test_filters_count(count):
    with pytest.raises(ValueError, match=r"from 1 to 12, .* Received: count="):
        visualize.plot_filters(tiny(), count)


# Recipes


# Other backends compile each operation, which takes a minute; tests/augment
# runs them everywhere.
eager = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="nothing to compile there"
)


@eager
def test_operations(photo):
    figure = visualize.plot_operations(photo, magnitudes=[10])
    assert len(figure.axes) == 8 * 2 * 2
    pictures = shown(figure)
    np.testing.assert_array_equal(pictures[0], photo)
    names = [axis.get_ylabel() for axis in figure.axes]
    place = names.index("Invert") + 1
    np.testing.assert_array_equal(pictures[place], 255 - photo)
    drawn(figure)


def test_recipes_without_augmentation(photo):
    recipes = [keras_augreg.AugReg("none")]
    figure = visualize.plot_recipes(photo, recipes, draws=3)
    pictures = [np.round(255 * x) for x in shown(figure)]
    for picture, expected in zip(
        pictures, [photo, photo[:, ::-1], photo], strict=True
    ):
        np.testing.assert_array_equal(picture, expected)
    assert figure.axes[0].get_ylabel().splitlines() == [
        "none",
        "RandAugment no",
        "Mixup 0",
    ]


@eager
def test_recipes(photo):
    recipes = [keras_augreg.AugReg("heavy2")]
    figure = visualize.plot_recipes(photo, recipes, draws=2)
    pictures = [np.round(255 * x) for x in shown(figure)]
    assert not np.array_equal(pictures[0], photo)
    assert figure.axes[0].get_ylabel().splitlines() == [
        "heavy2 (strong2)",
        "RandAugment (2, 20)",
        "Mixup 0.8",
    ]
    drawn(figure)


# Results


@pytest.mark.once
def test_confusions():
    figure = visualize.plot_confusions(
        np.array([0, 0, 1]), np.array([0, 1, 1]), ["cat", "dog", "cow"]
    )
    (picture,) = shown(figure)
    expected = [[0.5, 0.5, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_array_equal(picture, expected)
    axis = figure.axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert names == ["cat", "dog", "cow"]
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    assert texts == {(0, 0): "1", (1, 0): "1", (1, 1): "1"}
    drawn(figure)


@pytest.mark.once
def test_confusions_of_images_with_several_classes():
    truth = np.array([[1, 1], [0, 1]], bool)
    figure = visualize.plot_confusions(truth, np.array([0, 1]), ["a", "b"])
    np.testing.assert_array_equal(shown(figure)[0], [[1, 0], [0.5, 0.5]])


@pytest.mark.once
def test_confusions_of_many_classes_have_no_names():
    names = [str(i) for i in range(100)]
    figure = visualize.plot_confusions(np.arange(100), np.arange(100), names)
    assert len(figure.axes[0].get_yticklabels()) < 20


@pytest.mark.once
def test_benchmark():
    row = {
        "task": "infer",
        "model": "ViT_S16",
        "image_size": 224,
        "batch_size": 16,
        "dtype": "float32",
    }
    figure = visualize.plot_benchmark([
        {**row, "backend": "jax", "images_per_second": 20.0},
        {**row, "backend": "torch", "images_per_second": 10.0},
    ])  # fmt: skip
    axis = figure.axes[0]
    assert [bar.get_width() for bar in axis.patches] == [20, 10]
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "infer ViT_S16 224 px, batch 16, jax float32",
        "infer ViT_S16 224 px, batch 16, torch float32",
    ]
    drawn(figure)


# Runs


def lines(axis):
    return {
        line.get_label(): np.transpose(line.get_data()).tolist()
        for line in axis.get_lines()
    }


def test_training_of_a_history():
    history = keras.callbacks.History()
    history.epoch = [0, 1, 2, 3]
    history.history = {
        "loss": [4.0, 3.0, 2.0, 1.0],
        "accuracy": [0.1, 0.2, 0.3, 0.4],
        "val_loss": [3.5, 1.5],  # validation_freq=2
    }
    figure = visualize.plot_training(history)
    loss, accuracy = figure.axes
    assert [a.get_title() for a in figure.axes] == ["loss", "accuracy"]
    assert lines(loss) == {
        "training": [[1, 4], [2, 3], [3, 2], [4, 1]],
        "validation": [[2, 3.5], [4, 1.5]],
    }
    assert list(lines(accuracy)) == ["training"]
    drawn(figure)


def test_training_of_a_workdir(tmp_path):
    run = Workdir(tmp_path, {})
    logs = [
        {"step": 10, "loss": 2.0, "val_loss": 2.5},
        {"step": 20, "loss": 1.0, "val_loss": 1.5},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in logs))
    for argument in (run, tmp_path, str(tmp_path)):
        (axis,) = visualize.plot_training(argument).axes
        assert axis.get_xlabel() == "step"
        assert lines(axis) == {
            "training": [[10, 2], [20, 1]],
            "validation": [[10, 2.5], [20, 1.5]],
        }


def test_training_say_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match="first interval has ended"):
        visualize.plot_training(tmp_path)
    history = keras.callbacks.History()
    history.epoch, history.history = [], {}
    with pytest.raises(ValueError, match="Nothing has been recorded"):
        visualize.plot_training(history)


# All of them

COMPILED = ("plot_operations", "plot_recipes")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=eager if n in COMPILED else ()) for n in PUBLIC],
)
def test_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = inspect.cleandoc(getattr(visualize, name).__doc__)
    assert "Example:" in text
    with zero_weights():
        exec(text.split("```python\n")[1].split("```")[0], {})
