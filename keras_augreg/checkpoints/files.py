r"""Where the files of the release are.

| environment variable | meaning |
| --- | --- |
| `KERAS_AUGREG_CACHE` | cache directory, by default `~/.cache/keras_augreg` |
| `KERAS_AUGREG_MIRROR` | what replaces the release's bucket: a directory (a \
mounted Kaggle data set, say), the URL of a copy, or gs:// if it is public |
| `KERAS_AUGREG_OFFLINE` | `1`: the network is never used |

The cache and a mirror are laid out as the bucket is, `augreg/NAME.npz`; a
mirror directory may also hold plain `NAME.npz`. Source: the bucket's address
is that of google-research/vision_transformer's README.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from pathlib import Path

BUCKET = "https://storage.googleapis.com/vit_models"
INDEX = "augreg/index.csv"


def cache_dir() -> Path:
    """Returns the directory of downloaded files; see the module."""
    value = os.environ.get("KERAS_AUGREG_CACHE") or "~/.cache/keras_augreg"
    return Path(value).expanduser()


def mirror() -> Path | str:
    """Returns a mirror directory, or the URL of the bucket or its copy."""
    value = os.environ.get("KERAS_AUGREG_MIRROR") or BUCKET
    if re.match(r"(https?|gs)://", value):
        public = "https://storage.googleapis.com/"
        return value.rstrip("/").replace("gs://", public, 1)
    if (path := Path(value).expanduser()).is_dir():
        return path
    raise ValueError(
        f"KERAS_AUGREG_MIRROR={value!r}: expected a directory, an http(s) "
        "URL, or gs://BUCKET/FOLDER of public files."
    )


def offline() -> bool:
    """Returns whether the network must not be used."""
    value = os.environ.get("KERAS_AUGREG_OFFLINE", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"KERAS_AUGREG_OFFLINE={value!r}: expected 0 or 1.")
    return value == "1"


def local(path: str) -> Path | None:
    """Finds a file of the bucket in the cache or a mirror directory."""
    return next(filter(Path.is_file, _places(path)), None)


def url(path: str) -> str:
    """Returns the address of a file of the bucket, unless offline."""
    source = mirror()
    if isinstance(source, str) and not offline():
        return f"{source}/{urllib.parse.quote(path)}"
    command = "keras_augreg.checkpoints.search(refresh=True)"
    if path.endswith(".npz"):
        name = path.removeprefix("augreg/").removesuffix(".npz")
        command = f"`python -m keras_augreg.checkpoints {name}`"
    why = " (KERAS_AUGREG_OFFLINE=1: no download)" if offline() else ""
    raise FileNotFoundError(
        f"{path} is not on this machine{why}: it is not at "
        f"{', nor at '.join(map(str, _places(path)))}. Where there is "
        f"internet, get it with {command} or from "
        f"{BUCKET}/{urllib.parse.quote(path)}; then put it there."
    )


def _places(path: str) -> list[Path]:
    """Where a file of the bucket may lie on this machine."""
    places = [cache_dir() / path]
    if isinstance(folder := mirror(), Path):
        places.append(folder / path)
        # Only AugReg's: several older folders have a ViT-B_16.npz.
        if path.startswith("augreg/"):
            places.append(folder / Path(path).name)
    return places
