"""Shared by all tests: nothing may reach a network, and small model files are made once."""

import gc
import os
import signal
import socket
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers with small tensors: more threads wait for each other

from benchmarks.random_flux import ModelFiles, write_model_files

# tests that a shell's script runs in the background begin deaf to Ctrl-C, and so would the programs that they start
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anything but this machine fails the test that makes it."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address):
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            raise AssertionError(f"a test tried to reach {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="module", autouse=True)
def old_objects_stay() -> None:
    """What is imported by now is not looked at by later collections: `free_memory` takes 0.01 s instead of 0.3."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_flux(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    """Random files of a very small FLUX.1-dev in the true layout."""
    return write_model_files(tmp_path_factory.mktemp("tiny_flux"), "tiny")


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the current one, so that default paths lead into it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
