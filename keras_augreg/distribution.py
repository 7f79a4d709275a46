"""Several devices: one call before the model is built.

What a process does on its own is in `distribute`; the functions below it are
what the optimizers and the training step need to know of other replicas.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import keras

# Of `preempted`, in this process.
_CALLS = itertools.count(1)
KINDS = ("auto", "data", "model", "none")

# The axes of a variable that may be split over the devices of one model, the
# best first; the first that they divide is. Heads (H) and MLP columns are the
# split of Megatron-LM (arXiv 1909.08053, section 3): one sum per attention and
# one per MLP. A head's features (D) are the next best: Ti has 3 heads, S has 6.
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
    """The axis of a variable that is split in `parts`, `None` for none."""
    for name, axes in SPLIT_AXES.items():
        if path.endswith(f"/{name}") or path == name:
            return next((a for a in axes if shape[a] % parts == 0), None)
    return None


class distribute:
    """Spreads models built from now on over the devices that there are.

    Call it before anything else of Keras: `with distribute("auto") as d:`, or
    in a notebook plainly `d = distribute("auto")`. Everything else stays as
    on one device: batch sizes are those of all devices together, the loss is
    the mean over the global batch, and clipping sees the gradient of all.

    | backend | `"data"` | `"model"` |
    | --- | --- | --- |
    | JAX | `keras.distribution.DataParallel`, all hosts | `ModelParallel` |
    | TensorFlow | TPUStrategy on a TPU, else MirroredStrategy | refused |
    | PyTorch | a process for each device, started by `torchrun` | refused |

    JAX on several hosts: set `KERAS_DISTRIBUTION_JOB_ADDRESSES` (the address
    of process 0), `KERAS_DISTRIBUTION_NUM_PROCESSES` and
    `KERAS_DISTRIBUTION_PROCESS_ID`. There and under `torchrun`, each process
    loads its slice of the batch: `keras_augreg.data.load(..., host=d.host)`.

    Dropout and augmentation draw as on one device on JAX; elsewhere each
    replica draws for itself, so that two replicas are not one device with
    twice the batch, number for number.

    Args:
        kind: `"data"`: every device has all weights and a part of the batch.
            `"model"`: weights are split over `model_devices` too
            (`SPLIT_AXES`). `"none"`: one device. `"auto"`: `"data"` where
            there are several devices, and says so on stderr.
        model_devices: With `"model"`, devices that share one model; it
            divides the number of devices. Defaults to all of them.

    Attributes:
        kind: What was chosen.
        replicas: How many parts the global batch is split into.
        host: (number of this process, number of processes).

    Raises:
        ValueError: If `kind` is unknown, the backend cannot do it, or
            `model_devices` does not divide the devices.

    Example:
    ```python
    with keras_augreg.distribute("data") as d:
        model = keras_augreg.ViT_S16(weights=None)
        # compile, and model.fit(...)
    ```
    """

    def __init__(
        self, kind: str = "auto", model_devices: int | None = None
    ) -> None:
        if kind not in KINDS:
            raise ValueError(
                f"`kind` is one of {', '.join(KINDS)}. Received: {kind!r}"
            )
        if model_devices is not None and kind != "model":
            raise ValueError(
                "`model_devices` is for distribute('model'). Received: "
                f"kind={kind!r}, model_devices={model_devices}"
            )
        backend = keras.backend.backend()
        if kind == "model" and backend != "jax":
            raise ValueError(
                "Keras can split a model over devices on JAX alone, and the "
                f"backend is {backend}. Set KERAS_BACKEND=jax, or use "
                "distribute('data')."
            )
        self.kind = kind
        self.replicas = 1
        self.host = (0, 1)
        self._undo = contextlib.ExitStack()
        start = {
            "jax": self._start_jax,
            "tensorflow": self._start_tensorflow,
            "torch": self._start_torch,
        }[backend]
        if kind != "none":
            devices = start(model_devices)
            if kind == "auto":
                print(
                    f"keras_augreg.distribute: {self.kind} ({devices})",
                    file=sys.stderr,
                )

    def __enter__(self) -> distribute:
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start_jax(self, model_devices: int | None) -> str:
        import jax

        lib = keras.distribution
        if "KERAS_DISTRIBUTION_NUM_PROCESSES" in os.environ:
            lib.initialize()
        devices = lib.list_devices()
        count = len(devices)
        if self.kind == "auto":
            self.kind = "data" if count > 1 else "none"
        self.host = (jax.process_index(), jax.process_count())
        self._undo.callback(lib.set_distribution, lib.distribution())
        if self.kind == "data":
            self.replicas = count
            chosen = lib.DataParallel(devices=devices, auto_shard_dataset=False)
            lib.set_distribution(chosen)
        elif self.kind == "model":
            parts = model_devices or count
            if parts < 1 or count % parts:
                raise ValueError(
                    "`model_devices` divides the number of devices, "
                    f"{count}. Received: model_devices={model_devices}"
                )
            self.replicas = count // parts
            mesh = lib.DeviceMesh(
                (self.replicas, parts), ("batch", "model"), devices
            )
            lib.set_distribution(_split_over(mesh))
        return f"JAX, {count} x {jax.devices()[0].platform}"

    def _start_tensorflow(self, _: int | None) -> str:
        import tensorflow as tf

        cluster = json.loads(os.environ.get("TF_CONFIG", "{}")).get(
            "cluster", {}
        )
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
        except (ValueError, tf.errors.NotFoundError):  # No TPU answers.
            devices = tf.config.list_logical_devices("GPU")
            devices = devices or tf.config.list_logical_devices("CPU")
            if len(devices) > 1 or self.kind == "data":
                strategy = tf.distribute.MirroredStrategy(
                    [device.name for device in devices]
                )
        if strategy is None:
            self.kind = "none"
            return "TensorFlow, one device"
        self.kind = "data"
        self.replicas = strategy.num_replicas_in_sync
        self._undo.enter_context(strategy.scope())
        return f"TensorFlow, {type(strategy).__name__} x {self.replicas}"

    def _start_torch(self, _: int | None) -> str:
        import torch

        launched = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        if not launched:
            if self.kind == "data":
                raise ValueError(
                    "On PyTorch every device has a process of its own. Start "
                    "the script with `torchrun --nproc-per-node=DEVICES "
                    "SCRIPT`."
                )
            self.kind = "none"
            return "PyTorch, not started by torchrun"
        self.kind = "data"
        gpu = torch.cuda.is_available()
        if gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("nccl" if gpu else "gloo")
            self._undo.callback(torch.distributed.destroy_process_group)
        self.host = (
            torch.distributed.get_rank(),
            torch.distributed.get_world_size(),
        )
        self.replicas = self.host[1]
        return f"PyTorch, {self.replicas} processes"


def _split_over(mesh: Any) -> Any:
    class SplitModel(keras.distribution.ModelParallel):
        """ModelParallel whose layout follows from a variable's shape too."""

        def get_variable_layout(self, variable: Any) -> Any:
            axes: list[str | None] = [None] * len(variable.shape)
            axis = split_axis(variable.path, variable.shape, mesh.shape[1])
            if axis is not None:
                axes[axis] = "model"
            given = getattr(variable, "_layout", None)
            return given or keras.distribution.TensorLayout(axes, mesh)

    return SplitModel(
        layout_map=keras.distribution.LayoutMap(mesh),
        batch_dim_name="batch",
        auto_shard_dataset=False,
    )


def _torch() -> Any:
    """torch.distributed, if this process is one of several; else `None`."""
    if keras.backend.backend() != "torch":
        return None
    distributed = sys.modules["torch"].distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed
    return None


def replica() -> tuple[Any, int]:
    """The number of the replica that this code runs for, and how many.

    On JAX a step is written for the whole batch: always (0, 1). On TensorFlow
    the number is a tensor inside a strategy's step.
    """
    if keras.backend.backend() == "tensorflow":
        context = sys.modules["tensorflow"].distribute.get_replica_context()
        if context is None:
            return 0, 1
        return context.replica_id_in_sync_group, context.num_replicas_in_sync
    distributed = _torch()
    if distributed is None:
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def process() -> tuple[int, int]:
    """The number of this process, and how many there are."""
    distributed = _torch()
    if distributed is not None:
        return distributed.get_rank(), distributed.get_world_size()
    jax = sys.modules.get("jax")
    if keras.backend.backend() == "jax" and jax is not None:
        return jax.process_index(), jax.process_count()
    return 0, 1


def jax_hosts() -> bool:
    """Whether this is one of several processes of JAX."""
    return keras.backend.backend() == "jax" and process()[1] > 1


def preempted() -> bool:
    """Whether JAX's hosts end here, as one of them received SIGTERM.

    Every host calls this before each step, and all get `True` in the same
    call. JAX's preemption service hears the signal, from `distribute` on: a
    handler that Python sets afterwards takes it away from JAX
    (`jax.experimental.multihost_utils.reached_preemption_sync_point`).
    """
    from jax.experimental import multihost_utils

    # Calls, not steps: the service chooses the number after the highest one
    # that it has seen, which a run that goes on at step 500 would not reach.
    return multihost_utils.reached_preemption_sync_point(next(_CALLS))


def barrier() -> None:
    """Waits until all processes are here."""
    distributed = _torch()
    if distributed is not None:
        distributed.barrier()
    elif jax_hosts():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("keras_augreg")


def to_numpy(variable: Any) -> Any:
    """The whole value of a variable, also where processes share it."""
    # A tensor, as TensorFlow's variables of several replicas are no arrays.
    value = keras.ops.convert_to_tensor(variable)
    if jax_hosts():
        from jax.experimental import multihost_utils

        if not value.is_fully_replicated:
            return multihost_utils.process_allgather(value, tiled=True)
    return keras.ops.convert_to_numpy(value)


def mean_over_processes(tensors: list[Any]) -> list[Any]:
    """The mean over `torchrun`'s processes of each tensor, in one message."""
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
    """Gives all processes the values of the first, of what all of them have."""
    distributed = _torch()
    if distributed is not None:
        for variable in variables:
            distributed.broadcast(variable.value.data, src=0)
    elif jax_hosts():
        from jax.experimental import multihost_utils

        for variable in variables:
            if variable.value.is_fully_replicated:
                mine = keras.ops.convert_to_numpy(variable)
                variable.assign(multihost_utils.broadcast_one_to_all(mine))


@contextlib.contextmanager
def summed_over_processes(variables: list[Any]) -> Iterator[None]:
    """Inside, `torchrun`'s processes see the sums of their variables.

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
