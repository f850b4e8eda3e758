"""`trainer.kernels.qk_norm_rope` in Triton: a program handles all heads of one token."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 4


def norm_rope(parts: Sequence[Tensor], weights: Sequence[Tensor], cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    """See `trainer.kernels.qk_norm_rope.norm_rope`."""
    batch, _, heads, head_dim = parts[0].shape
    total = sum(part.shape[1] for part in parts)
    rotated = parts[0].new_empty(batch, total, heads, head_dim)
    begin = 0
    for part, weight in zip(parts, weights, strict=True):
        part = _with_contiguous_heads(part)
        tokens = part.shape[1]
        with torch.cuda.device_of(part):
            _norm_rope[(tokens, batch)](
                part, weight, cosines[begin:], sines[begin:], rotated[:, begin:], part.stride(0), part.stride(1),
                rotated.stride(0), heads, eps, D=head_dim, HEADS=triton.next_power_of_2(heads), num_warps=WARPS,
            )  # fmt: skip
        begin += tokens
    return rotated


def norm_rope_backward(
    gradient: Tensor,
    parts: Sequence[Tensor],
    weights: Sequence[Tensor],
    cosines: Tensor,
    sines: Tensor,
    eps: float,
) -> list[Tensor]:
    """See `trainer.kernels.qk_norm_rope.norm_rope_backward`."""
    batch, _, heads, head_dim = parts[0].shape
    gradient = _with_contiguous_heads(gradient)
    found = []
    begin = 0
    for part, weight in zip(parts, weights, strict=True):
        part = _with_contiguous_heads(part)
        tokens, own = part.shape[1], part.new_empty(part.shape)
        with torch.cuda.device_of(part):
            _norm_rope_backward[(tokens, batch)](
                gradient[:, begin:], part, weight, cosines[begin:], sines[begin:], own,
                gradient.stride(0), gradient.stride(1), part.stride(0), part.stride(1), own.stride(0),
                heads, eps, D=head_dim, HEADS=triton.next_power_of_2(heads), num_warps=WARPS,
            )  # fmt: skip
        found.append(own)
        begin += tokens
    return found


def _with_contiguous_heads(heads: Tensor) -> Tensor:
    """The tensor itself if each token's [H, D] is contiguous, else a contiguous copy."""
    head_dim = heads.shape[-1]
    return heads if heads.stride()[2:] == (head_dim, 1) else heads.contiguous()


@triton.jit
def _pairs(rows, HEADS: tl.constexpr, D: tl.constexpr):
    return tl.split(tl.reshape(rows, (HEADS, D // 2, 2)))


@triton.jit
def _norm_rope(
    x_ptr, weight_ptr, cosine_ptr, sine_ptr, y_ptr, x_batch, x_token, y_batch, heads, eps,
    D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, column, pair = tl.arange(0, HEADS), tl.arange(0, D), tl.arange(0, D // 2)
    place, inside = head[:, None] * D + column[None, :], head[:, None] < heads
    x = tl.load(x_ptr + batch * x_batch + token * x_token + place, inside, other=0.0).to(tl.float32)
    normed = x * tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None] * tl.load(weight_ptr + column).to(tl.float32)[None, :]
    even, odd = _pairs(normed, HEADS, D)
    cosine = tl.load(cosine_ptr + token * D + 2 * pair)[None, :]
    sine = tl.load(sine_ptr + token * D + 2 * pair)[None, :]
    y = tl.reshape(tl.join(even * cosine - odd * sine, odd * cosine + even * sine), (HEADS, D))
    tl.store(y_ptr + batch * y_batch + token * heads * D + place, y.to(y_ptr.dtype.element_ty), inside)


@triton.jit
def _norm_rope_backward(
    dy_ptr, x_ptr, weight_ptr, cosine_ptr, sine_ptr, dx_ptr, dy_batch, dy_token, x_batch, x_token, dx_batch,
    heads, eps, D: tl.constexpr, HEADS: tl.constexpr,
):  # fmt: skip
    token, batch = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    head, column, pair = tl.arange(0, HEADS), tl.arange(0, D), tl.arange(0, D // 2)
    place, inside = head[:, None] * D + column[None, :], head[:, None] < heads
    even, odd = _pairs(
        tl.load(dy_ptr + batch * dy_batch + token * dy_token + place, inside, other=0.0).to(tl.float32), HEADS, D
    )
    cosine = tl.load(cosine_ptr + token * D + 2 * pair)[None, :]
    sine = tl.load(sine_ptr + token * D + 2 * pair)[None, :]
    rotated_back = tl.reshape(tl.join(even * cosine + odd * sine, odd * cosine - even * sine), (HEADS, D))
    gradient = rotated_back * tl.load(weight_ptr + column).to(tl.float32)[None, :]
    x = tl.load(x_ptr + batch * x_batch + token * x_token + place, inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, 1) / D + eps)[:, None]
    normed = x * scale
    dx = scale * (gradient - normed * (tl.sum(gradient * normed, 1) / D)[:, None])
    tl.store(dx_ptr + batch * dx_batch + token * heads * D + place, dx.to(dx_ptr.dtype.element_ty), inside)
