"""Queries and keys of attention: an RMS norm over each head, then the rotary embedding, in one pass over memory.

For a head x at position p, with the norm's weight w,

    n = w x / sqrt(mean(x²) + eps)
    y[2i] = n[2i] cos(p, i) - n[2i+1] sin(p, i)
    y[2i+1] = n[2i+1] cos(p, i) + n[2i] sin(p, i)

as `torch.nn.RMSNorm` and diffusers' `apply_rotary_emb`. What a compiler makes of these takes two to three times
as long, forward and backward: it reads each pair for each of its numbers, and writes gradients in float32 in between.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

HAS_TRITON = find_spec("triton") is not None
WIDEST_HEAD = 256


def can_turn(parts: Sequence[Tensor], norms: Sequence[nn.Module]) -> bool:
    """Whether `turned_heads` takes these heads: on a GPU with Triton, of a power of two, with norms that it knows."""
    head_dim = parts[0].shape[-1]
    fits = parts[0].is_cuda and HAS_TRITON and 16 <= head_dim <= WIDEST_HEAD and head_dim & (head_dim - 1) == 0
    return fits and all(_is_known(norm) for norm in norms)


def _is_known(norm: nn.Module) -> bool:
    return isinstance(norm, nn.RMSNorm) and norm.eps is not None and norm.weight is not None


def turned_heads(parts: Sequence[Tensor], norms: Sequence[nn.Module], cosines: Tensor, sines: Tensor) -> Tensor:
    """The heads of all parts, one after another along their tokens, normed and turned: [B, tokens, H, D].

    parts: each [B, tokens_i, H, D], heads side by side in memory; norms: one `RMSNorm` for each, all frozen;
    cosines, sines: [tokens, D] in float32, each angle twice. See `can_turn`.
    """
    known = cast(Sequence[nn.RMSNorm], norms)
    assert len({norm.eps for norm in known}) == 1
    weights = [norm.weight for norm in known]
    return _Turned.apply(known[0].eps, len(parts), cosines, sines, *parts, *weights)  # type: ignore[return-value]


class _Turned(torch.autograd.Function):
    """apply(eps, parts, cosines, sines, *parts, *weights) → the heads."""

    @staticmethod
    def forward(ctx: Any, eps: float, count: int, cosines: Tensor, sines: Tensor, *tensors: Tensor):  # type: ignore[override]
        ctx.eps, ctx.count = eps, count
        ctx.save_for_backward(cosines, sines, *tensors)
        return turn(tensors[:count], tensors[count:], cosines, sines, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        cosines, sines, *tensors = ctx.saved_tensors
        parts, weights = tensors[: ctx.count], tensors[ctx.count :]
        found = turn_back(gradient, parts, weights, cosines, sines, ctx.eps)
        return None, None, None, None, *found, *[None] * ctx.count


@torch.library.custom_op("flux_dreambooth::turn", mutates_args=())
def turn(parts: Sequence[Tensor], weights: Sequence[Tensor], cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    """`turned_heads` as an operator. weights: of the norms, each [D]."""
    from trainer.kernels import triton_heads

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
    from trainer.kernels import triton_heads

    return triton_heads.turn_back(gradient, parts, weights, cosines, sines, eps)


@turn_back.register_fake
def _(_gradient, parts, _weights, _cosines, _sines, _eps):
    return [part.new_empty(part.shape) for part in parts]
