"""Folders of images on gs://, listed once and shown as `pathlib` would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from keras_augreg import atomic


class RemoteFile:
    """A file of a `RemoteFolder`, or a folder in it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = path.rpartition("/")[2]

    def __fspath__(self) -> str:
        return self.path

    __str__ = __fspath__

    def __lt__(self, other: RemoteFile) -> bool:
        return self.path < other.path

    def is_file(self) -> bool:
        return True

    def is_dir(self) -> bool:
        return False

    def exists(self) -> bool:
        return True


class RemoteFolder(RemoteFile):
    """What `sources.folder` asks of a `pathlib.Path`, of a listing.

    A bucket has names without folders, and each question takes a request, so
    all names are fetched at once.
    """

    def __init__(self, path: str, files: list[str] | None = None) -> None:
        super().__init__(path.rstrip("/"))
        inside: dict[str, list[str]] = {}
        self._files: list[str] = []
        for file in _listed(self.path) if files is None else files:
            first, slash, rest = file.partition("/")
            if slash:
                inside.setdefault(first, []).append(rest)
            elif first:  # A folder may have an empty file of its name.
                self._files.append(first)
        self._folders = {
            name: RemoteFolder(f"{self.path}/{name}", names)
            for name, names in inside.items()
        }

    def __truediv__(self, name: str) -> RemoteFolder:
        missing = RemoteFolder(f"{self.path}/{name}", [])
        return self._folders.get(name, missing)

    def is_file(self) -> bool:
        return False

    def is_dir(self) -> bool:
        return self.exists()

    def exists(self) -> bool:
        return bool(self._folders or self._files)

    def iterdir(self) -> Iterator[RemoteFile]:
        yield from self._folders.values()
        yield from (RemoteFile(f"{self.path}/{n}") for n in self._files)

    def walk(self) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`: a caller may take folders out of the list."""
        folders = list(self._folders)
        yield self.path, folders, list(self._files)
        for name in folders:
            yield from self._folders[name].walk()


def _listed(path: str) -> list[str]:
    """The names of all files below a folder, relative to it."""
    atomic.as_path(path)  # Raises what is missing; sets gcsfs up.
    system, root = _system(path)
    return [file.removeprefix(f"{root}/") for file in system.find(root)]


def _system(path: str) -> tuple[Any, str]:
    import fsspec

    return fsspec.core.url_to_fs(path)


def read_file(root: str, name: str) -> bytes:
    """Reads a file of a folder; what cannot be read is an `OSError`."""
    system, path = _system(f"{root}/{name}")
    return system.cat_file(path)
