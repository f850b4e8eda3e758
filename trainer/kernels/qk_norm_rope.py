"""Fused QK-norm and RoPE: an RMS norm over each head of queries or keys, then the rotary embedding, in one pass.

For a head x at position p, with the norm's weight w,

    n = w x / sqrt(mean(x²) + eps)
    y[2i] = n[2i] cos(p, i) - n[2i+1] sin(p, i)
    y[2i+1] = n[2i+1] cos(p, i) + n[2i] sin(p, i)

as `torch.nn.RMSNorm` and diffusers' `apply_rotary_emb` compute. torch.compile's kernels for these take two to three
times as long, forward and backward: they read each pair once for each of its numbers and write float32 gradients in
between.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.kernels.trial import passes_trial, runs_triton

MAX_HEAD_DIM = 256
TOLERANCE = 0.02  # a correct kernel is off by 0.002 in bfloat16


def can_norm_and_rotate(device: torch.device, norms: Sequence[nn.Module], head_dim: int) -> bool:
    """Whether `norm_and_rotate` can be used for these norms and this head size on a device.

    It needs a GPU with Triton where the kernels passed their trial, a head size that is a power of two from 16 to 256,
    and RMS norms with a weight and an eps. Call it before a block is compiled, since it may run the trial.
    """
    fits = 16 <= head_dim <= MAX_HEAD_DIM and head_dim & (head_dim - 1) == 0
    return fits and all(_is_known(norm) for norm in norms) and _works(device)


def _is_known(norm: nn.Module) -> bool:
    return isinstance(norm, nn.RMSNorm) and norm.eps is not None and norm.weight is not None


@cache
def _works(device: torch.device) -> bool:
    if not runs_triton(device):
        return False
    return passes_trial("fused QK-norm + RoPE", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """Run the kernels on a few random heads; returns the largest relative error of both passes against float32."""
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
        (norm_rope([x], [weight], cosines, sines, 1e-6), y.detach()),
        (norm_rope_backward(dy, [x], [weight], cosines, sines, 1e-6)[0], dx),
    ]
    return max(float((found.float() - expected).norm() / expected.norm()) for found, expected in compared)


def norm_and_rotate(parts: Sequence[Tensor], norms: Sequence[nn.Module], cosines: Tensor, sines: Tensor) -> Tensor:
    """Apply QK-norm and RoPE to the heads of all parts and concatenate them along the tokens: [B, tokens, H, D].

    parts: each [B, tokens_i, H, D], contiguous in the last two dimensions. norms: one frozen `RMSNorm` per part, all
    with one eps. cosines, sines: [tokens, D] in float32, each angle twice. Call it only where `can_norm_and_rotate` is
    true. Gradients reach the parts alone.
    """
    known = cast(Sequence[nn.RMSNorm], norms)
    assert len({norm.eps for norm in known}) == 1
    weights = [norm.weight for norm in known]
    return _NormAndRotate.apply(known[0].eps, len(parts), cosines, sines, *parts, *weights)  # type: ignore[return-value]


class _NormAndRotate(torch.autograd.Function):
    """apply(eps, number of parts, cosines, sines, *parts, *weights) -> heads."""

    @staticmethod
    def forward(ctx: Any, eps: float, count: int, *tensors: Tensor):  # type: ignore[override]
        cosines, sines, *rest = tensors
        ctx.eps, ctx.count = eps, count
        ctx.save_for_backward(*tensors)
        return norm_rope(rest[:count], rest[count:], cosines, sines, eps)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor):  # type: ignore[override]
        cosines, sines, *tensors = ctx.saved_tensors
        parts, weights = tensors[: ctx.count], tensors[ctx.count :]
        found = norm_rope_backward(gradient, parts, weights, cosines, sines, ctx.eps)
        return None, None, None, None, *found, *[None] * ctx.count


@torch.library.custom_op("flux_dreambooth::norm_rope", mutates_args=())
def norm_rope(parts: Sequence[Tensor], weights: Sequence[Tensor], cosines: Tensor, sines: Tensor, eps: float) -> Tensor:
    """`norm_and_rotate` without autograd, as an operator that the compiler does not look into.

    weights: of the norm of each part, [D]; eps: of all norms. Returns [B, tokens, H, D].
    """
    from trainer.kernels import triton_qk_norm_rope

    return triton_qk_norm_rope.norm_rope(parts, weights, cosines, sines, eps)


@norm_rope.register_fake
def _(parts, _weights, _cosines, _sines, _eps):
    return parts[0].new_empty(_joined_shape(parts))


def _joined_shape(parts: Sequence[Tensor]) -> tuple[int, ...]:
    batch, _, heads, head_dim = parts[0].shape
    return batch, sum(part.shape[1] for part in parts), heads, head_dim


@torch.library.custom_op("flux_dreambooth::norm_rope_backward", mutates_args=())
def norm_rope_backward(
    gradient: Tensor,
    parts: Sequence[Tensor],
    weights: Sequence[Tensor],
    cosines: Tensor,
    sines: Tensor,
    eps: float,
) -> list[Tensor]:
    """The gradient of each part, [B, tokens_i, H, D] and contiguous.

    gradient: of the result of `norm_rope` for the other arguments, [B, tokens, H, D].
    """
    from trainer.kernels import triton_qk_norm_rope

    return triton_qk_norm_rope.norm_rope_backward(gradient, parts, weights, cosines, sines, eps)


@norm_rope_backward.register_fake
def _(_gradient, parts, _weights, _cosines, _sines, _eps):
    return [part.new_empty(part.shape) for part in parts]
