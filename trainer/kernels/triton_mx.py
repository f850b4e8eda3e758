"""`trainer.kernels.mx` in Triton.

Triton 3.6 compiles the instruction for compute capability 12.0 only, 3.8 for 12.1 (GB10) too. Where it cannot, it
multiplies in bfloat16 with the same result, which the trial finds to be slower.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

GROUP = 8  # rows of tiles computed one after another, since they share the second factor


class Tile(NamedTuple):
    """Rows and columns of y that a program computes, columns of the factors per load, warps, and loads in flight."""

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int


TILES = (Tile(128, 128, 128, 8, 3), Tile(128, 64, 128, 4, 3), Tile(64, 128, 128, 4, 3))  # of at most 99 KiB


def multiply(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor | None,
    bias: Tensor | None,
    tile: Tile,
    scaled: bool = True,
) -> Tensor:
    """See `trainer.kernels.mx.multiply`. scaled: whether to use the instruction with block scales or the plain one."""
    a, b = a.contiguous(), b.contiguous()
    (rows, depth), columns = a.shape, len(b)
    y = torch.empty(rows, columns, dtype=torch.bfloat16, device=a.device)
    programs = triton.cdiv(rows, tile.rows) * triton.cdiv(columns, tile.columns)
    with torch.cuda.device_of(a):
        _multiply[(programs,)](
            a, b, y, scale_a, scale_b, bias, rows, columns, depth,
            HAS_SCALE=scale_b is not None, HAS_BIAS=bias is not None, EVEN=depth % tile.depth == 0, SCALED=scaled,
            ROWS=tile.rows, COLUMNS=tile.columns, DEPTH=tile.depth, GROUP=GROUP,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
    return y


@triton.jit
def _multiply(
    a_ptr, b_ptr, y_ptr, scale_a_ptr, scale_b_ptr, bias_ptr, rows, columns, depth,
    HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN: tl.constexpr, SCALED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    group = tl.program_id(0) // (GROUP * across)
    height = min(down - group * GROUP, GROUP)
    within = tl.program_id(0) % (GROUP * across)
    row = (group * GROUP + within % height) * ROWS + tl.arange(0, ROWS)
    column, place = within // height * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, DEPTH)
    # rows and columns beyond the last read it again and are not stored
    left_ptr = a_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * depth + place[None, :]
    right_ptr = b_ptr + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * depth + place[:, None]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    one_a, one_b = tl.full((ROWS, DEPTH // 32), 127, tl.uint8), tl.full((COLUMNS, DEPTH // 32), 127, tl.uint8)
    for step in range(tl.cdiv(depth, DEPTH)):
        if EVEN:
            left, right = tl.load(left_ptr), tl.load(right_ptr)
        else:
            inside = step * DEPTH + place < depth
            left, right = tl.load(left_ptr, inside[None, :], other=0.0), tl.load(right_ptr, inside[:, None], other=0.0)
        if SCALED:
            total = tl.dot_scaled(left, one_a, "e4m3", right, one_b, "e4m3", total)
        else:
            total = tl.dot(left, right, total)
        left_ptr += DEPTH
        right_ptr += DEPTH
    total *= tl.load(scale_a_ptr + row, row < rows, other=0.0)[:, None]
    if HAS_SCALE:
        total *= tl.load(scale_b_ptr + column, column < columns, other=0.0)[None, :]
    if HAS_BIAS:
        total += tl.load(bias_ptr + column, column < columns, other=0.0).to(tl.float32)[None, :]
    target = y_ptr + row.to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(target, total.to(tl.bfloat16), (row[:, None] < rows) & (column[None, :] < columns))
