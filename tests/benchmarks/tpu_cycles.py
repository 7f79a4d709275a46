r"""Estimated cycles of a training step on a TPU: ours and its peers'.

    python tests/benchmarks/tpu_cycles.py --models=S/16 --depth=12 \
        --peers=keras_augreg,keras_hub,plain

compiles each for v5e:2x4 with 128 images a chip (`--images`), in mixed
bfloat16, with Adam and clipping. "plain" is the same maths in a page of
jax.numpy, with optax, as big_vision writes it. The cycles are the compiler's
estimate. A step with 12 blocks takes minutes of processor time; with --depth=2
and 3, the difference is what a block adds. Needs `keras_augreg[tpu]`,
keras-hub and optax.
"""

from __future__ import annotations

import dataclasses
import json
import os

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import keras
from absl import app, flags

from keras_augreg import (
    AugReg,
    VisionTransformer,
    compile_pretraining,
    distribution,
    flight_check,
)
from keras_augreg.initialization import zero_weights
from keras_augreg.variants import find

_MODELS = flags.DEFINE_list("models", "S/16", "Architectures.")
_PEERS = flags.DEFINE_list("peers", "keras_augreg,keras_hub,plain", "Who.")
_DEPTH = flags.DEFINE_integer("depth", None, "Blocks, if not the model's.")
_IMAGES = flags.DEFINE_integer("images", 128, "Images of a chip.")
TOPOLOGY, CHIPS, SIDE, CLASSES = "v5e:2x4", 8, 224, 1000


def ours(sizes):
    with zero_weights():
        model = VisionTransformer(**dataclasses.asdict(sizes), classes=CLASSES)
    compile_pretraining(
        model, AugReg("none"), total_steps=100_000, loss="softmax"
    )
    images = CHIPS * _IMAGES.value
    return flight_check.check(model, batch_size=images, topology=TOPOLOGY)


def keras_hub(sizes):
    import jax
    import keras_hub

    backbone = keras_hub.models.ViTBackbone(
        image_shape=(SIDE, SIDE, 3),
        patch_size=sizes.patch_size,
        num_layers=sizes.depth,
        num_heads=sizes.num_heads,
        hidden_dim=sizes.width,
        mlp_dim=sizes.mlp_dim,
    )
    model = keras_hub.models.ViTImageClassifier(
        backbone, num_classes=CLASSES, preprocessor=None
    )
    model.compile(
        keras.optimizers.AdamW(1e-3, weight_decay=0.1, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.optimizer.build(model.trainable_variables)
    model._symbolic_build(
        data_batch=(
            keras.ops.zeros((1, SIDE, SIDE, 3)),
            keras.ops.zeros((1,), "int32"),
        )
    )
    state = tuple(
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
        for variables in (
            model.trainable_variables, model.non_trainable_variables,
            model.optimizer.variables, model.metrics_variables,
        )
    )  # fmt: skip
    return lowered(jax.jit(model.train_step, donate_argnums=0), state)


def plain(sizes):
    """A ViT as big_vision computes it, in mixed bfloat16."""
    import jax
    import jax.numpy as jnp
    import optax

    w, h, p, m = sizes.width, sizes.num_heads, sizes.patch_size, sizes.mlp_dim
    tokens, half = (SIDE // p) ** 2 + 1, jnp.bfloat16
    heads, inner = (w, h, w // h), (h, w // h)
    block = {
        "n1": (w,), "m1": (w,), "q": heads, "k": heads, "v": heads,
        "qb": inner, "kb": inner, "vb": inner, "o": (*inner, w), "ob": (w,),
        "n2": (w,), "m2": (w,), "a": (w, m), "ab": (m,), "b": (m, w),
        "bb": (w,),
    }  # fmt: skip
    shapes = {
        "embed": (p, p, 3, w), "eb": (w,), "cls": (1, 1, w),
        "pos": (1, tokens, w), "n": (w,), "nb": (w,),
        "head": (w, CLASSES), "hb": (CLASSES,),
        "blocks": [block] * sizes.depth,
    }  # fmt: skip

    def norm(x, scale, bias):
        x = x.astype("float32")
        mean, square = (
            x.mean(-1, keepdims=True),
            (x * x).mean(-1, keepdims=True),
        )
        y = (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-6)
        return (y * scale + bias).astype(half)

    def loss(params, x, labels):
        x = x.astype("float32") / 127.5 - 1
        params = jax.tree.map(lambda a: a.astype(half), params)
        x = jax.lax.conv_general_dilated(
            x.astype(half), params["embed"], (p, p), "VALID",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
        x = x.reshape(len(x), -1, w) + params["eb"]
        cls = jnp.broadcast_to(params["cls"], (len(x), 1, w))
        x = jnp.concatenate([cls, x], 1) + params["pos"]
        for b in params["blocks"]:
            y = norm(x, b["n1"], b["m1"])
            q, k, v = (
                jnp.einsum("btw,whd->bthd", y, b[n]) + b[f"{n}b"] for n in "qkv"
            )
            y = jax.nn.dot_product_attention(q, k, v)
            x = x + jnp.einsum("bthd,hdw->btw", y, b["o"]) + b["ob"]
            y = norm(x, b["n2"], b["m2"])
            y = jax.nn.gelu(y @ b["a"] + b["ab"])
            x = x + y @ b["b"] + b["bb"]
        x = norm(x, params["n"], params["nb"])[:, 0]
        logits = (x @ params["head"] + params["hb"]).astype("float32")
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, labels
        ).mean()

    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.1)
    )

    def step(state, batch):
        params, slots = state
        value, grads = jax.value_and_grad(loss)(params, *batch)
        updates, slots = optimizer.update(grads, slots, params)
        return value, (optax.apply_updates(params, updates), slots)

    is_shape = lambda x: isinstance(x, tuple)  # noqa: E731
    params = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s, "float32"), shapes, is_leaf=is_shape
    )
    state = (params, jax.eval_shape(optimizer.init, params))
    return lowered(jax.jit(step, donate_argnums=0), state)


def lowered(step, state):
    """Compiles a step whose state is on every chip; its report."""
    import jax

    chip, devices = flight_check._describe(TOPOLOGY)
    layout, _ = distribution.keras_distribution("data", devices)
    mesh = layout.device_mesh.backend_mesh
    place = lambda *axes: jax.sharding.NamedSharding(  # noqa: E731
        mesh, jax.sharding.PartitionSpec(*axes)
    )
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place()),
        state,
    )
    images = CHIPS * _IMAGES.value
    batch = (
        jax.ShapeDtypeStruct(
            (images, SIDE, SIDE, 3), "uint8", sharding=place("batch")
        ),
        jax.ShapeDtypeStruct((images,), "int32", sharding=place("batch")),
    )
    try:
        compiled = step.lower(state, batch).compile()
    except Exception as error:
        return flight_check._too_large(error)
    return flight_check._figures(compiled, chip)


def main(argv):
    del argv
    keras.config.set_dtype_policy("mixed_bfloat16")
    peers = {"keras_augreg": ours, "keras_hub": keras_hub, "plain": plain}
    for name in _MODELS.value:
        sizes = find(name).sizes
        sizes = dataclasses.replace(sizes, depth=_DEPTH.value or sizes.depth)
        for peer in _PEERS.value:
            report = peers[peer](sizes)
            columns = ("bytes", "gflops", "cycles", "share", "parts", "copies")
            row = {
                "model": name, "blocks": sizes.depth, "images": _IMAGES.value,
                "peer": peer, **{k: report[k] for k in columns},
            }  # fmt: skip
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    app.run(main)
