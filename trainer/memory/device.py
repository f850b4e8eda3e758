"""What a GPU offers a run: its free memory, its speed, and that of copies from the host."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import psutil
import torch

from trainer.models.weights import shares_host_memory

STEP_SHARE = 0.6  # of a large product's speed is reached by a step's arithmetic
LINK_SHARE = 0.63  # of the speed of copies alone is reached by overlapped copies


@dataclass(frozen=True)
class Device:
    """What planning needs to know of a GPU.

    free, host_free: bytes of free memory on the GPU and on the host. unified: whether it shares the host's memory.
    flops, link: floating-point operations and copied bytes per second in a step; assumptions unless is_measured.
    """

    name: str
    free: int
    host_free: int
    unified: bool = False
    flops: float = 100e12
    link: float = 10e9
    is_measured: bool = False

    def measured_on(self, device: torch.device) -> "Device":
        """A copy with `flops` and `link` measured on the GPU `device`, which takes a tenth of a second."""
        flops, link = STEP_SHARE * _product_flops(device), LINK_SHARE * _link_bytes(device)
        return replace(self, flops=flops, link=link, is_measured=True)


def query_device(device: torch.device) -> Device | None:
    """A GPU's name and what memory is free now; None for the CPU, which needs no plan."""
    if device.type != "cuda":
        return None
    host = psutil.virtual_memory().available
    unified = shares_host_memory(device)
    free, _ = torch.cuda.mem_get_info(device)
    reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    # with shared memory, the page cache counts as used but is released on demand
    return Device(torch.cuda.get_device_name(device), max(free, host) if unified else free + reusable, host, unified)


def _product_flops(device: torch.device, side: int = 4096, times: int = 10) -> float:
    matrix = torch.randn(side, side, dtype=torch.bfloat16, device=device)  # a matrix of equal numbers would be faster
    return times * 2 * side**3 / _seconds(lambda: torch.mm(matrix, matrix), times)


def _link_bytes(device: torch.device, size: int = 64 << 20, times: int = 4) -> float:
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return times * size / _seconds(lambda: target.copy_(host, non_blocking=True), times)


def _seconds(work: Callable[[], object], times: int) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    work()
    begin.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
