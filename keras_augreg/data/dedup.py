r"""Finds training images that are also in an evaluation set.

The paper pre-trains on ImageNet-21k without the images of its evaluation
sets, but does not publish which ones were left out. This tool compares
difference hashes and writes the names that `load(..., exclude=FILE)` takes:

    python -m keras_augreg.data.dedup --train=/data/imagenet21k:all \
        --against=imagenet2012:validation --against=cifar100:test \
        --out=duplicates.txt

The hash has 64 bits: in the grey picture of 9 x 8 pixels, whether each pixel
of a row is brighter than the one on its left. Resizing and compressing flip
few of them. That up to 3 of 64 bits may differ is our choice: look at some of
the results, because flat pictures have equal hashes. A broken file is an
error; with `--on_error=skip`, it is left out and counted.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import sys
import time
from collections.abc import Sequence

import numpy as np

from keras_augreg.atomic import replacing
from keras_augreg.data import decode
from keras_augreg.data.locate import find
from keras_augreg.data.options import ON_ERROR, Options
from keras_augreg.data.report import Skipped
from keras_augreg.data.sources import line_of

DISTANCE = 3
# Seconds between lines of progress.
EVERY = 10.0
# Pairs of hashes compared at once: about 100 MB.
PAIRS = 1 << 20


def difference_hash(picture: decode.Picture | decode.ArrayPicture) -> int:
    """Hashes where a picture gets brighter to the right, top left bit first."""
    whole = (0, 0, picture.height, picture.width)
    small = decode.resize_area(picture.pixels(whole), (8, 9))
    grey = small.astype(np.int64) @ np.array([299, 587, 114])  # ITU-R BT.601
    bits = (grey[:, 1:] > grey[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes())


def hash_source(
    source: str,
    split: str,
    data_dir: str | None = None,
    on_error: str = "raise",
) -> tuple[list[str], np.ndarray]:
    """Hashes every image of a split, with progress on the standard error.

    Returns the names as `load(exclude=...)` takes them, and their hashes,
    uint64 of shape (n,).
    """
    names, hashes = [], []
    options = Options(on_error=on_error)
    found = find(source, split, data_dir=data_dir, options=options)
    skipped = Skipped(found.left_out)
    reported = time.monotonic()
    for i, (name, read) in enumerate(found.pictures()):
        try:
            hashes.append(difference_hash(read()))
            names.append(name)
        except decode.ImageError:
            if on_error == "raise":
                raise
            skipped.add([name])
        if time.monotonic() > reported + EVERY:
            reported = time.monotonic()
            done = f"{i + 1} of {len(found)} images hashed"
            print(f"{source}:{split}: {done}", file=sys.stderr, flush=True)
    skipped.end_epoch()
    return names, np.array(hashes, np.uint64)


def near(
    hashes: np.ndarray, others: np.ndarray, distance: int = DISTANCE
) -> np.ndarray:
    """Finds the hashes, uint64, that differ from one of the others in few bits.

    Example:
    >>> import numpy as np
    >>> near(np.array([0b0111, 0b1111], "u8"), np.array([0], "u8"))
    array([ True, False])
    """
    if not 0 <= distance <= 7:
        raise ValueError(
            f"`distance` must be 0 to 7 of 64 bits. Received: {distance}"
        )
    found = np.zeros(len(hashes), bool)
    # Pigeonhole: with `distance + 1` bands, hashes that differ in at most
    # `distance` bits agree in at least one band.
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        ours, theirs = (
            _groups(h >> np.uint64(low) & mask) for h in (hashes, others)
        )
        for key in ours.keys() & theirs.keys():
            members = ours[key][~found[ours[key]]]
            against = others[None, theirs[key]]
            rows = max(PAIRS // against.size, 1)
            for start in range(0, len(members), rows):
                some = members[start : start + rows]
                differ = (hashes[some, None] ^ against)[..., None]
                bits = np.unpackbits(differ.view(np.uint8), axis=-1)
                found[some] = (bits.sum(axis=-1) <= distance).any(axis=1)
    return found


def _groups(keys: np.ndarray) -> dict[int, np.ndarray]:
    """Key -> its positions."""
    order = np.argsort(keys, kind="stable")
    unique, starts = np.unique(keys[order], return_index=True)
    stops = np.append(starts, len(keys))[1:]
    rows = zip(unique.tolist(), starts, stops, strict=True)
    return {key: order[start:stop] for key, start, stop in rows}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command of the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m keras_augreg.data.dedup",
        description="Lists training images that are in evaluation sets.",
    )
    add = parser.add_argument
    add("--train", required=True, help="a source of load: SOURCE[:SPLIT]")
    add("--against", required=True, action="append", help="SOURCE[:SPLIT]")
    add("--data_dir", help="where TFDS keeps data sets")
    add("--distance", type=int, default=DISTANCE, choices=range(8),
        help="bits that may differ")  # fmt: skip
    add("--on_error", choices=ON_ERROR, default="raise", help="broken files")
    add("--out", type=pathlib.Path, required=True)
    flags = parser.parse_args(arguments)
    if not flags.out.parent.is_dir():
        parser.error(f"--out={flags.out}: there is no such folder")

    def hashed(argument: str) -> tuple[list[str], np.ndarray]:
        # A path may have colons; a split follows the last one.
        source, _, split = argument.rpartition(":")
        if not source or "/" in split:
            source, split = argument, "all"
        return hash_source(source, split, flags.data_dir, flags.on_error)

    names, hashes = hashed(flags.train)
    others = np.concatenate([hashed(argument)[1] for argument in flags.against])
    found = near(hashes, others, flags.distance)
    lines = [line_of(name) for name, f in zip(names, found, strict=True) if f]
    text = "".join(f"{line}\n" for line in lines)
    with replacing(flags.out) as file:
        file.write(text.encode("utf-8", "surrogateescape"))
    print(f"{len(lines)} of {len(names)} names written to {flags.out}")


if __name__ == "__main__":
    main()
