import pytest


@pytest.fixture
def tiny_model():
    import keras

    import keras_augreg

    keras.utils.set_random_seed(0)
    return keras_augreg.VisionTransformer(
        patch_size=8,
        width=16,
        depth=2,
        num_heads=2,
        mlp_dim=32,
        input_shape=(16, 16, 3),
        classes=5,
        seed=0,
    )
