"""Measures `fit` against a bare jitted step of the same maths, on JAX.

    python tests/benchmarks/fit.py [STEPS] [ROUNDS]

ViT-S/16, batch 16, 224 px, recipe `medium1` inside the step. A hand-written
`jax.jit` of augmentation, forward pass, loss, backward pass and update in a
plain loop takes turns with `fit` with a progress bar and TensorBoard, on the
same uint8 images in memory. The first round, which compiles, is left out.
"""

import os
import statistics
import sys
import tempfile
import time

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np

import keras_augreg
from keras_augreg.augment import AugRegAugment
from keras_augreg.benchmark import SameBatch
from keras_augreg.training.losses import SigmoidCrossentropy

BATCH, SIZE, CLASSES = 16, 224, 1000
RECIPE = keras_augreg.AugReg("medium1")


def make_model():
    """Builds and compiles a model as in the study's pre-training."""
    keras.utils.set_random_seed(0)
    model = keras_augreg.ViT_S16(
        weights=None, classes=CLASSES, classifier_activation=None
    )
    keras_augreg.compile_pretraining(
        model,
        RECIPE,
        total_steps=10_000,
        warmup_steps=10,
        augment_on="device",
        seed=0,
    )
    return model


def bare_step(model):
    """Returns the jitted step and its first state."""
    augment = AugRegAugment(RECIPE, CLASSES, seed=0)
    loss = SigmoidCrossentropy()
    optimizer = model.optimizer

    def loss_and_state(trainable, rest, images, labels):
        logits, rest = model.stateless_call(
            trainable, rest, images, training=True
        )
        return loss(labels, logits), rest

    def step(state, images, labels, number):
        trainable, rest, moments = state
        images, labels = augment(images, labels, step=number)
        gradient = jax.value_and_grad(loss_and_state, has_aux=True)
        (value, rest), grads = gradient(trainable, rest, images, labels)
        trainable, moments = optimizer.stateless_apply(
            moments, grads, trainable
        )
        return value, (trainable, rest, moments)

    # Copies, because the step may reuse the memory of its arguments.
    state = jax.tree.map(
        lambda v: jax.numpy.copy(v.value),
        (
            model.trainable_variables,
            model.non_trainable_variables,
            optimizer.variables,
        ),
    )
    return jax.jit(step, donate_argnums=0), state


def main():
    """Measures and prints."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, SIZE, SIZE, 3)).astype("uint8")
    labels = rng.integers(0, CLASSES, BATCH).astype("int32")
    step, state = bare_step(make_model())
    model = make_model()
    times = {"bare": [], "fit": []}
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [keras.callbacks.TensorBoard(folder)]
        for round_ in range(rounds + 1):
            start = time.perf_counter()
            for i in range(steps):
                value, state = step(state, images, labels, np.int32(i))
                float(value)  # as a progress bar does
            times["bare"].append((time.perf_counter() - start) / steps)
            start = time.perf_counter()
            model.fit(
                SameBatch((images, labels), steps),
                initial_epoch=round_,
                epochs=round_ + 1,
                shuffle=False,
                callbacks=callbacks,
            )
            times["fit"].append((time.perf_counter() - start) / steps)
            print({name: round(t[-1], 3) for name, t in times.items()})
    bare, fit = (times[name][1:] for name in ("bare", "fit"))
    ratio = statistics.median(f / b for f, b in zip(fit, bare, strict=True))
    print(f"bare step: {1e3 * statistics.median(bare):.0f} ms")
    print(f"fit:       {1e3 * statistics.median(fit):.0f} ms a step")
    print(f"fit / bare, median over the rounds: {ratio:.3f}")


if __name__ == "__main__":
    main()
