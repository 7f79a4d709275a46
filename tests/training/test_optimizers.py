"""Adam and SGD against optax, fed the same gradients."""

import os
import pathlib
import socket
import subprocess
import sys

import keras
import numpy as np
import pytest
from _updates import (
    BASE_LR,
    CASES,
    SHAPES,
    STEPS,
    WARMUP,
    feed,
    gradients,
    make_optimizer,
    make_variables,
    moved,
    weights,
)

from keras_augreg.training import optimizers

SCRIPT = pathlib.Path(__file__).with_name("_updates.py")
# Learning-rate factors of layer_decay=0.5 with two blocks.
RATES = {"embedding": 1 / 8, "posembed_input": 1 / 8, "encoderblock_0": 1 / 4,
         "encoderblock_1": 1 / 2, "head": 1}  # fmt: skip


def expected(case, replicas=1):
    """The weights after optax's chain, in JAX's float32."""
    import jax
    import optax

    name, options = CASES[case]
    micro_steps = options.get("gradient_accumulation_steps", 1)
    chain = [optax.clip_by_global_norm(1.0)]
    if name == "Adam":
        chain.append(optax.scale_by_adam(0.9, 0.999, 1e-8))
    else:
        chain.append(optax.trace(0.9))
    mask = {k: k.split("/")[-1].rstrip("1").endswith("kernel") for k in SHAPES}
    assert sum(mask.values()) == 4
    decay = options.get("weight_decay", 0.0)
    chain.append(optax.add_decayed_weights(decay, mask))
    if "layer_decay" in options:
        rates = {k: RATES[k.split("/")[0]] for k in SHAPES}
        chain.append(
            optax.stateless(
                lambda updates, _: jax.tree.map(
                    lambda u, r: u * r, updates, rates
                )
            )
        )
    schedule = optax.warmup_cosine_decay_schedule(0, BASE_LR, WARMUP, STEPS)
    chain.append(optax.scale_by_learning_rate(schedule))
    tx = optax.chain(*chain)
    params = jax.tree.map(jax.numpy.asarray, weights())
    state = tx.init(params)
    average = None

    @jax.jit
    def update(mean, state, params):
        updates, state = tx.update(mean, state, params)
        return optax.apply_updates(params, updates), state

    for step in range(STEPS):
        every = [
            gradients(step, micro, replica)
            for micro in range(micro_steps)
            for replica in range(replicas)
        ]
        mean = {k: sum(g[k] for g in every) / len(every) for k in SHAPES}
        params, state = update(mean, state, params)
        average = (
            params
            if average is None
            else {k: 0.9 * average[k] + 0.1 * params[k] for k in SHAPES}
        )
    end = average if options.get("use_ema") else params
    return {k: np.asarray(end[k]) - w for k, w in weights().items()}


def assert_equal(got, want):
    for key in SHAPES:
        error = np.linalg.norm(got[key] - want[key])
        assert error <= 1e-5 * np.linalg.norm(want[key]), key


@pytest.mark.parametrize("case", CASES)
def test_is_optax(case):
    assert_equal(moved(case), expected(case))


def test_the_comparison_sees_the_difference_to_keras():
    keras_sgd = keras.optimizers.SGD(
        make_optimizer("sgd")._learning_rate, momentum=0.9, global_clipnorm=1.0
    )
    variables = make_variables()
    keras_sgd.build(variables)
    for _ in feed(keras_sgd, variables):
        pass
    got = {
        k: keras.ops.convert_to_numpy(v) - w
        for (k, w), v in zip(weights().items(), variables, strict=True)
    }
    with pytest.raises(AssertionError):
        assert_equal(got, expected("sgd"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@pytest.mark.skipif(
    keras.backend.backend() == "jax",
    reason="JAX differentiates the loss of the whole batch: no replicas here",
)
def test_is_optax_on_two_replicas(tmp_path):
    cases = ["adam accumulated", "sgd", "adam averaged"]
    command = [sys.executable, str(SCRIPT), "2", str(tmp_path), *cases]
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
    }
    ranks = range(2 if keras.backend.backend() == "torch" else 1)
    processes = [
        subprocess.Popen(command, env={**environment, "RANK": str(rank)})
        for rank in ranks
    ]
    assert [p.wait(timeout=240) for p in processes] == [0 for _ in ranks]
    for case in cases:
        want = expected(case, replicas=2)
        for rank in ranks:
            assert_equal(np.load(tmp_path / f"{case}.{rank}.npz"), want)


@pytest.mark.parametrize("case", ["adam", "sgd"])
def test_bfloat16_momentum_differs_by_its_rounding(case):
    optimizer = make_optimizer(case, momentum_dtype="bfloat16")
    optimizer.build(make_variables())
    slots = {v.name.rsplit("_")[-1]: v.dtype for v in optimizer.variables[1:]}
    assert slots["momentum"] == "bfloat16"
    assert slots.get("velocity", "float32") == "float32"
    got, want = moved(case, momentum_dtype="bfloat16"), moved(case)
    for key in SHAPES:
        error = np.linalg.norm(got[key] - want[key])
        # bfloat16 has 8 significant bits.
        assert 0 < error <= 2**-7 * np.linalg.norm(want[key])


@pytest.mark.parametrize("case", ["adam accumulated", "adam by layer", "sgd"])
def test_goes_on_after_saving_and_loading(case, tmp_path):
    """Mask, slots, counters and schedule survive a `.keras` file's parts."""
    optimizer, variables = make_optimizer(case), make_variables()
    optimizer.build(variables)
    batches = feed(optimizer, variables)
    for batch in batches:
        if batch == 13:
            break
    config = keras.optimizers.serialize(optimizer)
    store = {}
    optimizer.save_own_variables(store)
    reloaded = keras.optimizers.deserialize(config)
    assert reloaded.get_config() == optimizer.get_config()
    reloaded.build(variables)
    reloaded.load_own_variables(store)
    for _ in feed(reloaded, variables, first=14):
        pass
    want = moved(case)
    for (key, w), v in zip(weights().items(), variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(v) - w, want[key]
        )


def test_learning_rate_counts_weight_updates():
    optimizer, variables = make_optimizer("sgd accumulated"), make_variables()
    optimizer.build(variables)
    rates = [float(optimizer.learning_rate) for _ in feed(optimizer, variables)]
    # Asked after each batch: the rate of the update that comes next.
    np.testing.assert_allclose(
        rates[:7], np.array([0, 0, 1, 1, 1, 2, 2]) / WARMUP * BASE_LR, rtol=1e-6
    )


def test_decays_the_kernels_of_the_models(tiny_model):
    decayed = {v.path for v in tiny_model.weights if optimizers.is_kernel(v)}
    assert decayed == {
        "embedding/kernel",
        *(f"encoderblock_{i}/attention/{n}_kernel"
          for i in range(2) for n in ("qkv", "out")),
        *(f"encoderblock_{i}/mlp_kernel{n}" for i in range(2) for n in (1, 2)),
        "head/kernel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clipnorm": 1.0}, "does not implement `clipnorm`.*clipnorm=1.0"),
        ({"clipvalue": 1.0}, "does not implement `clipvalue`"),
        (
            {"ema_overwrite_frequency": 3},
            "does not implement `ema_overwrite_frequency`.*SwapEMAWeights",
        ),
        ({"layer_decay": 1.5}, "above 0 and at most 1.*layer_decay=1.5"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        optimizers.Adam(1e-3, **arguments)
