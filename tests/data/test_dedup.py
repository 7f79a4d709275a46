"""Finding training images that an evaluation set holds, too."""

from __future__ import annotations

import os

import keras
import numpy as np
import pytest
from _photos import CLASSES, encode, find, load, photo, pictures
from hypothesis import given
from hypothesis import strategies as st

from keras_augreg.data import dedup
from keras_augreg.data.decode import ArrayPicture, Picture

if keras.backend.backend() != "jax":
    pytest.skip("the same on every backend", allow_module_level=True)


def bits_apart(a, b):
    return (a ^ b).bit_count()


def hash_of(image, *arguments, **options):
    return dedup.difference_hash(
        Picture(encode(image, *arguments, **options), "x")
    )


def test_the_hash_survives_resizing_and_compression():
    hashes = {name: hash_of(photo(name), "PNG") for name in CLASSES}
    for name, ours in hashes.items():
        image = photo(name)
        small = image.resize((image.width // 3, image.height // 3))
        assert bits_apart(ours, hash_of(small, quality=60)) <= dedup.DISTANCE
        assert bits_apart(ours, hash_of(image, quality=30)) <= dedup.DISTANCE
        for other in set(CLASSES) - {name}:
            assert bits_apart(ours, hashes[other]) > 10


def test_the_hash_of_a_ramp():
    ramp = np.tile(np.arange(0, 90, dtype=np.uint8), (8, 1))
    ramp = np.repeat(ramp[..., None], 3, axis=-1)
    right = dedup.difference_hash(ArrayPicture(ramp))
    left = dedup.difference_hash(ArrayPicture(ramp[:, ::-1]))
    assert (right, left) == (2**64 - 1, 0)


hashes = st.lists(st.integers(0, 2**64 - 1), max_size=6)


@given(hashes, hashes, st.integers(0, 7), st.data())
def test_near_finds_what_comparing_all_finds(ours, theirs, distance, draw):
    # Some that are near by design, at the edge of the distance.
    for h in list(theirs):
        flips = draw.draw(
            st.sets(
                st.integers(0, 63),
                min_size=distance,
                max_size=distance + 1,
            )
        )
        ours.append(h ^ sum(1 << bit for bit in flips))
    expected = [any(bits_apart(a, b) <= distance for b in theirs) for a in ours]
    found = dedup.near(
        np.array(ours, np.uint64), np.array(theirs, np.uint64), distance
    )
    assert found.tolist() == expected


def test_near_compares_few_pairs_at_once(monkeypatch):
    # Pictures with a white border share a band: as a whole, too many pairs.
    rng = np.random.RandomState(0)
    ours, theirs = (
        rng.randint(0, 2**62, n).astype(np.uint64) << np.uint64(16)
        for n in (300, 70)
    )
    ours[250:] = theirs[:50] ^ np.uint64(5)
    sizes = []
    unpackbits = np.unpackbits
    monkeypatch.setattr(
        np,
        "unpackbits",
        lambda a, axis: sizes.append(a.size // 8) or unpackbits(a, axis),
    )
    monkeypatch.setattr(dedup, "PAIRS", 1000)
    found = dedup.near(ours, theirs)
    assert found.tolist() == [False] * 250 + [True] * 50
    assert max(sizes) <= 1000


def test_a_distance_out_of_range():
    none = np.zeros(0, np.uint64)
    with pytest.raises(ValueError, match=r"0 to 7 of 64 bits. Received: 8"):
        dedup.near(none, none, 8)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--out=there", "--distance=8"], "invalid choice: 8"),
        (["--out=no/there"], "no such folder"),
    ],
)
def test_the_command_is_checked_first(capsys, more, message):
    with pytest.raises(SystemExit):
        dedup.main(["--train=digits", "--against=digits", *more])
    assert message in capsys.readouterr().err


def test_the_command_writes_names_that_load_leaves_out(tmp_path, capsys):
    train, test = tmp_path / "train", tmp_path / "test"
    for i, name in enumerate(CLASSES):
        (train / name).mkdir(parents=True)
        (test / name).mkdir(parents=True)
        (train / name / "other.jpg").write_bytes(encode(photo(name).rotate(90)))
        (train / name / "copy.jpg").write_bytes(
            encode(photo(name, (300, 200)), quality=70)
        )
        if i:
            image = photo(name, (120, 80))
            (test / name / "0.png").write_bytes(encode(image, "PNG"))
    (test / CLASSES[0] / "0.png").write_bytes(
        encode(next(pictures("rocket", 1)), "PNG")
    )
    out = tmp_path / "out.txt"
    dedup.main([f"--train={train}:all", f"--against={test}", f"--out={out}"])
    names = [f"{name}/copy.jpg" for name in CLASSES[1:]]
    assert out.read_text().splitlines() == names
    assert "2 of 6 names written to" in capsys.readouterr().out
    _, info = load(
        train, "all", image_size=8, batch_size=2, training=False, exclude=out
    )
    assert info.num_examples == 4


def test_odd_names_come_back_and_broken_files_can_be_left_out(
    tmp_path, capsys, monkeypatch
):
    train = tmp_path / "train" / "cup"
    test = tmp_path / "test" / "cup"
    names = ["a\nb.png", "u\u2028x.png", "é.png", os.fsdecode(b"caf\xe9.png")]
    for folder in (train, test):
        folder.mkdir(parents=True)
        for i, name in enumerate(names):
            image = photo("coffee", (60, 40)).rotate(90 * i)
            (folder / name).write_bytes(encode(image, "PNG"))
    (train / "other.png").write_bytes(encode(photo("chelsea"), "PNG"))
    (train / "empty.png").write_bytes(b"")
    out = tmp_path / "out.txt"
    command = [
        f"--train={train.parent}:all", f"--against={test.parent}:all",
        f"--out={out}",
    ]  # fmt: skip
    with pytest.raises(ValueError, match=r"cup/empty.png.*on_error"):
        dedup.main(command)
    assert not out.exists()
    monkeypatch.setattr(dedup, "EVERY", 0.0)
    dedup.main([*command, "--on_error=skip"])
    captured = capsys.readouterr()
    assert "4 of 5 names written to" in captured.out
    assert f"{train.parent}:all: 6 of 6 images hashed" in captured.err
    _, info = load(
        train.parent, "all", image_size=8, batch_size=1, training=False,
        exclude=out,
    )  # fmt: skip
    assert info.num_examples == 2
    # As somebody's editor on Windows writes it.
    out.write_bytes(out.read_bytes().replace(b"\n", b"\r\n"))
    names = ["cup/empty.png", "cup/other.png"]
    assert find(train.parent, "all", exclude=out).names == names
