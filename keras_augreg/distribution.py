"""Training on several devices: one call before the model is built.

`distribute` sets up this process. The functions after it let the optimizers,
the training step and `Workdir` communicate with other replicas.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_augreg.checks import check_choice

# Numbers this process's calls of `preempted`.
_CALLS = itertools.count(1)
KINDS = ("auto", "data", "fsdp", "model", "none")
# Google's number as a vendor of PCI devices, such as TPUs.
GOOGLE = "0x1ae0"

# Axes of a variable that may be split over the devices of one model, best
# first; the first whose size the devices divide is used. Heads (H) and MLP
# columns are the split of Megatron-LM (arXiv 1909.08053, section 3): one sum
# per attention and one per MLP. A head's features (D) are second best, for
# models with few heads (Ti has 3, S has 6).
SPLIT_AXES = {
    "attention/qkv_kernel": (2, 3),  # (W, 3, H, D)
    "attention/qkv_bias": (1, 2),  # (3, H, D)
    "attention/out_kernel": (0, 1),  # (H, D, W)
    "mlp_kernel1": (1,),  # (W, MLP)
    "mlp_bias1": (0,),  # (MLP,)
    "mlp_kernel2": (0,),  # (MLP, W)
    "head/kernel": (1, 0),  # (W, classes)
    "head/bias": (0,),  # (classes,)
}


def split_axis(path: str, shape: tuple[int, ...], parts: int) -> int | None:
    """Returns the axis along which a variable is split, or `None`."""
    for name, axes in SPLIT_AXES.items():
        if path.endswith(f"/{name}") or path == name:
            return next((a for a in axes if shape[a] % parts == 0), None)
    return None


def fsdp_axis(shape: tuple[int, ...], parts: int) -> int | None:
    """Returns the axis along which `"fsdp"` splits a variable, or `None`.

    The longest that the devices divide. Vectors (biases, LayerNorm), a
    thousandth of all numbers, stay whole.
    """
    axes = [a for a, size in enumerate(shape) if size % parts == 0]
    if sum(size > 1 for size in shape) < 2 or not axes:
        return None
    return max(axes, key=lambda a: shape[a])


@dataclasses.dataclass(frozen=True)
class Distribution(contextlib.AbstractContextManager):
    """What `distribute` set up; as a context manager, undone at its end.

    Args:
        kind: `"data"`, `"fsdp"`, `"model"` or `"none"`.
        replicas: Number of parts that the global batch is split into.
        shard: (index, count): this process and the number of processes, each
            of which loads its part of every batch.
        undo: Called at the end of `with`.
    """

    kind: str
    replicas: int = 1
    shard: tuple[int, int] = (0, 1)
    undo: Callable[[], object] = dataclasses.field(
        default=lambda: None, repr=False
    )

    def __exit__(self, *_: object) -> None:
        self.undo()


def distribute(
    kind: str = "auto", model_devices: int | None = None
) -> Distribution:
    """Spreads models built from now on over the available devices.

    Call it before any other Keras code. The rest of the code stays as on one
    device: batch sizes are those of all devices together, the loss is the mean
    over the global batch, and clipping sees the whole gradient.

    | backend | `"data"` | `"fsdp"`, `"model"` |
    | --- | --- | --- |
    | JAX | `keras.distribution.DataParallel`, all hosts | `ModelParallel` |
    | TensorFlow | TPUStrategy on a TPU, else MirroredStrategy | refused |
    | PyTorch | one process per device, started by `torchrun` | refused |

    JAX on several hosts: the processes of a TPU slice (Cloud TPU VMs, GKE) and
    those that SLURM's `srun` starts find each other. Elsewhere, set
    `KERAS_DISTRIBUTION_JOB_ADDRESSES` (the address of process 0),
    `KERAS_DISTRIBUTION_NUM_PROCESSES` and `KERAS_DISTRIBUTION_PROCESS_ID`.
    There and under `torchrun`, each process loads its part of the batch:
    `train.sharded(*d.shard)` with the data set that `keras_augreg.data.load`
    returns.

    On JAX, dropout and augmentation draw as on one device. On TensorFlow and
    PyTorch each replica draws independently, so two replicas do not
    reproduce one device with twice the batch number for number.

    Args:
        kind: `"data"`: every device has all weights and a part of the batch.
            `"fsdp"`: the same, but each device stores a part of the weights
            and of the optimizer's state, and they are gathered where they
            are used. `"model"`: products are split over `model_devices`, with
            their weights (`SPLIT_AXES`). `"none"`: one device. `"auto"`:
            `"data"` if there are several devices; the choice is printed on
            stderr.
        model_devices: With `"model"`, the number of devices that share one
            model; it must divide the number of this host's devices. `None`
            for all of them.

    Returns:
        A `Distribution`, also for `with`.

    Raises:
        ValueError: `kind` is unknown, the backend lacks it, or
            `model_devices` does not divide the number of devices of a host.

    Example:
    ```python
    with keras_augreg.distribute("data") as d:
        model = keras_augreg.ViT_S16(weights=None)
        # compile, and model.fit(...)
    ```
    """
    check_choice("kind", kind, KINDS)
    if model_devices is not None and kind != "model":
        raise ValueError(
            "`model_devices` only applies to distribute('model'). Received: "
            f"kind={kind!r}, model_devices={model_devices}"
        )
    backend = keras.backend.backend()
    if kind in ("fsdp", "model") and backend != "jax":
        raise ValueError(
            "Keras splits a model over devices only on JAX. Received: "
            f"kind={kind!r} on {backend}. Set KERAS_BACKEND=jax, or use "
            "distribute('data')."
        )
    if kind == "none":
        return Distribution("none")
    if backend == "jax":
        chosen, devices = _start_jax(kind, model_devices)
    elif backend == "tensorflow":
        chosen, devices = _start_tensorflow(kind)
    else:
        chosen, devices = _start_torch(kind)
    if kind == "auto":
        print(
            f"keras_augreg.distribute: {chosen.kind} ({devices})",
            file=sys.stderr,
        )
    return chosen


def _start_jax(
    kind: str, model_devices: int | None
) -> tuple[Distribution, str]:
    import jax

    lib = keras.distribution
    if not jax.distributed.is_initialized() and _one_of_several_processes():
        lib.initialize()
    devices = lib.list_devices()
    count, replicas = len(devices), 1
    if kind == "auto":
        kind = "data" if count > 1 else "none"
    before = lib.distribution()
    if kind == "model":
        # Hosts that shared one model would need the same images.
        here = jax.local_device_count()
        model_devices = model_devices or here
        if here % model_devices:
            raise ValueError(
                "`model_devices` must divide the number of a host's devices, "
                f"{here}. Received: model_devices={model_devices}"
            )
    if kind != "none":
        chosen, replicas = keras_distribution(kind, devices, model_devices)
        lib.set_distribution(chosen)
    result = Distribution(
        kind,
        replicas,
        (jax.process_index(), jax.process_count()),
        functools.partial(lib.set_distribution, before),
    )
    return result, f"JAX, {count} x {jax.devices()[0].platform}"


def _one_of_several_processes() -> bool:
    """Whether JAX's processes on several hosts or GPUs were started.

    Who asks JAX itself has to wait for the services of clouds that are absent.
    """
    if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
        return True
    # Set by `srun` alone, not in the job that calls it.
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        return True
    if int(os.environ.get("MEGASCALE_NUM_SLICES", "1")) > 1:
        return True
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")
    return "," in (_hosts_of_tpu_vm() if hosts is None else hosts)


def _has_tpu() -> bool:
    """Whether there may be one: Google also makes network cards."""
    vendors = pathlib.Path("/sys/bus/pci/devices").glob("*/vendor")
    return any(file.read_text().strip() == GOOGLE for file in vendors)


def _hosts_of_tpu_vm() -> str:
    """The hosts of a slice of Cloud TPU VMs, by Google's metadata server.

    Other clouds and GKE have no such server, and are not asked: JAX, too, goes
    by these names (`jax/_src/clusters/cloud_tpu_cluster.py`).
    """
    if "TPU_SKIP_MDS_QUERY" in os.environ or not _has_tpu():
        return ""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/"
        "worker-network-endpoints",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=2) as answer:
            return answer.read().decode()
    except OSError:  # Not a TPU VM.
        return ""


def _start_tensorflow(kind: str) -> tuple[Distribution, str]:
    import tensorflow as tf

    cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get("cluster", {})
    if len(cluster.get("worker", ())) > 1:
        raise ValueError(
            "TF_CONFIG names several workers, and `fit` of Keras 3 fails "
            "under MultiWorkerMirroredStrategy (keras-team/keras issue "
            "20585). Use KERAS_BACKEND=jax for several hosts, or one "
            "worker with several GPUs."
        )
    strategy = None
    try:
        strategy = tf.distribute.TPUStrategy(
            tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        )
    except (ValueError, tf.errors.NotFoundError):  # There is no TPU.
        devices = tf.config.list_logical_devices("GPU")
        devices = devices or tf.config.list_logical_devices("CPU")
        if len(devices) > 1 or kind == "data":
            strategy = tf.distribute.MirroredStrategy(
                [device.name for device in devices]
            )
    if strategy is None:
        return Distribution("none"), "TensorFlow, one device"
    undo = contextlib.ExitStack()
    undo.enter_context(strategy.scope())
    replicas = strategy.num_replicas_in_sync
    return (
        Distribution("data", replicas, undo=undo.close),
        f"TensorFlow, {type(strategy).__name__} x {replicas}",
    )


def _start_torch(kind: str) -> tuple[Distribution, str]:
    import torch

    if not {"RANK", "WORLD_SIZE"} <= set(os.environ):
        if kind == "data":
            raise ValueError(
                "On PyTorch every device has its own process. Start the "
                "script with `torchrun --nproc-per-node=DEVICES SCRIPT`."
            )
        return Distribution("none"), "PyTorch, not started by torchrun"
    distributed = torch.distributed
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    undo = contextlib.ExitStack()
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if gpu else "gloo")
        undo.callback(distributed.destroy_process_group)
    index, count = process()
    return (
        Distribution("data", count, (index, count), undo.close),
        f"PyTorch, {count} processes",
    )


def keras_distribution(
    kind: str, devices: Sequence[Any], model_devices: int | None = None
) -> tuple[Any, int]:
    """Keras's distribution for JAX, and the parts of the batch.

    Args:
        kind: `"data"`, `"fsdp"` or `"model"`.
        devices: Names of devices, or devices of JAX, also of a described
            topology (`keras_augreg.flight_check`).
        model_devices: As in `distribute`.
    """
    lib, count = keras.distribution, len(devices)
    mesh = lib.DeviceMesh((count,), ("batch",), devices)
    if kind == "data":
        return lib.DataParallel(mesh, auto_shard_dataset=False), count
    if kind == "fsdp":
        split = _split_over(mesh, lambda v: fsdp_axis(v.shape, count))
        split.gathers_weights = True
        return split, count
    parts = model_devices or count
    if parts < 1 or count % parts:
        raise ValueError(
            f"`model_devices` must divide the number of devices, {count}. "
            f"Received: model_devices={model_devices}"
        )
    mesh = lib.DeviceMesh((count // parts, parts), ("batch", "model"), devices)
    split = _split_over(mesh, lambda v: split_axis(v.path, v.shape, parts))
    split.splits_activations = True
    return split, count // parts


def _split_over(mesh: Any, axis_of: Callable[[Any], int | None]) -> Any:
    class SplitModel(keras.distribution.ModelParallel):
        """ModelParallel whose layout follows from a variable's shape too."""

        def get_variable_layout(self, variable: Any) -> Any:
            axes: list[str | None] = [None] * len(variable.shape)
            axis = axis_of(variable)
            if axis is not None:
                axes[axis] = mesh.axis_names[-1]
            given = getattr(variable, "_layout", None)
            return given or keras.distribution.TensorLayout(axes, mesh)

    return SplitModel(
        layout_map=keras.distribution.LayoutMap(mesh),
        batch_dim_name="batch",
        auto_shard_dataset=False,
    )


def gathered(values: Sequence[Any], variables: Sequence[Any]) -> list[Any]:
    """Values of variables, whole on every device under `"fsdp"` on JAX.

    XLA might otherwise gather the images' tokens, which are more, and keep
    the weights in parts. Gradients come in parts again.
    """
    split = keras.distribution.distribution()
    if not getattr(split, "gathers_weights", False):
        return list(values)
    import jax

    place = jax.lax.with_sharding_constraint
    whole = jax.sharding.NamedSharding(
        split.device_mesh.backend_mesh, jax.sharding.PartitionSpec()
    )

    def gather(value: Any, variable: Any) -> Any:
        layout = split.get_variable_layout(variable)
        if not any(layout.axes):
            return value

        @jax.custom_vjp
        def one(value: Any) -> Any:
            return place(value, whole)

        one.defvjp(
            lambda value: (one(value), None),
            lambda _, gradient: (place(gradient, layout.backend_layout),),
        )
        return one(value)

    return list(map(gather, values, variables))


def shared(x: Any, axis: int | None) -> Any:
    """Says how devices share an activation under `"model"`: by this axis.

    Left to XLA, they might gather tokens instead. `None`: all of them compute
    the same. If they cannot divide the axis, nothing is said.
    """
    split = keras.distribution.distribution()
    if not getattr(split, "splits_activations", False):
        return x
    import jax

    mesh = split.device_mesh
    axes: list[str | None] = ["batch", *[None] * (x.ndim - 1)]
    if axis is not None:
        if x.shape[axis] % mesh.shape[1]:
            return x
        axes[axis] = "model"
    # Outside of a compiled step, or exported for batches of any size, images
    # may be fewer than devices.
    if not isinstance(x, jax.core.Tracer) or not isinstance(x.shape[0], int):
        return x
    layout = keras.distribution.TensorLayout(axes, mesh)
    return keras.distribution.distribute_tensor(x, layout)


def batch_shards() -> int:
    """Number of devices, or groups of them, that share a batch on JAX."""
    active = keras.distribution.distribution()
    return 1 if active is None else int(active.device_mesh.shape[0])


def splits_model() -> bool:
    """Whether devices compute parts of a layer, as under `"model"`."""
    active = keras.distribution.distribution()
    return active is not None and len(active.device_mesh.axis_names) > 1


def platform() -> str:
    """`"cpu"`, `"gpu"` or `"tpu"`: what computes the models.

    On JAX, that of the distribution, which may be described only
    (`keras_augreg.flight_check`).
    """
    if keras.backend.backend() == "torch":
        device = keras.ops.zeros(()).device.type
        return "gpu" if device == "cuda" else str(device)
    active = keras.distribution.distribution()
    if active is None:
        return str(keras.distribution.list_devices()[0]).partition(":")[0]
    first = active.device_mesh.devices.flat[0]
    return getattr(first, "platform", None) or str(first).partition(":")[0]


def on_cpu() -> bool:
    """Whether models compute on a CPU."""
    return platform() == "cpu"


def augments_on_host() -> bool:
    """Whether the host is the better place for RandAugment and Mixup.

    A TPU gathers slowly: docs/performance.md has the compiler's estimate.
    """
    return platform() in ("cpu", "tpu")


def _torch() -> Any:
    """`torch.distributed` in a process that `torchrun` started, or `None`."""
    if keras.backend.backend() != "torch":
        return None
    distributed = sys.modules["torch"].distributed
    started = distributed.is_available() and distributed.is_initialized()
    return distributed if started else None


def _jax() -> Any:
    """JAX's `multihost_utils` if there are several processes, or `None`."""
    if not several_jax_processes():
        return None
    from jax.experimental import multihost_utils

    return multihost_utils


def replica() -> tuple[Any, int]:
    """(index, count) of the replica that this code runs for.

    On JAX a step covers the whole batch. On TensorFlow the index is a tensor.
    """
    if keras.backend.backend() == "tensorflow":
        context = sys.modules["tensorflow"].distribute.get_replica_context()
        if context is None:
            return 0, 1
        return context.replica_id_in_sync_group, context.num_replicas_in_sync
    return process() if _torch() else (0, 1)


def process() -> tuple[int, int]:
    """(index, count): this process and the number of processes."""
    if distributed := _torch():
        return distributed.get_rank(), distributed.get_world_size()
    jax = sys.modules.get("jax")
    if keras.backend.backend() == "jax" and jax is not None:
        return jax.process_index(), jax.process_count()
    return 0, 1


def several_jax_processes() -> bool:
    """Whether this is one of several processes of JAX."""
    return keras.backend.backend() == "jax" and process()[1] > 1


def preempted() -> bool:
    """Whether all JAX hosts stop here because one received SIGTERM.

    Every host calls this before each step, and all get `True` in the same
    call. JAX's preemption service, which `distribute` starts, handles the
    signal; a Python handler set afterwards would hide it from JAX
    (`jax.experimental.multihost_utils.reached_preemption_sync_point`).
    """
    from jax.experimental import multihost_utils

    # Counts calls, not steps: the service stops at the number after the
    # highest it has seen, which a run resumed at step 500 would skip.
    return multihost_utils.reached_preemption_sync_point(next(_CALLS))


def barrier() -> None:
    """Waits until all processes have called this."""
    if distributed := _torch():
        distributed.barrier()
    elif hosts := _jax():
        hosts.sync_global_devices("keras_augreg")


def gather(value: Any) -> list[Any]:
    """The JSON values that all processes passed, in the order of processes."""
    if distributed := _torch():
        values = [None] * distributed.get_world_size()
        distributed.all_gather_object(values, value)
        return values
    if hosts := _jax():
        text = json.dumps(value).encode()
        size = int(hosts.process_allgather(np.int32(len(text))).max())
        mine = np.frombuffer(text.ljust(size), "uint8")
        rows = hosts.process_allgather(mine)
        return [json.loads(row.tobytes()) for row in rows]
    return [value]


def to_numpy(variable: Any) -> Any:
    """The whole value of a variable, even if split over processes."""
    # As a tensor first: TensorFlow's mirrored variables are not arrays.
    value = keras.ops.convert_to_tensor(variable)
    hosts = _jax()
    if hosts and not value.is_fully_replicated:
        return hosts.process_allgather(value, tiled=True)
    return keras.ops.convert_to_numpy(value)


def mean_over_processes(tensors: list[Any]) -> list[Any]:
    """Averages tensors over `torchrun`'s processes, in one message."""
    distributed = _torch()
    if distributed is None:
        return tensors
    torch = sys.modules["torch"]
    flat = torch.cat([t.reshape(-1) for t in tensors])
    distributed.all_reduce(flat)
    flat = flat / distributed.get_world_size()
    parts = torch.split(flat, [t.numel() for t in tensors])
    return [p.reshape(t.shape) for p, t in zip(parts, tensors, strict=True)]


def copy_from_first_process(variables: list[Any]) -> None:
    """Copies the first process's values to all, except of split variables."""
    if distributed := _torch():
        for variable in variables:
            distributed.broadcast(variable.value.data, src=0)
    elif hosts := _jax():
        for variable in variables:
            if variable.value.is_fully_replicated:
                mine = keras.ops.convert_to_numpy(variable)
                variable.assign(hosts.broadcast_one_to_all(mine))


@contextlib.contextmanager
def summed_over_processes(variables: list[Any]) -> Iterator[None]:
    """While active, variables hold their sums over `torchrun`'s processes.

    For metrics, whose variables are sums (a total and a count).
    """
    distributed = _torch()
    if distributed is None:
        yield
        return
    before = [v.value.detach().clone() for v in variables]
    for variable in variables:
        distributed.all_reduce(variable.value.data)
    try:
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
