"""`trainer.kernels.quantize` in Triton: a program handles one row and holds it in registers."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

SHORT, MEDIUM = 4096, 20480  # rows up to these lengths take 4 and 8 warps, longer ones 16


def quantize_concatenated(
    parts: Sequence[Tensor], scales: Sequence[Tensor], activated: Sequence[bool], largest: float, smallest: float
) -> tuple[Tensor, Tensor]:
    """See `trainer.kernels.quantize.quantize_concatenated`.

    largest: the magnitude that a row's largest number is scaled to. smallest: the lower bound of that number.
    """
    parts = [part if part.stride(1) == 1 else part.contiguous() for part in parts]
    rows, widths = parts[0].shape[0], [part.shape[1] for part in parts]
    values = parts[0].new_empty(rows, sum(widths), dtype=torch.float8_e4m3fn)
    scale = parts[0].new_empty(rows, 1, dtype=torch.float32)
    missing = 4 - len(parts)
    length = sum(map(triton.next_power_of_2, widths))
    with torch.cuda.device_of(values):
        _quantize[(rows,)](
            *parts, *[None] * missing, *(part.stride(0) for part in parts), *[0] * missing,
            *scales, *[None] * (4 - len(scales)), values, scale, largest, smallest, *widths, *[0] * missing,
            *activated, *[False] * missing, num_warps=4 if length <= SHORT else 8 if length <= MEDIUM else 16,
        )  # fmt: skip
    return values, scale


@triton.jit
def gelu(x):
    """GELU's tanh approximation in float32: x (1 + tanh u) / 2 = x sigmoid(2 u)."""
    return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit
def _larger(one, other):
    return tl.maximum(one, other, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _largest(x):
    return tl.reduce(tl.abs(x), 0, _larger)


@triton.jit
def _part(x_ptr, scale_ptr, WIDTH: tl.constexpr, ACTIVATED: tl.constexpr):
    column = tl.arange(0, triton.next_power_of_2(WIDTH))
    x = tl.load(x_ptr + column, column < WIDTH, other=0.0).to(tl.float32)
    if ACTIVATED:
        x = gelu(x)
    if scale_ptr is not None:
        x *= tl.load(scale_ptr + column, column < WIDTH, other=0.0)
    return x


@triton.jit
def _store(values_ptr, x, WIDTH: tl.constexpr):
    column = tl.arange(0, triton.next_power_of_2(WIDTH))
    tl.store(values_ptr + column, x.to(tl.float8e4nv), column < WIDTH)


@triton.jit
def _quantize(
    first_ptr, second_ptr, third_ptr, fourth_ptr, first_row, second_row, third_row, fourth_row,
    first_scale, second_scale, third_scale, fourth_scale, values_ptr, scale_ptr, largest, smallest,
    FIRST: tl.constexpr, SECOND: tl.constexpr, THIRD: tl.constexpr, FOURTH: tl.constexpr,
    FIRST_ON: tl.constexpr, SECOND_ON: tl.constexpr, THIRD_ON: tl.constexpr, FOURTH_ON: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    # issue all loads before waiting for the first one
    first = _part(first_ptr + row * first_row, first_scale, FIRST, FIRST_ON)
    if SECOND > 0:
        second = _part(second_ptr + row * second_row, second_scale, SECOND, SECOND_ON)
    if THIRD > 0:
        third = _part(third_ptr + row * third_row, third_scale, THIRD, THIRD_ON)
    if FOURTH > 0:
        fourth = _part(fourth_ptr + row * fourth_row, fourth_scale, FOURTH, FOURTH_ON)
    top = _largest(first)
    if SECOND > 0:
        top = _larger(top, _largest(second))
    if THIRD > 0:
        top = _larger(top, _largest(third))
    if FOURTH > 0:
        top = _larger(top, _largest(fourth))
    scale = _larger(top, smallest) / largest
    tl.store(scale_ptr + row, scale)
    values_ptr += row * (FIRST + SECOND + THIRD + FOURTH)
    _store(values_ptr, first / scale, FIRST)
    if SECOND > 0:
        _store(values_ptr + FIRST, second / scale, SECOND)
    if THIRD > 0:
        _store(values_ptr + FIRST + SECOND, third / scale, THIRD)
    if FOURTH > 0:
        _store(values_ptr + FIRST + SECOND + THIRD, fourth / scale, FOURTH)
