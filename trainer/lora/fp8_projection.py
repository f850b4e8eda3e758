"""Adapted layers whose frozen weights are one fp8 matrix, computed together.

Like `trainer.lora.projection`, for weights that `trainer.models.quantized.join` stores as one: all layers on an input
share one 8-bit matrix product, forward and backward, to which the adapters' outputs are added. The input is quantized
once for all layers (in compiled blocks by the kernel that produces it) and saved like that: the adapters read the same
8-bit values as the frozen layers, which brings their gradients closer to those of bf16. The gradients of the layers'
outputs are quantized next to each other as one row and are never concatenated in their own precision.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.fp8 import LowRank
from trainer.kernels.low_rank import down_gradient_from_fp8, hidden_from_fp8
from trainer.kernels.quantize import FP8, quantize_concatenated, quantize_rows
from trainer.lora.low_rank import (
    columns_of,
    empty_gradients,
    gelu_gradient,
    in_precision_of_product,
    ranks_of,
    rows_of,
    up_gradients,
)
from trainer.models.products import multiply_fp8
from trainer.models.quantized import Joined


def project_fp8(
    inputs: Sequence[Tensor],
    joined: Joined,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
    activated: Sequence[bool],
) -> tuple[Tensor, ...]:
    """The outputs of adapted layers that read the same input and are joined in fp8, one [..., N_i] per layer.

    inputs: the parts of the input along its last dimension, each [..., K_j], K in all; joined: the frozen weights and
    biases; downs, ups: the adapters, [r_i, K] and [N_i, r_i]; scale: alpha / rank, the factor of every adapter;
    activated: for each part, whether GELU (tanh approximation) is applied to it first.
    """
    frozen = (joined.weight, joined.scale, joined.transposed, joined.bias)
    return _Fp8Projection.apply(scale, (tuple(activated), len(downs)), *inputs, *frozen, *downs, *ups)


class _Fp8Projection(torch.autograd.Function):
    """apply(scale, (activated, layers), *inputs, weight, its scale, weight transposed, bias, *downs, *ups) -> an output
    per layer, all in one buffer."""

    @staticmethod
    def forward(ctx: Any, scale: float, facts: tuple[tuple[bool, ...], int], *tensors: Tensor):  # type: ignore[override]
        activated, layers = facts
        parts = len(activated)
        inputs, (weight, weight_scale, transposed, bias) = list(tensors[:parts]), tensors[parts : parts + 4]
        downs, ups = list(tensors[parts + 4 : -layers]), list(tensors[-layers:])
        values, row_scale = _quantized([rows_of(x) for x in inputs], [], activated)
        y, hidden = _forward(values, row_scale, weight, weight_scale, bias, downs, ups, scale, inputs[0].dtype)
        before = [x for x, on in zip(inputs, activated, strict=True) if on]
        ctx.scale, ctx.facts, ctx.columns = scale, facts, columns_of(inputs)
        ctx.save_for_backward(hidden, values, row_scale, weight, weight_scale, transposed, *before, *downs, *ups)
        return y.view(*inputs[0].shape[:-1], -1).split([len(up) for up in ups], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # type: ignore[override]
        hidden, values, row_scale, weight, weight_scale, transposed, *rest = ctx.saved_tensors
        activated, layers = ctx.facts
        before, downs, ups = rest[: sum(activated)], rest[sum(activated) : -layers], rest[-layers:]
        weight_t = weight.t().contiguous() if transposed is None else transposed
        dys, scales = [rows_of(dy) for dy in gradients], list(weight_scale.split([len(up) for up in ups]))
        d_values, d_scale = _quantized(dys, scales, [False] * layers)
        dx, d_down, *d_ups = _backward(
            d_values, d_scale, weight_t, dys, hidden, values, row_scale, downs, ups, ctx.scale
        )
        kept = iter(before)
        of_parts = dx.view(*gradients[0].shape[:-1], -1).split(ctx.columns, dim=-1)
        wanted = ctx.needs_input_grad[2 : 2 + len(activated)]
        # each part contiguous, which attention's backward assumes of its gradient
        given = [
            gelu_gradient(part, next(kept)) if on else part.contiguous()
            for part, on in zip(of_parts, activated, strict=True)
        ]
        given = [part if want else None for part, want in zip(given, wanted, strict=True)]
        return None, None, *given, None, None, None, None, *d_down.split(ranks_of(downs)), *d_ups


def _quantized(parts: Sequence[Tensor], scales: Sequence[Tensor], activated: Sequence[bool]) -> tuple[Tensor, Tensor]:
    """Quantize by row. A single plain part is left to the compiler, which fuses this with the producing kernel."""
    if len(parts) > 1 or any(activated):
        return quantize_concatenated(list(parts), list(scales), list(activated))
    return quantize_rows(parts[0] * scales[0] if scales else parts[0], FP8)


@torch.library.custom_op("flux_dreambooth::adapted_fp8", mutates_args=())
def _forward(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The output of all layers [tokens, N], and the hidden activations [tokens, sum of ranks] for backward, in dtype.

    values, row_scale: the input [tokens, K] in 8 bits.
    """
    down, casts = in_precision_of_product(downs, ups, dtype)
    hidden = hidden_from_fp8(values, row_scale, down)
    y = multiply_fp8(values, row_scale, weight, weight_scale, bias, dtype, LowRank(hidden, casts, scale))
    return y, hidden


@_forward.register_fake
def _(values, _row_scale, weight, _weight_scale, _bias, downs, _ups, _scale, dtype):
    tokens = values.shape[0]
    return (
        values.new_empty(tokens, len(weight), dtype=dtype),
        values.new_empty(tokens, sum(ranks_of(downs)), dtype=dtype),
    )


@torch.library.custom_op("flux_dreambooth::adapted_fp8_backward", mutates_args=())
def _backward(
    d_values: Tensor,
    d_scale: Tensor,
    weight_t: Tensor,
    dys: Sequence[Tensor],
    hidden: Tensor,
    values: Tensor,
    row_scale: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """The gradient of the complete input [tokens, K], then of all down projections stacked, then of each up projection.

    dys: gradients of the layers' outputs, [tokens, N_i]; d_values, d_scale: the same in 8 bits, multiplied by the row
    scales of the weight; weight_t: the weight, transposed to [K, N]; values, row_scale: the input in 8 bits.
    """
    down, casts = in_precision_of_product(downs, ups, hidden.dtype)
    d_hidden, d_ups = up_gradients(dys, hidden, casts, scale, ups[0].dtype)
    d_down = down_gradient_from_fp8(d_hidden, values, row_scale).to(downs[0].dtype)
    dx = multiply_fp8(d_values, d_scale, weight_t, None, None, hidden.dtype, LowRank(d_hidden, [down.t()], 1.0))
    return [dx, d_down, *d_ups]


@_backward.register_fake
def _(_d_values, _d_scale, weight_t, _dys, hidden, values, _row_scale, downs, ups, _scale):
    return [hidden.new_empty(values.shape[0], len(weight_t)), *empty_gradients(downs, ups)]
