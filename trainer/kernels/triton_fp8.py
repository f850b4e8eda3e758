"""`trainer.kernels.fp8` in Triton, for Hopper: persistent programs load tiles with the Tensor Memory Accelerator."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

DEPTH = 128  # columns of both factors per load
GROUP = 16  # rows of tiles computed together, since they share the second factor
MIN_RANK = 16  # the smallest size that tensor cores multiply
WARPS, STAGES = 8, 3


def multiply_and_add(
    a: Tensor,
    scale_a: Tensor,
    b: Tensor,
    scale_b: Tensor | None,
    bias: Tensor | None,
    hidden: Tensor,
    up: Tensor,
    begins: tuple[int, int, int],
    scale: float,
    tile: tuple[int, int],
    programs: int,
) -> Tensor:
    """See `trainer.kernels.fp8.multiply_and_add`.

    up: [N, R] of all layers, contiguous. begins: the first rows of the second to the fourth layer. tile: rows and
    columns of y that a program computes at a time. programs: how many run concurrently.
    """
    a, b = a.contiguous(), b.contiguous()
    (rows, depth), columns, rank = a.shape, len(b), up.shape[1]
    y = torch.empty(rows, columns, dtype=torch.bfloat16, device=a.device)
    factor_a, factor_b = (TensorDescriptor.from_tensor(x, [n, DEPTH]) for x, n in zip((a, b), tile, strict=True))
    half = TensorDescriptor.from_tensor(y, [tile[0], tile[1] // 2])
    with torch.cuda.device_of(a):
        _multiply_and_add[(programs,)](
            factor_a, factor_b, half, scale_a, scale_b, bias, hidden, up, rows, columns, depth, rank, scale,
            hidden.stride(0), *begins,
            RANK=max(MIN_RANK, triton.next_power_of_2(rank)),
            HAS_SCALE=scale_b is not None, HAS_BIAS=bias is not None,
            ROWS=tile[0], COLUMNS=tile[1], DEPTH=DEPTH, GROUP=GROUP, PROGRAMS=programs,
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return y


@triton.jit
def _multiply_and_add(
    a, b, y, scale_a_ptr, scale_b_ptr, bias_ptr, hidden_ptr, up_ptr, rows, columns, depth, rank, scale,
    hidden_row, second, third, fourth,
    RANK: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr, GROUP: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    down, across = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), down * across, PROGRAMS):
        group = tile // (GROUP * across)
        height = min(down - group * GROUP, GROUP)
        within = tile % (GROUP * across)
        first_row = (group * GROUP + within % height) * ROWS
        first_column = within // height * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for step in range(tl.cdiv(depth, DEPTH)):
            left = a.load([first_row, step * DEPTH])
            right = b.load([first_column, step * DEPTH])
            total = tl.dot(left, right.T, total)
        row, column, place = first_row + tl.arange(0, ROWS), first_column + tl.arange(0, COLUMNS), tl.arange(0, RANK)
        total *= tl.load(scale_a_ptr + row, row < rows, other=0.0)[:, None]
        if HAS_SCALE:
            total *= tl.load(scale_b_ptr + column, column < columns, other=0.0)[None, :]
        if HAS_BIAS:
            total += tl.load(bias_ptr + column, column < columns, other=0.0).to(tl.float32)[None, :]
        layer = (first_column >= second).to(tl.int32) + (first_column >= third) + (first_column >= fourth)
        hidden = tl.load(
            hidden_ptr + row[:, None] * hidden_row + layer * rank + place[None, :],
            (row[:, None] < rows) & (place[None, :] < rank), other=0.0,
        )  # fmt: skip
        up = tl.load(
            up_ptr + column[:, None] * rank + place[None, :],
            (column[:, None] < columns) & (place[None, :] < rank), other=0.0,
        )  # fmt: skip
        total += tl.dot(hidden, up.T) * scale
        left_half, right_half = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        y.store([first_row, first_column], left_half.to(tl.bfloat16))
        y.store([first_row, first_column + COLUMNS // 2], right_half.to(tl.bfloat16))
