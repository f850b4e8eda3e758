"""Thin products of adapters with an input that is kept smaller than it is multiplied: in 8 bits, or before its
activation function. In Triton it is read as it is kept; plainly it is widened or activated in memory first.

x [M, K] is `values` times `scale` of each row (`trainer.kernels.quantize`), or gelu of what is kept.
"""

from functools import cache

import torch
from torch import Tensor

from trainer.kernels.quantize import FP8, LEAST_CAPABILITY, gelu, quantize_rows
from trainer.kernels.trial import is_right, runs_triton

HIGHEST_RANK = 64  # above it plain products are as fast
TOLERANCE = 0.02


def hidden_of_8_bits(values: Tensor, scale: Tensor, down: Tensor) -> Tensor:
    """x downᵀ [M, R] in the precision of down [R, K]."""
    if len(down) <= HIGHEST_RANK and _works(values.device, down.dtype):
        from trainer.kernels import triton_low_rank as triton_thin

        return triton_thin.hidden_values(values, scale, down)
    return _widened(values, scale, down.dtype) @ down.t()


def down_gradient_of_8_bits(d_hidden: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """d_hiddenᵀ x [R, K] in float32. d_hidden: [M, R]."""
    if d_hidden.shape[1] <= HIGHEST_RANK and _works(values.device, d_hidden.dtype):
        from trainer.kernels import triton_low_rank as triton_thin

        return triton_thin.down_gradient(d_hidden, values, scale)
    return float32_product(d_hidden.t(), _widened(values, scale, d_hidden.dtype))


def down_gradient_of_activated(d_hidden: Tensor, x: Tensor) -> Tensor:
    """d_hiddenᵀ gelu(x) [R, K] in float32. d_hidden: [M, R]."""
    if d_hidden.shape[1] <= HIGHEST_RANK and _works(x.device, d_hidden.dtype):
        from trainer.kernels import triton_low_rank as triton_thin

        return triton_thin.down_gradient(d_hidden, x, activated=True)
    return float32_product(d_hidden.t(), gelu(x))


def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right in float32. A GPU writes the float32 in which it adds up, instead of rounding it before."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _widened(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (values.to(dtype) * scale).to(dtype)


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype != torch.bfloat16 or not runs_triton(device, LEAST_CAPABILITY):
        return False
    return is_right("thin products read what is kept", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """The largest relative error of small products against float32."""
    from trainer.kernels import triton_low_rank as triton_thin

    generator = torch.Generator().manual_seed(0)
    x, down, d_hidden = (torch.randn(*shape, generator=generator) for shape in ((40, 144), (8, 144), (40, 8)))
    x, down, d_hidden = (each.to(device, torch.bfloat16) for each in (x, down, d_hidden))
    values, scale = quantize_rows(x, FP8)
    wide = values.float() * scale
    compared = [
        (triton_thin.hidden_values(values, scale, down), wide @ down.float().t()),
        (triton_thin.down_gradient(d_hidden, values, scale), d_hidden.float().t() @ wide),
        (triton_thin.down_gradient(d_hidden, x, activated=True), d_hidden.float().t() @ gelu(x.float())),
    ]
    return max(float((found.float() - expected).norm() / expected.norm()) for found, expected in compared)
