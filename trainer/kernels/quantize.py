"""Numbers in 8 bits, each row with a scale of its own.

`quantize_rows` and `quantize_parts` are plain torch operations, which a compiler fuses with what makes the numbers.
`quantize_side_by_side` is one operator for numbers in several parts or behind an activation function: in Triton it
reads each of them once, where a compiler's kernels read them twice and write what comes of the function in between.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.kernels.trial import is_right, runs_triton

FP8, INT8 = torch.float8_e4m3fn, torch.int8
LARGEST = {FP8: 448.0, INT8: 127.0}
SMALLEST_ROW = 1e-12  # a row of zeros has a scale too
MOST_PARTS, LONGEST_ROW = 4, 1 << 15  # of the kernel, which holds a row in registers
LEAST_CAPABILITY = (8, 9)  # of a GPU that converts to e4m3
TOLERANCE = 0.05  # e4m3 rounds by 0.026 on average


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x [R, K] as q [R, K] of dtype (e4m3 or int8) and scale [R, 1] in float32: x = q scale.

    What is not finite in a row leaves its scale not finite.
    """
    return quantize_parts([x], dtype)


def quantize_parts(parts: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """`quantize_rows` of parts that stand side by side, each [R, K_j]: one [R, K] and one scale."""
    largest = parts[0].abs().amax(-1, keepdim=True)
    for part in parts[1:]:
        largest = torch.maximum(largest, part.abs().amax(-1, keepdim=True))
    scale = largest.float().clamp(min=SMALLEST_ROW) / LARGEST[dtype]
    values = [_rounded(part.float() / scale, dtype) for part in parts]
    return values[0] if len(values) == 1 else torch.cat(values, dim=-1), scale


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    values = values.round() if dtype == INT8 else values
    return values.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


@torch.library.custom_op("flux_dreambooth::quantize_side_by_side", mutates_args=())
def quantize_side_by_side(
    parts: Sequence[Tensor], scales: Sequence[Tensor], activated: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Parts [R, K_j] as one [R, K] in e4m3 and the scale of each row [R, 1], float32.

    scales: one [K_j] for each part, multiplied in before, or none; activated: whether a part goes through GELU (by
    tanh) before. Not finite numbers stay so.
    """
    lengths = [_next_power_of_2(part.shape[1]) for part in parts]
    if len(parts) <= MOST_PARTS and sum(lengths) <= LONGEST_ROW and _works(parts[0].device):
        from trainer.kernels import triton_quantize

        return triton_quantize.quantize_side_by_side(parts, scales, activated, LARGEST[FP8], SMALLEST_ROW)
    return _plainly(parts, scales, activated)


@quantize_side_by_side.register_fake
def _(parts, _scales, _activated):
    rows, x = parts[0].shape[0], parts[0]
    columns = sum(part.shape[1] for part in parts)
    return x.new_empty(rows, columns, dtype=FP8), x.new_empty(rows, 1, dtype=torch.float32)


def _plainly(parts: Sequence[Tensor], scales: Sequence[Tensor], activated: Sequence[bool]) -> tuple[Tensor, Tensor]:
    made = [gelu(part) if on else part for part, on in zip(parts, activated, strict=True)]
    scaled = [part * scale for part, scale in zip(made, scales, strict=True)] if scales else made
    return quantize_parts(scaled, FP8)


def gelu(x: Tensor) -> Tensor:
    """FLUX's activation function."""
    return F.gelu(x, approximate="tanh")


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


@cache
def _works(device: torch.device) -> bool:
    if not runs_triton(device, LEAST_CAPABILITY):
        return False
    return is_right("numbers are quantised", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """The relative error of a few quantised rows against what was quantised."""
    from trainer.kernels import triton_quantize

    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(7, width, generator=generator).to(device, torch.bfloat16) for width in (48, 80)]
    scales, activated = [torch.rand(part.shape[1], generator=generator).to(device) for part in parts], [False, True]
    values, scale = triton_quantize.quantize_side_by_side(parts, scales, activated, LARGEST[FP8], SMALLEST_ROW)
    expected = torch.cat([parts[0].float() * scales[0], gelu(parts[1].float()) * scales[1]], dim=1)
    return float((values.float() * scale - expected).norm() / expected.norm())
