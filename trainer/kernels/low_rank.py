"""Low-rank products of adapters with an input x [M, K] that autograd saved in a compact form.

x is saved as fp8 `values` with one `scale` per row (`trainer.kernels.quantize`), or as the input of GELU. The kernels
read that form directly. PyTorch has to dequantize or activate it in memory first.
"""

from functools import cache

import torch
from torch import Tensor

from trainer.kernels.quantize import FP8, MIN_CAPABILITY, gelu, quantize_rows
from trainer.kernels.trial import passes_trial, runs_triton

MAX_RANK = 64  # PyTorch is as fast for higher ranks
TOLERANCE = 0.02


def hidden_from_fp8(values: Tensor, scale: Tensor, down: Tensor) -> Tensor:
    """x downᵀ [M, R] for a quantized x = values * scale, in the dtype of down.

    values: [M, K] e4m3; scale: [M, 1] float32; down: [R, K].
    """
    if len(down) <= MAX_RANK and _works(values.device, down.dtype):
        from trainer.kernels import triton_low_rank

        return triton_low_rank.hidden_values(values, scale, down)
    return _dequantized(values, scale, down.dtype) @ down.t()


def down_gradient_from_fp8(d_hidden: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """d_hiddenᵀ x [R, K] in float32, the gradient of an adapter's down matrix, for a quantized x = values * scale.

    d_hidden: [M, R], the gradient of hidden = x downᵀ; values: [M, K] e4m3; scale: [M, 1] float32.
    """
    if d_hidden.shape[1] <= MAX_RANK and _works(values.device, d_hidden.dtype):
        from trainer.kernels import triton_low_rank

        return triton_low_rank.down_gradient(d_hidden, values, scale)
    return float32_product(d_hidden.t(), _dequantized(values, scale, d_hidden.dtype))


def down_gradient_through_gelu(d_hidden: Tensor, x: Tensor) -> Tensor:
    """d_hiddenᵀ gelu(x) [R, K] in float32, the gradient of an adapter's down matrix behind GELU.

    d_hidden: [M, R], the gradient of hidden = gelu(x) downᵀ; x: [M, K].
    """
    if d_hidden.shape[1] <= MAX_RANK and _works(x.device, d_hidden.dtype):
        from trainer.kernels import triton_low_rank

        return triton_low_rank.down_gradient(d_hidden, x, activated=True)
    return float32_product(d_hidden.t(), gelu(x))


def float32_product(left: Tensor, right: Tensor) -> Tensor:
    """The matrix product left @ right in float32; on a GPU, without rounding it to the inputs' dtype first."""
    if left.is_cuda and left.dtype in (torch.bfloat16, torch.float16):
        return torch.mm(left, right, out_dtype=torch.float32)
    return (left @ right).float()


def _dequantized(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return (values.to(dtype) * scale).to(dtype)


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    if dtype != torch.bfloat16 or not runs_triton(device, MIN_CAPABILITY):
        return False
    return passes_trial("low-rank products", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """Run the kernels on small random products; returns the largest relative error against float32."""
    from trainer.kernels import triton_low_rank

    generator = torch.Generator().manual_seed(0)
    x, down, d_hidden = (torch.randn(*shape, generator=generator) for shape in ((40, 144), (8, 144), (40, 8)))
    x, down, d_hidden = (each.to(device, torch.bfloat16) for each in (x, down, d_hidden))
    values, scale = quantize_rows(x, FP8)
    wide = values.float() * scale
    compared = [
        (triton_low_rank.hidden_values(values, scale, down), wide @ down.float().t()),
        (triton_low_rank.down_gradient(d_hidden, values, scale), d_hidden.float().t() @ wide),
        (triton_low_rank.down_gradient(d_hidden, x, activated=True), d_hidden.float().t() @ gelu(x.float())),
    ]
    return max(float((found.float() - expected).norm() / expected.norm()) for found, expected in compared)
