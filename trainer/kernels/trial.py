"""Whether a kernel can be compiled, computes correctly and how fast: tried once per device before it is used."""

import logging
import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)
HAS_TRITON = find_spec("triton") is not None


def runs_triton(device: torch.device, min_capability: tuple[int, int] = (0, 0)) -> bool:
    """Whether Triton is installed and the device is a GPU of at least this compute capability."""
    return HAS_TRITON and device.type == "cuda" and torch.cuda.get_device_capability(device) >= min_capability


def passes_trial(what: str, error: Callable[[], float], tolerance: float) -> bool:
    """Run a kernel once; returns whether it could be compiled and its relative error is below the tolerance.

    If not, a warning in the log says that PyTorch is used instead. what: what the kernel computes, as a noun, for that
    warning. error: runs the kernel and returns its relative error.
    """
    try:
        found = error()
    except Exception as reason:  # a missing compiler, a Triton version without some feature: the types vary
        first_line = f"{type(reason).__name__}: {reason}".strip().split("\n")[0]
        log.warning("falling back to PyTorch for %s: %s", what, first_line)
        return False
    if not found < tolerance:
        log.warning(
            "falling back to PyTorch for %s: the kernel computes wrong numbers on this machine (relative error %.2g)",
            what,
            found,
        )
        return False
    return True


def milliseconds(work: Callable[[], object], times: int = 10) -> float:
    """The median time that a GPU takes for `work`, after a warm-up."""
    moments = []
    for _ in range(3 + times):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        moments.append((start, end))
    torch.cuda.synchronize()
    return statistics.median(start.elapsed_time(end) for start, end in moments[-times:])
