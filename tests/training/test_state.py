"""Checkpoints of a run: whole, or recognised as damaged."""

import io
import os

import numpy as np
import pytest

from keras_augreg.training import state

pytestmark = pytest.mark.once

ARRAYS = {"model/0/kernel": np.arange(6, dtype="float32").reshape(2, 3)}


def whole(step=7):
    file = io.BytesIO()
    state.write(file, ARRAYS, step, 0.5, "min loss")
    return bytearray(file.getvalue())


def savez(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def with_step(step, value=0.5):
    """A checkpoint whose checksum is right and whose step or value is not."""
    content = {**ARRAYS, "step": np.asarray(step), "value": np.asarray(value)}
    content["goal"] = np.zeros(3, "uint8")
    return savez(**content, checksum=state._checksum(content))


def test_round_trip(tmp_path):
    file = tmp_path / "0000000007.npz"
    file.write_bytes(whole())
    arrays = state.read(file)
    assert (arrays.pop("step"), arrays.pop("value")) == (7, 0.5)
    assert arrays.pop("goal") == "min loss"
    assert list(arrays) == list(ARRAYS)
    np.testing.assert_array_equal(arrays[key := "model/0/kernel"], ARRAYS[key])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "unreadable, EOFError"),
        (b"not a zip", "unreadable"),
        (bytes(whole()[:-100]), "unreadable, BadZipFile"),
        (bytes(whole()[:100]), "unreadable"),
        (savez(step=np.int64(7)), "lacks its checksum"),
        (savez(checksum=np.zeros(32, "uint8")), "lacks its checksum"),
        (
            savez(**ARRAYS, step=7, value=0.5, goal=0, checksum=np.zeros(32)),
            "checksum does not match",
        ),
        (with_step(-1), "its step is array"),
        (with_step([7, 7]), "its step is array"),
        (with_step(7.0), "its step is array"),
        (with_step(2**62), "its name is not its step"),
        (with_step(7, [0.5, 0.5]), "its value is array"),
        (with_step(7, "best"), "its value is array"),
        (with_step(8), "its name is not its step, 8"),
        (savez(step=np.array({}, dtype=object)), "unreadable, ValueError"),
    ],
)
def test_damage_is_recognised(tmp_path, content, message):
    file = tmp_path / "0000000007.npz"
    file.write_bytes(content)
    with pytest.raises(state.DamagedError, match=message):
        state.read(file)


def test_every_flipped_byte_is_harmless_or_recognised(tmp_path):
    """A flipped byte of zip's own bookkeeping may change nothing."""
    file = tmp_path / "0000000007.npz"
    content = whole()
    recognised = 0
    for i in range(0, len(content), 3):
        damaged = content.copy()
        damaged[i] ^= 0x55
        file.write_bytes(damaged)
        try:
            arrays = state.read(file)
        except state.DamagedError:
            recognised += 1
        else:
            assert arrays["step"] == 7
            np.testing.assert_array_equal(
                arrays["model/0/kernel"], ARRAYS["model/0/kernel"]
            )
    assert recognised > len(content) / 6


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_neither_directories_nor_fifos_are_opened(tmp_path, make):
    file = tmp_path / "0000000007.npz"
    make(file)
    with pytest.raises(state.DamagedError, match="not a regular file"):
        state.read(file)
