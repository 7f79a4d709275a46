"""Feeds fixed gradients to an optimizer and writes how far the weights moved.

Also run as a script, in several replicas or processes:
`_updates.py REPLICAS FOLDER CASE...` (TensorFlow: logical devices under
MirroredStrategy; PyTorch: processes, which inherit their rank).
"""

import contextlib
import os
import sys

import numpy as np

STEPS, WARMUP, BASE_LR = 20, 5, 0.05
SHAPES = {
    "embedding/kernel": (3, 4),
    "encoderblock_0/bias": (4,),
    "encoderblock_0/mlp_kernel1": (4, 5),
    "encoderblock_1/attention/qkv_kernel": (4, 3, 2, 2),
    "encoderblock_1/norm1/gamma": (4,),
    "posembed_input/pos_embedding": (1, 3, 4),
    "head/kernel": (4, 2),
}
CASES = {
    "adam": ("Adam", {"weight_decay": 0.1}),
    "sgd": ("SGD", {}),
    "adam accumulated": (
        "Adam",
        {"weight_decay": 0.1, "gradient_accumulation_steps": 3},
    ),
    "sgd accumulated": ("SGD", {"gradient_accumulation_steps": 3}),
    "adam averaged": ("Adam", {"use_ema": True, "ema_momentum": 0.9}),
    "sgd averaged, accumulated": (
        "SGD",
        {
            "use_ema": True,
            "ema_momentum": 0.9,
            "gradient_accumulation_steps": 3,
        },
    ),
    "adam by layer": ("Adam", {"weight_decay": 0.1, "layer_decay": 0.5}),
}


def weights():
    rng = np.random.default_rng(0)
    # Small, so that float32 holds the difference of two of them well.
    return {
        k: (0.1 * rng.normal(size=s)).astype("float32")
        for k, s in SHAPES.items()
    }


def gradients(step, micro=0, replica=0):
    """Fixed gradients; those of some steps are below the clipping norm."""
    rng = np.random.default_rng([step, micro, replica])
    scale = 0.02 if step % 4 == 3 else 1.0
    return {
        k: (scale * rng.normal(size=s)).astype("float32")
        for k, s in SHAPES.items()
    }


def make_optimizer(case, **more):
    from keras_augreg.training import optimizers, schedules

    name, options = CASES[case]
    return getattr(optimizers, name)(
        schedules.warmup_cosine(BASE_LR, STEPS, WARMUP),
        global_clipnorm=1.0,
        **options,
        **more,
    )


def make_variables():
    import keras

    variables = []
    for path, value in weights().items():
        *scopes, name = path.split("/")
        with contextlib.ExitStack() as stack:
            for scope in scopes:
                stack.enter_context(keras.name_scope(scope))
            variables.append(keras.Variable(value, name=name))
        assert variables[-1].path == path
    return variables


def feed(optimizer, variables, replicas=1, replica=0, first=0):
    """Applies the gradients from batch `first` on; a generator of batches."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        step_function = jax.jit(optimizer.stateless_apply)

        def apply(grads):
            trained, state = step_function(
                [v.value for v in optimizer.variables],
                grads,
                [v.value for v in variables],
            )
            for v, value in zip(
                variables + optimizer.variables, trained + state, strict=True
            ):
                v.assign(value)
    elif replicas > 1 and backend == "tensorflow":
        import tensorflow as tf

        def on_replica(grads):
            i = tf.distribute.get_replica_context().replica_id_in_sync_group
            # Keras divides the loss by the number of replicas.
            optimizer.apply([g[i] / replicas for g in grads], variables)

        @tf.function
        def apply(grads):
            tf.distribute.get_strategy().run(on_replica, args=(grads,))
    elif backend == "tensorflow":
        import tensorflow as tf

        @tf.function
        def apply(grads):
            optimizer.apply(grads, variables)
    else:

        def apply(grads):
            optimizer.apply(grads, variables)

    micro_steps = optimizer.gradient_accumulation_steps or 1
    for batch in range(first, STEPS * micro_steps):
        step, micro = divmod(batch, micro_steps)
        grads = gradients(step, micro, replica)
        if replicas > 1 and backend == "tensorflow":
            every = [gradients(step, micro, r) for r in range(replicas)]
            grads = {k: np.stack([e[k] for e in every]) for k in SHAPES}
        apply([keras.ops.convert_to_tensor(grads[k]) for k in SHAPES])
        yield batch


def moved(case, replicas=1, replica=0, **more):
    import keras

    optimizer = make_optimizer(case, **more)
    variables = make_variables()
    optimizer.build(variables)
    for _ in feed(optimizer, variables, replicas, replica):
        pass
    ends = variables
    if optimizer.use_ema:
        ends = optimizer._model_variables_moving_average
    return {
        k: keras.ops.convert_to_numpy(v) - w
        for (k, w), v in zip(weights().items(), ends, strict=True)
    }


def main():
    replicas, folder, cases = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if os.environ["KERAS_BACKEND"] == "tensorflow":
        import tensorflow as tf

        tf.config.set_logical_device_configuration(
            tf.config.list_physical_devices("CPU")[0],
            [tf.config.LogicalDeviceConfiguration()] * replicas,
        )
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(replicas)]
        )
        with strategy.scope():
            for case in cases:
                np.savez(f"{folder}/{case}.0.npz", **moved(case, replicas))
    else:
        import torch

        torch.distributed.init_process_group("gloo")
        rank = torch.distributed.get_rank()
        for case in cases:
            np.savez(f"{folder}/{case}.{rank}.npz", **moved(case, 2, rank))
        # A process that just ends may abort in the threads of the other.
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
