"""Tar files as WebDataset writes them, read in any order by an index.

An example is the files of one tar file that share their name up to the first
dot: an image (`0017.jpg`) and its label (`0017.cls`, or a key of `0017.json`).
The headers are scanned once; where each image lies, and its label, are kept in
an index beside the tar files or, where that cannot be written, in the cache.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import glob
import hashlib
import json
import os
import pathlib
import re
import tarfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from keras_augreg.atomic import replacing
from keras_augreg.checkpoints.files import cache_dir
from keras_augreg.data import access, report
from keras_augreg.data.decode import extensions
from keras_augreg.data.options import Options
from keras_augreg.data.sources import SPLITS, Examples, check_once, read_all

INDEX = ".keras_augreg.index.json"
# Of the index's form; others are scanned again.
VERSION = 1
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
BLOCK = 512  # of a tar file, in bytes


def are_at(path: str) -> bool:
    """Whether a path means tar files: one, a pattern, or a folder of them."""
    if path.lower().endswith(COMPRESSED):
        raise ValueError(
            f"{path!r} is compressed, so its images cannot be read in any "
            "order. Decompress it: JPEG files do not get smaller anyway."
        )
    if path.endswith(".tar"):
        return True
    if not os.path.isdir(path):
        return False
    entries = [e for e in os.scandir(path) if not e.name.startswith(".")]
    folders = [e for e in entries if e.is_dir()]
    if not folders:
        return any(e.name.endswith(".tar") for e in entries)
    return all(
        e.name.lower() in SPLITS and glob.glob(f"{glob.escape(e.path)}/*.tar")
        for e in folders
    )


def shards(path: str) -> dict[str, list[str]]:
    """The tar files of each split; "" where they have none."""
    if os.path.isdir(path):
        found = sorted(glob.glob(f"{glob.escape(path)}/*.tar"))
        if not found:
            return {
                folder: sorted(glob.glob(f"{glob.escape(path)}/{folder}/*.tar"))
                for folder in sorted(os.listdir(path))
                if not folder.startswith(".")
                and os.path.isdir(os.path.join(path, folder))
            }
    elif os.path.isfile(path):
        return {"": [path]}
    else:
        found = sorted({f for part in _braces(path) for f in glob.glob(part)})
    if not found:
        raise ValueError(f"No tar file {path!r} in {os.getcwd()!r}.")
    by_split: dict[str, list[str]] = collections.defaultdict(list)
    for file in found:
        words = re.split("[^a-z]+", os.path.basename(file).lower())
        named = [word for word in words if word in SPLITS]
        by_split[named[0] if named else ""].append(file)
    if len(by_split) > 1 and "" in by_split:
        raise ValueError(
            f"Some tar files at {path!r} have a split in their name "
            f"({sorted(by_split)[1:]}), and {by_split[''][0]!r} has none. "
            "Rename it, or pass a pattern such as 'photos/train-*.tar'."
        )
    return dict(by_split)


def _braces(pattern: str) -> list[str]:
    """Patterns without a range such as {000..127}, which `glob` lacks."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if not match:
        return [pattern]
    start, end = pattern[: match.start()], pattern[match.end() :]
    first, last, width = int(match[1]), int(match[2]), len(match[1])
    numbers = (f"{i:0{width}}" for i in range(first, last + 1))
    return [part for n in numbers for part in _braces(f"{start}{n}{end}")]


def examples(
    by_split: Mapping[str, list[str]],
    split: str,
    class_names: Sequence[str] | None,
    options: Options,
) -> Examples:
    """Lists the examples of a split; the arguments are `access.examples`'s."""
    if "" in by_split:
        split = ""
    elif split not in by_split:
        raise ValueError(
            f"The tar files have no split {split!r}. They have: "
            f"{sorted(by_split)}"
        )
    files = by_split[split]
    root = os.path.commonpath([os.path.dirname(f) or "." for f in files])
    found = _indexed(files, options)
    rows = [
        (os.path.relpath(file, root), file, row)
        for file, listed in zip(files, found, strict=True)
        for row in listed
    ]
    labels = [json.loads(row.label) for _, _, row in rows]
    if class_names is None:
        of_train = labels
        if split != "train" and "train" in by_split:
            first = _indexed(by_split["train"], options)
            of_train = [json.loads(r.label) for part in first for r in part]
        class_names = access.classes(of_train, "tar files")
    known = [str(name) for name in class_names]
    check_once(known)
    names = [f"{shard}/{row.name}" for shard, _, row in rows]
    places = {
        name: (file, row.start, row.size)
        for name, (_, file, row) in zip(names, rows, strict=True)
    }
    read = functools.partial(_read, places)
    return access.labelled(
        Examples(names, None, known, read, root),
        labels,
        access.numbers(known, None),
        options.on_error == "skip",
    )


def _read(places: dict[str, tuple[str, int, int]], name: str) -> bytes:
    path, start, size = places[name]
    if size < 0:
        raise OSError("the example has no image")
    with open(path, "rb", 0) as file:
        file.seek(start)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"the tar file {path!r} is truncated")
    return data


@dataclasses.dataclass(frozen=True)
class _Row:
    """An example of a tar file."""

    name: str  # of its image
    start: int  # of the image, in bytes
    size: int  # -1 without an image
    label: str  # as JSON: a number, text, a list, or null


def _indexed(files: list[str], options: Options) -> list[list[_Row]]:
    """The examples of each file, from the index or its headers."""
    folders = {os.path.dirname(os.path.abspath(file)) for file in files}
    rows: dict[str, list[_Row]] = {}
    for folder in sorted(folders):
        here = [
            file
            for file in files
            if os.path.dirname(os.path.abspath(file)) == folder
        ]
        rows |= _indexed_folder(pathlib.Path(folder), here, options)
    return [rows[file] for file in files]


def _indexed_folder(
    folder: pathlib.Path, files: list[str], options: Options
) -> dict[str, list[_Row]]:
    digest = hashlib.sha256(str(folder).encode("utf-8", "surrogateescape"))
    elsewhere = cache_dir() / "indexes" / f"{digest.hexdigest()[:16]}.json"
    paths = [folder / INDEX, elsewhere]
    form = [VERSION, options.image, options.label_key]
    kept: dict[str, Any] = {}
    for path in paths:
        try:
            text = path.read_text("utf-8")
            stored = json.loads(text)
            if stored["form"] == form:
                kept |= stored["files"]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError):
            report.once(f"The index {str(path)!r} is damaged: scanning again.")
    stamps = {}
    for file in files:
        status = os.stat(file)
        stamps[file] = [status.st_size, status.st_mtime_ns]
    new = [
        file
        for file in files
        if kept.get(os.path.basename(file), [None])[0] != stamps[file]
    ]
    scanned = read_all(
        lambda file: _scan(file, options), new, "tar files", at_once=16
    )
    for file, rows in zip(new, scanned, strict=True):
        columns = [[getattr(row, f.name) for row in rows]
                   for f in dataclasses.fields(_Row)]  # fmt: skip
        kept[os.path.basename(file)] = [stamps[file], *columns]
    if new:
        there = {n: v for n, v in kept.items() if (folder / n).is_file()}
        _write({"form": form, "files": there}, paths)
    return {
        file: [
            _Row(*row)
            for row in zip(*kept[os.path.basename(file)][1:], strict=True)
        ]
        for file in files
    }


def _write(index: Any, paths: list[pathlib.Path]) -> None:
    """Writes the index to the first place that allows it."""
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(json.dumps(index).encode())
        except OSError:
            continue
        return
    report.once(
        f"The index of the tar files in {str(paths[0].parent)!r} can be "
        "written neither there nor in the cache: they are scanned each time."
    )


def _scan(path: str, options: Options) -> list[_Row]:
    """Reads the headers of a tar file, and its labels."""
    parts: dict[str, dict[str, tuple[str, int, int]]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, name = os.path.split(member.name)
                key, _, ending = name.partition(".")
                if not member.isfile() or not key:
                    continue
                of_key = parts.setdefault(os.path.join(folder, key), {})
                if ending.lower() in of_key:
                    raise ValueError(
                        f"{path!r} holds {member.name!r} twice. Expected one "
                        "image and one label for each name."
                    )
                place = (member.name, member.offset_data, member.size)
                of_key[ending.lower()] = place
            end = tar.offset
        with open(path, "rb") as file:
            file.seek(end)
            # `tarfile` takes a damaged header for the end.
            if file.read(BLOCK) != bytes(BLOCK):
                raise tarfile.ReadError(f"no header at byte {end}")
            return [
                _row(path, file, found, options) for found in parts.values()
            ]
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"Cannot read the tar file {path!r}: {error}. It is truncated or "
            "damaged; replace it."
        ) from error


def _row(
    path: str,
    file: BinaryIO,
    parts: dict[str, tuple[str, int, int]],
    options: Options,
) -> _Row:
    """Finds the image and the label among an example's files."""
    first = next(iter(parts.values()))[0]
    images = [e for e in parts if f".{e}".endswith(extensions())]
    if options.image is not None:
        images = [e for e in parts if e == options.image]
    if len(images) > 1:
        raise ValueError(
            f"{first!r} in {path!r} has several images: {images}. Name one "
            "with `data.Options(image=...)`."
        )
    name, start, size = parts[images[0]] if images else (first, 0, -1)

    def content(ending: str) -> bytes:
        _, start, size = parts[ending]
        file.seek(start)
        return file.read(size)

    wanted = options.label_key
    label = None
    try:
        if wanted in parts or (wanted is None and "cls" in parts):
            label = _value(content(wanted or "cls").decode().strip())
        elif "json" in parts:
            found = json.loads(content("json"))
            keys = access.LABELS if wanted is None else (wanted,)
            label = next((found[key] for key in keys if key in found), None)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"Cannot read the label of {name!r} in {path!r}: {error}"
        ) from error
    return _Row(name, start, size, json.dumps(label))


def _value(text: str) -> int | str:
    return int(text) if re.fullmatch("-?[0-9]+", text) else text
