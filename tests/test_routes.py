"""Every way from pixels to logits gives the same numbers."""

from __future__ import annotations

import warnings

import keras
import numpy as np
import pytest
from _checkpoints import CLASSES, hybrid, tiny

import keras_augreg
from keras_augreg import data
from keras_augreg.preprocessing import first_images, warn_if_scaled
from keras_augreg.training.fewshot import features_model

BACKEND = keras.backend.backend()
LABELS = np.arange(4) % CLASSES


def model_of_pixels(**kwargs):
    model = tiny(include_preprocessing=True, **kwargs)
    rng = np.random.default_rng(0)
    for weight in model.trainable_variables:
        weight.assign(0.3 * rng.standard_normal(weight.shape))
    return model


@pytest.fixture(scope="module")
def pixels():
    """Smooth pictures with all values from 0 to 255."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def folder(pixels, tmp_path):
    from PIL import Image

    for i, image in enumerate(pixels):
        path = tmp_path / "images" / f"class_{i}" / "0.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images"


def looked_at(data):
    return first_images(data, warn_if_scaled)


def predict(model, x):
    return np.asarray(model.predict(x, verbose=0))


def from_load(model, x, folder):
    batches, _ = data.load(
        folder,
        "train",
        image_size=16,
        batch_size=4,
        training=False,
        preprocess="resize",
    )
    return predict(model, batches)


def from_directory(model, x, folder):
    pytest.importorskip("tensorflow")
    batches = keras.utils.image_dataset_from_directory(
        folder, image_size=(16, 16), batch_size=2, shuffle=False, verbose=False
    )
    return predict(model, batches)


def from_tf_data(model, x, folder):
    tf = pytest.importorskip("tensorflow")
    batches = tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(2)
    return predict(model, batches)


def from_loader(model, x, folder):
    torch = pytest.importorskip("torch")
    examples = torch.utils.data.TensorDataset(
        torch.tensor(x), torch.tensor(LABELS)
    )
    return predict(model, torch.utils.data.DataLoader(examples, batch_size=2))


def from_generator(model, x, folder):
    return predict(model, ((x[i : i + 2], LABELS[i : i + 2]) for i in (0, 2)))


class Batches(keras.utils.PyDataset):
    def __init__(self, x):
        super().__init__()
        self.x = x

    def __len__(self):
        return 2

    def __getitem__(self, i):
        return self.x[2 * i : 2 * i + 2], LABELS[2 * i : 2 * i + 2]


def from_saved_model(model, x, folder):
    if BACKEND == "torch":
        pytest.skip("Keras exports no TF SavedModel from PyTorch")
    tf = pytest.importorskip("tensorflow")
    path = str(folder / "saved_model")
    model.export(path, format="tf_saved_model", verbose=False)
    served = tf.saved_model.load(path)
    return served.serve(x.astype("float32")).numpy()


def from_onnx(model, x, folder):
    if BACKEND != "tensorflow":
        pytest.skip("jax2onnx is not installed; PyTorch: see test_export_onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("tf2onnx")
    path = str(folder / "model.onnx")
    model.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path)
    feed = {session.get_inputs()[0].name: x.astype("float32")}
    return session.run(None, feed)[0]


def from_keras_file(model, x, folder):
    model.save(folder / "model.keras")
    return predict(keras.saving.load_model(folder / "model.keras"), x)


def from_weights_file(model, x, folder):
    model.save_weights(folder / "model.weights.h5")
    other = tiny(include_preprocessing=True)
    keras_augreg.checkpoints.load(other, folder / "model.weights.h5")
    return predict(other, x)


def from_features(model, x, folder):
    head = model.get_layer("head")
    features = predict(features_model(model), x)
    return features @ head.kernel.numpy() + head.bias.numpy()


def from_clone(model, x, folder):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    return predict(clone, x)


def from_resizing(model, x, folder):
    return predict(keras.Sequential([keras.layers.Resizing(16, 16), model]), x)


def from_nested(model, x, folder):
    inputs = keras.Input((16, 16, 3), dtype="uint8")
    return predict(keras.Model(inputs, model(inputs)), x)


def from_sub_model(model, x, folder):
    body = keras.Model(model.inputs, model.get_layer("encoderblock_0").output)
    rest = keras.Model(model.get_layer("encoderblock_0").output, model.output)
    return predict(rest, predict(body, x))


def from_input_tensor(model, x, folder):
    other = tiny(
        include_preprocessing=True,
        input_tensor=keras.Input((16, 16, 3), dtype="int32"),
    )
    other.set_weights(model.get_weights())
    return predict(other, x)


def scaled_before(model, x, folder):
    other = tiny(include_preprocessing=False)
    other.set_weights(model.get_weights())
    return predict(other, keras_augreg.preprocess_input(x))


ROUTES = {
    "numpy uint8": lambda model, x, _: predict(model, x),
    "numpy float32": lambda model, x, _: predict(model, x.astype("float32")),
    "numpy float64": lambda model, x, _: predict(model, x.astype("float64")),
    "call": lambda model, x, _: keras.ops.convert_to_numpy(model(x)),
    "predict_on_batch": lambda model, x, _: np.asarray(
        model.predict_on_batch(x)
    ),
    "list": lambda model, x, _: predict(model, [x]),
    "dict": lambda model, x, _: predict(model, {"image": x}),
    "data.load": from_load,
    "image_dataset_from_directory": from_directory,
    "tf.data": from_tf_data,
    "DataLoader": from_loader,
    "generator": from_generator,
    "PyDataset": lambda model, x, _: predict(model, Batches(x)),
    "SavedModel": from_saved_model,
    "ONNX": from_onnx,
    ".keras": from_keras_file,
    ".weights.h5": from_weights_file,
    "features": from_features,
    "clone": from_clone,
    "Sequential with Resizing": from_resizing,
    "nested": from_nested,
    "sub-model": from_sub_model,
    "input_tensor": from_input_tensor,
    "scaled before": scaled_before,
}


@pytest.fixture(scope="module")
def model():
    return model_of_pixels()


@pytest.fixture(scope="module")
def expected(model, pixels):
    """Logits of the same weights for images that were scaled by hand."""
    by_hand = tiny(include_preprocessing=False)
    by_hand.set_weights(model.get_weights())
    logits = by_hand(pixels.astype("float32") / 127.5 - 1)
    logits = keras.ops.convert_to_numpy(logits)
    assert np.ptp(logits, axis=0).min() > 0.01
    return logits


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_same_logits(
    route, model, expected, pixels, folder
):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The images are floats")
        found = ROUTES[route](model, pixels, folder)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


# Images that were scaled before


@pytest.fixture(scope="module")
def compiled():
    model = model_of_pixels(depth=1)
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


CALLS = {
    "fit": lambda m, x: m.fit(x, LABELS, epochs=2, verbose=0),
    "evaluate": lambda m, x: m.evaluate(x, LABELS, verbose=0),
    "predict": lambda m, x: m.predict(x, verbose=0),
    "train_on_batch": lambda m, x: m.train_on_batch(x, LABELS),
    "test_on_batch": lambda m, x: m.test_on_batch(x, LABELS),
    "predict_on_batch": lambda m, x: m.predict_on_batch(x),
    "call": lambda m, x: m(x),
    "fit on tf.data": lambda m, x: m.fit(
        tf_data(x), validation_data=tf_data(x), epochs=2, verbose=0
    ),
}


@pytest.mark.parametrize("way", CALLS)
def test_every_call_notices_scaled_images_once(way, compiled, pixels):
    with pytest.warns(UserWarning, match="include_preprocessing=False") as seen:
        CALLS[way](compiled, (pixels / 255).astype("float32"))
    found = [w for w in seen if "The images are floats" in str(w.message)]
    assert len(found) == 1


def test_a_model_without_preprocessing_does_not_warn(pixels):
    model = tiny(include_preprocessing=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The images are floats")
        model(keras_augreg.preprocess_input(pixels))


@pytest.mark.parametrize("way", CALLS)
def test_a_model_without_preprocessing_refuses_integers(way, pixels):
    model = tiny(include_preprocessing=False)
    model.compile("sgd", "sparse_categorical_crossentropy")
    with pytest.raises(ValueError, match=r"preprocess_input.*dtype=uint8"):
        CALLS[way](model, pixels)


def tf_data(x, shuffled=False):
    tf = pytest.importorskip("tensorflow")
    examples = tf.data.Dataset.from_tensor_slices((x, LABELS))
    if shuffled:
        examples = examples.shuffle(4, seed=1)
    return examples.batch(2)


def loader(x):
    torch = pytest.importorskip("torch")
    examples = torch.utils.data.TensorDataset(
        torch.tensor(x), torch.tensor(LABELS)
    )
    return torch.utils.data.DataLoader(examples, batch_size=2)


KINDS = {
    "array": lambda x: x,
    "list of one array": lambda x: [x],
    "dict": lambda x: {"image": x},
    "tensor": keras.ops.convert_to_tensor,
    "tf.data": tf_data,
    "tf.data of images": lambda x: tf_data(x).map(lambda x, y: x),
    "DataLoader": loader,
    "generator": lambda x: ((x[i : i + 2], LABELS[:2]) for i in (0, 2)),
    "PyDataset": Batches,
}
RANGES = {
    "scaled": (True, lambda x: (x / 127.5 - 1).astype("float32")),
    "in [0, 1]": (True, lambda x: x / 255),
    "integers": (False, lambda x: x % 2),
    "pixels": (False, lambda x: x.astype("float32")),
    "constant": (False, lambda x: np.zeros(x.shape, "float32")),
}


@pytest.mark.parametrize("values", RANGES)
@pytest.mark.parametrize("kind", KINDS)
def test_scaled_images_are_noticed_in_every_kind_of_data(kind, values, pixels):
    warns, change = RANGES[values]
    x = change(pixels)
    given = KINDS[kind](x)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        batches = looked_at(given)
        if kind == "generator" or kind.startswith("tf.data"):
            batches = [
                batch[0] if isinstance(batch, tuple) else batch
                for batch in batches
            ]
            # Nothing is lost and nothing is out of order.
            np.testing.assert_allclose(np.concatenate(batches), x, rtol=1e-6)
        else:
            assert batches is given
    found = [w for w in seen if "The images are floats" in str(w.message)]
    assert len(found) == warns


# Images that a model cannot take


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:, 0], r"shape=\(.*, 16, 3\).*images\[None\]"),
        (lambda x: x[:, None], r"shape=\(.*, 1, 16, 16, 3\).*four axes"),
        (lambda x: x[..., :1], r"repeat\(images, 3, axis=-1\)"),
        (lambda x: np.repeat(x, 2, axis=3), "Make them RGB"),
        (lambda x: x.transpose(0, 3, 1, 2), "channels last: keras.ops.transp"),
        (lambda x: x[:, :8], r"Resize them.*input_shape=\(8, 16, 3\)"),
    ],
    ids=["rank 3", "rank 5", "grey", "six channels", "channels first", "size"],
)
def test_wrong_shapes_are_refused_and_cost_no_weights(
    change, message, compiled, pixels
):
    x = change(pixels)
    calls = [
        *CALLS.values(),
        lambda m, x: m.predict(loader(x), verbose=0),
        lambda m, x: m.fit(Batches(x), verbose=0),
        lambda m, x: m.fit(KINDS["generator"](x), verbose=0),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call(compiled, x)
    assert compiled(pixels).shape == (4, CLASSES)


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"image": x}])
def test_lists_and_dicts_of_images_train(wrap, pixels):
    recipe = keras_augreg.AugReg("medium1")
    losses = []
    for x in (pixels, wrap(pixels)):
        model = tiny(include_preprocessing=True, depth=1, seed=0)
        for weight in model.trainable_variables:
            weight.assign(0.01 * np.ones(weight.shape))
        keras_augreg.compile_pretraining(
            model, recipe, total_steps=2, warmup_steps=1, seed=0
        )
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The structure of")
            history = model.fit(x, LABELS, shuffle=False, verbose=0)
        losses += history.history["loss"]
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("make", "options", "shape"),
    [
        (tiny, {}, (CLASSES,)),
        (tiny, {"dtype": "mixed_bfloat16"}, (CLASSES,)),
        (tiny, {"include_top": False, "pooling": "avg"}, (12,)),
        (tiny, {"include_top": False, "class_token": False}, (16, 12)),
        (hybrid, {}, (CLASSES,)),
    ],
)
def test_no_images_give_no_results(make, options, shape):
    model = make(**options)
    x = np.zeros((0, *model.image_shape), "float32")
    for y in (
        model(x),
        model(x, training=True),
        model.predict_on_batch(x),
        model.predict(x, verbose=0),
        model.predict([x], verbose=0),
    ):
        assert tuple(y.shape) == (0, *shape)


def test_an_empty_generator_stays_empty():
    assert list(looked_at(x for x in ())) == []


def test_looking_changes_no_order(pixels):
    """A data set's own shuffling draws as it would have without a look."""
    tf = pytest.importorskip("tensorflow")
    seen = []

    def note(x, y):
        tf.numpy_function(lambda y: seen.extend(y.tolist()), [y], [])
        return x, y

    def orders(run):
        seen.clear()
        tf.random.set_seed(0)
        batches = tf_data(pixels.astype("float32"), shuffled=True).map(note)
        run(batches)
        return list(seen)

    def passes(batches):
        for _ in range(3):
            list(batches)

    expected = orders(passes)
    assert len({tuple(expected[i : i + 4]) for i in (0, 4, 8)}) > 1
    assert orders(lambda x: passes(looked_at(x))) == expected


def test_looking_draws_no_random_numbers(pixels):
    """Examples that draw from NumPy's and PyTorch's generators."""
    torch = pytest.importorskip("torch")

    class Examples(torch.utils.data.Dataset):
        def __init__(self):
            self.seen = []

        def __len__(self):
            return 4

        def __getitem__(self, i):
            self.seen.append((i, np.random.rand(), torch.rand(()).item()))
            return pixels[i].astype("float32"), LABELS[i]

    found = []
    for scales in (True, False):
        examples = Examples()
        batches = torch.utils.data.DataLoader(examples, 2, shuffle=True)
        np.random.seed(0)
        torch.manual_seed(0)
        list(looked_at(batches) if scales else batches)
        found.append(examples.seen[int(scales) :])
    assert found[0] == found[1]
