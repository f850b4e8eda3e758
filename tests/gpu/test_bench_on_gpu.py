"""What a bench on a GPU has to bring: memory, kernels by class, an optimizer's time, peaks of the device."""

import json
from pathlib import Path
from shutil import copytree

import pytest
import torch

from benchmarks.peak import measure_peak
from benchmarks.random_flux import ModelFiles
from trainer.__main__ import main

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make test` on one"),
]
GPU = torch.device("cuda")


def bench(tiny_flux: ModelFiles, work: Path, *words: str) -> dict:
    """What a bench of the tiny model writes."""
    copytree(tiny_flux.ae.parents[1], work / "models" / "tiny")
    out = work / "bench.json"
    argv = ["bench", "--size=tiny", f"--work={work}", "--pictures=6", "--peak_seconds=0.2", f"--output={out}", *words]
    assert main(argv) == 0, out.read_text() if out.exists() else ""
    return json.loads(out.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["false", "true"])
def test_time_memory_and_kernels_of_a_real_run(tiny_flux, tmp_path, compiled):
    # wide pictures, so that every class of kernel takes time that can be seen
    flags = f"--mixed_precision=bf16 --torch_compile={compiled} --network_dim=8 --resolution=512"
    found = bench(tiny_flux, tmp_path, "--setting", f"one={flags}", "--profile=2")
    (setting,) = found["settings"]
    figures, breakdown = setting["figures"], setting["breakdown"]
    assert 0 < figures["torch_allocated_gib"] <= figures["torch_reserved_gib"] < figures["device_gib"]
    assert 0 < figures["optimizer_step"] < figures["highest"] * figures["pictures_per_step"] * 2
    assert 0 < figures["share_of_peak"] < 1 and figures["peak_precision"] == "bf16"
    assert breakdown, "the profiler saw no kernel: may this user count them?"
    seconds = breakdown["seconds"]
    for kind in (
        "attention, forward",
        "attention, backward",
        "large products",
        "low-rank products",
        "optimizer and clipping",
    ):
        assert seconds.get(kind, 0) > 0, (kind, breakdown["longest"])
    assert seconds.get("other", 0) < 0.2 * sum(seconds.values()), breakdown["longest"]
    assert sum(seconds.values()) < 3 * figures["highest"], "kernels of a picture, not of the whole run"


@pytest.mark.slow
def test_a_second_run_encodes_nothing_and_starts_sooner(tiny_flux, tmp_path):
    found = bench(tiny_flux, tmp_path, "--setting", "one=rank16 --resolution=64", "--repeat=2", "--profile=0")
    first, second = (setting["figures"] for setting in found["settings"])
    assert first["encoded"] > 0 and second["encoded"] == 0
    assert second["first_step"] < first["first_step"]


def test_large_products_in_bf16_beat_float32():
    bf16, fp32 = (measure_peak(precision, GPU, seconds=0.3) for precision in ("bf16", "fp32"))
    assert bf16 and fp32 and bf16.side == fp32.side
    assert bf16.tflops > 1.5 * fp32.tflops


@pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="fp8 needs compute capability 8.9"
)
def test_large_products_in_fp8_are_measured():
    fp8, bf16 = (measure_peak(precision, GPU, seconds=0.3) for precision in ("fp8", "bf16"))
    assert fp8 is not None and bf16 is not None and fp8.tflops > 0.4 * bf16.tflops
