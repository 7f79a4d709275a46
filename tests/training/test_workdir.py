"""Runs that are stopped, killed, damaged and resumed."""

import errno
import json
import pathlib
import signal
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from _run import (
    INTERVAL,
    STEPS,
    batches,
    make_model,
    set_determinism,
    train,
)

from keras_augreg.training import workdir
from keras_augreg.training.workdir import Workdir

HERE = pathlib.Path(__file__).parent


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


def state(model):
    return {
        key: keras.ops.convert_to_numpy(v)
        for key, v in workdir._variables(model).items()
    }


@pytest.fixture(scope="module", autouse=True)
def determinism():
    set_determinism(True)
    yield
    set_determinism(False)


@pytest.fixture(scope="module")
def whole(determinism, tmp_path_factory):
    """A run that nothing happened to."""
    model = make_model()
    run = train(model, tmp_path_factory.mktemp("whole"))
    return model, run


def assert_ends_as(whole, model, run):
    want, got = state(whole[0]), state(model)
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


def test_sigterm_within_an_interval(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        # One batch of the second interval is left.
        train(make_model(), tmp_path, [At(7, terminate)])
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "checkpoints" / "0000000007.npz").exists()
    model = make_model()
    assert_ends_as(whole, model, train(model, tmp_path))


def test_damaged_newest_checkpoint(whole, tmp_path):
    with pytest.raises(SystemExit):
        train(make_model(), tmp_path, [At(9, terminate)])
    newest = tmp_path / "checkpoints" / "0000000009.npz"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    # What a kill in the middle of a write leaves.
    newest.with_name("0000000012.tmp").write_bytes(bytes(content[:1000]))
    model = make_model()
    with pytest.warns(UserWarning, match="0000000009.npz is damaged"):
        run = train(model, tmp_path)
    assert_ends_as(whole, model, run)


def test_a_finished_run_is_left_alone(whole):
    model = make_model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = train(model, whole[1].path, [At(1, pytest.fail)])
    assert_ends_as(whole, model, again)


def test_keeps_the_newest_and_the_best(whole, tmp_path):
    names = sorted(p.name for p in (whole[1].path / "checkpoints").iterdir())
    assert names == [f"{n:010d}.npz" for n in (12, 16, 20)]
    model = make_model(ema_momentum=None)
    run = Workdir(tmp_path, {}, keep=1)
    for step, value in [(1, 0.1), (2, 0.5), (3, 0.4)]:
        model.get_layer("head").bias.assign(np.full(10, value, "float32"))
        run.save(model, step, {"val_accuracy": value})
    assert [p.name for p in run._files()] == ["0000000003.npz"]
    assert run.restore_best(model) == 0.5
    bias = keras.ops.convert_to_numpy(model.get_layer("head").bias)
    np.testing.assert_array_equal(bias, np.full(10, 0.5, "float32"))
    assert run.restore(model) == 3


def test_changed_settings_are_refused(tmp_path):
    Workdir(
        tmp_path, {"learning_rate": 0.1, "augment": "none", "sizes": (1, 2)}
    )
    Workdir(
        tmp_path, {"learning_rate": 0.1, "augment": "none", "sizes": (1, 2)}
    )
    with pytest.raises(
        ValueError,
        match=r"another experiment:\n  learning_rate: 0.1 before, 0.2 now\n"
        r"  sizes: .* before, 'not set' now",
    ):
        Workdir(tmp_path, {"learning_rate": 0.2, "augment": "none"})


def test_refuses_a_checkpoint_of_another_model(whole):
    other = make_model(ema_momentum=None)
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
        train(make_model(), tmp_path, [At(6, poison)])
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == [
        "0000000004.npz"
    ]


def test_nan_weights_are_not_saved(tmp_path):
    model = make_model()
    model.get_layer("head").bias.assign(np.full(10, np.inf, "float32"))
    with pytest.raises(FloatingPointError, match="bias is not finite"):
        Workdir(tmp_path, {}).save(model, 3, {})
    assert not list((tmp_path / "checkpoints").iterdir())


def test_full_disk(whole, tmp_path, monkeypatch):
    savez = np.savez

    def full(file, **arrays):
        if arrays["step"] == 8:
            file.write(b"PK")
            raise OSError(errno.ENOSPC, "No space left on device")
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        train(make_model(), tmp_path)
    files = [p.name for p in (tmp_path / "checkpoints").iterdir()]
    assert files == ["0000000004.npz"]
    monkeypatch.undo()
    model = make_model()
    assert_ends_as(whole, model, train(model, tmp_path))


@pytest.fixture
def small_disk(tmp_path, whole):
    """A file system with room for one checkpoint and a half."""
    size = next(whole[1].path.rglob("*.npz")).stat().st_size
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size * 3 // 2}"]
    made = subprocess.run([*mount, "none", str(tmp_path)], check=False)
    if made.returncode:
        pytest.skip("only root makes a file system")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


def test_disk_that_is_full(whole, small_disk):
    with pytest.raises(OSError, match="No space left"):
        train(make_model(), small_disk)
    checkpoints = list((small_disk / "checkpoints").iterdir())
    assert [p.name for p in checkpoints] == ["0000000004.npz"]
    assert not list(small_disk.rglob("*.tmp"))
    larger = ["mount", "-o", "remount,size=64m", str(small_disk)]
    subprocess.run(larger, check=True)
    model = make_model()
    assert_ends_as(whole, model, train(model, small_disk))


def test_refuses_to_keep_none(tmp_path):
    with pytest.raises(ValueError, match="keep=0"):
        Workdir(tmp_path, {}, keep=0)


@pytest.mark.skipif(
    keras.backend.backend() == "torch",
    reason="bit-identity is promised on JAX and TensorFlow",
)
def test_three_kills(tmp_path):
    command = [sys.executable, str(HERE / "kill_and_resume.py"), "3"]
    done = subprocess.run(
        [*command, str(tmp_path), sys.executable, str(HERE / "_run.py")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kill 3" in done.stdout
    assert ", 0 differ" in done.stdout


def test_batches_depend_on_their_step_alone():
    later = list(zip(range(3), batches(2, 3), strict=False))
    first = list(zip(range(5), batches(0, 5), strict=False))
    for (_, want), (_, got) in zip(first[2:], later, strict=True):
        np.testing.assert_array_equal(got[0], want[0])
