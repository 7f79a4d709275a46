"""Downloads, against a real HTTP server on 127.0.0.1."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import types
import urllib.error
import urllib.request

import _child
import filelock
import pytest
from _server import ENDLESS, bucket, npz

from keras_augreg.checkpoints import DownloadError, __main__, download, files

# `checkpoints.download` is the function of this module.
module = importlib.import_module("keras_augreg.checkpoints.download")

pytestmark = pytest.mark.once

NAME = "Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"
OLDER = "imagenet21k/R50+ViT-B_16"
PATH = f"/augreg/{NAME}.npz"
BODY = npz()
HALF = len(BODY) // 2


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A bucket with one file, as the mirror, and an empty cache."""
    with bucket() as bucket_:
        bucket_.files[PATH] = BODY
        monkeypatch.setenv("KERAS_AUGREG_MIRROR", bucket_.url)
        monkeypatch.setenv("KERAS_AUGREG_CACHE", str(tmp_path / "cache"))
        monkeypatch.delenv("KERAS_AUGREG_OFFLINE", raising=False)
        yield bucket_


@pytest.fixture(autouse=True)
def _only_this_machine(monkeypatch):
    resolve = socket.getaddrinfo

    def guarded(host, *args, **kwargs):
        assert host == "127.0.0.1"
        return resolve(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", guarded)


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Seconds that a download would have waited before trying again."""
    seconds = []
    fake = types.SimpleNamespace(monotonic=time.monotonic, sleep=seconds.append)
    monkeypatch.setattr(module, "time", fake)
    return seconds


@pytest.fixture
def target(tmp_path):
    return tmp_path / "cache/augreg" / f"{NAME}.npz"


@pytest.fixture
def part(target):
    return target.with_name(f"{NAME}.npz.part")


def _leave(part, content):
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


def test_complete(server, target, part, waits):
    assert files.local(PATH[1:]) is None
    assert download(NAME) == target
    assert target.read_bytes() == BODY
    assert not part.exists()
    assert files.local(PATH[1:]) == download(f"{NAME}.npz") == target
    assert (server.log, waits) == ([(PATH, None)], [])


def test_a_plus_in_a_name_is_quoted(server, tmp_path):
    server.files["/imagenet21k/R50%2BViT-B_16.npz"] = BODY
    path = tmp_path / "cache/imagenet21k/R50+ViT-B_16.npz"
    assert download(OLDER) == path


def test_cut_off_half_way_then_resumed(server, target, waits):
    server.faults = [{"cut": HALF}]
    assert download(NAME).read_bytes() == BODY
    assert server.log == [(PATH, None), (PATH, f"bytes={HALF}-")]
    assert waits == [1.0]


def test_a_later_call_resumes(server, target, part):
    server.faults = [{"cut": HALF}]
    with pytest.raises(DownloadError, match=r"broke off after .*call again"):
        download(NAME, retries=0)
    assert not target.exists()
    assert part.read_bytes() == BODY[:HALF]
    assert download(NAME).read_bytes() == BODY
    assert server.log[-1] == (PATH, f"bytes={HALF}-")


def test_no_range_support(server, waits):
    server.faults = [{"cut": HALF}]
    server.always = {"no_range": True}
    assert download(NAME).read_bytes() == BODY
    assert server.log == [(PATH, None), (PATH, f"bytes={HALF}-")]


def test_a_wrong_range_is_refused(server, target, part):
    _leave(part, BODY[:100])
    server.always = {"headers": {"Content-Range": "bytes 0-9/10"}}
    with pytest.raises(DownloadError, match="asked for bytes 100-"):
        download(NAME)
    assert not target.exists()


@pytest.mark.parametrize("junk", [b"another version", BODY + b"more", BODY])
def test_a_part_of_something_else_is_replaced(server, part, junk):
    _leave(part, junk)
    assert download(NAME).read_bytes() == BODY
    assert [asked for _, asked in server.log] == [f"bytes={len(junk)}-", None]


MD5 = "md5=1B2M2Y8AsgTpgAmY7PhCfg=="  # of nothing


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"headers": {"x-goog-hash": MD5}}, "damaged: its md5 is"),
        ({"headers": {"x-goog-hash": "md5=?"}}, "cannot read its hash 'md5=?'"),
        ({"headers": {"Content-Length": str(HALF)}}, "damaged: its md5"),
        (
            {"headers": {"x-goog-hash": None, "Content-Length": None}},
            "neither length nor md5",
        ),
        ({"headers": {"Content-Encoding": "gzip"}}, "sent gzip-encoded"),
        ({"status": 404}, "HTTP 404 Not Found"),
        ({"status": 403}, "HTTP 403 Forbidden"),
        ({"status": 302, "location": "file:///etc/passwd"}, "HTTP 302 Found"),
        ({"status": 302, "location": "ftp://127.0.0.1/x"}, "redirects to"),
        ({"status": 302, "location": "http://localhost/x"}, "redirects to"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_refused_at_once_and_nothing_kept(
    server, target, part, waits, fault, message
):
    server.always = fault
    with pytest.raises(DownloadError, match=message.replace("?", r"\?")):
        download(NAME)
    assert not target.exists()
    assert not part.exists()
    assert (len(server.log), waits) == (1, [])


def test_a_longer_length_is_never_reached(server, target):
    server.always = {"headers": {"Content-Length": str(len(BODY) + 1)}}
    with pytest.raises(DownloadError, match=rf"after {len(BODY):,} of"):
        download(NAME, retries=0)
    with pytest.raises(DownloadError, match="Gave up in attempt 4"):
        download(NAME, retries=3)
    assert not target.exists()


def test_an_md5_is_enough_without_a_length(server):
    server.always = {"chunked": True}
    assert download(NAME).read_bytes() == BODY


@pytest.mark.parametrize("stated", [None, "crc32c=AAAAAA=="])
def test_without_an_md5_the_archive_is_checked(server, target, part, stated):
    server.always = {"headers": {"x-goog-hash": stated}}
    flipped = bytearray(BODY)
    flipped[HALF] ^= 1
    for body in (b"<html>Log in to this hotel</html>", bytes(flipped)):
        server.files[PATH] = body
        with pytest.raises(DownloadError, match="damaged"):
            download(NAME)
        assert not target.exists()
        assert not part.exists()
    server.files[PATH] = BODY
    assert download(NAME).read_bytes() == BODY


def test_500_twice_then_fine(server, waits):
    server.faults = [{"status": 500}, {"status": 503}]
    assert download(NAME).read_bytes() == BODY
    assert waits == [1.0, 2.0]


def test_500_for_ever(server, waits):
    server.always = {"status": 500}
    with pytest.raises(DownloadError, match=r"HTTP 500 .* in attempt 6;"):
        download(NAME)
    assert waits == [1.0, 2.0, 4.0, 8.0, 16.0]


def test_attempts_that_advance_do_not_count(server, waits, monkeypatch):
    monkeypatch.setattr(module, "_PROGRESS", 1 << 19)
    server.faults = [{"cut": 1 << 19}] * 5
    assert download(NAME, retries=1).read_bytes() == BODY
    assert waits == [1.0] * 5


def test_a_slow_drip_is_broken_off(server, target):
    server.files[PATH] = BODY[:300]
    server.always = {"drip": 0.02}
    begin = time.monotonic()
    with pytest.raises(
        DownloadError, match=r"less than 1024 bytes/s in 0\.2 seconds"
    ):
        download(NAME, timeout=0.2, retries=1)
    assert time.monotonic() - begin < 5
    assert not target.exists()


def test_starting_over_is_not_slow():
    """A server without ranges: the part shrinks, then grows again."""
    sizes = itertools.chain([1 << 20], itertools.count(1000, 1000))
    with module._Watch(0.05, lambda: next(sizes)) as watch:
        watch.stop = pytest.fail
        threading.Event().wait(0.4)
    watch.check()


def test_silence_is_broken_off_and_resumed(server):
    server.faults = [{"stall": 1.0}]
    assert download(NAME, timeout=0.2).read_bytes() == BODY
    assert server.log[-1] == (PATH, f"bytes={HALF}-")


@pytest.mark.parametrize("endless", ENDLESS)
def test_an_answer_without_end(server, target, part, monkeypatch, endless):
    monkeypatch.setattr(module, "_MOST_WITHOUT_LENGTH", 1 << 20)
    server.always = {"endless": endless}
    begin = time.monotonic()
    with pytest.raises(DownloadError) as error:
        download(NAME, timeout=0.3, retries=1)
    assert time.monotonic() - begin < 5
    if endless == "chunks":
        assert "sent more than 1,048,576 bytes. Nothing was" in str(error.value)
    else:
        assert "less than 1024 bytes/s in 0.3 seconds" in str(error.value)
        assert len(server.log) == 2
    assert not target.exists()
    assert not part.exists() or not part.stat().st_size


@pytest.mark.parametrize("endless", ["bytes of a header", "headers"])
def test_a_proxy_s_answer_without_end(server, monkeypatch, endless):
    monkeypatch.setenv("KERAS_AUGREG_MIRROR", "https://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", server.url)
    server.always = {"endless": endless}
    begin = time.monotonic()
    with pytest.raises(DownloadError, match="less than 1024 bytes/s in 0"):
        download(NAME, timeout=0.3, retries=1)
    assert time.monotonic() - begin < 5
    assert server.log == [("127.0.0.1:1", None)] * 2


def test_more_than_announced(server, target, part):
    """A range whose end is not that of the file."""
    _leave(part, BODY[:HALF])
    content = f"bytes {HALF}-{HALF}/{HALF + 1}"
    server.always = {"headers": {"Content-Range": content}}
    with pytest.raises(DownloadError, match=f"more than {HALF + 1:,} bytes"):
        download(NAME)
    assert not target.exists()
    assert not part.exists()


def test_no_network(server, monkeypatch, waits):
    """A name that cannot be resolved is not tried again."""
    monkeypatch.delenv("KERAS_AUGREG_MIRROR")

    def resolve(*_, **__):
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(
        DownloadError,
        match=r"^Without internet, set KERAS_AUGREG_MIRROR to a folder with "
        r"the files, see docs/guides/offline\.md\. https://storage\.google.*"
        r"the name storage\.googleapis\.com cannot be resolved",
    ):
        download(NAME)
    assert waits == []


def test_nobody_answers(server, waits):
    server.server_close()
    with pytest.raises(DownloadError, match=r"no answer .*KERAS_AUGREG_MIRROR"):
        download(NAME, retries=2)
    assert waits == [1.0, 2.0]


def test_a_wrong_certificate_is_not_tried_again(server, monkeypatch, waits):
    def fail(*_, **__):
        error = ssl.SSLCertVerificationError("certificate verify failed")
        raise urllib.error.URLError(error)

    monkeypatch.setattr(urllib.request.OpenerDirector, "open", fail)
    with pytest.raises(DownloadError, match="certificate verify failed"):
        download(NAME)
    assert waits == []


def test_redirect(server):
    server.files["/elsewhere"] = BODY
    server.faults = [{"status": 302, "location": f"{server.url}/elsewhere"}]
    assert download(NAME).read_bytes() == BODY


@pytest.mark.parametrize("location", ["http://[bad/", "http://127.0.0.1:80a/"])
def test_a_redirect_to_no_address(server, waits, location):
    server.always = {"status": 302, "location": location}
    with pytest.raises(DownloadError):
        download(NAME)
    assert waits == []


@pytest.mark.parametrize("stated", ["9" * 5000, "-1"])
def test_a_length_that_is_none(server, part, stated):
    _leave(part, BODY[:100])
    content = f"bytes 100-200/{stated}"
    server.always = {"headers": {"Content-Range": content}}
    with pytest.raises(DownloadError, match="asked for bytes 100-"):
        download(NAME)


def test_416_without_a_part(server):
    server.faults = [{"status": 416}]
    assert download(NAME).read_bytes() == BODY


def test_a_pipe_in_the_place_of_a_part(server, part):
    part.parent.mkdir(parents=True)
    os.mkfifo(part)
    with pytest.raises(DownloadError, match="is not a file"):
        download(NAME)


def test_a_redirect_keeps_the_range(server, part):
    _leave(part, BODY[:HALF])
    server.files["/elsewhere"] = BODY
    server.faults = [{"status": 302, "location": f"{server.url}/elsewhere"}]
    assert download(NAME).read_bytes() == BODY
    assert server.log[-1] == ("/elsewhere", f"bytes={HALF}-")


def test_redirects_do_not_leave_https():
    request = urllib.request.Request(f"{files.BUCKET}/x")
    follow = module._Redirects().redirect_request
    with pytest.raises(DownloadError, match="redirects to"):
        follow(request, None, 302, "", {}, "http://storage.googleapis.com/x")
    assert follow(request, None, 302, "", {}, "https://example.org/x")


def test_no_room_is_seen_before_the_download(server, target, part, monkeypatch):
    _leave(part, BODY[:HALF])
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10)
    )
    with pytest.raises(DownloadError, match=r"to come, 10 free.*Make room"):
        download(NAME)
    assert not target.exists()
    assert not part.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_disk_full_while_writing(server, target, part):
    part.parent.mkdir(parents=True)
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"No space left.*Make room"):
        download(NAME)
    assert not target.exists()
    assert not part.is_symlink()


def _child_command():
    return [sys.executable, _child.__file__, NAME]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_read_only_cache(server, monkeypatch):
    # Not below tmp_path, which nobody but its owner may enter.
    with tempfile.TemporaryDirectory() as directory:
        cache = pathlib.Path(directory)
        monkeypatch.setenv("KERAS_AUGREG_CACHE", directory)
        with _read_only(cache), pytest.raises(DownloadError) as error:
            download(NAME)
        assert f"Cannot write {cache}" in str(error.value)
        assert "(Permission denied)" in str(error.value)
        assert "set KERAS_AUGREG_CACHE to another" in str(error.value)
        path = download(NAME)
        with _read_only(cache, path.parent):
            assert download(NAME) == path


@contextlib.contextmanager
def _read_only(*folders):
    root = os.geteuid() == 0  # whom no permission stops
    for folder in folders:
        folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for folder in folders:
            folder.chmod(0o755)


def test_the_cache_lies_under_a_file(server, tmp_path):
    (tmp_path / "cache").write_text("not a directory")
    with pytest.raises(DownloadError, match="Cannot write"):
        download(NAME)


def test_four_processes_download_once(server, target):
    server.always = {"stall": 1.0}
    children = [
        subprocess.Popen(_child_command(), stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    paths = [child.communicate()[0].strip() for child in children]
    assert paths == [str(target)] * 4
    assert target.read_bytes() == BODY
    assert server.log == [(PATH, None)]


def test_waiting_is_said(server, target, part, capsys):
    target.parent.mkdir(parents=True)
    held = threading.Event()

    def hold():
        with filelock.FileLock(target.with_name(f"{NAME}.npz.lock")):
            held.set()
            threading.Event().wait(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    assert download(NAME, progress=False) == target
    assert "Waiting for another process: " in capsys.readouterr().err
    thread.join()


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_killed_during_the_download(server, target, part):
    server.faults = [{"stall": 60.0}]
    with subprocess.Popen(_child_command()) as child:
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size >= HALF):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert not target.exists()
    assert download(NAME).read_bytes() == BODY
    assert server.log[-1] == (PATH, f"bytes={HALF}-")


HOSTILE = [
    "", ".", "..", "../../etc/passwd", "/etc/passwd", "C:\\x", "a\\..\\b",
    f"../{NAME}", f"/{NAME}", f"augreg/../../{NAME}", f"{NAME}/../x",
    f"./{NAME}", f"imagenet21k/../{OLDER}", f"https://example.org/{NAME}",
    f"gs://vit_models/augreg/{NAME}", "file:///etc/passwd", f"{NAME}\0",
    f"{NAME}\0.npz", f"{NAME}\n", f" {NAME}", f"{NAME}?x", f"{NAME}#x",
    NAME.replace("T", "%54"), NAME.replace("1", "１"), NAME.replace("i", "і"),
    NAME.replace("-", "‐"), NAME.replace("T", "T\u200b"), f"{NAME}.npz.npz",
    "augreg/index.csv", NAME * 10_000, "hf://", "hf://timm", "hf://../../x",
    "hf://timm/x/../../y", "hf://timm/x@../y", "hf://timm/x\0", "hf://timm/é",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: ascii(name)[:40])
def test_hostile_names_are_refused(server, tmp_path, name):
    with pytest.raises(ValueError, match=r"Unknown checkpoint|expected hf://"):
        download(name)
    assert server.log == []
    assert list(tmp_path.iterdir()) == []


def test_an_alias_needs_an_architecture(server):
    with pytest.raises(ValueError, match=r"alias.*resolve\('ViT_B16', 'augr"):
        download("augreg-in21k")


HUB = "hf://timm/vit_tiny_patch16_224.augreg_in21k"


def _from_hub(server, tmp_path, name, **env):
    """Another process: huggingface_hub reads its settings when imported."""
    env |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "hub")}
    return subprocess.run(
        [sys.executable, _child.__file__, name],
        env=os.environ | env,
        capture_output=True,
        text=True,
    )


def test_hub(server, tmp_path):
    pytest.importorskip("huggingface_hub")
    path = f"{HUB.removeprefix('hf:/')}/resolve/main/model.safetensors"
    server.files[path] = b"a checkpoint"
    for offline in ("0", "1"):
        run = _from_hub(server, tmp_path, HUB, KERAS_AUGREG_OFFLINE=offline)
        assert run.returncode == 0, run.stderr
        found = pathlib.Path(run.stdout.strip())
        assert found.read_bytes() == b"a checkpoint", run.stderr
        assert found.name == "model.safetensors"
    assert [path for path, _ in server.log].count(path) == 1
    run = _from_hub(server, tmp_path, f"{HUB}@x", KERAS_AUGREG_OFFLINE="1")
    assert f"{HUB}@x is not in the cache of huggingface_hub" in run.stderr
    run = _from_hub(server, tmp_path, "hf://timm/none")
    assert "DownloadError: hf://timm/none: " in run.stderr


@pytest.mark.parametrize("fault", [{"endless": "headers"}, {"drip": 0.02}])
def test_hub_that_never_ends(server, tmp_path, monkeypatch, fault):
    hub = pytest.importorskip("huggingface_hub.constants")
    path = f"{HUB.removeprefix('hf:/')}/resolve/main/model.safetensors"
    server.files[path] = bytes(1 << 14)
    server.always = fault
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    begin = time.monotonic()
    with pytest.raises(DownloadError, match=f"{HUB}: less than 1024 bytes/s"):
        download(HUB, timeout=4.0)
    assert time.monotonic() - begin < 15


def test_hub_without_huggingface_hub(server, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        download(HUB)


def test_command_line(server, target, capsys):
    assert __main__.main([NAME, "augreg-in1k", NAME]) == 1
    out, err = capsys.readouterr()
    assert out.split() == [str(target)] * 2
    assert "'augreg-in1k' is an alias" in err
    options = ["--variant=ViT_Ti16", "--resolution=224"]
    assert __main__.main([*options, "augreg-in21k"]) == 0
    assert capsys.readouterr().out.strip() == str(target)


def test_progress(server, capsys):
    server.faults = [{"status": 500}]
    download(NAME)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"{NAME}.npz: HTTP 500 Internal Server Error; again in 1 s" in err
    assert "3.0/3.0 MiB" in err


def test_no_progress(server, capsys):
    server.faults = [{"status": 500}]
    download(NAME, progress=False)
    assert capsys.readouterr() == ("", "")


def test_it_is_on_the_disk_before_it_gets_its_name(server, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(
            os, name, lambda *a, n=name, r=real: calls.append(n) or r(*a)
        )
    download(NAME)
    assert calls == ["fsync", "replace"]
