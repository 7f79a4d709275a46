"""From photos to the names of what a model sees in them."""

from __future__ import annotations

import collections
import csv
import io
import os
import pathlib
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np

import keras_augreg.models as builders
from keras_augreg.around import class_names, ends, image_shape, takes_scaled
from keras_augreg.atomic import replacing
from keras_augreg.checks import at_least, check_choice
from keras_augreg.labels import best_classes
from keras_augreg.preprocessing import only, preprocess_input, warn_if_scaled
from keras_augreg.variants import match
from keras_augreg.vit import Pool

# Red, green and blue in a grey level, as Pillow's (ITU-R 601-2).
GREY = np.array([0.299, 0.587, 0.114])
# Number of views for each `tta`.
VIEWS = {None: 1, "flip": 2, "crops": 10}


class Prediction(NamedTuple):
    """What a model sees in an image; prints as `cat.jpg: cat 98%, dog 1%`."""

    image: str  # the file, or "image 0" of an array
    classes: list[tuple[str, float]]  # (name, probability), best first

    def __str__(self) -> str:
        found = (f"{name} {share:.0%}" for name, share in self.classes)
        return f"{self.image}: {', '.join(found)}"


def predict(
    model: Any,
    images: Any,
    top: int = 5,
    batch_size: int = 32,
    tta: str | None = None,
) -> list[Prediction]:
    """Names what is in photos.

    Photos are decoded, upright and in RGB, and resized and cropped as
    `keras_augreg.data.load` does for an evaluation: the middle of the photo,
    or all of it where its smaller side has at most 32 pixels. The names are
    the model's `class_names`, those of ImageNet, or numbers. A model of one
    class decides between two: `"cat"` and `"not cat"`, or `"1"` and `"0"`.
    Outputs of a model that ends in a layer without activation are logits, of
    which the softmax is taken, or the sigmoid of a single one.

    Args:
        model: A classifier of images (B, H, W, 3), such as a
            `VisionTransformer`; a `.keras` file; or the name of an
            architecture, `"ViT_B16"`, for its default weights.
        images: An image file, a folder (with all image files in it and below),
            a Pillow image, an array (h, w, 3) or (B, h, w, 3) of pixels from 0
            to 255, or a list, an array or a generator of these.
        top: Number of classes to name, at least 1; all if there are fewer.
        batch_size: Images that the model gets at once, at least 1.
        tta: Views of each photo whose probabilities are averaged (test-time
            augmentation): `"flip"` for the photo and its mirror image;
            `"crops"` for the middle and four corners of the photo's central
            square, also mirrored, which costs ten times as much. `None` for
            only the photo.

    Returns:
        A `Prediction` for each image; those of a folder in the order of their
        paths.

    Raises:
        ValueError: An argument is not as above, or an image cannot be read.
        TypeError: `model` or `images` is something else.

    Example:
    ```python
    import numpy as np
    import keras_augreg

    model = keras_augreg.ViT_Ti16(
        weights=None, input_shape=(32, 32, 3), class_names=["cat", "dog"]
    )
    photo = np.zeros((60, 40, 3), "uint8")
    (prediction,) = keras_augreg.predict(model, photo)
    assert prediction.classes == [("cat", 0.5), ("dog", 0.5)]
    ```
    """
    check_choice("tta", tta, VIEWS)
    top = at_least(1, "top", top)
    batch_size = at_least(1, "batch_size", batch_size)
    model = _model(model)
    _check_classifier(model)
    shape = image_shape(model)
    found = list(_find(images, shape[2]))
    scales = takes_scaled(model)
    # Of floats that it gets as they are, the model itself warns.
    untouched = None if scales or tta == "crops" else shape
    floats = [x for _, x in found if _is_floats(x) and x.shape != untouched]
    if floats:
        values = np.concatenate([x.reshape(-1) for x in floats[:4]])
        warn_if_scaled(values[None], "`predict`", otherwise="")
    named: list[Prediction] = []
    for start in range(0, len(found), batch_size):
        part = found[start : start + batch_size]
        batch = np.concatenate(
            [_views(image, name, shape, tta) for name, image in part]
        )
        if start:  # The same shape again: nothing is recompiled.
            missing = batch_size * VIEWS[tta] - len(batch)
            batch = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
        if scales:
            batch = keras.ops.convert_to_numpy(preprocess_input(batch))
        scores = model.predict(batch, batch_size, verbose=0)
        scores, names = _probabilities(model, scores)
        scores = scores[: len(part) * VIEWS[tta]]
        scores = scores.reshape(len(part), VIEWS[tta], -1).mean(axis=1)
        best = best_classes(scores, min(top, scores.shape[1]), names)
        named += [
            Prediction(name, [(label, score) for _, label, score in row])
            for (name, _), row in zip(part, best, strict=True)
        ]
    return named


def _probabilities(model: Any, scores: np.ndarray) -> tuple[np.ndarray, Any]:
    """Probabilities of what a model returned, and names of the classes."""
    last = ends(model)[-1]
    names: Any = class_names(model)
    one = scores.shape[1] == 1
    if getattr(last, "activation", None) is keras.activations.linear:
        function = keras.ops.sigmoid if one else keras.ops.softmax
        scores = keras.ops.convert_to_numpy(function(scores))
    if one:
        scores = np.concatenate([1 - scores, scores], axis=1)
        names = (f"not {names[0]}", names[0]) if names else None
    return scores, names


def submission(
    predictions: list[Prediction],
    sample: str | pathlib.Path,
    path: str | pathlib.Path = "submission.csv",
    value: str | None = None,
) -> pathlib.Path:
    r"""Writes predictions in the form of a sample submission, as on Kaggle.

    Args:
        predictions: What `predict(..., top=...)` returned for the files that
            the sample's first column names, with or without extension. `top`
            must be the number of classes if probabilities are written.
        sample: A CSV file, whose header and order of rows are kept. With one
            column besides the first, it gets the name of the best class; with
            several, each the probability of the class that it is called.
        path: The file to write. One that exists is replaced.
        value: The class whose probability the only column gets, instead of
            the best class's name.

    Returns:
        The path.

    Raises:
        ValueError: If a row has no prediction, or a column is not a class.

    Example:
    ```python
    import pathlib
    from keras_augreg.prediction import Prediction, submission

    pathlib.Path("sample.csv").write_text("id,label\na,?\n")
    predictions = [Prediction("test/a.jpg", [("cat", 0.9), ("dog", 0.1)])]
    path = submission(predictions, "sample.csv")
    assert path.read_text().split() == ["id,label", "a,cat"]
    ```
    """
    from keras_augreg.data import tables

    where, cells = tables.read(sample)
    header = list(cells)
    if len(header) < 2:
        raise ValueError(
            f"{where} must have a column of image names and at least one for "
            f"predictions. Received: columns={header}"
        )
    if value is not None and len(header) != 2:
        raise ValueError(
            "`value` is for a sample with one column besides the first. "
            f"Received: value={value!r}, columns={header}"
        )
    found: dict[str, Any] = {}
    several = set()
    for prediction in predictions:
        parts = pathlib.PurePath(prediction.image).parts
        for i in range(len(parts)):
            file = pathlib.PurePath(*parts[i:])
            for key in {file.as_posix(), file.with_suffix("").as_posix()}:
                several |= {key} & found.keys()
                found[key] = prediction.classes
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    columns = header[1:] if value is None else [value]
    for number, name in enumerate(cells[header[0]], 1):
        if name not in found:
            raise ValueError(
                f"Row {number} of {where}: there is no prediction for "
                f"{name!r} among those of {len(predictions)} images."
            )
        if name in several:
            raise ValueError(
                f"Row {number} of {where}: several images are called {name!r}."
            )
        shares = dict(found[name])
        if value is None and len(columns) == 1:
            writer.writerow([name, next(iter(shares))])
        elif shares.keys() >= {*columns}:
            writer.writerow([name, *(f"{shares[c]:.7g}" for c in columns)])
        else:
            missing = [c for c in columns if c not in shares]
            raise ValueError(
                f"The predictions have no class {missing[0]!r}. Expected all "
                f"of {columns}; pass `top` to `predict` to get more of them. "
                f"Received: {list(shares)}"
            )
    path = pathlib.Path(path).expanduser()
    with replacing(path) as binary:
        binary.write(text.getvalue().encode())
    return path


def _model(model: Any) -> Any:
    if not isinstance(model, (str, os.PathLike)):
        return model
    path = pathlib.Path(model).expanduser()
    if path.exists():
        return keras.saving.load_model(path, compile=False)
    if variant := match(str(model)):
        return getattr(builders, variant.name)()
    raise ValueError(
        f"No such file: {str(model)!r}. Expected a .keras file that "
        "`model.save` wrote, or the name of an architecture, such as 'ViT_B16'."
    )


def _check_classifier(model: Any) -> None:
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a Keras model, a .keras file or the name of an "
            f"architecture. Received: model={model!r}"
        )
    taken, returned = (
        only(getattr(model, f"{end}_shape", None))
        for end in ("input", "output")
    )
    ranks = [
        len(x) if isinstance(x, tuple) else None for x in (taken, returned)
    ]
    if ranks != [4, 2] or isinstance(ends(model)[-1], Pool):
        raise ValueError(
            "Expected a classifier of images (B, H, W, 3) that returns one "
            f"score for each class. Received: {model.name!r}, which maps "
            f"{taken} to {returned}. If it has no classifier, build it with "
            "include_top=True, or put one on it: a `keras.layers.Dense`, "
            "trained."
        )


def _find(images: Any, channels: int) -> Iterator[tuple[str, Any]]:
    """Pairs (name, path, Pillow image or array (h, w, c)) of all images."""
    from keras_augreg.data import sources

    if isinstance(images, (str, os.PathLike)):
        path = pathlib.Path(images).expanduser()
        files = [path]
        if path.is_dir():
            names = sources.images(path, collections.Counter())
            files = [path / name for name in names]
        if not files or not path.exists():
            raise ValueError(
                f"No image files in the folder {str(path)!r}."
                if path.exists()
                else f"No such file or folder: {str(images)!r}."
            )
        yield from ((str(p), p) for p in files)
    elif hasattr(images, "getexif"):  # Pillow's
        yield "image 0", images
    elif hasattr(images, "shape"):
        if keras.ops.is_tensor(images):
            images = keras.ops.convert_to_numpy(images)
        images = np.asarray(images)
        if images.dtype.kind in "OSTU":  # paths, as NumPy and pandas keep them
            yield from _find(images.reshape(-1).tolist(), channels)
            return
        if images.ndim not in (3, 4) or images.shape[-1] not in (3, channels):
            raise ValueError(
                "An array of images has shape (height, width, 3) or (batch, "
                f"height, width, 3). Received: shape={images.shape}"
            )
        images = images.reshape(-1, *images.shape[-3:])
        yield from ((f"image {i}", image) for i, image in enumerate(images))
    elif isinstance(images, Iterable) and not isinstance(
        images, (bytes, Mapping)
    ):
        for image in images:
            yield from _find(image, channels)
    else:
        raise TypeError(
            "`images` must be an image file, a folder, a Pillow image, an "
            "array, or a list of these. Received: an object of type "
            f"{type(images).__name__}"
        )


def _is_floats(image: Any) -> bool:
    return isinstance(image, np.ndarray) and "float" in image.dtype.name


def _views(
    image: Any, name: str, shape: tuple[int, int, int], tta: str | None
) -> np.ndarray:
    """The views (n, *shape) of an image that `tta` asks for, uint8."""
    height, width, channels = shape
    if tta != "crops":
        views = _pixels(image, name, shape)[None]
    else:
        # All of the square whose middle is otherwise read.
        from keras_augreg.data.decode import SMALLER_SIDE

        larger = (round(height * SMALLER_SIDE), round(width * SMALLER_SIDE))
        whole = _pixels(image, name, (*larger, channels), inner=False)
        down, right = larger[0] - height, larger[1] - width
        corners = [(0, 0), (0, right), (down, 0), (down, right)]
        corners.append((round(down / 2), round(right / 2)))
        views = np.stack(
            [whole[y : y + height, x : x + width] for y, x in corners]
        )
    if tta is not None:
        views = np.concatenate([views, views[:, :, ::-1]])
    return views


def _pixels(
    image: Any, name: str, shape: tuple[int, int, int], inner: bool = True
) -> np.ndarray:
    """The middle of an image, uint8 of a shape; arrays that fit stay.

    Its smaller side is that of the shape unless only the `inner` part of it,
    as in evaluations, is wanted.
    """
    from keras_augreg.data import access, decode, loading, options, sources
    from keras_augreg.data.datasets import PaperDataset

    height, width, channels = shape
    size = height, width
    if isinstance(image, pathlib.Path):
        advice = "Repair, move or delete it."
        try:
            content = sources.read_file(str(image.parent), image.name)
        except OSError as error:
            raise decode.ImageError(
                f"Cannot read {name!r}: {error}. {advice}"
            ) from error
        picture: Any = decode.Picture(content, name, advice=advice)
    elif hasattr(image, "getexif"):  # Read as its file would be.
        picture = decode.ArrayPicture(
            np.asarray(access.image_data(image, name))
        )
    elif image.shape == shape:
        return image
    elif image.shape[2] == 3:
        pixels = np.clip(np.round(image), 0, 255).astype("uint8")
        picture = decode.ArrayPicture(pixels)
    else:
        raise ValueError(
            f"Images of {image.shape[2]} channels are not resized. Expected "
            f"{shape} for this model. Received: shape={image.shape}"
        )
    sides = picture.height, picture.width
    crop = "resize" if min(sides) <= loading.SMALL_SIDE else "resize_small"
    row = PaperDataset(name, None, {}, 0)  # Not one of the paper's
    preprocess = options.Preprocess(crop)
    if crop == "resize_small" and not inner:
        preprocess = options.Preprocess(crop, smaller_side=min(size))
    cropping = preprocess.cropping(size, False, row)
    window = cropping.window(*sides, random.Random(0))
    out = np.empty((*size, 3), np.uint8)
    decode.crop_and_resize(picture.pixels(window.box), window, cropping, out)
    if channels == 1:
        return np.round(out @ GREY)[..., None].astype("uint8")
    if channels != 3:
        raise ValueError(
            f"The model takes images of {channels} channels, photos have 3. "
            f"Pass arrays of shape {shape}. Received: {name!r}"
        )
    return out
