"""Several devices give what one gives."""

import contextlib
import functools
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import keras
import numpy as np
import pytest

from keras_augreg import VisionTransformer, data, distribution
from keras_augreg.distribution import distribute, fsdp_axis, split_axis

SCRIPT = pathlib.Path(__file__).with_name("_devices.py")
BACKEND = keras.backend.backend()
EIGHT = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
FOUR = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@functools.cache
def slurm_job():
    """A job from whose number JAX derives a free port, from 61440 on."""
    for port in range(61440, 65536):
        with contextlib.suppress(OSError), socket.socket() as s:
            s.bind(("127.0.0.1", port))
            return str(port - 61440)
    raise AssertionError("no free port")


def run(kind, model_devices=0, environments=({},), part=()):
    """Runs a process for each environment; returns what they print."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), kind, str(model_devices), *part],
            env={**os.environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for more in environments
    ]
    results = []
    for process in processes:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        results.append(json.loads(out.splitlines()[-1]))
    return results


@pytest.fixture(scope="module")
def alone():
    (result,) = run("none")
    assert (result["kind"], result["replicas"]) == ("none", 1)
    return result


def assert_same(got, want):
    np.testing.assert_allclose(got["losses"], want["losses"], rtol=1e-5)
    np.testing.assert_allclose(got["sums"], want["sums"], rtol=1e-5)


jax_only = pytest.mark.skipif(BACKEND != "jax", reason="of JAX")


@jax_only
def test_data_parallel(alone):
    (got,) = run("data", 0, [EIGHT])
    assert (got["kind"], got["replicas"]) == ("data", 8)
    assert got["shards"]["head/kernel"] == [48, 8]
    assert_same(got, alone)


@jax_only
def test_model_parallel(alone):
    """Three heads on four devices: the features of a head are split."""
    (got,) = run("model", 4, [EIGHT])
    assert (got["kind"], got["replicas"]) == ("model", 2)
    shards = got["shards"]
    assert shards["encoderblock_0/attention/qkv_kernel"] == [48, 3, 3, 4]
    assert shards["encoderblock_0/attention/out_kernel"] == [3, 4, 48]
    assert shards["encoderblock_0/mlp_kernel1"] == [48, 16]
    assert shards["encoderblock_0/mlp_kernel2"] == [16, 48]
    assert shards["encoderblock_0/norm1/gamma"] == [48]
    assert_same(got, alone)


@jax_only
def test_parts_of_each_device_s_images(alone):
    """Each of four devices computes its four images in two parts."""
    (got,) = run("data", 0, [FOUR], part=["2"])
    assert (got["kind"], got["replicas"], got["parts"]) == ("data", 4, 2)
    assert_same(got, alone)


@jax_only
def test_axes_of_a_distribution_of_one_s_own():
    """What Keras's distributions split is left to them."""
    lib = keras.distribution
    mesh = lib.DeviceMesh((1, 1), ("data", "rest"))
    layout = lib.ModelParallel(
        layout_map=lib.LayoutMap(mesh), batch_dim_name="data"
    )
    with layout.scope():
        model = VisionTransformer(
            patch_size=8,
            width=8,
            depth=1,
            num_heads=2,
            mlp_dim=8,
            input_shape=(16, 16, 3),
            classes=8,
        )
        images = np.zeros((1, 16, 16, 3), "uint8")
        assert model.predict(images, verbose=0).shape == (1, 8)


@jax_only
def test_fully_sharded(alone):
    """Every device stores an eighth of each kernel."""
    (got,) = run("fsdp", 0, [EIGHT])
    assert (got["kind"], got["replicas"]) == ("fsdp", 8)
    shards = got["shards"]
    assert shards["encoderblock_0/attention/qkv_kernel"] == [6, 3, 3, 16]
    assert shards["encoderblock_0/mlp_kernel1"] == [48, 8]
    assert shards["posembed_input/pos_embedding"] == [1, 5, 6]
    assert shards["encoderblock_0/norm1/gamma"] == [48]
    assert_same(got, alone)


def test_fsdp_axes():
    assert fsdp_axis((384, 1536), 8) == 1
    assert fsdp_axis((384, 3, 6, 64), 8) == 0
    assert fsdp_axis((384, 1000), 256) is None
    assert fsdp_axis((384,), 8) is None
    assert fsdp_axis((1, 1, 384), 8) is None


def test_where_auto_augments(monkeypatch):
    for platform, host in (("cpu", True), ("tpu", True), ("gpu", False)):
        monkeypatch.setattr(distribution, "platform", lambda: platform)  # noqa: B023
        assert distribution.augments_on_host() == host


@jax_only
def test_two_jax_processes(alone):
    """As SLURM starts them; those of two hosts are in test_recipes.py."""
    environments = [
        {
            **FOUR,
            "SLURM_JOB_ID": slurm_job(),
            "SLURM_STEP_NODELIST": "127.0.0.1",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_NTASKS": "2",
            "SLURM_PROCID": str(i),
            "SLURM_LOCALID": str(i),
        }
        for i in range(2)
    ]
    for got in run("data", 0, environments):
        assert got["replicas"] == 8
        assert_same(got, alone)


VARIABLES = [
    {"KERAS_DISTRIBUTION_NUM_PROCESSES": "2"},
    {"SLURM_STEP_NUM_TASKS": "2"},
    {"MEGASCALE_NUM_SLICES": "2"},
    {"TPU_WORKER_HOSTNAMES": "a,b"},
]


@jax_only
@pytest.mark.parametrize("hosts", ["a,b", "a", None])
def test_processes_of_several_hosts_are_noticed(hosts, monkeypatch):
    """By their variables, or by what Google's server tells a TPU VM."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            known = self.path.endswith("/attributes/worker-network-endpoints")
            known = known and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known and hosts else 404)
            self.end_headers()
            self.wfile.write((hosts or "").encode())

        def log_message(self, *_):
            pass

    noticed = distribution._one_of_several_processes
    for variable in (*VARIABLES, {"TPU_SKIP_MDS_QUERY": ""}):
        monkeypatch.delenv(*variable, raising=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{port}")
        monkeypatch.setattr(distribution, "GOOGLE", "0x0000")
        assert not noticed()  # no TPU: not asked
        monkeypatch.setattr(distribution, "_has_tpu", lambda: True)
        assert noticed() == (hosts == "a,b")
        with monkeypatch.context() as patch:  # GKE has said it: not asked
            patch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
            patch.setattr(distribution, "_hosts_of_tpu_vm", pytest.fail)
            assert not noticed()
        server.shutdown()
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    for variable in VARIABLES:
        with monkeypatch.context() as patch:
            patch.setenv(*next(iter(variable.items())))
            assert noticed()
        assert not noticed()


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
def test_two_tensorflow_replicas(alone):
    (got,) = run("data")
    assert (got["kind"], got["replicas"]) == ("data", 2)
    assert_same(got, alone)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="of TensorFlow")
@pytest.mark.parametrize("training", [True, False])
def test_batches_that_keras_would_lose_are_refused(training):
    """With them, replicas trained on other batches than one device did."""
    import tensorflow as tf

    options = {"training": training, "image_size": 16, "batch_size": 8}
    with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
        with pytest.raises(ValueError, match='engine="tensorflow"'):
            data.load(
                "digits",
                "train",
                options=data.Options(engine="python"),
                **options,
            )
        _, info = data.load("digits", "train", **options)
    assert info.engine == "tensorflow"


# A process of its own: JAX replaces Python's handler, and starts once.
PREEMPTED = """
import os, signal, time
import jax
from keras_augreg import distribution
jax.distributed.initialize("127.0.0.1:PORT", 1, 0)
EARLIER
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(3)  # The service looks once a second.
print([distribution.preempted() for _ in range(3)])
"""


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX")
@pytest.mark.parametrize(
    "earlier",
    ["", "assert not any(distribution.preempted() for _ in 'abc')"],
    ids=["before the first step", "later"],
)
def test_preemption_is_heard_at_the_next_step(earlier):
    script = PREEMPTED.replace("PORT", free_port()).replace("EARLIER", earlier)
    output = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert output.splitlines()[-1] == "[True, False, False]"


@pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch")
def test_two_torch_processes(alone):
    port = free_port()
    environments = [
        {
            "RANK": str(i),
            "LOCAL_RANK": str(i),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for i in range(2)
    ]
    for got in run("auto", 0, environments):
        assert (got["kind"], got["replicas"]) == ("data", 2)
        assert_same(got, alone)


def test_layouts_are_valid_for_all_variants():
    from keras_augreg.variants import VARIANTS

    for sizes in (variant.sizes for variant in VARIANTS.values()):
        size = sizes.width // sizes.num_heads
        shapes = {
            "attention/qkv_kernel": (sizes.width, 3, sizes.num_heads, size),
            "attention/out_kernel": (sizes.num_heads, size, sizes.width),
            "mlp_kernel1": (sizes.width, sizes.mlp_dim),
            "mlp_kernel2": (sizes.mlp_dim, sizes.width),
            "head/kernel": (sizes.width, 21_843),
        }
        for parts in (2, 4, 8):
            for name, shape in shapes.items():
                axis = split_axis(f"encoderblock_0/{name}", shape, parts)
                assert axis is not None
                assert shape[axis] % parts == 0
    assert split_axis("posembed_input/pos_embedding", (1, 5, 48), 2) is None
    # Whole heads where they can be.
    assert split_axis("a/attention/qkv_kernel", (768, 3, 12, 64), 4) == 2


def test_refuses(monkeypatch):
    with pytest.raises(ValueError, match="'both'"):
        distribute("both")
    with pytest.raises(ValueError, match="model_devices=2"):
        distribute("data", model_devices=2)
    if BACKEND == "jax":
        with pytest.raises(ValueError, match="model_devices=3"):
            distribute("model", model_devices=3)
    else:
        for kind in ("fsdp", "model"):
            with pytest.raises(ValueError, match="KERAS_BACKEND=jax"):
                distribute(kind)
    if BACKEND == "tensorflow":
        cluster = {"cluster": {"worker": ["a:1", "b:1"]}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
        with pytest.raises(ValueError, match="20585"):
            distribute("data")
    if BACKEND == "torch":
        monkeypatch.delenv("RANK", raising=False)
        with pytest.raises(ValueError, match="torchrun"):
            distribute("data")


def test_auto_says_what_it_picked(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with distribute("auto") as devices:
        assert devices.kind == "none"
    assert "keras_augreg.distribute: none" in capsys.readouterr().err
