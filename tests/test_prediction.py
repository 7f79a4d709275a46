"""`keras_augreg.predict`: from files, folders and arrays to names."""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import warnings

import keras
import numpy as np
import PIL.Image
import pytest

import keras_augreg
from keras_augreg import prediction

NAMES = ["dark", "light"]


@pytest.fixture(scope="module")
def model():
    """Tells dark images from light ones, with logits of -1 and 1."""
    model = keras_augreg.VisionTransformer(
        patch_size=8,
        width=8,
        depth=1,
        num_heads=1,
        mlp_dim=8,
        input_shape=(16, 16, 3),
        class_token=False,
        class_names=NAMES,
        classes=2,
    )
    features = keras.Model(model.input, model.get_layer("pool").output)
    pixels = np.stack([np.full((16, 16, 3), n, "uint8") for n in (10, 245)])
    dark, light = features.predict(pixels, verbose=0)
    direction = (light - dark) / np.square(light - dark).sum()
    head = model.get_layer("head")
    head.kernel.assign(np.stack([-direction, direction], axis=1) * 2)
    middle = (light + dark) @ direction
    head.bias.assign([middle, -middle])
    return model


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images whose middle is light or dark, and whose sides are not."""
    folder = tmp_path_factory.mktemp("photos")
    for i, (middle, name) in enumerate(
        ((10, "a.jpg"), (245, "b.PNG"), (245, "more/c.webp"))
    ):
        pixels = np.full((60, 300, 3), 255 - middle, "uint8")
        pixels[:, 100:200] = middle
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        PIL.Image.fromarray(pixels).save(path)
        (folder / f"notes{i}.txt").touch()
    (folder / "__MACOSX").mkdir()
    for junk in ("._a.jpg", "__MACOSX/a.jpg"):
        (folder / junk).touch()
    return folder


def command(folder, *arguments):
    """Runs `python -m keras_augreg predict` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", "keras_augreg", "predict", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_in_batches(model, photos):
    for batch_size in (1, 2, 32):
        found = keras_augreg.predict(model, photos, batch_size=batch_size)
        assert [p.classes[0][0] for p in found] == ["dark", "light", "light"]
        assert [p.image for p in found] == [
            str(photos / name) for name in ("a.jpg", "b.PNG", "more/c.webp")
        ]
    share = 1 / (1 + np.exp(-2))
    assert found[0].classes[0][1] == pytest.approx(share, abs=0.01)
    assert str(found[0]) == f"{photos / 'a.jpg'}: dark 88%, light 12%"


def test_every_kind_of_image(model, photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos))
    pillow = PIL.Image.open(photos / "b.PNG")
    array = np.asarray(pillow)
    batch = np.full((2, 16, 16, 3), 245.0, "float32")
    found = keras_augreg.predict(
        model,
        ["~/b.PNG", pillow, array, array.astype("float32"), batch,
         keras.ops.convert_to_tensor(array)],
        top=1,
    )  # fmt: skip
    assert [p.classes[0][0] for p in found] == ["light"] * 7
    assert found[1].image == "image 0"
    files = [str(photos / "a.jpg"), str(photos / "b.PNG")]
    expected = keras_augreg.predict(model, files)
    for images in (
        np.array(files),
        np.array([*map(pathlib.Path, files)]),
        np.array(files, object),
        (file for file in files),
    ):
        assert keras_augreg.predict(model, images) == expected
    for wrong in (None, [None], np.array([None]), 3, b"", {"image": array}):
        with pytest.raises(TypeError, match="`images` must be an image file"):
            keras_augreg.predict(model, wrong)


def test_pillow_images_are_read_as_their_files(model, tmp_path):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 80, 4), "uint8")
    pixels[:, :40] //= 4
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # lies on its side
    rgb = PIL.Image.fromarray(pixels[..., :3])
    rgb.save(tmp_path / "turned.jpg", exif=exif)
    PIL.Image.fromarray(pixels).save(tmp_path / "transparent.png")
    deep = pixels[..., 0].astype("uint16") * 257
    PIL.Image.fromarray(deep).save(tmp_path / "deep.png")
    rgb.resize((16, 16)).save(tmp_path / "fits.png")
    files = sorted(tmp_path.iterdir())
    (read, given) = (
        [p.classes for p in keras_augreg.predict(model, images)]
        for images in (files, [PIL.Image.open(file) for file in files])
    )
    assert read == given
    assert len({classes[0][1] for classes in read}) == 4
    with pytest.raises(ValueError, match="image 0: its pixels are floats"):
        keras_augreg.predict(model, PIL.Image.new("F", (16, 16)))


def test_floats_that_seem_scaled(model):
    photo = np.random.default_rng(0).random((40, 60, 3), "float32")
    bare = model.get_config() | {"include_preprocessing": False}
    bare = keras_augreg.VisionTransformer.from_config(bare)
    for takes, image, options in (
        (model, photo, {}),
        (model, photo * 2 - 1, {}),
        (model, photo[:16, :16], {"tta": "crops"}),
        (model, photo[:16, :16], {}),  # The model's own warning.
        (bare, photo[:16, :16], {}),
    ):
        with pytest.warns(UserWarning, match="are floats from") as found:
            keras_augreg.predict(takes, image, **options)
        ours = [w for w in found if "are floats from" in str(w.message)]
        assert [w.filename for w in ours] == [__file__]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "The images are floats")
        keras_augreg.predict(model, [photo * 255, photo])


def test_a_saved_model_and_one_with_logits(model, photos, tmp_path):
    model.save(tmp_path / "model.keras")
    expected = keras_augreg.predict(model, photos)
    assert keras_augreg.predict(tmp_path / "model.keras", photos) == expected
    config = model.get_config()
    config |= {"classifier_activation": None, "class_names": None}
    logits = keras_augreg.VisionTransformer.from_config(config)
    logits.set_weights(model.get_weights())
    ((_, classes), *_) = keras_augreg.predict(logits, photos)
    assert classes[0] == ("0", pytest.approx(expected[0].classes[0][1]))


def test_one_class_own_heads_and_nested_models(model):
    photo = np.full((16, 16, 3), 245, "uint8")

    def found(model):
        ((_, classes),) = keras_augreg.predict(model, photo)
        return classes

    own = {"include_top": True, "classes": 1, "class_names": None}
    for names, activation, want in (
        (None, None, ["0", "1"]),
        (["cat"], "sigmoid", ["not cat", "cat"]),
    ):
        config = model.get_config() | own
        config |= {"classifier_activation": activation, "class_names": names}
        one = keras_augreg.VisionTransformer.from_config(config)
        one.get_layer("head").bias.assign([-3.0])
        assert [name for name, _ in found(one)] == want
        shares = [share for _, share in found(one)]
        assert shares == pytest.approx([0.95257, 0.04743], abs=1e-4)
    nested = keras.Sequential([keras.Input((16, 16, 3)), model])
    assert found(nested) == found(model)
    head = keras.layers.Dense(2)
    logits = head(model.get_layer("pool").output)
    head.set_weights(model.get_layer("head").get_weights())
    own_head = keras.Model(model.input, logits)
    shares = [share for _, share in found(model)]
    assert [s for _, s in found(own_head)] == pytest.approx(shares, rel=1e-4)


@pytest.mark.once
def test_errors(model, photos, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    whole = (photos / "a.jpg").read_bytes()
    (tmp_path / "cut" / "a.jpg").write_bytes(whole[:500])
    for images, message in (
        (tmp_path / "pipe.jpg", r"pipe\.jpg.*not a regular file.*\. Repair"),
        ("nothing.jpg", "No such file or folder: 'nothing.jpg'"),
        (tmp_path / "empty", "No image files in the folder"),
        (photos / "notes0.txt", r"Cannot read the image .*notes0.*\. Repair"),
        (tmp_path / "cut", r"cut/a\.jpg' \(500 bytes\).*Repair, move or del"),
        (np.zeros((3, 16, 16)), "has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            keras_augreg.predict(model, images)
    with pytest.raises(ValueError, match=r"No such file: 'model.keras'"):
        keras_augreg.predict("model.keras", photos)
    for wrong in (None, np.zeros(3), keras.Model):
        with pytest.raises(TypeError, match="`model` must be a Keras model"):
            keras_augreg.predict(wrong, photos)


@pytest.mark.once
def test_models_without_a_head(model, photos, tmp_path):
    config = model.get_config() | {"include_top": False, "class_names": None}
    maps = keras_augreg.VisionTransformer.from_config(config)
    pooled = keras_augreg.VisionTransformer.from_config(
        config | {"pooling": "avg"}
    )
    image = keras.Input((16, 16, 3))
    for wrong in (
        maps,
        pooled,
        keras.Model(image, pooled(image)),
        keras.Model(model.input, model.get_layer("pool").output),
        keras_augreg.FeatureExtractor(model, [0, -1]),
        keras.Model(image, [pooled(image), pooled(image)]),
    ):
        with pytest.raises(ValueError, match="no classifier, build it with"):
            keras_augreg.predict(wrong, photos)
    scores = keras.layers.Dense(2, "softmax")(pooled(image))
    for good in (keras.Model(image, scores), keras.Model([image], [scores])):
        assert len(keras_augreg.predict(good, photos)) == 3
    pooled.save(tmp_path / "model.keras")
    done = command(tmp_path, "model.keras", photos)
    assert done.returncode == 1
    assert "no classifier, build it with include_top=True" in done.stderr


@pytest.mark.parametrize("stages", [None, ()])
def test_models_that_do_not_scale_in_others(photos, stages):
    bare = keras_augreg.VisionTransformer(
        4, 8, 1, 1, 8, stages, input_shape=(16, 16, 3), classes=2,
        include_preprocessing=False,
    )  # fmt: skip
    head = bare.get_layer("head")
    head.kernel.assign(np.random.default_rng(0).normal(size=(8, 2)))
    image = keras.Input((16, 16, 3))
    pooled = bare.get_layer("pool").output
    nested = keras.Model(image, bare(image))
    scaled = keras.layers.Rescaling(1 / 127.5, -1)(image)
    shares = [
        [dict(p.classes)["0"] for p in keras_augreg.predict(m, photos)]
        for m in (
            bare,
            nested,
            keras.Sequential([image, nested]),
            keras.Model(bare.input, keras.layers.Softmax()(head(pooled))),
            keras.Model(image, bare(scaled)),
        )
    ]
    np.testing.assert_allclose(shares, [shares[0]] * 5, rtol=1e-4)
    assert np.ptp(shares[0]) > 1e-3


def test_models_of_any_size_in_others(model, photos, tmp_path):
    config = model.get_config() | {"dynamic_image_size": True}
    any_size = keras_augreg.VisionTransformer.from_config(config)
    any_size.set_weights(model.get_weights())
    image = keras.Input((None, None, 3))
    around = keras.Model(image, any_size(image))
    around.save(tmp_path / "model.keras")
    shares = [
        [p.classes[0][1] for p in keras_augreg.predict(m, photos)]
        for m in (model, any_size, around, tmp_path / "model.keras")
    ]
    np.testing.assert_allclose(shares, [shares[0]] * 4, rtol=1e-5)
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    plain = keras.Model(image, keras.layers.Dense(2)(pooled))
    with pytest.raises(ValueError, match=r"keras.Input\(\(height, width, 3"):
        keras_augreg.predict(plain, photos)
    sized = keras.Sequential([keras.Input((16, 16, 3)), plain])
    assert len(keras_augreg.predict(sized, photos)) == 3


@pytest.mark.once
@pytest.mark.parametrize("argument", ["top", "batch_size"])
def test_numbers_of_at_least_1(model, argument):
    photo = np.zeros((16, 16, 3), "uint8")
    for wrong in (0, -1, "3", None, 2.0, True):
        with pytest.raises(ValueError, match=f"`{argument}` must be an integ"):
            keras_augreg.predict(model, photo, **{argument: wrong})
    (found,) = keras_augreg.predict(model, photo, **{argument: np.int64(1)})
    assert found.classes[0][0] == "dark"


# Test-time augmentation and submissions


def share(prediction, name="light"):
    return dict(prediction.classes)[name]


def test_views_are_averaged(model):
    """A scene whose left half is light: views see more or less of it."""
    scene = np.zeros((64, 64, 3), "uint8")
    scene[:, :32] = 255
    rng = np.random.default_rng(0)
    scene[rng.integers(0, 64, 300), rng.integers(0, 64, 300)] = 200
    size, whole = 16, np.asarray(PIL.Image.fromarray(scene))
    larger = prediction._pixels(whole, "", (18, 18, 3), inner=False)
    views = [
        larger[y : y + size, x : x + size]
        for y, x in [(0, 0), (0, 2), (2, 0), (2, 2), (1, 1)]
    ]
    views += [view[:, ::-1] for view in views]
    expected = [share(p) for p in keras_augreg.predict(model, views)]
    assert np.ptp(expected) > 0
    (found,) = keras_augreg.predict(model, scene, tta="crops")
    assert share(found) == pytest.approx(np.mean(expected), abs=1e-5)
    # Several photos, the last batch not full.
    scenes = [scene, scene[:, ::-1], scene.transpose(1, 0, 2)]
    found = keras_augreg.predict(model, scenes, tta="flip", batch_size=2)
    for image, one in zip(scenes, found, strict=True):
        both = keras_augreg.predict(model, [image, image[:, ::-1]])
        mean = np.mean([share(p) for p in both])
        assert share(one) == pytest.approx(mean, abs=1e-5)


def test_averaged_views_become_a_submission(model, photos, tmp_path):
    (tmp_path / "sample.csv").write_text("id,label\nb,\na,\n")
    found = keras_augreg.predict(model, photos, tta="crops", batch_size=2)
    path = keras_augreg.submission(
        found, tmp_path / "sample.csv", tmp_path / "submission.csv"
    )
    assert path.read_text().split() == ["id,label", "b,light", "a,dark"]


@pytest.mark.once
def test_tta_that_is_none(model):
    with pytest.raises(ValueError, match=r"`tta` must be one of \(None, 'flip"):
        keras_augreg.predict(model, np.zeros((16, 16, 3), "uint8"), tta=True)


@pytest.mark.once
def test_submissions_have_the_form_of_the_sample(tmp_path):
    predictions = [
        prediction.Prediction(f"test/{name}.jpg", [(best, 0.75), (other, 0.25)])
        for name, best, other in [
            ("b", "dark", "light"),
            ("a", "light", "dark"),
            ("c", "dark", "light"),
        ]
    ]

    def write(sample, **options):
        (tmp_path / "sample.csv").write_text(sample)
        path = keras_augreg.submission(
            predictions, tmp_path / "sample.csv", tmp_path / "s.csv", **options
        )
        return path.read_text().splitlines()

    one = "id,label\na,x\nb.jpg,x\n"
    assert write(one) == ["id,label", "a,light", "b.jpg,dark"]
    assert write(one, value="dark")[1:] == ["a,0.25", "b.jpg,0.75"]
    assert write("id,light,dark\na,,\n") == ["id,light,dark", "a,0.75,0.25"]
    with pytest.raises(ValueError, match=r"Row 1 of .*no prediction for 'd'"):
        write("id,label\nd,\n")
    with pytest.raises(ValueError, match="one column besides the first"):
        write("id,light,dark\na,,\n", value="dark")
    with pytest.raises(ValueError, match="no class 'grey'"):
        write("id,grey,dark\na,,\n")
    with pytest.raises(ValueError, match="must have a column of image names"):
        write("")
    assert (tmp_path / "s.csv").read_text() == "id,light,dark\na,0.75,0.25\n"


@pytest.mark.once
def test_images_of_the_same_name_in_submissions(tmp_path):
    (tmp_path / "sample.csv").write_text("id,label\nb/1.jpg,\na/1,\n")
    both = [
        prediction.Prediction(f"test/{n}/1.jpg", [(n, 1.0)]) for n in ("a", "b")
    ]
    write = functools.partial(
        keras_augreg.submission,
        both,
        tmp_path / "sample.csv",
        tmp_path / "out.csv",
    )
    assert write().read_text().split() == ["id,label", "b/1.jpg,b", "a/1,a"]
    (tmp_path / "sample.csv").write_text("id,label\n1.jpg,\n")
    with pytest.raises(ValueError, match=r"several images are called '1\.jpg'"):
        write()


@pytest.mark.once
@pytest.mark.parametrize(
    ("flag", "cells"),
    [("--tta=flip", ["light", "dark"]), ("--value=dark", ["0.1", "0.9"])],
)
def test_command_that_writes_a_submission(model, photos, tmp_path, flag, cells):
    model.save(tmp_path / "model.keras")
    (tmp_path / "sample.csv").write_text("id,label\nb,\na,\n")
    done = command(
        tmp_path, flag, "--sample=sample.csv", "model.keras",
        photos / "a.jpg", photos / "b.PNG",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    header, *rows = (tmp_path / "submission.csv").read_text().splitlines()
    names, found = zip(*(row.split(",") for row in rows), strict=True)
    if flag == "--value=dark":
        found = [f"{float(share):.1f}" for share in found]
    assert (header, *names, *found) == ("id,label", "b", "a", *cells)
