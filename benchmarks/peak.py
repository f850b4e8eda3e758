"""Measure how fast this device multiplies large matrices: the peak that a step's arithmetic is compared with.

python -m benchmarks.peak [--seconds 2]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from trainer.engine.metrics import Timestamp

SIDE_ON_GPU, SIDE_ON_CPU = 8192, 1024
MATRICES_BYTES = 16  # bytes per element of a side x side matrix: three matrices, and float32 on the way to fp8
PRECISIONS = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}
BATCH = 10  # products between two readings of the clock


@dataclass(frozen=True)
class Peak:
    """tflops: the median over `seconds` of products [side, side] x [side, side] of normal numbers."""

    precision: str
    tflops: float
    side: int


def measure_peak(precision: str, device: torch.device, seconds: float = 2.0) -> Peak | None:
    """Multiply for about `seconds`; returns None if the device does not support the precision.

    fp8 is e4m3 with one scale per matrix and fast accumulation.
    """
    side = _side(device)
    try:
        product = _product(precision, side, device)
        product()
        Timestamp(device).wait()
    except (RuntimeError, ValueError, NotImplementedError, AttributeError):
        return None
    speeds = []
    deadline = time.perf_counter() + seconds
    while len(speeds) < 3 or time.perf_counter() < deadline:
        batch = BATCH if device.type == "cuda" else 1
        start = Timestamp(device)
        for _ in range(batch):
            product()
        end = Timestamp(device)
        end.wait()
        speeds.append(batch * 2 * side**3 / end.seconds_since(start) / 1e12)
    return Peak(precision, statistics.median(speeds[1:]), side)  # the first batch may have run at idle clocks


def _side(device: torch.device) -> int:
    if device.type != "cuda":
        return SIDE_ON_CPU
    side = SIDE_ON_GPU
    while side > 1024 and side**2 * MATRICES_BYTES > torch.cuda.mem_get_info(device)[0]:
        side //= 2
    return side


def _product(precision: str, side: int, device: torch.device) -> Callable[[], torch.Tensor]:
    dtype = PRECISIONS[precision]
    left, right = (torch.randn(side, side, device=device) for _ in range(2))
    if precision != "fp8":
        left, right = left.to(dtype), right.to(dtype)
        out = torch.empty_like(left)
        return lambda: torch.mm(left, right, out=out)
    one = torch.ones((), device=device)
    left, right = left.to(dtype), right.to(dtype).t()  # the second factor must be column-major
    return lambda: torch._scaled_mm(left, right, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)


def measure_peaks(device: torch.device, seconds: float) -> dict[str, Peak]:
    """Peaks of every precision that the device supports; on the CPU only float32 and bfloat16."""
    names = PRECISIONS if device.type == "cuda" else ("fp32", "bf16")
    found = {name: measure_peak(name, device, seconds) for name in names}
    return {name: peak for name, peak in found.items() if peak}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time large products on the first device.")
    parser.add_argument("--seconds", type=float, default=2.0, help="seconds for each precision (%(default)s)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peaks = measure_peaks(device, parser.parse_args().seconds)
    print(json.dumps({name: asdict(peak) for name, peak in peaks.items()}, indent=2))


if __name__ == "__main__":
    main()
