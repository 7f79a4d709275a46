"""The two forms of a block's products (`keras_augreg.vit.products`)."""

import keras
import numpy as np
import pytest

from keras_augreg import VisionTransformer, distribution, vit
from keras_augreg.training import compile_finetuning


def model():
    keras.utils.set_random_seed(0)
    net = VisionTransformer(
        patch_size=4,
        width=48,
        depth=2,
        num_heads=3,
        mlp_dim=64,
        input_shape=(16, 12, 3),
        classes=8,
        classifier_activation=None,
        seed=0,
    )
    rng = np.random.default_rng(0)
    for weight in net.weights:
        noise = 0.1 * rng.normal(size=weight.shape)
        weight.assign(weight + noise.astype("float32"))
    return net


def test_forms_are_equal():
    """Logits, and weights after two steps of training."""
    results = []
    for form in ("flat", "batched"):
        net = model()
        images = np.random.default_rng(1).integers(
            0, 256, (6, *net.image_shape), "uint8"
        )
        with vit.products(form):
            logits = net.predict(images, verbose=0)
            compile_finetuning(net, total_steps=9, learning_rate=0.1)
            net.fit(images, np.arange(6), epochs=2, verbose=0)
        weights = map(keras.ops.convert_to_numpy, net.weights)
        results.append([logits, *weights])
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-5)


def stepped(parts, remat):
    """The variables after a step of training, and what the head was given."""
    net = VisionTransformer(
        patch_size=8,
        width=16,
        depth=2,  # The first block is never dropped.
        num_heads=2,
        mlp_dim=16,
        input_shape=(16, 16, 3),
        classes=4,
        dropout=0.3,
        stochastic_depth=0.3,
        seed=0,
    )
    rng = np.random.default_rng(0)
    for weight in net.weights:
        weight.assign(rng.normal(size=weight.shape).astype("float32"))
    batches = []
    head = net.get_layer("head")
    call = head.call

    def noting(x, *args, **kwargs):
        batches.append(x.shape[0])
        return call(x, *args, **kwargs)

    head.call = noting
    assert not net._takes_parts  # of 4 patches only
    compile_finetuning(
        net, total_steps=9, learning_rate=0.1, warmup_steps=0, remat=remat
    )
    images = rng.integers(0, 256, (6, *net.image_shape), "uint8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit, "PART", 6 // parts)
        patch.setattr(VisionTransformer, "_takes_parts", True)
        with vit.products("batched"):
            net.train_on_batch(images, np.arange(6) % 4)
    values = [keras.ops.convert_to_numpy(w) for w in net.variables]
    return values, batches[-parts:]


@pytest.mark.once
def test_models_that_take_parts():
    sizes = {"depth": 1, "num_heads": 1, "mlp_dim": 8, "classes": 2}
    for patch_size, width, takes in (
        (8, 128, True),
        (16, 128, False),
        (8, 64, False),
    ):
        net = VisionTransformer(
            patch_size=patch_size, width=width, input_shape=(96, 96, 3), **sizes
        )
        assert net._takes_parts == takes
        net.quantize("float8")  # Its scales would be added.
        assert not net._takes_parts


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="of a TPU's step, which JAX runs"
)
def test_parts_of_a_batch_are_the_batch():
    """The same weights, draws and seeds, whatever is computed at once."""
    whole, batches = stepped(1, remat=False)
    assert batches == [6]
    values, batches = stepped(3, remat=True)
    assert batches == [2, 2, 2]
    for one, other in zip(whole, values, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=2e-6)


def plain_attention(query, key, value):
    """Of JAX; 16-bit scores are kept as such, as a TPU does."""
    import jax
    import jax.numpy as jnp

    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key)
    if scores.dtype == jnp.bfloat16:
        scores = jax.lax.reduce_precision(scores, 8, 7)
    share = jax.nn.softmax(scores.astype("float32")).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", share, value)


def attended(attend, *parts):
    """The output and the gradients of query, key and value, as float32."""
    import jax

    weight = np.random.default_rng(1).normal(size=parts[0].shape)

    def loss(*parts):
        y = attend(*parts).astype("float32")
        return (y * weight.astype("float32")).sum(), y

    gradients, y = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*parts)
    return [np.asarray(x, "float32") for x in (y, *gradients)]


def parts_of_attention(scale=1.0):
    import jax.numpy as jnp

    parts = np.random.default_rng(0).normal(size=(3, 2, 197, 3, 8))
    parts[:2] *= scale
    return list(jnp.asarray(parts, "float32"))


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="the attention of a TPU is JAX's"
)
class TestAttentionByColumns:
    @pytest.mark.parametrize(("scale", "error"), [(1, 2e-6), (10, 2e-4)])
    def test_output_and_gradients(self, scale, error):
        """Also where the exponential of a score would overflow."""
        parts = parts_of_attention(scale)
        want = attended(plain_attention, *parts)
        got = attended(vit._attention_by_columns(), *parts)
        for one, other in zip(want, got, strict=True):
            atol = error * np.abs(one).max()
            np.testing.assert_allclose(other, one, rtol=0, atol=atol)

    def test_16_bits_lose_no_more_than_a_softmax_does(self):
        parts = parts_of_attention()
        exact = attended(plain_attention, *parts)
        half = [x.astype("bfloat16") for x in parts]
        plain = attended(plain_attention, *half)
        got = attended(vit._attention_by_columns(), *half)
        for truth, one, other in zip(exact, plain, got, strict=True):
            error, limit = (
                np.sqrt(np.mean((x - truth) ** 2)) for x in (other, one)
            )
            assert 0 < error < 1.2 * limit

    def test_vmap(self):
        import jax

        parts = parts_of_attention()
        attend = vit._attention_by_columns()
        mapped = jax.vmap(lambda *x: attend(*(y[None] for y in x))[0])
        np.testing.assert_allclose(
            mapped(*parts), attend(*parts), rtol=0, atol=1e-6
        )

    def test_layouts_only_in_training(self):
        """jax.export, and so a SavedModel, cannot hold them."""
        import jax

        def traced(training, devices=1, width=vit.COLUMNS):
            block = vit.Block(num_heads=2, mlp_dim=16)
            block.build((None, 5, width))
            names = ("batch", "model")[:devices]
            mesh = keras.distribution.DeviceMesh((1,) * devices, names)
            layout = keras.distribution.ModelParallel(
                layout_map=keras.distribution.LayoutMap(mesh),
                batch_dim_name="batch",
            )
            with (
                vit.products("batched"),
                layout.scope(),
                keras.StatelessScope(),
            ):
                return str(
                    jax.make_jaxpr(lambda x: block(x, training=training))(
                        np.zeros((2, 5, width), "float32")
                    )
                )

        assert "layout_constraint" in traced(True)
        assert "layout_constraint" not in traced(False)
        # Where layers are split, XLA would gather what has a layout.
        assert "layout_constraint" not in traced(True, devices=2)
        # The width of Ti: its features would not fill a tile.
        assert "layout_constraint" not in traced(True, width=192)


def test_form_on_cpus():
    assert distribution.platform() == "cpu"
    assert not vit.batched()
    with vit.products("batched"):
        assert vit.batched()
        with vit.products("auto"):
            assert not vit.batched()
    with pytest.raises(ValueError, match=r"`form` must be.*'wide'"):
        vit.products("wide").__enter__()


def test_statistics_of_layer_norm_in_one_pass():
    """Constant tokens have no variance, also where rounding makes it < 0."""
    x = np.full((1, 4, 48), 300.1, "float32")
    x[0, 0] += np.linspace(-1, 1, 48, dtype="float32")
    layer = vit.layer_norm("norm", "float32")
    two = keras.ops.convert_to_numpy(layer(x))
    with vit.products("batched"):
        one = keras.ops.convert_to_numpy(layer(x))
    assert np.isfinite(one).all()
    np.testing.assert_allclose(one[0, 0], two[0, 0], atol=0.1)


def test_layers_say_what_images_they_take():
    """As the layers of a clone or a part of a model, which check nothing."""
    positions = vit.PositionEmbedding(patch_grid=(2, 2))
    positions(np.zeros((1, 4, 8), "float32"))
    with pytest.raises(
        ValueError, match=r"images of 2 x 2 patches, 4 in all\. Received.* 16"
    ):
        positions(np.zeros((1, 16, 8), "float32"))
    patches = vit.PatchEmbedding(8, 4)
    patches(np.zeros((1, 16, 16, 3), "float32"))
    for shape in ((1, 3, 16, 16), (16, 16, 3)):
        with pytest.raises(ValueError, match="width, 3\\), channels last"):
            patches(np.zeros(shape, "float32"))
