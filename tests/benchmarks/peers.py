r"""Measures keras_augreg and other libraries on the same work, alternately.

    pip install timm keras-hub kimm keras-cv
    python tests/benchmarks/peers.py infer --model=S/16 --batch_size=16 \
        --peers=keras_augreg:jax,timm,timm-compile,keras_hub:jax,kimm:jax
    python tests/benchmarks/peers.py train --model=Ti/16 --batch_size=16 \
        --peers=keras_augreg:tensorflow,timm,keras_hub:tensorflow
    python tests/benchmarks/peers.py augment --batch_size=64 \
        --peers=keras_augreg:host,keras_augreg:device,keras_cv,keras,timm

- `infer`: the forward pass at 224 px, from a NumPy batch to NumPy logits of
  1,000 classes, float32;
- `train`: a step of AdamW with clipping by the global norm, as each library
  compiles it (`train_on_batch` in Keras);
- `augment`: JPEG to uint8 crops of 224 px with two operations of RandAugment;
  timm's runs in a process for each core, as its loader does.

The peers are timm (Wightman; timm-compile: through `torch.compile`), KerasHub,
kimm, KerasCV and Keras's own layer. Each is a process that stays alive; they
take turns, one active at a time, so that a machine whose speed drifts slows
all of them alike. Printed are the median images/s over the rounds, the median
of the ratio to the first peer in the same round, which is the number to quote,
and the seconds of the first call. Peers that are not installed are left out.
"""

from __future__ import annotations

import io
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time

from absl import app, flags
from libraries import CLASSES, SIZE, build, import_timm, random_crop

_MODEL = flags.DEFINE_string("model", "S/16", "An architecture of the paper.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Images in a batch.")
_PEERS = flags.DEFINE_list("peers", "keras_augreg:jax,timm", "LIBRARY:BACKEND.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each peer.")
_SECONDS = flags.DEFINE_float("seconds", 4.0, "For each turn.")
_WORKER = flags.DEFINE_string("worker", None, "For internal use: the peer.")


def torch_call(task, library):
    """Returns a function that does the task's work once, in PyTorch."""
    import torch

    images, labels = batch()
    images = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(labels)
    torch.set_num_threads(os.cpu_count())
    model = build("timm", _MODEL.value)
    if library == "timm-compile":
        model = torch.compile(model)
    if task == "infer":
        model.eval()

        def infer():
            with torch.inference_mode():
                return model(images).numpy()

        return infer
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def train():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss)

    return train


def keras_call(task, library):
    """Returns a function that does the task's work once, in Keras."""
    import keras

    kwargs = {}
    if library == "keras_augreg":
        kwargs = {"weights": None, "include_preprocessing": False}
    model = build(library, _MODEL.value, **kwargs)
    images, labels = batch()
    if task == "infer":
        return lambda: model.predict_on_batch(images)
    model.compile(
        keras.optimizers.AdamW(1e-3, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return lambda: model.train_on_batch(images, labels)


def batch():
    """Makes float32 images in [-1, 1] and integer labels."""
    import numpy as np

    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (_BATCH_SIZE.value, SIZE, SIZE, 3))
    labels = rng.integers(0, CLASSES, _BATCH_SIZE.value)
    return images.astype("float32"), labels


def photos():
    """Makes four JPEG files of 500 x 375 pixels: noise of several scales."""
    import numpy as np
    from PIL import Image

    files = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        pixels = np.zeros((375, 500, 3))
        for cells, share in ((3, 0.5), (12, 0.3), (90, 0.2)):
            noise = rng.integers(0, 256, (cells, cells, 3), "uint8")
            noise = Image.fromarray(noise).resize((500, 375), Image.BICUBIC)
            pixels += share * np.asarray(noise, "float64")
        file = io.BytesIO()
        Image.fromarray(pixels.astype("uint8")).save(file, "JPEG", quality=92)
        files.append(file.getvalue())
    return files


def timm_crops(task):
    """Reads, crops and augments some photos with Pillow and timm."""
    import numpy as np
    from PIL import Image

    seed, count, files, policy = task
    rng = np.random.default_rng(seed)
    crops = []
    for i in range(count):
        image = Image.open(io.BytesIO(files[i % len(files)])).convert("RGB")
        area = image.width * image.height * rng.uniform(0.05, 1)
        ratio = np.exp(rng.uniform(np.log(0.75), np.log(1.33)))
        width = min(image.width, int((area * ratio) ** 0.5))
        height = min(image.height, int((area / ratio) ** 0.5))
        left = rng.integers(0, image.width - width + 1)
        top = rng.integers(0, image.height - height + 1)
        box = (left, top, left + width, top + height)
        crop = image.resize((SIZE, SIZE), Image.BILINEAR, box=box)
        crops.append(np.asarray(policy(crop)))
    return np.stack(crops)


def timm_pipeline():
    """Returns a function that makes a batch on all cores."""
    import_timm()
    from timm.data.auto_augment import rand_augment_transform

    policy = rand_augment_transform(
        "rand-m9-n2-mstd0.5",
        {"translate_const": 100, "img_mean": (128, 128, 128)},
    )
    files, cores, seeds = photos(), os.cpu_count(), itertools.count()
    pool = multiprocessing.get_context("fork").Pool(cores)

    def make():
        count = _BATCH_SIZE.value // cores
        tasks = [(next(seeds), count, files, policy) for _ in range(cores)]
        return pool.map(timm_crops, tasks, chunksize=1)

    return make


def tensorflow_pipeline(library, place):
    """Returns a function that makes a batch with tf.data and a Keras layer."""
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(photos()).repeat()
    data = data.map(random_crop, tf.data.AUTOTUNE).batch(_BATCH_SIZE.value)
    if library == "keras_augreg":
        from keras_augreg.augment import RandAugment

        layer = augment = RandAugment(2, 15, seed=0)
    else:
        if library == "keras":
            from keras.layers import RandAugment

            layer = RandAugment((0, 255), num_ops=2, factor=0.5)
        else:
            from keras_cv.layers import RandAugment

            layer = RandAugment(
                (0, 255), augmentations_per_image=2, magnitude=0.5
            )

        def augment(images):
            return layer(tf.cast(images, tf.float32))

    if place == "device":
        batches = iter(data.prefetch(2))
        return lambda: layer(next(batches).numpy())
    batches = iter(data.map(augment, tf.data.AUTOTUNE).prefetch(2))
    return lambda: next(batches)


def work(task, peer):
    """Answers each line on stdin, a number of seconds, with images/s."""
    library, _, place = peer.partition(":")
    if task == "augment":
        os.environ["KERAS_BACKEND"] = (
            "jax" if library == "keras_augreg" else "tensorflow"
        )
        call = (
            timm_pipeline()
            if library == "timm"
            else tensorflow_pipeline(library, place)
        )
    elif library.startswith("timm"):
        call = torch_call(task, library)
    else:
        os.environ["KERAS_BACKEND"] = place
        call = keras_call(task, library)
    start = time.perf_counter()
    call()
    print(json.dumps({"first": time.perf_counter() - start}), flush=True)
    call()
    for line in sys.stdin:
        count, start = 0, time.perf_counter()
        while count < 2 or time.perf_counter() - start < float(line):
            call()
            count += 1
        spent = time.perf_counter() - start
        rate = _BATCH_SIZE.value * count / spent
        print(json.dumps({"rate": rate}), flush=True)


def answer(process, key):
    """Returns a worker's next figure; `None` if it has ended."""
    for line in process.stdout:
        if line.startswith(f'{{"{key}"'):
            return json.loads(line)[key]
    return None


def main(argv):
    """Starts a process for each peer and gives them turns."""
    if argv[1:] not in (["infer"], ["train"], ["augment"]):
        raise app.UsageError("Expected one of: infer, train, augment.")
    if _WORKER.value:
        work(argv[1], _WORKER.value)
        return
    workers = {}
    for peer in _PEERS.value:
        log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [sys.executable, *sys.argv, f"--worker={peer}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        )
        first = answer(process, "first")
        if first is None:
            process.wait()
            log.seek(0)
            lines = log.read().split("\n")
            reason = [line for line in lines if line.strip()][-1:]
            print(f"{peer}: not measured: {''.join(reason)[:200]}")
        else:
            workers[peer] = (process, first, [])
    for _ in range(_ROUNDS.value):
        for process, _, rates in workers.values():
            print(_SECONDS.value, file=process.stdin, flush=True)
            rates.append(answer(process, "rate"))
    for peer, (process, first, rates) in workers.items():
        process.stdin.close()
        process.wait()
        base = next(iter(workers.values()))[2]
        ratio = statistics.median(
            rate / other for rate, other in zip(rates, base, strict=True)
        )
        print(
            f"{peer:24} {statistics.median(rates):8.2f} images/s, ratio "
            f"{ratio:.3f}, first call {first:.1f} s"
        )


if __name__ == "__main__":
    app.run(main)
