r"""Estimated cycles of one block of S/16 on a TPU, in several forms.

    python tests/benchmarks/tpu_forms.py 'late=True' 'tokens=208, masked=197'

compiles the forward and backward pass of a block, written in jax.numpy, on
128 images for a v5e chip, in bfloat16, for each set of options of `block`.
The cycles are the compiler's estimate. A form takes a minute of processor time
or more.
"""

from __future__ import annotations

import json
import os
import sys

os.environ["KERAS_BACKEND"] = "jax"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint

from keras_augreg import flight_check, vit

HALF, IMAGES = jnp.bfloat16, 128


def norm(x, scale, bias, passes):
    x = x.astype("float32")
    mean = x.mean(-1, keepdims=True)
    variance = (
        jnp.maximum((x * x).mean(-1, keepdims=True) - mean**2, 0)
        if passes == 1
        else ((x - mean) ** 2).mean(-1, keepdims=True)
    )
    y = (x - mean) * (jax.lax.rsqrt(variance + 1e-6) * scale) + bias
    return y.astype(HALF)


@jax.custom_vjp
def flash(q, k, v, bias):
    return flash_forward(q, k, v, bias)[0]


def flash_forward(q, k, v, bias):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias
    p = jax.nn.softmax(scores.astype("float32")).astype(HALF)
    y = jnp.einsum("bhqk,bkhd->bqhd", p, v)
    return y, (q, k, v, p, y)


def flash_backward(kept, dy):
    """The softmax's correction from the output: fewer numbers than scores."""
    q, k, v, p, y = kept
    delta = (dy.astype("float32") * y.astype("float32")).sum(-1)
    dp = jnp.einsum("bqhd,bkhd->bhqk", dy, v).astype("float32")
    ds = p.astype("float32") * (dp - jnp.moveaxis(delta, 1, 2)[..., None])
    ds = ds.astype(HALF)
    return (
        jnp.einsum("bhqk,bkhd->bqhd", ds, k),
        jnp.einsum("bhqk,bqhd->bkhd", ds, q),
        jnp.einsum("bhqk,bqhd->bkhd", p, dy),
        None,
    )


flash.defvjp(flash_forward, flash_backward)


def attend(q, k, v, bias, late):
    q = q * HALF(q.shape[-1] ** -0.5)
    if late == "columns":
        return vit._attention_by_columns()(q, k, v)
    if late == "flash":
        return flash(q, k, v, bias)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) + bias
    if not late:
        p = jax.nn.softmax(scores.astype("float32")).astype(HALF)
        return jnp.einsum("bhqk,bkhd->bqhd", p, v)
    top = jax.lax.stop_gradient(scores.max(-1, keepdims=True))
    p = jnp.exp((scores - top).astype("float32")).astype(HALF)
    if late == "ones":
        v = jnp.concatenate([v, jnp.ones_like(v)], -1)
        y = jnp.einsum(
            "bhqk,bkhd->bqhd", p, v, preferred_element_type="float32"
        )
        y, total = jnp.split(y, 2, -1)
    else:
        total = jnp.moveaxis(p.sum(-1, keepdims=True, dtype="float32"), 1, 2)
        y = jnp.einsum("bhqk,bkhd->bqhd", p, v)
    return (y / total).astype(HALF)


def in_rows(x, rows):
    layout = Layout(tuple(range(x.ndim)))
    return with_layout_constraint(x, layout) if rows else x


def block(w, x, passes=1, late=False, masked=None, pad=None, rows=False):
    """`masked`: the tokens that are not padding; `pad`: inside attention."""
    x = in_rows(x, rows)
    w = jax.tree.map(lambda a: a.astype(HALF), w)
    y, tokens = norm(x, *w["norm1"], passes), x.shape[1]
    if pad:
        y = jnp.pad(y, ((0, 0), (0, pad - tokens), (0, 0)))
    real = jnp.arange(y.shape[1]) < (tokens if pad else masked or tokens)
    bias = jnp.where(real, 0, -1e9).astype(HALF)
    q, k, v = (jnp.einsum("btw,whd->bthd", y, a) + b for a, b in w["qkv"])
    y = attend(q, k, v, bias, late)
    x = x + (jnp.einsum("bqhd,hdw->bqw", y, w["out"]) + w["bias"])[:, :tokens]
    y = norm(x, *w["norm2"], passes)
    y = jax.nn.gelu(in_rows(y @ w["mlp1"][0] + w["mlp1"][1], rows))
    return x + y @ w["mlp2"][0] + w["mlp2"][1]


def compiled(tokens=197, width=384, heads=6, hidden=1536, **options):
    chip, devices = flight_check._describe("v5e:2x4")
    mesh = jax.sharding.Mesh(np.array(devices[:1]), ("batch",))
    here = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def array(*shape, dtype="float32"):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=here)

    w, size = array(width), width // heads
    pair = (array(width, heads, size), array(heads, size))
    weights = {
        "norm1": (w, w), "norm2": (w, w), "qkv": [pair] * 3, "bias": w,
        "out": array(heads, size, width),
        "mlp1": (array(width, hidden), array(hidden)),
        "mlp2": (array(hidden, width), w),
    }  # fmt: skip

    def step(weights, x):
        def loss(weights, x):
            y = block(weights, x, **options)
            return (y.astype("float32") ** 2).mean()

        by_weights, by_x = jax.grad(loss, (0, 1))(weights, x)
        return jax.tree.map(jnp.subtract, weights, by_weights), by_x

    x = array(IMAGES, tokens, width, dtype=HALF)
    program = jax.jit(step, donate_argnums=0).lower(weights, x).compile()
    return flight_check._figures(program, chip)


if __name__ == "__main__":
    for form in sys.argv[1:] or [""]:
        report = compiled(**eval(f"dict({form})"))
        row = {k: report[k] for k in ("gflops", "cycles", "copies")}
        print(json.dumps({"form": form, **row}), flush=True)
