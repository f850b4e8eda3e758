"""The memory that must stay available, and a watch that stops a run with a saved state before the system kills it.

A GPU that shares the host's memory, such as a DGX Spark's, raises no out-of-memory error when the system runs short of
it: the kernel ends the process instead, and everything since the last checkpoint is lost.
"""

from collections.abc import Callable

import psutil
import torch

from trainer.memory.bytes import GIB
from trainer.models.weights import shares_host_memory

DEFAULT_GIB = 6.0  # two files of a state at a time, a copy of the LoRA, and what other programs may still ask for


def floor_bytes(setting: float | None, device: torch.device) -> int:
    """The bytes of the system's memory that must stay available; 0 if none must.

    setting: --min_free_memory in GiB; None leaves it to the device: 6 if it shares the host's memory, otherwise 0.
    """
    if setting is None:
        setting = DEFAULT_GIB if shares_host_memory(device) else 0.0
    return int(setting * GIB)


def available_bytes() -> int:
    """The system's available memory: MemAvailable on Linux, which counts what the page cache would give back."""
    return psutil.virtual_memory().available


class MemoryWatch:
    """Looks at the system's available memory between steps.

    floor: bytes that must stay available; 0 looks at nothing. available: returns the available bytes. seen: the bytes
    that were available when there were fewer than `floor`, or None.
    """

    def __init__(self, floor: int, available: Callable[[], int] = available_bytes) -> None:
        self.floor, self.available = floor, available
        self.seen: int | None = None

    def is_low(self) -> bool:
        """Whether less than the floor is available now or was at an earlier call."""
        if self.floor and self.seen is None and (found := self.available()) < self.floor:
            self.seen = found
        return self.seen is not None
