"""Runs that are stopped, killed, damaged and resumed."""

import errno
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import unittest.mock
import warnings

import filelock
import keras
import numpy as np
import pytest
from _run import (
    INTERVAL,
    STEPS,
    digits,
    make_model,
    set_determinism,
    train,
)

from keras_augreg.recipe import AugReg
from keras_augreg.training import Workdir, rundir, state, storage

HERE = pathlib.Path(__file__).parent
SUFFIX = "" if keras.backend.backend() == "jax" else ".npz"


def file_of(folder, step):
    return folder / "checkpoints" / f"{step:010d}{SUFFIX}"


def steps_in(folder):
    return [
        storage.step_of(path)
        for path in storage.checkpoints(folder / "checkpoints")
    ]


class At(keras.callbacks.Callback):
    """Does something after a batch of the run."""

    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def on_train_batch_end(self, batch, logs=None):
        self.step -= 1
        if self.step == 0:
            self.action(self.model)


def terminate(model):
    signal.raise_signal(signal.SIGTERM)


def arrays_of(model):
    return {
        key: keras.ops.convert_to_numpy(v)
        for key, v in state.variables(model).items()
    }


@pytest.fixture(scope="module", autouse=True)
def determinism():
    set_determinism(True)
    yield
    set_determinism(False)


# Augmentation takes longest to compile: one test and the kills have it.
PLAIN = AugReg("none", dropout=0.1, stochastic_depth=0.1)


def make_plain(**changes):
    return make_model(PLAIN, **changes)


@pytest.fixture(scope="module")
def whole(determinism, tmp_path_factory):
    """A run that nothing happened to."""
    model = make_plain()
    run = train(model, tmp_path_factory.mktemp("whole"))
    return model, run


def assert_ends_as(whole, model, run):
    want, got = arrays_of(whole[0]), arrays_of(model)
    assert list(want) == list(got)
    assert any("seed_generator" in key for key in want)
    assert any("average" in key for key in want)
    for key in want:
        np.testing.assert_array_equal(got[key], want[key], err_msg=key)
    metrics = [(r.path / "metrics.jsonl").read_text() for r in (whole[1], run)]
    assert metrics[0] == metrics[1]
    assert [json.loads(s)["step"] for s in metrics[0].splitlines()] == list(
        range(INTERVAL, STEPS + 1, INTERVAL)
    )


def test_sigterm_within_an_interval(tmp_path):
    model = make_model()
    whole = model, train(model, tmp_path / "whole")
    folder = tmp_path / "stopped"
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        # One batch of the second interval is left.
        train(make_model(), folder, [At(7, terminate)])
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert file_of(folder, 7).exists()
    model = make_model()
    assert_ends_as(whole, model, train(model, folder))


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file):
    os.truncate(file, file.stat().st_size // 2)


def empty(file):
    os.truncate(file, 0)


def replace_by(make):
    def replace(file):
        file.unlink()
        make(file)

    return replace


def inside(damage):
    """What does the same to the largest file of a folder of Orbax."""

    def apply(path):
        files = [p for p in path.rglob("*") if p.is_file()]
        damage(max(files, key=lambda p: p.stat().st_size, default=path))

    return apply


DAMAGES = {
    "flipped": flip,
    "truncated": truncate,
    "emptied": empty,
    "directory": replace_by(os.mkdir),
    "fifo": replace_by(os.mkfifo),
}
DAMAGES = {name: inside(damage) for name, damage in DAMAGES.items()}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_best_checkpoint(tmp_path, damage):
    model = make_plain(ema_momentum=None)
    run = Workdir(tmp_path, {})
    for step, value in ((1, 0.5), (2, 0.6)):
        run.save(model, step, {"val_accuracy": value})
    damage(file_of(tmp_path, 2))
    with pytest.warns(UserWarning, match=r"0000000002.* is damaged"):
        assert run.restore_best(model) == 0.5
    damage(file_of(tmp_path, 1))
    again = Workdir(tmp_path, {})
    with pytest.warns(UserWarning, match="is damaged"):
        assert again.restore_best(model) is None
    again.save(model, 3, {"val_accuracy": 0.4})
    assert again.restore_best(model) == 0.4


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_old_checkpoint(tmp_path, damage):
    """It is never read, but its turn to be deleted comes."""
    model = make_plain(ema_momentum=None)
    run = Workdir(tmp_path, {}, 2)
    run.save(model, 1, {})
    damage(file_of(tmp_path, 1))
    run.save(model, 2, {})
    run.save(model, 3, {})
    assert steps_in(tmp_path) == [2, 3]
    assert not file_of(tmp_path, 1).exists()
    assert run.restore(model) == 3


def test_a_checkpoint_after_the_last_step_is_skipped(tmp_path):
    model = make_plain()
    run = Workdir(tmp_path, {})
    run.save(model, 3, {})
    run.save(model, 10**9, {})
    with pytest.warns(UserWarning, match="skipped: after step 20"):
        assert run.restore(model, 20) == 3


@pytest.fixture(scope="module")
def stopped(determinism, tmp_path_factory):
    """What a run leaves that is stopped after step 9."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(SystemExit):
        train(make_plain(), folder, [At(9, terminate)])
    return folder


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_newest_checkpoint(whole, stopped, tmp_path, damage):
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    checkpoints = tmp_path / "checkpoints"
    damage(file_of(tmp_path, 9))
    # The result of a kill in the middle of a write, and worse.
    (checkpoints / "0000000012.tmp").write_bytes(b"half")
    (checkpoints / f"0000000012{storage.UNFINISHED}").mkdir()
    os.mkfifo(checkpoints / "0000000016.tmp")
    (checkpoints / "0000000016.npz").mkdir()
    (checkpoints / "9999999999.npz").write_bytes(b"")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("[]\n{")
    model = make_plain()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run = train(model, tmp_path)
    messages = [str(warning.message) for warning in seen]
    for name in (f"0000000009{SUFFIX}", "0000000016.npz", "9999999999.npz"):
        assert any(f"{name} is damaged" in text for text in messages)
    assert any("jsonl: 2 damaged lines" in text for text in messages)
    assert_ends_as(whole, model, run)


def test_a_finished_run_is_left_alone(whole):
    model = make_plain()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = train(model, whole[1].path, [At(1, pytest.fail)])
    assert_ends_as(whole, model, again)


def test_keeps_the_newest_and_the_best(whole, tmp_path):
    names = sorted(p.name for p in (whole[1].path / "checkpoints").iterdir())
    assert names == [f"{n:010d}{SUFFIX}" for n in (12, 16, 20)]
    model = make_plain(ema_momentum=None)
    for mode, best in (("max", 0.5), ("min", 0.1)):
        run = Workdir(tmp_path / mode, {}, 1, "val_loss", mode)
        for step, value in [(1, 0.3), (2, 0.5), (3, 0.1), (4, 0.4)]:
            model.get_layer("head").bias.assign(np.full(10, value, "float32"))
            run.save(model, step, {"val_loss": value})
        assert steps_in(tmp_path / mode) == [2 if mode == "max" else 3, 4]
        assert run.restore_best(model) == best
        bias = keras.ops.convert_to_numpy(model.get_layer("head").bias)
        np.testing.assert_array_equal(bias, np.full(10, best, "float32"))
        assert run.restore(model) == 4


def test_restore_best_ends_with_the_best_average(tmp_path):
    """The averages are validated, and the model ends with the best of them."""
    test = digits("test", False)
    model, run = make_plain(), Workdir(tmp_path, {}, mode="min")
    options = {"total_steps": 12, "interval": 4, "verbose": 0}
    options |= {"validation_data": test, "restore_best": True}
    swap = keras.callbacks.SwapEMAWeights
    run.fit(model, digits(), callbacks=[swap()], **options)
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    least = min(json.loads(line)["val_accuracy"] for line in lines)
    scores = model.evaluate(test, verbose=0, return_dict=True)
    assert scores["accuracy"] == pytest.approx(least, abs=1e-6)
    with pytest.raises(ValueError, match="swap_on_epoch=True"):
        run.fit(model, digits(), callbacks=[swap(True)], **options)
    run = Workdir(tmp_path / "2", {}, monitor="val_f1")
    with pytest.raises(
        ValueError, match=r"needs 'val_f1' in the logs.*val_loss"
    ):
        run.fit(make_plain(), digits(), **options)


@pytest.mark.once
def test_total_steps_and_interval_count_weight_updates(tmp_path):
    model = make_plain(gradient_accumulation_steps=3)
    run = Workdir(tmp_path, {})
    options = {"total_steps": 4, "interval": 2, "verbose": 0}
    run.fit(model, digits(), **options)
    assert int(model.optimizer.iterations) == 4
    assert steps_in(tmp_path) == [6, 12]  # batches
    with (
        pytest.warns(UserWarning, match="skipped: after step 5"),
        pytest.raises(ValueError, match="Use at least total_steps=4"),
    ):
        run.restore(model, 5)


def test_early_stopping_ends_the_run(tmp_path):
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=1, restore_best_weights=True
    )
    model = make_plain()
    train(model, tmp_path, [stop])
    assert steps_in(tmp_path)[-1] < STEPS
    for got, want in zip(model.get_weights(), stop.best_weights, strict=True):
        np.testing.assert_array_equal(got, want)


def test_changed_settings_are_refused(tmp_path):
    tmp_path = tmp_path / "run"
    tmp_path.with_name("run-2").touch()
    Workdir(
        tmp_path, {"learning_rate": 0.1, "augment": "none", "sizes": (1, 2)}
    )
    Workdir(
        tmp_path, {"learning_rate": 0.1, "augment": "none", "sizes": (1, 2)}
    )
    with pytest.raises(
        ValueError,
        match=r"another experiment:\n  learning_rate: 0.1 before, 0.2 now\n"
        r"  sizes: .* before, 'not set' now\n.*such as .*/run-3 \(",
    ):
        Workdir(tmp_path, {"learning_rate": 0.2, "augment": "none"})


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("", "''"),
        ('{"learning_rate": 0.', "'{\"learning_rate\": 0.'"),
        ("[1]", r"'\[1\]'"),
        ("null", "'null'"),
        ("\xff", "UnicodeDecodeError"),
        (None, "IsADirectoryError"),
    ],
)
def test_damaged_settings(tmp_path, content, found):
    file = tmp_path / "settings.json"
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content.encode("latin-1"))
    with pytest.raises(
        ValueError, match=f"settings.json should hold .*Found: .*{found}.*copy"
    ):
        Workdir(tmp_path, {"learning_rate": 0.1})


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda file: file.symlink_to("nowhere")],
    ids=["fifo", "broken link"],
)
def test_settings_that_cannot_be_read(tmp_path, make):
    make(tmp_path / "settings.json")
    with pytest.raises(ValueError, match="Found: 'OSError: not a regular"):
        Workdir(tmp_path, {"learning_rate": 0.1})


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_lock_that_is_no_file(tmp_path, make):
    make(tmp_path / "lock")
    with (
        pytest.raises(ValueError, match=r"lock should be a file\..*Delete it"),
        rundir.locked(tmp_path),
    ):
        pass


HOLDS = """
import pathlib, sys, time
from keras_augreg.training import rundir
with rundir.locked(pathlib.Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.mark.once
def test_two_processes_in_one_directory(tmp_path):
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout.readline() == b"locked\n"
            with pytest.raises(
                RuntimeError,
                match=f"Another process trains in .*: host "
                f"{socket.gethostname()}, process {holder.pid}. Wait",
            ):
                train(make_plain(), tmp_path, settings={})
            for damage in (empty, replace_by(os.mkfifo)):
                damage(tmp_path / "lock.json")
                with pytest.raises(RuntimeError, match=r"unknown\. Wait"):
                    train(make_plain(), tmp_path, settings={})
        finally:
            holder.kill()
    # The system has freed the lock.
    with rundir.locked(tmp_path):
        pass
    assert not (tmp_path / "lock.json").exists()


@pytest.mark.once
def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def acquire(error):
        fail = unittest.mock.Mock(side_effect=error)
        monkeypatch.setattr(filelock.FileLock, "acquire", fail)
        return rundir.locked(tmp_path)

    warns = pytest.warns(UserWarning, match="has no locks")
    for error in (NotImplementedError(), OSError(errno.ENOLCK, "no locks")):
        with warns, acquire(error):
            pass
    denied = PermissionError(errno.EACCES, "not yours")
    with pytest.raises(PermissionError), acquire(denied):
        pass


@pytest.mark.once
def test_best_by_another_metric(tmp_path):
    """All metrics of a checkpoint are known, so the best can be another."""
    model = make_plain(ema_momentum=None)
    run = Workdir(tmp_path, {})
    run.save(model, 1, {"val_accuracy": 0.9, "val_loss": 0.9})
    run.save(model, 2, {"val_accuracy": 0.5, "val_loss": 0.1})
    run.save(model, 3, {"val_accuracy": 0.7, "val_loss": float("nan")})
    assert run.restore_best(model) == 0.9
    run = Workdir(tmp_path, {}, monitor="val_loss", mode="min")
    assert run.restore_best(model) == 0.1


@pytest.mark.once
def test_metrics_of_any_library_are_logged(tmp_path):
    logs = {
        "f1": np.float32(0.5),
        "each": np.arange(2),
        "x": keras.ops.ones(()),
    }
    Workdir(tmp_path, {}).save(make_plain(), 1, logs)
    (line,) = rundir.read_log(tmp_path / "metrics.jsonl")
    assert line == {"step": 1, "f1": 0.5, "each": [0, 1], "x": 1.0}


@pytest.mark.once
def test_a_run_that_is_past_the_last_step_is_not_begun_again(tmp_path):
    model = make_plain()
    run = Workdir(tmp_path, {})
    run.save(model, 30, {"loss": 1.0})
    with (
        pytest.warns(UserWarning, match="skipped: after step 20"),
        pytest.raises(ValueError, match=r"is at step 30 .* total_steps=30"),
    ):
        train(model, tmp_path, settings={})
    assert rundir.read_log(tmp_path / "metrics.jsonl")


@pytest.mark.once
def test_what_an_unfinished_checkpoint_left_is_deleted(whole, tmp_path):
    shutil.copytree(whole[1].path, tmp_path, dirs_exist_ok=True)
    left = tmp_path / "checkpoints" / "0000000007.tmp"
    left.write_bytes(b"half")
    train(make_plain(), tmp_path)
    assert not left.exists()


@pytest.mark.once
def test_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="cannot be a run's directory"):
            Workdir(path, {})
    with pytest.raises(TypeError, match=r"JSON values.*float32"):
        Workdir(tmp_path, {"learning_rate": np.float32(0.1)})


@pytest.mark.once
def test_the_working_directory_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Workdir(".", {"a": 1})
    with pytest.raises(ValueError, match=f"such as {tmp_path}-2"):
        Workdir(".", {"a": 2})


@pytest.mark.once
def test_sigterm_after_the_last_step(tmp_path):
    """The script should not begin to evaluate."""
    run = Workdir(tmp_path, {})
    with pytest.raises(SystemExit) as exit_, run._heeding_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert exit_.value.code == 128 + signal.SIGTERM


def test_refuses_a_checkpoint_of_another_model(whole):
    other = make_plain(ema_momentum=None)
    with pytest.raises(ValueError, match="of another model: for optimizer/"):
        whole[1].restore(other)


def test_nan_loss_stops(tmp_path):
    def poison(model):
        if keras.backend.backend() == "jax":
            model.jax_state_sync()
        bias = model.get_layer("head").bias
        bias.assign(np.full(bias.shape, np.nan, "float32"))

    with pytest.raises(
        FloatingPointError,
        match=r"step 7, learning rate 0.000962: the loss is nan.*0000000004",
    ):
        train(make_plain(), tmp_path, [At(6, poison)])
    assert list((tmp_path / "checkpoints").iterdir()) == [file_of(tmp_path, 4)]


def test_nan_weights_are_not_saved(tmp_path):
    model = make_plain()
    model.get_layer("head").bias.assign(np.full(10, np.inf, "float32"))
    with pytest.raises(FloatingPointError, match="bias is not finite"):
        Workdir(tmp_path, {}).save(model, 3, {})
    assert not list((tmp_path / "checkpoints").iterdir())


def fill_the_disk(monkeypatch, step):
    """Lets the engine fail at a step, in the middle of its work."""
    full = OSError(errno.ENOSPC, "No space left on device")
    if SUFFIX:
        savez = np.savez

        def fail(file, **arrays):
            if arrays["step"] == step:
                file.write(b"PK")
                raise full
            savez(file, **arrays)

        monkeypatch.setattr(np, "savez", fail)
        return
    import orbax.checkpoint

    finalize = orbax.checkpoint.PyTreeCheckpointHandler.finalize

    def fail(self, folder):
        if f"{step:010d}" in str(folder):
            raise full
        finalize(self, folder)

    monkeypatch.setattr(
        orbax.checkpoint.PyTreeCheckpointHandler, "finalize", fail
    )


def test_full_disk(whole, tmp_path, monkeypatch):
    fill_the_disk(monkeypatch, 8)
    with pytest.raises(OSError, match="No space left"):
        train(make_plain(), tmp_path)
    assert list((tmp_path / "checkpoints").iterdir()) == [file_of(tmp_path, 4)]
    monkeypatch.undo()
    model = make_plain()
    assert_ends_as(whole, model, train(model, tmp_path))


@pytest.fixture
def small_disk(tmp_path, whole):
    """A file system with room for one checkpoint and a half."""
    path = whole[1].path / "checkpoints"
    used = subprocess.check_output(["du", "-sk", path], text=True).split()[0]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(used) // 2}k"]
    made = subprocess.run([*mount, "none", str(tmp_path)], check=False)
    if made.returncode:
        pytest.skip("only root makes a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_disk_that_is_full(whole, small_disk):
    with pytest.raises(OSError, match="No space left"):
        train(make_plain(), small_disk)
    found = list((small_disk / "checkpoints").iterdir())
    assert found == [file_of(small_disk, 4)]
    larger = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(larger, check=True)
    model = make_plain()
    assert_ends_as(whole, model, train(model, small_disk))


@pytest.mark.parametrize("argument", [{"keep": 0}, {"mode": "best"}])
def test_refuses_arguments(tmp_path, argument):
    ((name, value),) = argument.items()
    with pytest.raises(ValueError, match=f"`{name}` must be .*={value!r}"):
        Workdir(tmp_path, {}, **argument)
    with pytest.raises(ValueError, match="must call `compile"):
        Workdir(tmp_path, {}).fit(
            keras.Sequential([keras.Input((16, 16, 3))]),
            digits(),
            total_steps=1,
            interval=1,
        )
    with pytest.raises(
        ValueError, match=r"at least 1\. Received: .*interval=0"
    ):
        Workdir(tmp_path, {}).fit(None, None, total_steps=1, interval=0)


@pytest.mark.once
def test_settings_of_two_processes_that_start_at_once(tmp_path):
    run = Workdir(tmp_path, {"a": 1})
    (tmp_path / "settings.json").write_text('{"a": 2}')
    with pytest.raises(ValueError, match="another experiment"):
        run.fit(make_plain(), digits(), total_steps=1, interval=1)


@pytest.mark.once  # The tests above have the other backends.
@pytest.mark.parametrize(
    ("options", "kills", "devices", "arguments"),
    [
        (["--damage"], 3, 1, []),
        (["--gs"], 2, 2, ["--distribute=fsdp"]),
    ],
    ids=["disk", "gs"],
)
def test_kills(tmp_path, options, kills, devices, arguments):
    command = [sys.executable, HERE / "kills.py", *options, str(kills)]
    flag = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [*command, tmp_path, HERE / "_run.py", *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "XLA_FLAGS": flag},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"kill {kills}" in done.stdout
    assert ", 0 differ" in done.stdout


def test_batches_depend_on_their_step_alone():
    later = list(zip(range(3), digits().at(2, 3), strict=False))
    first = list(zip(range(5), digits().at(0, 5), strict=False))
    for (_, want), (_, got) in zip(first[2:], later, strict=True):
        np.testing.assert_array_equal(got[0], want[0])
