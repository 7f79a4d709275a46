"""`keras_augreg.flight_check` and recipes/flight_check.py."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from keras_augreg import (
    AugReg,
    VisionTransformer,
    compile_pretraining,
    distribution,
    flight_check,
)

ROOT = pathlib.Path(__file__).parents[1]
pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        keras.config.backend() != "jax", reason="only JAX compiles for a TPU"
    ),
]
needs_compiler = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="the TPU's compiler is not installed: pip install libtpu",
)

NAMED = 'fusion(%a), metadata={{op_name="jit(train_step)/{}"}}, '
CYCLES = 'backend_config={{"window_config":{{}},"estimated_cycles":"{}"}}'
PROGRAM = [
    "ENTRY %main {",
    "%fusion.1 = (bf16[8,4]{1,0:T(8,128)(2,1)}) "
    + NAMED.format("transpose(jvp(encoderblock_3))/attention/mul")
    + CYCLES.format(100),
    "%copy.3 = bf16[8,4]{1,0} "
    + NAMED.format("jvp(encoderblock_0)/norm1/add")
    + CYCLES.format(30),
    "%fusion.2 = f32[4]{0} " + NAMED.format("adam/mul") + CYCLES.format(20),
    "ROOT %fusion.4 = f32[4]{0} "
    + NAMED.format("jvp(encoderblock_0)/dot_general")
    + CYCLES.format(50),
    "%all-reduce.3 = (f32[]{:T(128)}, bf16[16,3]{1,0:T(8,128)(2,1)S(1)}) "
    "all-reduce(%d, %e), channel_id=1",
    "%all-gather-start = (f32[2,8]{1,0}, f32[16,8]{1,0}) "
    "all-gather-start(%f), channel_id=2",
    "%done = f32[16,8]{1,0} all-gather-done(%all-gather-start)",
    "}",
]


def compiled(augment="none", dtype="mixed_bfloat16", **options):
    recipe = AugReg(augment)
    model = VisionTransformer(
        patch_size=8,
        width=64,
        depth=1,
        num_heads=2,
        mlp_dim=128,
        input_shape=(16, 16, 3),
        classes=16,
        recipe=recipe,
        dtype=dtype,
    )
    compile_pretraining(model, recipe, total_steps=9, warmup_steps=2, **options)
    return model


def test_program_is_read():
    cycles, copies, collectives = flight_check._read("\n".join(PROGRAM))
    assert cycles == {
        "attention": 100, "LayerNorm": 30, "optimizer": 20, "MLP": 50
    }  # fmt: skip
    assert copies == 30
    assert collectives == {
        "all-reduce": {"count": 1, "bytes": 4 + 2 * 48},
        "all-gather": {"count": 1, "bytes": 4 * 128},
    }


def test_errors():
    model = compiled()
    check = flight_check.check
    with pytest.raises(ValueError, match=r"`kind` must be.*kind='zero'"):
        check(model, batch_size=8, kind="zero")
    with pytest.raises(ValueError, match=r"v4, v5e, v5p, v6e.*'v9:2x2'"):
        check(model, batch_size=8, topology="v9:2x2")
    with pytest.raises(TypeError, match="compiled with"):
        check(keras.Sequential(), batch_size=8)


@pytest.mark.parametrize(
    "said",
    [
        "Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. "
        "Exceeded hbm capacity by 4.75G.",
        "Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (20.5G) exceeds available HBM (15.75G).",
    ],
)
def test_memory_that_is_too_small(said):
    said = RuntimeError(f"RESOURCE_EXHAUSTED: {said}")
    report = flight_check._too_large(said)
    assert report["fits"] is False
    assert report["bytes"] == {"total": 20.5 * 2**30}
    assert report["hbm"] == 15.75 * 2**30
    report |= {"images": 8, "topology": "v5e:2x2", "kind": "data"}
    report["advice"] = flight_check._advice(report, compiled())
    table = flight_check.table(report)
    for part in ("| total, GiB a chip | 20.5 |", "NO", "remat", "fsdp"):
        assert part in table
    with pytest.raises(RuntimeError, match="other"):
        flight_check._too_large(RuntimeError("other"))


@needs_compiler
def test_topologies_and_batches_that_do_not_divide():
    model = compiled()
    with pytest.raises(ValueError, match=r"no such TPU.*'v5e:3x3'.*2x4"):
        flight_check.check(model, batch_size=8, topology="v5e:3x3")
    with pytest.raises(ValueError, match=r"4 parts.*batch_size=9.*one is 8"):
        flight_check.check(model, batch_size=9, topology="v5e:2x2")
    with pytest.raises(ValueError, match=r"number of devices, 4.*=3"):
        flight_check.check(
            model, batch_size=8, topology="v5e:2x2", kind="model",
            model_devices=3,
        )  # fmt: skip


@needs_compiler
def test_kinds():
    """What a chip holds, sends and computes; the model is left as it was."""
    model = compiled()
    before = [np.array(w) for w in model.weights]
    reports = {
        kind: flight_check.check(
            model, batch_size=64, topology="v5e:2x2", kind=kind
        )
        for kind in flight_check.KINDS
    }
    numbers = model.count_params()
    for kind, report in reports.items():
        assert report["fits"]
        assert report["chips"] == 4
        assert report["images"] == (64 if kind == "model" else 16)
        assert sum(report["parts"].values()) == pytest.approx(1)
        assert {"attention", "MLP", "LayerNorm"} <= set(report["parts"])
        assert 0 < report["share"] < 1
        assert report["seconds"] == report["cycles"] / 1.5e9
    state = {k: r["bytes"]["arguments"] for k, r in reports.items()}
    # Weights, momentum, velocity in float32; small arrays fill whole tiles.
    assert 12 * numbers < state["data"] < 24 * numbers
    # The batch of 64 small images and whatever is not split weigh as much.
    assert state["fsdp"] < 0.75 * state["data"]
    assert state["model"] < 0.9 * state["data"]
    sent = {k: r["collectives"] for k, r in reports.items()}
    assert set(sent["data"]) == {"all-reduce"}
    # bfloat16 or float32 gradients, one each.
    assert 2 * numbers <= sent["data"]["all-reduce"]["bytes"] < 6 * numbers
    # Weights in float32, and no images.
    assert set(sent["fsdp"]) == {"all-gather", "all-reduce"}
    assert 2 * numbers <= sent["fsdp"]["all-gather"]["bytes"] < 6 * numbers
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    images = np.zeros((4, 16, 16, 3), "uint8")
    model.fit(images, np.arange(4), verbose=0)


@needs_compiler
def test_heads_and_hidden_units_stay_apart():
    """XLA's own choice, gathering tokens, shows in large models only."""
    model = compiled()
    _, devices = flight_check._describe("v5e:2x2")
    layout, _ = distribution.keras_distribution("model", devices, 2)
    with layout.scope(), flight_check._lowered(model, layout, 64) as lowered:
        program = lowered.as_text()
    places = re.findall("sharding_constraint .*", program)
    shared = [place for place in places if '"model"' in place]
    # Keys and values of all tokens; the only block's class token has the query
    # and the hidden units. Each forward and backward.
    for shape, count in (("64x5x2x32", 2), ("64x1x2x32", 1), ("64x1x128", 1)):
        assert sum(f"<{shape}x" in place for place in shared) == 2 * count


@needs_compiler
def test_script(tmp_path):
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "recipes" / "flight_check.py"),
            "--model=Ti/32", "--depth=1", "--image_size=32", "--batch_size=4",
            "--topology=v5e:2x2", "--augment=none", f"--workdir={tmp_path}",
            '--options={"remat": true, "gradient_accumulation_steps": 2}',
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["fits"] == {"data": True}
    (report,) = json.loads((tmp_path / "flight_check.json").read_text())
    # The gradients' sum is a fourth array of each weight's size.
    numbers = 3 * 32 * 32 * 192 + 192 * 1000
    assert report["bytes"]["arguments"] > 16 * numbers
    assert any("remat=False" in advice for advice in report["advice"])
    text = (tmp_path / "flight_check.md").read_text()
    assert "estimate, not a measurement" in text
    assert (tmp_path / "flight_check.png").stat().st_size > 1000
