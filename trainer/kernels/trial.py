"""Whether a kernel can be had and gives the right numbers: tried once on a device, before it is relied on."""

import logging
from collections.abc import Callable
from importlib.util import find_spec

import torch

log = logging.getLogger(__name__)
HAS_TRITON = find_spec("triton") is not None


def runs_triton(device: torch.device, least_capability: tuple[int, int] = (0, 0)) -> bool:
    """Whether Triton is installed, and the device a GPU of this compute capability or a higher one."""
    return HAS_TRITON and device.type == "cuda" and torch.cuda.get_device_capability(device) >= least_capability


def is_right(what: str, error: Callable[[], float], tolerance: float) -> bool:
    """Whether a kernel's error is below the tolerance; else, or where it cannot be built, the log says that plain
    operations do its work.

    what: its work, in words that go on with "by plain operations".
    """
    try:
        found = error()
    except Exception as reason:  # a compiler that is missing, a version that does not know a word: of many kinds
        log.warning("%s by plain operations: %s", what, f"{type(reason).__name__}: {reason}".strip().split("\n")[0])
        return False
    if not found < tolerance:
        log.warning("%s by plain operations: the kernel is wrong on this machine (%.2g)", what, found)
        return False
    return True
