"""Quantization to 8 bits with one scale per row.

`quantize_rows` and `quantize_parts` are PyTorch operations, which torch.compile fuses with what computes their input.
`quantize_concatenated` is one operator for an input in several parts or with an activation function in front. Its
Triton kernel reads every number once; compiled PyTorch reads it twice and writes the activation in between.
"""

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.kernels.trial import passes_trial, runs_triton

FP8, INT8 = torch.float8_e4m3fn, torch.int8
LARGEST = {FP8: 448.0, INT8: 127.0}
MIN_ROW_MAX = 1e-12  # so that a row of zeros has a scale
MAX_PARTS, MAX_ROW = 4, 1 << 15  # the kernel holds a row in registers
MIN_CAPABILITY = (8, 9)  # compute capability of the first GPUs that convert to e4m3
TOLERANCE = 0.05  # e4m3 rounds by 0.026 on average


def quantize_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Quantize x [R, K] with one scale per row: q [R, K] in dtype and scale [R, 1] in float32, so that x ≈ q scale.

    dtype: e4m3 or int8. A row with a number that is not finite has a scale that is not finite.
    """
    return quantize_parts([x], dtype)


def quantize_parts(parts: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Concatenate parts [R, K_j] along their columns and quantize the result with one scale per row.

    dtype: e4m3 or int8. Returns [R, K] in dtype and the scales [R, 1] in float32.
    """
    largest = parts[0].abs().amax(-1, keepdim=True)
    for part in parts[1:]:
        largest = torch.maximum(largest, part.abs().amax(-1, keepdim=True))
    scale = largest.float().clamp(min=MIN_ROW_MAX) / LARGEST[dtype]
    values = [_rounded(part.float() / scale, dtype) for part in parts]
    return values[0] if len(values) == 1 else torch.cat(values, dim=-1), scale


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    values = values.round() if dtype == INT8 else values
    return values.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype)


@torch.library.custom_op("flux_dreambooth::quantize_concatenated", mutates_args=())
def quantize_concatenated(
    parts: Sequence[Tensor], scales: Sequence[Tensor], activated: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    """Concatenate parts [R, K_j] along their columns and quantize the result to e4m3, as one operator for the compiler.

    activated: which parts go through GELU (tanh approximation) first. scales: one [K_j] per part by which its columns
    are then multiplied, or an empty list. Returns [R, K] in e4m3 and the scale of each row, [R, 1] in float32. Numbers
    that are not finite stay so.
    """
    lengths = [_next_power_of_2(part.shape[1]) for part in parts]
    if len(parts) <= MAX_PARTS and sum(lengths) <= MAX_ROW and _works(parts[0].device):
        from trainer.kernels import triton_quantize

        return triton_quantize.quantize_concatenated(parts, scales, activated, LARGEST[FP8], MIN_ROW_MAX)
    return _quantize_in_torch(parts, scales, activated)


@quantize_concatenated.register_fake
def _(parts, _scales, _activated):
    rows, x = parts[0].shape[0], parts[0]
    columns = sum(part.shape[1] for part in parts)
    return x.new_empty(rows, columns, dtype=FP8), x.new_empty(rows, 1, dtype=torch.float32)


def _quantize_in_torch(
    parts: Sequence[Tensor], scales: Sequence[Tensor], activated: Sequence[bool]
) -> tuple[Tensor, Tensor]:
    inputs = [gelu(part) if on else part for part, on in zip(parts, activated, strict=True)]
    scaled = [part * scale for part, scale in zip(inputs, scales, strict=True)] if scales else inputs
    return quantize_parts(scaled, FP8)


def gelu(x: Tensor) -> Tensor:
    """FLUX.1's activation function: GELU in its tanh approximation."""
    return F.gelu(x, approximate="tanh")


def _next_power_of_2(number: int) -> int:
    return 1 << (number - 1).bit_length()


@cache
def _works(device: torch.device) -> bool:
    if not runs_triton(device, MIN_CAPABILITY):
        return False
    return passes_trial("fp8 quantization", lambda: kernel_error(device), TOLERANCE)


def kernel_error(device: torch.device) -> float:
    """Run the kernel on a few random rows; returns the relative error of what it quantized, against float32."""
    from trainer.kernels import triton_quantize

    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(7, width, generator=generator).to(device, torch.bfloat16) for width in (48, 80)]
    scales, activated = [torch.rand(part.shape[1], generator=generator).to(device) for part in parts], [False, True]
    values, scale = triton_quantize.quantize_concatenated(parts, scales, activated, LARGEST[FP8], MIN_ROW_MAX)
    expected = torch.cat([parts[0].float() * scales[0], gelu(parts[1].float()) * scales[1]], dim=1)
    return float((values.float() * scale - expected).norm() / expected.norm())
