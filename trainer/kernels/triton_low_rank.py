"""`trainer.kernels.low_rank` in Triton: tiles are dequantized or activated in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from trainer.kernels.triton_quantize import gelu

MIN_RANK = 16  # the smallest size that tensor cores multiply
TOKENS, DEPTH = 64, 128  # the input tile for hidden values
MIN_DEPTH = 1024  # columns per program where several programs share the same tokens
CHUNK, COLUMNS = 64, 128  # the input tile for the gradient
PROGRAMS = 512  # about how many programs share a product: some four per multiprocessor of a large GPU


def hidden_values(values: Tensor, scale: Tensor, down: Tensor) -> Tensor:
    """See `trainer.kernels.low_rank.hidden_from_fp8`."""
    (tokens, depth), rank = values.shape, len(down)
    tiles = triton.cdiv(tokens, TOKENS)
    shares = max(1, min(PROGRAMS // tiles, depth // MIN_DEPTH))
    share = triton.cdiv(triton.cdiv(depth, shares), DEPTH) * DEPTH
    sums = torch.empty(shares, tokens, rank, device=values.device)
    hidden = down.new_empty(tokens, rank)
    with torch.cuda.device_of(values):
        _hidden_sums[(tiles, shares)](
            values, down, sums, tokens, depth, rank, values.stride(0), down.stride(0), share,
            RANK=_padded(rank), TOKENS=TOKENS, DEPTH=DEPTH, num_warps=4, num_stages=4,
        )  # fmt: skip
        _add_hidden_sums[(tiles,)](
            sums, scale, hidden, tokens, rank, SHARES=shares, RANK=_padded(rank), TOKENS=TOKENS, num_warps=4
        )
    return hidden


def down_gradient(d_hidden: Tensor, x: Tensor, scale: Tensor | None = None, activated: bool = False) -> Tensor:
    """d_hiddenᵀ x [R, K] in float32.

    d_hidden: [M, R]. x: [M, K] in e4m3 with `scale` [M, 1], or in the dtype of d_hidden; activated: take gelu(x).
    """
    (tokens, columns), rank = x.shape, d_hidden.shape[1]
    x = x if x.stride(1) == 1 else x.contiguous()
    across = triton.cdiv(columns, COLUMNS)
    shares = max(1, min(PROGRAMS // across, triton.cdiv(tokens, CHUNK)))
    share = triton.cdiv(triton.cdiv(tokens, shares), CHUNK) * CHUNK
    sums = torch.empty(shares, rank, columns, device=x.device)
    with torch.cuda.device_of(x):
        _down_gradient[(across, shares)](
            d_hidden, x, scale, sums, tokens, columns, rank, d_hidden.stride(0), x.stride(0), share,
            RANK=_padded(rank), CHUNK=CHUNK, COLUMNS=COLUMNS, ACTIVATED=activated, num_warps=4, num_stages=3,
        )  # fmt: skip
    return sums[0] if shares == 1 else sums.sum(0)


def _padded(rank: int) -> int:
    return max(MIN_RANK, triton.next_power_of_2(rank))


@triton.jit
def _hidden_sums(
    values_ptr, down_ptr, sums_ptr, tokens, depth, rank, values_row, down_row, share,
    RANK: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    token, place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, RANK)
    there, ranked = token[:, None] < tokens, place[:, None] < rank
    rows = values_ptr + token.to(tl.int64)[:, None] * values_row
    first = tl.program_id(1) * share
    total = tl.zeros((TOKENS, RANK), tl.float32)
    for begin in range(first, min(first + share, depth), DEPTH):
        column = begin + tl.arange(0, DEPTH)
        inside = column[None, :] < depth
        values = tl.load(rows + column[None, :], there & inside, other=0.0)
        down = tl.load(down_ptr + place[:, None] * down_row + column[None, :], ranked & inside, other=0.0)
        total = tl.dot(values.to(down.dtype), down.T, total)
    target = sums_ptr + (tl.program_id(1).to(tl.int64) * tokens + token[:, None]) * rank + place[None, :]
    tl.store(target, total, there & (place[None, :] < rank))


@triton.jit
def _add_hidden_sums(
    sums_ptr, scale_ptr, hidden_ptr, tokens, rank, SHARES: tl.constexpr, RANK: tl.constexpr, TOKENS: tl.constexpr
):
    token, place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS), tl.arange(0, RANK)
    inside = (token[:, None] < tokens) & (place[None, :] < rank)
    spot = token.to(tl.int64)[:, None] * rank + place[None, :]
    total = tl.zeros((TOKENS, RANK), tl.float32)
    for share in range(SHARES):
        total += tl.load(sums_ptr + tl.cast(share, tl.int64) * tokens * rank + spot, inside, other=0.0)
    total *= tl.load(scale_ptr + token, token < tokens, other=0.0)[:, None]
    tl.store(hidden_ptr + spot, total.to(hidden_ptr.dtype.element_ty), inside)


@triton.jit
def _down_gradient(
    d_hidden_ptr, x_ptr, scale_ptr, sums_ptr, tokens, columns, rank, d_hidden_row, x_row, share,
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
        if scale_ptr is not None:
            scale = tl.load(scale_ptr + token, token < tokens, other=0.0)[:, None]
            d_hidden = (d_hidden.to(tl.float32) * scale).to(d_hidden.dtype)
        if ACTIVATED:
            x = gelu(x.to(tl.float32))
        total = tl.dot(d_hidden.T, x.to(d_hidden.dtype), total)
    target = sums_ptr + (tl.program_id(1).to(tl.int64) * rank + place[:, None]) * columns + column[None, :]
    tl.store(target, total, (place[:, None] < rank) & inside)
