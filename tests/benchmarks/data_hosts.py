r"""Measures what each of 1, 2, 4 and 8 hosts reads and decodes in an epoch.

    python tests/benchmarks/data_hosts.py [FOLDER]

FOLDER holds class folders of JPEG files; without it, `data.py` makes some. The
hosts are simulated one after another with the engine without TensorFlow: each
takes `train.sharded(host, hosts)`. Printed are the images and bytes that the
busiest host reads, and its processor time, which other work on the machine
disturbs less than the clock.
"""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile
import threading
import time

os.environ.setdefault("KERAS_BACKEND", "jax")

from data import make_photos

from keras_augreg import data
from keras_augreg.output import markdown_table

HOSTS = (1, 2, 4, 8)


class Files:
    """Image files that count what is read of them."""

    def __init__(self, root: pathlib.Path) -> None:
        self.files = sorted(root.glob("*/*.jpg"))
        self.classes = sorted({file.parent.name for file in self.files})
        self.images = self.bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[bytes, str]:
        content = self.files[i].read_bytes()
        with self._lock:
            self.images += 1
            self.bytes += len(content)
        return content, self.files[i].parent.name


def rows(root: pathlib.Path):
    """Yields a row of the table for each number of hosts."""
    for hosts in HOSTS:
        most = [0.0, 0.0, 0.0]
        for host in range(hosts):
            files = Files(root)
            train, _ = data.load(
                files, "all", image_size=224, batch_size=64, training=True,
                preprocess="inception",
                options=data.Options(engine="python"),
            )  # fmt: skip
            train = train.sharded(host, hosts)
            files.images = files.bytes = 0
            start = time.process_time()
            for _ in train:
                pass
            found = files.images, files.bytes, time.process_time() - start
            most = [max(pair) for pair in zip(most, found, strict=True)]
        yield hosts, int(most[0]), most[1] / 1e6, most[2]


def main() -> None:
    """Measures and prints."""
    head = ["hosts", "images", "MB", "processor time, s"]
    if len(sys.argv) > 1:
        print(markdown_table(head, rows(pathlib.Path(sys.argv[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        make_photos(pathlib.Path(folder))
        print(markdown_table(head, rows(pathlib.Path(folder))))


if __name__ == "__main__":
    main()
