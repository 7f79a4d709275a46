"""Trains a tiny model on several devices, and says how it went as JSON.

`_devices.py KIND MODEL_DEVICES [PART]`; the environment says how many devices
or processes there are. With PART, as a TPU does, so many images of a device at
once. Prints the losses and the weights' sums.
"""

import json
import os
import sys

os.environ.setdefault("KERAS_BACKEND", "jax")

import keras
import numpy as np

from keras_augreg import VisionTransformer, distribute, vit
from keras_augreg.recipe import AugReg
from keras_augreg.training import compile_pretraining


def counting(in_parts, counts):
    def count(*args):
        outputs = in_parts(*args)
        counts.append(len(outputs))
        return outputs

    return count


def main(kind, model_devices, part=None):
    counts = [1]
    vit.in_parts = counting(vit.in_parts, counts)
    if keras.backend.backend() == "tensorflow" and kind != "none":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(cpu, two)
    keras.utils.set_random_seed(0)
    with distribute(kind, int(model_devices) or None) as devices:
        model = VisionTransformer(
            patch_size=8,
            width=48,
            depth=1,
            num_heads=3,
            mlp_dim=64,
            input_shape=(16, 16, 3),
            classes=8,
            seed=0,
        )
        # Processes would start from weights of their own.
        rng = np.random.default_rng(devices.shard[0])
        for w in model.weights:
            w.assign(w + 0.1 * rng.normal(size=w.shape).astype("float32"))
        compile_pretraining(
            model,
            AugReg("none"),
            total_steps=6,
            warmup_steps=2,
            learning_rate=0.01,
        )
        images = np.random.default_rng(0).integers(0, 256, (48, 16, 16, 3))
        images, labels = images.astype("uint8"), np.arange(48) % 8
        index, hosts = devices.shard
        # Each process has its slice of every batch of 16.
        mine = (np.arange(48) % 16) * hosts // 16 == index
        if part:
            vit.PART, VisionTransformer._takes_parts = int(part), True
        with vit.products("batched" if part else "auto"):
            history = model.fit(
                images[mine],
                labels[mine],
                batch_size=16 // hosts,
                epochs=2,
                shuffle=False,
                verbose=0,
            ).history
        result = {
            "kind": devices.kind,
            "replicas": devices.replicas,
            "parts": counts[-1],
            "losses": history["loss"],
            # A key's bias has no gradient but rounding noise.
            "sums": [
                float(keras.ops.sum(keras.ops.abs(w)))
                for w in model.trainable_weights
                if w.name != "qkv_bias"
            ],
        }
        if keras.backend.backend() == "jax":
            result["shards"] = {
                w.path: list(w.value.addressable_shards[0].data.shape)
                for w in model.trainable_weights
            }
        print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
