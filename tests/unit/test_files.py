"""Files are written whole or not at all: kill -9 and a full disk at any moment leave the old one."""

import json
import os
import resource
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.faults.test_state_faults import in_child, kill_at_change
from trainer.common.files import (
    FULL_DISK_ERRORS,
    atomic_write,
    free_disk_bytes,
    sha256_file,
    write_json,
    write_safetensors,
    write_text,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a system with fork")
OLD, NEW = {"a": torch.zeros(3000)}, {"a": torch.ones(5000), "b": torch.arange(7.0)}
WRITERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], None]]] = {
    "text": (lambda path: write_text(path, "old" * 3000), lambda path: write_text(path, "newer" * 9000)),
    "safetensors": (lambda path: write_safetensors(path, OLD), lambda path: write_safetensors(path, NEW, {"k": "v"})),
}


@pytest.fixture(params=WRITERS)
def writers(request):
    return WRITERS[request.param]


def test_content_comes_back(tmp_path):
    write_text(tmp_path / "new" / "folder" / "ä.txt", "größe\n")
    assert (tmp_path / "new" / "folder" / "ä.txt").read_bytes() == "größe\n".encode()
    write_json(tmp_path / "a.json", {"z": 1, "a": "ü"})
    assert json.loads((tmp_path / "a.json").read_text()) == {"z": 1, "a": "ü"}
    assert list(json.loads((tmp_path / "a.json").read_text())) == ["z", "a"]
    strided = torch.arange(12.0).view(3, 4).T
    write_safetensors(tmp_path / "a.safetensors", {"t": strided, "p": torch.nn.Parameter(torch.ones(2))}, {"k": "v"})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["t"], strided)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"k": "v"}


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_other_users_may_read_whatever_the_umask(tmp_path, writers, umask):
    former = os.umask(umask)
    try:
        for write in writers:
            write(tmp_path / "file")
            assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
        assert os.umask(umask) == umask, "the umask is as it was"
    finally:
        os.umask(former)


@needs_fork
def test_killed_at_every_change_to_the_disk(tmp_path, writers):
    write_old, write_new = writers
    path = tmp_path / "lora.safetensors"
    write_old(path)
    old = path.read_bytes()
    write_new(tmp_path / "other")
    new = (tmp_path / "other").read_bytes()
    (tmp_path / "other").unlink()
    outcomes = []
    for number in range(1, 50):

        def act(number=number):
            kill_at_change(number, tmp_path)
            write_new(path)

        status = in_child(act)
        assert status in (0, signal.SIGKILL)
        assert path.read_bytes() in (old, new)
        outcomes.append(path.read_bytes() == new)
        if status == 0:
            break
    assert number >= 4 and outcomes[0] is False and outcomes[-1] is True


def write_forever(path: Path) -> None:
    torch.set_num_threads(1)  # thread pools do not survive a fork
    number = 0
    while True:
        number += 1
        write_safetensors(path, {"a": torch.full((200_000,), float(number))})


@needs_fork
def test_killed_at_any_time(tmp_path):
    """Another process writes without pause and is killed; a reader always finds one whole version."""
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"a": torch.zeros(200_000)})
    for count in (1, 2, 3, 5):
        child = os.fork()
        if child == 0:
            write_forever(path)
        try:
            versions = set()
            while len(versions) <= count:  # it is killed when so many have been written while it was read
                (version,) = load_file(path)["a"].unique().tolist()
                versions.add(version)
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert load_file(path)["a"].unique().numel() == 1


@needs_fork
@pytest.mark.parametrize("limit", [0, 100, 9000])
def test_a_full_disk_leaves_the_old_file_and_no_rubbish(tmp_path, writers, limit):
    write_old, write_new = writers
    path = tmp_path / "lora.safetensors"
    write_old(path)
    old = path.read_bytes()

    def act() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(FULL_DISK_ERRORS):
            write_new(path)
        with pytest.raises(FULL_DISK_ERRORS):
            write_new(tmp_path / "never")

    assert in_child(act) == 0
    assert path.read_bytes() == old
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_an_error_in_the_writer_leaves_the_old_file_and_no_rubbish(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail(target: Path) -> None:
        target.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail)
    assert path.read_text() == "old" and [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_file_and_folder_are_flushed_in_order(tmp_path, monkeypatch):
    """Content, then the move, then the folder: the order in which a power cut is survived."""
    events = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(handle: int) -> None:
        events.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def noted_replace(*paths) -> None:
        events.append("move")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    write_text(tmp_path / "a.txt", "text")
    assert events == ["file", "move", "folder"]


def test_hash_and_free_space(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert free_disk_bytes(tmp_path / "not" / "there" / "yet") > 0
