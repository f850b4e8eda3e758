"""`trainer.kernels.thin` in Triton: tiles are widened or activated between memory and the tensor cores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.triton_quantize import gelu

LEAST_RANK = 16  # what the tensor cores multiply
TOKENS, DEPTH = 16, 256  # of a tile of the input, for its hidden values
CHUNK, COLUMNS, NARROW = 64, 128, 64  # of a tile of the input, for the gradient; of high ranks it has fewer columns
PROGRAMS = 512  # that the gradient is divided among, about: some four for each multiprocessor of a large GPU


def hidden_values(values: Tensor, scale: Tensor, down: Tensor) -> Tensor:
    """See `trainer.kernels.thin.hidden_of_8_bits`."""
    (tokens, depth), rank = values.shape, len(down)
    hidden = down.new_empty(tokens, rank)
    with torch.cuda.device_of(values):
        _hidden_values[(triton.cdiv(tokens, TOKENS),)](
            values, scale, down, hidden, tokens, depth, rank, values.stride(0), down.stride(0),
            RANK=_padded(rank), TOKENS=TOKENS, DEPTH=DEPTH, num_warps=4, num_stages=3,
        )  # fmt: skip
    return hidden


def down_gradient(d_hidden: Tensor, x: Tensor, activated: bool) -> Tensor:
    """d_hiddenᵀ x or d_hiddenᵀ gelu(x), float32. d_hidden: [M, R], x: [M, K] e4m3 or in the precision of d_hidden."""
    (tokens, columns), rank = x.shape, d_hidden.shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    width = COLUMNS if rank <= 64 else NARROW
    across = triton.cdiv(columns, width)
    shares = max(1, min(PROGRAMS // across, triton.cdiv(tokens, CHUNK)))
    share = triton.cdiv(triton.cdiv(tokens, shares), CHUNK) * CHUNK
    sums = torch.empty(shares, rank, columns, device=x.device)
    with torch.cuda.device_of(x):
        _down_gradient[(across, shares)](
            d_hidden, x, sums, tokens, columns, rank, d_hidden.stride(0), x.stride(0), share,
            RANK=_padded(rank), CHUNK=CHUNK, COLUMNS=width, ACTIVATED=activated,
            num_warps=4 if rank <= 64 else 8, num_stages=3,
        )  # fmt: skip
    return sums[0] if shares == 1 else sums.sum(0)


def _padded(rank: int) -> int:
    return max(LEAST_RANK, triton.next_power_of_2(rank))


@triton.jit
def _hidden_values(
    values_ptr, scale_ptr, down_ptr, hidden_ptr, tokens, depth, rank, values_row, down_row,
    RANK: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    token, place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, RANK)
    there, ranked = token[:, None] < tokens, place[:, None] < rank
    rows = values_ptr + token.to(tl.int64)[:, None] * values_row
    total = tl.zeros((TOKENS, RANK), tl.float32)
    for begin in range(0, depth, DEPTH):
        column = begin + tl.arange(0, DEPTH)
        inside = column[None, :] < depth
        values = tl.load(rows + column[None, :], there & inside, other=0.0)
        down = tl.load(down_ptr + place[:, None] * down_row + column[None, :], ranked & inside, other=0.0)
        total = tl.dot(values.to(down.dtype), down.T, total)
    total *= tl.load(scale_ptr + token, token < tokens, other=0.0)[:, None]
    target = hidden_ptr + token.to(tl.int64)[:, None] * rank + place[None, :]
    tl.store(target, total.to(hidden_ptr.dtype.element_ty), there & (place[None, :] < rank))


@triton.jit
def _down_gradient(
    d_hidden_ptr, x_ptr, sums_ptr, tokens, columns, rank, d_hidden_row, x_row, share,
    RANK: tl.constexpr, CHUNK: tl.constexpr, COLUMNS: tl.constexpr, ACTIVATED: tl.constexpr,
):  # fmt: skip
    column, place = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, RANK)
    inside, ranked = column[None, :] < columns, place[None, :] < rank
    first = tl.program_id(1) * share
    total = tl.zeros((RANK, COLUMNS), tl.float32)
    for begin in range(first, min(first + share, tokens), CHUNK):
        token = begin + tl.arange(0, CHUNK)
        there, row = token[:, None] < tokens, token.to(tl.int64)[:, None]
        d_hidden = tl.load(d_hidden_ptr + row * d_hidden_row + place[None, :], there & ranked, other=0.0)
        x = tl.load(x_ptr + row * x_row + column[None, :], there & inside, other=0.0)
        if ACTIVATED:
            x = gelu(x.to(tl.float32))
        total = tl.dot(d_hidden.T, x.to(d_hidden.dtype), total)
    target = sums_ptr + (tl.program_id(1).to(tl.int64) * rank + place[:, None]) * columns + column[None, :]
    tl.store(target, total, (place[:, None] < rank) & inside)
