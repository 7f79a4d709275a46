"""The README's journey: every script of `recipes/`, end to end, real data."""

from __future__ import annotations

import json
import os
import pathlib
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import PIL.Image
import pytest
import skimage.data

import keras_augreg
from keras_augreg.training import storage

ROOT = pathlib.Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
TINY = str(ROOT / "tests" / "_tiny.py")
BACKEND = keras.config.backend()
SMALL = ["--image_size=32", "--batch_size=32"]
PRETRAIN = ["pretrain.py", *SMALL, "--epochs=1", "--train_split=train[:50%]"]


def start(command, cwd, **environment):
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process, expect=0):
    out, errors = process.communicate(timeout=600)
    assert process.returncode == expect, out[-2000:] + errors[-4000:]
    if expect:
        return errors
    return json.loads(out.splitlines()[-1])


def run(script, *arguments, cwd, expect=0, **environment):
    command = [sys.executable, TINY, str(RECIPES / script), *arguments]
    return end(start(command, cwd, **environment), expect)


@pytest.fixture(scope="module")
def journey(tmp_path_factory):
    """A folder with crops of four photos, and a model trained on digits."""
    folder = tmp_path_factory.mktemp("journey")
    rng = np.random.default_rng(0)
    for name in ("astronaut", "chelsea", "coffee", "rocket"):
        photo = getattr(skimage.data, name)()
        side = min(photo.shape[:2]) * 2 // 3
        for split, count in (("train", 12), ("test", 4)):
            place = folder / "photos" / split / name
            place.mkdir(parents=True)
            for i in range(count):
                top, left = (
                    rng.integers(0, photo.shape[axis] - side) for axis in (0, 1)
                )
                crop = photo[top : top + side, left : left + side]
                suffix = "png" if i % 4 == 0 else "jpg"
                PIL.Image.fromarray(crop).resize((80, 80)).save(
                    place / f"{i}.{suffix}"
                )
    result = run(
        *PRETRAIN,
        "--tensorboard",
        "--fewshot=2",
        "--restore_best",
        f"--workdir={folder / 'digits'}",
        cwd=folder,
    )
    return folder, result


def test_pretrain(journey):
    folder, result = journey
    assert (result["model"], result["patch_size"]) == ("ViT_Ti16", 16)
    assert result["dataset"] == "digits"
    names = keras_augreg.checkpoints.class_names(folder / "digits/model.keras")
    assert names == tuple("0123456789")
    assert result["steps"] == 720 // 32  # Half of the 1,438 digits.
    assert 0 <= result["test_accuracy"] <= 1
    model = keras.saving.load_model(folder / "digits" / "model.keras")
    assert model.output_shape == (None, 10)
    with PIL.Image.open(folder / "digits" / "predictions.png") as picture:
        assert min(picture.size) > 300
    logged = folder / "digits" / "tensorboard"
    assert {p.name for p in logged.iterdir()} == {
        "inputs",
        "train",
        "validation",
    }
    lines = (folder / "digits" / "metrics.jsonl").read_text().splitlines()
    assert 0 <= json.loads(lines[-1])["fewshot_2"] <= 1
    assert not list((folder / "digits").glob("unfinished*"))
    (images,) = (logged / "inputs").iterdir()
    assert b"inputs_of_the_first_step" in images.read_bytes()
    (scalars,) = (logged / "validation").iterdir()
    assert b"epoch_accuracy" in scalars.read_bytes()


# TensorFlow learns its number of CPU devices before it starts.
TWO_CPUS = """
import runpy, sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
two = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(cpu, two)
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_pretrain_on_two_devices(journey, processes):
    """The same losses as on one; two processes start as each backend says."""
    if processes == (1 if BACKEND == "torch" else 2) and BACKEND != "jax":
        pytest.skip("devices in a process: not torch; hosts: not TensorFlow")
    folder, alone = journey
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable]
    environments = [{}]
    if BACKEND == "tensorflow":
        command += ["-c", TWO_CPUS]
    elif BACKEND == "torch":
        command += ["-m", "torch.distributed.run", "--nproc-per-node=2"]
        command += [f"--master-port={address.rpartition(':')[2]}"]
    elif processes == 1:
        two = "--xla_force_host_platform_device_count=2"
        environments = [{"XLA_FLAGS": two}]
    else:
        environments = [
            {
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
                "KERAS_DISTRIBUTION_PROCESS_ID": str(i),
            }
            for i in range(2)
        ]
    command += [
        TINY,
        str(RECIPES / PRETRAIN[0]),
        *PRETRAIN[1:],
        "--save_every=10",
        # On hosts of JAX, no process has the whole model, and one saves it.
        f"--distribute={'fsdp' if len(environments) > 1 else 'data'}",
        f"--workdir=devices-{processes}",
    ]
    checkpoints = folder / f"devices-{processes}" / "checkpoints"
    if processes == 2:
        preempt(command, folder, environments)
        step = int(max(checkpoints.iterdir()).stem)
        assert 0 < step < alone["steps"]
    result = run_side_by_side(command, folder, environments)
    assert (alone["devices"], result["devices"]) == (1, 2)
    assert result["test_loss"] == pytest.approx(alone["test_loss"], rel=1e-5)
    # A wrong batch would show in Adam's moments, even in the last steps, of
    # which the schedule makes little.
    these, those = (
        storage.read(storage.checkpoints(path)[-1], {})
        for path in (checkpoints, folder / "digits/checkpoints")
    )
    for key, array in those.items():
        if not key.startswith("metrics/"):
            np.testing.assert_allclose(these[key], array, 0, 5e-5, err_msg=key)


def preempt(command, cwd, environments):
    """Starts processes that end in their first steps, after SIGTERM."""
    started = [start(command, cwd, **more) for more in environments]
    try:
        # Wait for PyTorch's first step. JAX compiles for longer than the
        # signal, polled once a second, takes to reach all hosts.
        sign, text = "2/10" if BACKEND == "torch" else "Steps 1 to", ""
        while sign not in text:
            read = os.read(started[0].stdout.fileno(), 1024)
            assert read, started[0].stderr.read()
            text += read.decode("latin-1")
        # One of JAX's hosts tells the other; torchrun tells its processes.
        started[-1].terminate()
        for process in started:
            _, errors = process.communicate(timeout=600)
            status = 1 if BACKEND == "torch" else 143  # torchrun's own
            assert process.returncode == status, errors[-4000:]
    finally:
        for process in started:
            process.kill()


def run_side_by_side(command, cwd, environments):
    """The result of one of several processes, which all must succeed."""
    started = [start(command, cwd, **more) for more in environments]
    # Side by side, as a pipe that nobody reads fills up.
    with ThreadPoolExecutor() as pool:
        try:
            outputs = list(pool.map(lambda p: p.communicate(timeout=600),
                                    started))  # fmt: skip
        finally:
            for process in started:
                process.kill()
    for process, (_, errors) in zip(started, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]
    (line,) = [
        line
        for out, _ in outputs
        for line in out.splitlines()
        if line.startswith('{"model"')
    ]
    return json.loads(line)


@pytest.mark.once
def test_tensorboard_that_is_not_there(tmp_path):
    (tmp_path / "tensorboardX.py").write_text("raise ImportError('none')")
    command = [sys.executable, str(RECIPES / "pretrain.py"), *SMALL]
    process = start(
        [*command, "--tensorboard", "--workdir=run"],
        tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert "'keras_augreg[tensorboard]'" in end(process, expect=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.once
def test_settings_of_the_study(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import json, common, pretrain\n"
        "def load(*arguments, **options):\n"
        "    print(json.dumps(common.FLAGS.flag_values_dict()))\n"
        "    sys.exit()\n"
        "common.load = load\n"
        "common.app.run(pretrain.main)\n"
    )
    command = [sys.executable, "-c", program, str(RECIPES)]
    command += ["--study=i21k-300ep", "--model=S/16", "--batch_size=64"]
    flags = end(start([*command, "--dtype=mixed_float16"], tmp_path))
    assert flags["dataset"] == "imagenet-21k"
    assert (flags["recipe"], flags["weight_decay"]) == ("light2", 0.03)
    assert (flags["batch_size"], flags["epochs"]) == (64, 300)
    assert flags["dtype"] == "mixed_float16"
    flags = end(start([*command, "--recipe=heavy1"], tmp_path))
    assert (flags["recipe"], flags["weight_decay"]) == ("heavy1", 0.1)
    assert flags["dtype"] == "float32"  # On a CPU.


@pytest.mark.once
def test_flags_that_do_not_fit(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import common
    from absl import app
    from absl.testing import flagsaver

    common.FLAGS(["pretrain.py"])
    with (
        flagsaver.flagsaver(accumulation=5),
        pytest.raises(app.UsageError, match="must divide the batch size, 32"),
    ):
        common.load("digits", (0, 1), 32)
    with pytest.raises(app.UsageError, match=r"as '0=1,1=2\.5'"):
        common._class_weight("0:1")
    assert common._class_weight("0=1,1=2.5") == {0: 1.0, 1: 2.5}


@pytest.mark.once
@pytest.mark.parametrize(
    ("accelerator", "policy"),
    [
        (("cpu", None), "float32"),
        (("tpu", None), "mixed_bfloat16"),
        (("gpu", 7.5), "mixed_float16"),
        (("gpu", 8.0), "mixed_bfloat16"),
        (("gpu", None), "mixed_bfloat16"),
    ],
)
def test_dtype_of_a_device(monkeypatch, capsys, accelerator, policy):
    monkeypatch.syspath_prepend(str(RECIPES))
    import precision

    monkeypatch.setattr(precision, "accelerator", lambda: accelerator)
    try:
        assert precision.choose("auto") == policy
        assert keras.config.dtype_policy().name == policy
        assert f"in {policy} on a " in capsys.readouterr().out
    finally:
        assert precision.choose("float32") == "float32"


def test_accelerator_of_this_backend(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import precision

    assert precision.accelerator() == ("cpu", None)


@pytest.mark.once
def test_a_model_spelled_otherwise_resumes_the_same_run(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1))\n"
        "import common, running\n"
        "from types import SimpleNamespace as devices\n"
        "from absl import flags; flags.DEFINE_string('model', '', '')\n"
        "flags.FLAGS(sys.argv); sys.argv[0] = common.__file__\n"
        "flags.FLAGS.register_key_flag_for_module('common', "
        "flags.FLAGS['model'])\n"
        "running.open_run(devices(kind='none', shard=(0, 1)))\n"
    )
    for model in ("ViT_B16", "B/16", "b_16"):
        subprocess.run(
            [sys.executable, "-c", program, RECIPES, f"--model={model}",
             f"--workdir={tmp_path / 'run'}"],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
        )  # fmt: skip
    settings = json.loads((tmp_path / "run/settings.json").read_text())
    assert settings["model"] == "ViT_B16"


@pytest.mark.once
def test_weights_with_small_patches(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(RECIPES))
    import building

    assert building.new("Ti/16", 32, 0, classes=3).patch_grid == (2, 2)
    assert "sees 4 patches in images of 32" in capsys.readouterr().out
    assert building.new("Ti/16", 80, 0, classes=3).patch_grid == (5, 5)
    assert not capsys.readouterr().out
    saved = building.new("Ti/16", 32, 8, classes=3)
    said = "ViT_Ti16 with patches of 8 instead of 16 pixels"
    assert said in capsys.readouterr().out
    saved.class_names = ["a", "b", "c"]
    saved.get_layer("head").bias.assign([1.0, 2.0, 3.0])
    saved.save(tmp_path / "model.keras")
    file = str(tmp_path / "model.keras")
    kept = building.pretrained("Ti/16", 32, file)
    for one, other in zip(kept.weights, saved.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert kept.class_names == ("a", "b", "c")
    assert "Keeps the classifier" in capsys.readouterr().out
    larger = building.pretrained("Ti/16", 48, file, list("abcde"), "new")
    assert larger.patch_grid == (6, 6)
    for names, head, keeps in (
        ("abc", "auto", True),
        ("abd", "auto", False),
        ("acb", "auto", False),
        ("abc", "new", False),
        ("abd", "keep", True),
    ):
        model = building.pretrained("Ti/16", 32, file, list(names), head)
        assert model.get_layer("head").bias.numpy().any() == keeps
        assert model.class_names == tuple(names)
        said = capsys.readouterr().out
        word = "Keeps the" if keeps else "A new classifier for 3 classes (a"
        assert word in said
        assert "3 classes (a, b, c)" in said
    with pytest.raises(ValueError, match="3 classes, the model has 5"):
        building.pretrained("Ti/16", 32, file, list("abcde"), "keep")
    with pytest.raises(ValueError, match="patch_size=8 instead of 16"):
        building.pretrained("S/16", 32, file)


@pytest.mark.once
@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("train", "val", "test"), (20, 20)),
        (("train", "valid"), (20, 20)),
        (("train",), (18, 2)),
    ],
)
def test_what_is_evaluated_on_without_a_test_split(
    tmp_path, monkeypatch, splits, counts
):
    monkeypatch.syspath_prepend(str(RECIPES))
    import common

    for split in splits:
        for name in ("dark", "light"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(10):
                image = PIL.Image.new("RGB", (40, 40), (20 * i,) * 3)
                image.save(folder / f"{i}.png")
    common.FLAGS(["pretrain.py"])
    train, test, info = common.load(
        str(tmp_path), (0, 1), image_size=8, batch_size=2
    )
    assert info.class_names == ["dark", "light"]
    assert (info.num_examples, 2 * int(test.cardinality())) == counts
    assert 2 * int(train.cardinality()) == counts[0]


def test_finetune_what_pretrain_saved_then_evaluate(journey):
    folder, _ = journey
    result = run(
        "finetune.py",
        *SMALL,
        "--dataset=photos",
        "--model=Ti/16",
        "--weights=digits/model.keras",
        "--steps=12",
        "--learning_rate=0.03",
        *("--study=pets-500", "--crop=resize_small", "--noflip", "--seed=3"),
        *("--on_error=skip", "--class_weight=balanced", "--accumulation=2"),
        *("--ema=0.5", "--remat", "--warmup_steps=1"),
        "--workdir=~/photos-model",
        cwd=folder,
        HOME=str(folder),
    )
    assert 0 <= result["test_accuracy"] <= 1
    text = (folder / "photos-model" / "settings.json").read_text()
    settings = json.loads(text)
    assert (settings["dataset"], settings["steps"]) == ("photos", 12)
    assert settings["accumulation"] == 2
    assert settings["momentum_dtype"] == "bfloat16"  # The study's.
    assert settings["dtype"] == result["dtype"] == "float32"  # On a CPU.
    assert (folder / "photos-model" / "predictions.png").exists()
    command = [sys.executable, TINY, "-m", "keras_augreg", "evaluate", *SMALL]
    command += ["--dataset=photos", "--model=Ti_16", "--workdir=evaluation"]
    command += ["--weights=photos-model/model.keras"]
    evaluated = end(start(command, folder))
    assert evaluated["top1"] == pytest.approx(result["test_accuracy"])
    command = [sys.executable, TINY, "-m", "keras_augreg", "predict"]
    command += ["--top=1", "photos-model/model.keras", "photos/test"]
    done = start(command, folder).communicate(timeout=600)[0].splitlines()
    assert len(done) == 16
    right = [line.split("/")[2] == line.split()[1] for line in done]
    assert np.mean(right) == pytest.approx(result["test_accuracy"], abs=0.13)


@pytest.mark.once
def test_commands_of_the_package(tmp_path):
    """Without KERAS_BACKEND, JAX is chosen, as in the scripts."""
    command = [sys.executable, "-m", "keras_augreg"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("KERAS_BACKEND")
    for arguments, status, said in (
        (["predict"], 1, "Pass a model and at least one photo"),
        (["predict", "--top=0"], 1, "flag --top=0"),
        (["train"], 2, "finetune           Fine-tunes a checkpoint on"),
        (["predict", "m", "p", "--value=a"], 1, "--value is for a --sample"),
        (["train"], 2, "Unknown command: 'train'"),
    ):
        done = subprocess.run(
            [*command, *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        assert said in done.stdout + done.stderr
        assert "tensorflow" not in done.stderr


@pytest.mark.once
def test_sample_of_all_classes(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPES))
    import running

    from keras_augreg import data

    for batch_size, pad in ((8, False), (100, False), (100, True)):
        test, _ = data.load(
            "digits",
            "test",
            image_size=8,
            batch_size=batch_size,
            training=False,
            options=data.Options(pad=pad),
        )
        images, labels = running._sample(test, 32)
        assert images.shape == (32, 8, 8, 3)
        assert set(labels) == set(range(10))


@pytest.mark.once
def test_evaluate_refuses_other_classes(journey):
    folder, _ = journey
    message = run(
        "evaluate.py",
        *SMALL,
        "--dataset=photos",
        "--weights=digits/model.keras",
        cwd=folder,
        expect=1,
    )
    assert "10 classes (0, 1, 2, ...)" in message
    assert "4 classes (astronaut, chelsea, coffee, ...)" in message


@pytest.mark.once
def test_finetune_says_what_is_wrong(journey):
    folder, _ = journey
    message = run(
        "finetune.py",
        *SMALL,
        "--dataset=photos",
        "--weights=nowhere.npz",
        cwd=folder,
        expect=1,
    )
    assert "nowhere.npz" in message


@pytest.mark.once
def test_main_job_reaches_96_percent(tmp_path):
    """The README's first command, with its defaults."""
    command = [sys.executable, str(RECIPES / "pretrain.py")]
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}  # It trains for a minute.
    result = end(start(command, tmp_path, **quick))
    assert result["test_accuracy"] >= 0.96
