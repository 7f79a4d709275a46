"""`describe` against the backends and the release's shapes."""

from __future__ import annotations

import json
import math
import pathlib

import keras
import numpy as np
import pytest

import keras_augreg
from keras_augreg.describe import Description, describe
from keras_augreg.initialization import zero_weights
from keras_augreg.variants import VARIANTS

SHAPES = json.loads(
    pathlib.Path(__file__).with_name("golden").joinpath("augreg_shapes.json")
    .read_text()
)  # fmt: skip
SMALL = {
    "patch_size": 8,
    "width": 128,
    "depth": 2,
    "num_heads": 2,
    "mlp_dim": 512,
    "input_shape": (96, 64, 3),
    "classes": 10,
    "classifier_activation": None,
}
KINDS = {
    "token": {},
    "gap": {"class_token": False},
    "avg": {"include_top": False, "pooling": "avg"},
    "features": {"include_top": False, "pooling": "token"},
    "tokens": {"include_top": False},
    "root": {"stages": (), "patch_size": 4},
    "hybrid": {"stages": (1, 1), "patch_size": 1},
}
BATCH = 4
NAME = (
    "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
    "--imagenet2012-steps_20k-lr_0.03-res_384"
)


def small(**arguments):
    with zero_weights():
        return keras_augreg.VisionTransformer(**SMALL | arguments)


def backend_only(*names):
    if keras.backend.backend() not in names:
        pytest.skip(f"{' and '.join(names)} count it")


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_those_of_the_release(name):
    numbers = {
        "classes": 1000,
        "tokens": 1 + (224 // VARIANTS[name].sizes.stride) ** 2,
    }
    arrays = SHAPES[VARIANTS[name].release]["arrays"].values()
    expected = sum(
        math.prod(numbers.get(n, n) for n in shape) for shape in arrays
    )
    found = describe(name)
    assert found.parameters == expected
    assert found.tokens == numbers["tokens"]
    assert found.architecture == name


@pytest.mark.parametrize("name", ["ViT_B16", "B_16", "B/16", "vit-b/16"])
def test_every_spelling_of_an_architecture(name):
    assert describe(name).architecture == "ViT_B16"


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_are_the_model_s(kind):
    model = small(**KINDS[kind])
    found = describe(model)
    assert found.parameters == sum(
        math.prod(w.shape) for w in model.trainable_weights
    )
    assert found.architecture is None
    assert found.name == model.name
    assert found.classes == model.classes
    rows, columns = model.patch_grid
    assert found.tokens == rows * columns + model.class_token


def test_another_resolution_has_other_positions():
    model, other = small(), small(input_shape=(64, 64, 3))
    assert describe(model, input_shape=(64, 64, 3)) == describe(other)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_are_those_that_torch_counts(kind):
    backend_only("torch")
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = small(**KINDS[kind])
    images = np.zeros((BATCH, *model.image_shape), "float32")
    # It does not know the CPU's fused attention.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
    ):
        model(keras.ops.convert_to_tensor(images))
    assert counter.get_total_flops() == BATCH * describe(model).flops


def jax_forward(model):
    """The compiled forward pass."""
    import jax

    images = np.zeros((BATCH, *model.image_shape), "float32")
    weights = [
        [w.value for w in group]
        for group in (model.trainable_variables, model.non_trainable_variables)
    ]
    forward = jax.jit(lambda t, n, x: model.stateless_call(t, n, x)[0])
    return forward.lower(*weights, images).compile()


def jax_step(model):
    """A compiled step of Adam, written by hand."""
    import jax

    images = np.zeros((BATCH, *model.image_shape), "float32")
    constants = [w.value for w in model.non_trainable_variables]

    def step(weights, first, second, x):
        def loss(weights):
            y, _ = model.stateless_call(weights, constants, x, training=True)
            return (y.astype("float32") ** 2).mean()

        gradients = jax.grad(loss)(weights)

        def leaf(w, m, v, g):
            m, v = 0.9 * m + 0.1 * g, 0.99 * v + 0.01 * g * g
            return w - m / (v**0.5 + 1e-8), m, v

        new = map(leaf, weights, first, second, gradients)
        return tuple(map(list, zip(*new, strict=True)))

    weights = [w.value for w in model.trainable_variables]
    step = jax.jit(step, donate_argnums=(0, 1, 2))
    return step.lower(weights, weights, weights, images).compile()


@pytest.mark.parametrize("kind", ["token", "tokens", "hybrid"])
def test_flops_are_nearly_those_of_xla(kind):
    """XLA's count has norms, GELU and softmax too."""
    backend_only("jax")
    model = small(**KINDS[kind])
    counted = jax_forward(model).cost_analysis()["flops"] / BATCH
    assert 1 <= counted / describe(model).flops < 1.1


@pytest.mark.parametrize("kind", ["token", "hybrid"])
def test_memory_is_within_a_factor_of_two_of_xla_s(kind):
    """Not in bfloat16, which XLA computes in float32 on a CPU."""
    backend_only("jax")
    model = small(**KINDS[kind])
    found = describe(model, batch_size=BATCH)
    for estimate, program in [
        (found.inference_bytes, jax_forward(model)),
        (found.training_bytes, jax_step(model)),
    ]:
        memory = program.memory_analysis()
        measured = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            - memory.alias_size_in_bytes
            + memory.temp_size_in_bytes
        )
        assert 0.5 < estimate / measured < 2


@pytest.mark.parametrize("kind", ["token", "hybrid"])
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_memory_is_within_a_factor_of_two_of_torch_s(kind, dtype):
    """Memory that autograd keeps for the backward pass."""
    backend_only("torch")
    import torch

    model = small(**KINDS[kind], dtype=dtype)
    weights = {w.value.untyped_storage().data_ptr() for w in model.weights}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            # The tensor too: its address must not be used again.
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    images = torch.zeros((BATCH, *model.image_shape))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        outputs = model(images, training=True)
    measured = sum(size for size, _ in kept.values())
    measured += images.nbytes + 16 * model.count_params()
    estimate = describe(model, batch_size=BATCH).training_bytes
    assert outputs.shape == (BATCH, 10)
    assert 0.5 < estimate / measured < 2


def test_memory_grows_with_the_batch_and_shrinks_with_the_dtype():
    one, two = (describe("ViT_S16", batch_size=n) for n in (1, 2))
    assert one.inference_bytes < two.inference_bytes
    assert one.training_bytes < two.training_bytes < 2 * one.training_bytes
    half = describe("ViT_S16", batch_size=2, dtype="bfloat16")
    assert half.training_bytes < 0.6 * two.training_bytes
    assert half.dtype == "bfloat16"
    assert two.dtype == keras.config.dtype_policy().name


def test_memory_with_lora():
    """Neither gradients nor moments of what is frozen."""
    model = small()
    full, found = model.count_params(), describe(model, lora_rank=4)
    model.enable_lora(4)
    trained = sum(math.prod(v.shape) for v in model.trainable_variables)
    assert describe(model).lora_rank == 4
    adapters = model.count_params() - full
    assert found.training_bytes - found.lora_bytes == (
        12 * full - 12 * trained - 4 * adapters
    )
    assert "LoRA          about" in str(found)
    with pytest.raises(ValueError, match="`lora_rank` is a positive integer"):
        describe(model, lora_rank=0)


def test_memory_of_a_quantized_model():
    model = small()
    before = describe(model)
    held = 4 * model.count_params()
    model.quantize("int8")
    smaller = sum(
        math.prod(v.shape) * (1 if v.dtype == "int8" else 4)
        for v in model.weights
    )
    saved = before.inference_bytes - describe(model).inference_bytes
    assert saved == held - smaller > 0.5 * held


def test_a_checkpoint_has_a_recipe_and_figures():
    found = describe(NAME)
    assert found.architecture == "ViT_Ti16"
    assert found.input_shape == (384, 384, 3)
    assert (found.classes, found.checkpoint) == (1000, NAME)
    assert found.recipe == keras_augreg.AugReg.from_checkpoint(NAME)
    assert found.published["adapt_final_test"] == 0.7822
    pretrained = describe(NAME.partition("--")[0])
    assert pretrained.classes == 21843
    assert pretrained.input_shape == (224, 224, 3)
    pets = NAME.replace("imagenet2012-steps_20k", "oxford_iiit_pet-steps_2k")
    assert describe(pets).classes == 37
    assert describe(pets).published == {}


def test_it_prints_as_a_table():
    lines = str(describe(NAME, batch_size=64)).splitlines()
    assert lines[0] == NAME
    rows = dict(line.split(maxsplit=1) for line in lines[1:])
    assert list(rows) == [
        "architecture",
        "images",
        "classes",
        "parameters",
        "forward",
        "inference",
        "training",
        "LoRA",
        "recipe",
        "published",
    ]
    assert rows["images"] == "384 x 384, 577 tokens"
    assert rows["parameters"] == "5,790,376"
    assert "GiB (float32, batch 64, Adam)" in rows["training"]
    assert "adapt_final_test 0.7822" in rows["published"]
    # Unknown facts are left out.
    assert "recipe" not in str(describe(small()))
    assert isinstance(describe(small()), Description)


def test_errors():
    with pytest.raises(ValueError, match=r"Unknown checkpoint 'ViT_B17'"):
        describe("ViT_B17")
    with pytest.raises(ValueError, match=r"is an alias.*resolve\('ViT_B16'"):
        describe("augreg-in21k")
    with pytest.raises(ValueError, match=r"VisionTransformer.*Received: Dense"):
        describe(keras.layers.Dense(1))
    for shape in [(100, 96, 3), (96, 96), (96, 96, 0), (0, 96, 3)]:
        with pytest.raises(ValueError, match=r"8 pixels, |height, width, chan"):
            describe(small(), input_shape=shape)
    for batch in (0, 2.5):
        with pytest.raises(ValueError, match="batch_size` is a positive int"):
            describe("ViT_B16", batch_size=batch)
