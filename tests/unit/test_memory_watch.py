"""A run that saves and stops before the system runs out of memory; /proc/meminfo is a file of the test's."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from accelerate import Accelerator

import trainer.memory.watch
import trainer.preflight.memory
from benchmarks.random_flux import ModelFiles
from tests.full_size import GPU
from tests.recipe_files import Workshop, make_workshop
from trainer.common.problems import Problems
from trainer.common.process import StopRequest
from trainer.engine.requests import Request, Requests
from trainer.memory.bytes import GIB
from trainer.memory.watch import MemoryWatch, available_bytes, floor_bytes
from trainer.preflight.check import make_plan

CPU = torch.device("cpu")


@pytest.fixture
def meminfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Says how many GiB are available of 128."""
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path))

    def write(available: float) -> None:
        kib = {"MemTotal": 128 << 20, "MemFree": 1 << 20, "MemAvailable": int(available * 2**20), "Cached": 9 << 20}
        text = "".join(f"{name + ':':<16}{count:>8} kB\n" for name, count in kib.items())
        (tmp_path / "meminfo").write_text(text)

    write(100)
    return write


@pytest.mark.usefixtures("meminfo")
def test_what_the_page_cache_would_give_back_is_available():
    assert available_bytes() == 100 * GIB


def test_it_is_low_below_the_floor_and_stays_so(meminfo):
    watch = MemoryWatch(6 * GIB)
    assert not watch.is_low()
    meminfo(6)
    assert not watch.is_low() and watch.seen is None
    meminfo(5.5)
    assert watch.is_low()
    meminfo(50)
    assert watch.is_low() and watch.seen == 5.5 * GIB, "what was requested once is not taken back"


def test_without_a_floor_nothing_is_read():
    watch = MemoryWatch(0, available=lambda: pytest.fail("read"))
    assert not watch.is_low()


@pytest.mark.parametrize(("setting", "shared", "expected"), [
    (None, False, 0), (None, True, 6), (0.0, True, 0), (2.5, False, 2.5), (20.0, True, 20),
])  # fmt: skip
def test_by_default_only_shared_memory_is_watched(monkeypatch, setting, shared, expected):
    monkeypatch.setattr(trainer.memory.watch, "shares_host_memory", lambda _device: shared)
    assert floor_bytes(setting, CPU) == expected * GIB


def test_a_shortage_asks_to_save_and_stop(meminfo, tmp_path):
    requests = Requests(tmp_path, StopRequest(), Accelerator(cpu=True), MemoryWatch(6 * GIB))
    assert requests.poll() == Request()
    meminfo(1)
    assert requests.poll() == Request(stop=True)


# --- runs

SETTINGS = {"network_dim": 1, "max_train_steps": 3, "save_precision": "float"}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory, tiny_flux: ModelFiles) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("watch"), tiny_flux)


def test_a_run_stops_with_a_state_that_continues_it(workshop, meminfo):
    meminfo(3.25)
    with pytest.raises(Problems, match=r"step 1: only 3\.2 GiB.*fewer than --min_free_memory=4") as found:
        workshop.train("short", **SETTINGS, min_free_memory=4)
    (problem,) = found.value.problems
    resume = (problem.hint or "").rpartition("--resume=")[2]
    assert Path(resume).is_dir()
    continued = workshop.train("short", **SETTINGS, resume=resume, min_free_memory=3)
    expected = workshop.train("complete", **SETTINGS)
    for name, tensor in expected.tensors().items():
        assert torch.equal(continued.tensors()[name], tensor)


def test_a_plan_leaves_the_floor_free_on_shared_memory(workshop, monkeypatch):
    monkeypatch.setattr(trainer.memory.watch, "shares_host_memory", lambda _device: True)
    for unified, floor in (True, 6), (False, 0):
        gpu = replace(GPU, unified=unified)
        monkeypatch.setattr(trainer.preflight.memory, "query_device", lambda _device, gpu=gpu: gpu)
        memory = make_plan(workshop.config(f"plan {unified}", **SETTINGS)).memory
        assert memory.device and memory.device.free == GPU.free - floor * GIB
