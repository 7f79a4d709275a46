"""The models of all libraries and a crop, for the programs beside it."""

from __future__ import annotations

import pathlib
import sys

CLASSES, SIZE = 1000, 224


def import_timm():
    """Imports timm, also beside a torchvision that does not fit PyTorch."""
    sys.path.append(str(pathlib.Path(__file__).parents[1] / "checkpoints"))
    from _timm import import_timm

    return import_timm()


def build(library, model, **kwargs):
    """Builds a library's model without weights, taking floats.

    Args:
        library: `"keras_augreg"`, `"keras_hub"`, `"kimm"` or `"timm"`.
        model: The paper's name of an architecture without a ResNet stem.
        **kwargs: Arguments of keras_augreg's builder.

    Returns:
        A Keras or PyTorch model that gives logits of `CLASSES` classes.
    """
    if library == "keras_augreg":
        import keras_augreg

        return getattr(keras_augreg, "ViT_" + model.replace("/", ""))(
            classifier_activation=None, include_preprocessing=False, **kwargs
        )
    name, patch = model.split("/")
    name = {"Ti": "Tiny", "S": "Small", "B": "Base", "L": "Large"}[name]
    if library == "timm":
        return import_timm().create_model(
            f"vit_{name.lower()}_patch{patch}_{SIZE}"
        )
    if library == "kimm":
        import kimm

        return getattr(kimm.models, f"VisionTransformer{name}{patch}")(
            weights=None,
            input_shape=(SIZE, SIZE, 3),
            include_preprocessing=False,
            classifier_activation=None,
        )
    if library != "keras_hub":
        raise ValueError(f"Unknown library {library!r}.")
    import keras
    import keras_hub

    from keras_augreg.variants import find

    sizes = find(model).sizes
    body = keras_hub.models.ViTBackbone(
        image_shape=(SIZE, SIZE, 3),
        patch_size=sizes.patch_size,
        num_layers=sizes.depth,
        num_heads=sizes.num_heads,
        hidden_dim=sizes.width,
        mlp_dim=sizes.mlp_dim,
    )
    image = keras.Input((SIZE, SIZE, 3))
    return keras.Model(image, keras.layers.Dense(CLASSES)(body(image)[:, 0]))


def random_crop(content, dct_method=""):
    """Decodes a JPEG file to a randomly flipped inception crop, in tf.data."""
    import tensorflow as tf

    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(content),
        tf.zeros([0, 0, 4]),
        area_range=(0.05, 1.0),
        aspect_ratio_range=(0.75, 1.33),
        min_object_covered=0,
        use_image_if_no_bounding_boxes=True,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    image = tf.image.decode_and_crop_jpeg(
        content, window, channels=3, dct_method=dct_method
    )
    image = tf.cast(tf.image.resize(image, (SIZE, SIZE)), tf.uint8)
    return tf.image.random_flip_left_right(image)
