"""Real photos for the data tests: those that ship with scikit-image."""

from __future__ import annotations

import dataclasses
import functools
import io
import pathlib

import numpy as np
import PIL.Image
import skimage.data

from keras_augreg import data

CLASSES = ("astronaut", "chelsea", "coffee")


@functools.cache
def photo(name, size=None):
    image = PIL.Image.fromarray(getattr(skimage.data, name)())
    return image if size is None else image.resize(size)


def encode(image, kind="JPEG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pictures(name, count, size=(96, 72)):
    """A photo and what the camera would have seen a little further on."""
    whole = photo(name, (size[0] + count, size[1] + count))
    for i in range(count):
        yield whole.crop((i, i, i + size[0], i + size[1]))


def write_folder(root, count=6, size=(96, 72), splits=("train", "test")):
    """Class folders of alternating JPEG and PNG files."""
    for split in splits:
        for name in CLASSES:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i, image in enumerate(pictures(name, count, size)):
                kind = "PNG" if i % 3 == 2 else "JPEG"
                file = folder / f"{i:02}.{'png' if i % 3 == 2 else 'jpg'}"
                file.write_bytes(encode(image, kind))
    return root


def fields(kind, arguments):
    """Takes the fields of a dataclass out of a dict of arguments."""
    names = {field.name for field in dataclasses.fields(kind)} & {*arguments}
    return kind(**{name: arguments.pop(name) for name in names})


def load(source, split, **arguments):
    """`data.load`, with the fields of `Preprocess` and `Options` unpacked.

    One folder of images will do: without `class_names`, one class is refused.
    """
    if isinstance(source, pathlib.Path) and split == "all":
        names = sorted(path.name for path in source.iterdir())
        arguments.setdefault("class_names", names)
    return data.load(
        source,
        split,
        preprocess=fields(data.Preprocess, arguments),
        options=fields(data.Options, arguments),
        **arguments,
    )


def find(source, split, **arguments):
    """`data.find`, with the fields of `Options` unpacked."""
    return data.find(
        source, split, options=fields(data.Options, arguments), **arguments
    )


def load_small(source, split="all", options=None, **arguments):
    """`data.load` of images of 8 pixels, to evaluate on by default."""
    options = data.Options(**(options or {}))
    defaults = {"image_size": 8, "batch_size": 8, "training": False}
    return data.load(
        source, split, options=options, **{**defaults, **arguments}
    )


def largest_difference(a, b):
    return np.abs(np.asarray(a).astype(int) - np.asarray(b).astype(int)).max()


def build_tfds(data_dir, count=12, file_format="tfrecord"):
    """A data set of the photos, built by TensorFlow Datasets' own tools."""
    import tensorflow_datasets as tfds

    # Several tests of one process build it.
    with tfds.core.registered.skip_registration():

        class SmallPhotos(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")

            def _info(self):
                features = {
                    "image": tfds.features.Image(encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names=list(CLASSES)),
                }
                return tfds.core.DatasetInfo(
                    builder=self,
                    features=tfds.features.FeaturesDict(features),
                    supervised_keys=("image", "label"),
                )

            def _split_generators(self, dl_manager):
                return {s: self._generate_examples() for s in ("train", "test")}

            def _generate_examples(self):
                for label, name in enumerate(CLASSES):
                    for i, image in enumerate(pictures(name, count)):
                        file = io.BytesIO(encode(image))
                        yield f"{name}{i}", {"image": file, "label": label}

    builder = SmallPhotos(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare()
    return builder
