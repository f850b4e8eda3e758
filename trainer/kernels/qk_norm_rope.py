"""Queries and keys of attention: an RMS norm over each head, then the rotary embedding, in one pass over memory.

For a head x at position p, with the norm's weight w,

    n = w x / sqrt(mean(x²) + eps)
    y[2i] = n[2i] cos(p, i) - n[2i+1] sin(p, i)
    y[2i+1] = n[2i+1] cos(p, i) + n[2i] sin(p, i)

as `torch.nn.RMSNorm` and diffusers' `apply_rotary_emb`. What a compiler makes of these takes two to three times
as long, forward and backward: it reads each pair for each of its numbers, and writes gradients in float32 in between.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.kernels.trial import is_right, runs_triton

WIDEST_HEAD = 256
TOLERANCE = 0.02  # in bfloat16 a right kernel is off by 0.002


def turns_heads(device: torch.device, norms: Sequence[nn.Module], head_dim: int) -> bool:
    """Whether `turned_heads` serves: on a GPU with Triton where it gives the right numbers, for heads of a power of
    two and norms that it knows. To be asked before a block is compiled."""
    fits = 16 <= head_dim <= WIDEST_HEAD and head_dim & (head_dim - 1) == 0
    return fits and all(_is_known(norm) for norm in norms) and _works(device)


def _is_known(norm: nn.Module) -> bool:
    return isinstance(norm, nn.RMSNorm) and norm.eps is not None and norm.weight is not None


@cache
def _works(device: torch.device) -> bool:
    if not runs_triton(device):
        return False
    return is_right("heads of attention are normed and turned", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """The largest relative error of the kernels' heads and gradient against float32, on a few random ones."""
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(1, 12, 3, 64, generator=generator).to(device, torch.bfloat16) for _ in range(2))
    weight, angles = torch.randn(2, 12, 64, generator=generator).to(device)
    weight, angles = weight[0].bfloat16(), angles.repeat_interleave(2, dim=1)[:, :64]
    cosines, sines = angles.cos(), angles.sin()
    exact = x.float().requires_grad_()
    with torch.enable_grad():
        normed = F.rms_norm(exact, (64,), weight.float(), 1e-6)
        across = torch.stack([-normed[..., 1::2], normed[..., ::2]], dim=-1).flatten(-2)
        y = normed * cosines[:, None] + across * sines[:, None]
    (dx,) = torch.autograd.grad(y, exact, dy.float())
    compared = [
        (turn([x], [weight], cosines, sines, 1e-6), y.detach()),
        (turn_back(dy, [x], [weight], cosines, sines, 1e-6)[0], dx),
    ]
    return max(float((found.float() - expected).norm() / expected.norm()) for found, expected in compared)


def turned_heads(parts: Sequence[Tensor], norms: Sequence[nn.Module], cosines: Tensor, sines: Tensor) -> Tensor:
    """The heads of all parts, one after another along their tokens, normed and turned: [B, tokens, H, D].

    parts: each [B, tokens_i, H, D], heads side by side in memory; norms: one `RMSNorm` for each, all frozen;
    cosines, sines: [tokens, D] in float32, each angle twice. See `turns_heads`.
    """
    known = cast(Sequence[nn.RMSNorm], norms)
    assert len({norm.eps for norm in known}) == 1
    weights = [norm.weight for norm in known]
    return _Turned.apply(known[0].eps, len(parts), cosines, sines, *parts, *weights)  # type: ignore[return-value]


class _Turned(torch.autograd.Function):
    """apply(eps, number of parts, cosines, sines, *parts, *weights) → the heads."""

    @staticmethod
    def forward(ctx: Any, eps: float, count: int, *tensors: Tensor):  # type: ignore[override]
        cosines, sines, *rest = tensors
        ctx.eps, ctx.count = eps, count
        ctx.save_for_backward(*tensors)
        return turn(rest[:count], rest[count:], cosines, sines, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        cosines, sines, *tensors = ctx.saved_tensors
        parts, weights = tensors[: ctx.count], tensors[ctx.count :]
        found = turn_back(gradient, parts, weights, cosines, sines, ctx.eps)
        return None, None, None, None, *found, *[None] * ctx.count


@torch.library.custom_op("flux_dreambooth::turn", mutates_args=())
def turn(parts: Sequence[Tensor], weights: Sequence[Tensor], cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    """`turned_heads` as an operator. weights: of the norms, each [D]."""
    from trainer.kernels import triton_qk_norm_rope as triton_heads

    return triton_heads.turn(parts, weights, cosines, sines, eps)


@turn.register_fake
def _(parts, _weights, _cosines, _sines, _eps):
    return parts[0].new_empty(_joined_shape(parts))


def _joined_shape(parts: Sequence[Tensor]) -> tuple[int, ...]:
    batch, _, heads, head_dim = parts[0].shape
    return batch, sum(part.shape[1] for part in parts), heads, head_dim


@torch.library.custom_op("flux_dreambooth::turn_back", mutates_args=())
def turn_back(
    gradient: Tensor,
    parts: Sequence[Tensor],
    weights: Sequence[Tensor],
    cosines: Tensor,
    sines: Tensor,
    eps: float,
) -> list[Tensor]:
    """The gradient of each part [B, tokens_i, H, D], dense, from that of the heads."""
    from trainer.kernels import triton_qk_norm_rope as triton_heads

    return triton_heads.turn_back(gradient, parts, weights, cosines, sines, eps)


@turn_back.register_fake
def _(_gradient, parts, _weights, _cosines, _sines, _eps):
    return [part.new_empty(part.shape) for part in parts]
