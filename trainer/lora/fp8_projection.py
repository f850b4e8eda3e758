"""Adapted layers whose frozen weights are stored in fp8 as one matrix, multiplied together.

As `trainer.lora.projection`, for weights that `trainer.models.quantized.join` keeps together: one product in
8 bits for all layers on an input, forward and backward, onto which what the adapters give is added. The input is
quantised once for all layers, by the kernel that makes it where blocks are compiled; so are the gradients of what
the layers give, side by side as one row, and never put together in their own precision.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.kernels.fp8 import LowRank
from trainer.lora.thin import (
    adapter_gradients,
    columns_of,
    empty_gradients,
    hidden_values,
    in_precision_of_product,
    ranks_of,
    rows_of,
)
from trainer.models.products import multiply_fp8, quantize_parts
from trainer.models.quantized import Joined


def project_fp8(
    inputs: Sequence[Tensor], joined: Joined, downs: Sequence[Tensor], ups: Sequence[Tensor], scale: float
) -> tuple[Tensor, ...]:
    """What each layer gives for an input whose parts are `inputs`, each [..., K_j]: one [..., N_i] a layer."""
    frozen = (joined.weight, joined.scale, joined.transposed, joined.bias)
    return _Fp8Projection.apply(scale, (len(inputs), len(downs)), *inputs, *frozen, *downs, *ups)


class _Fp8Projection(torch.autograd.Function):
    """apply(scale, (inputs, layers), *inputs, weight, its scale, weight transposed, bias, *downs, *ups) → one output
    for each layer, side by side in memory."""

    @staticmethod
    def forward(ctx: Any, scale: float, counts: tuple[int, int], *tensors: Tensor):  # type: ignore[override]
        parts, layers = counts
        inputs, (weight, weight_scale, transposed, bias) = list(tensors[:parts]), tensors[parts : parts + 4]
        downs, ups = list(tensors[parts + 4 : -layers]), list(tensors[-layers:])
        values, row_scale = quantize_parts([rows_of(x) for x in inputs], weight.dtype)
        y, hidden = _forward(values, row_scale, weight, weight_scale, bias, inputs, downs, ups, scale)
        ctx.scale, ctx.counts = scale, counts
        ctx.save_for_backward(hidden, *inputs, weight, weight_scale, transposed, *downs, *ups)
        return y.split([len(up) for up in ups], dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # type: ignore[override]
        hidden, *tensors = ctx.saved_tensors
        parts, layers = ctx.counts
        inputs, (weight, weight_scale, transposed) = tensors[:parts], tensors[parts : parts + 3]
        downs, ups = tensors[parts + 3 : -layers], tensors[-layers:]
        wanted = ctx.needs_input_grad[2 : 2 + parts]
        turned = weight.t().contiguous() if transposed is None else transposed
        scales = weight_scale.split([len(up) for up in ups])
        scaled = [rows_of(dy) * own for dy, own in zip(gradients, scales, strict=True)]
        values, row_scale = quantize_parts(scaled, weight.dtype)
        found = _backward(values, row_scale, turned, list(gradients), hidden, inputs, downs, ups, ctx.scale)
        dx, d_down, *d_ups = found
        # each part dense, as attention's backward takes its gradient to be
        of_parts = dx.split(columns_of(inputs), dim=-1) if parts > 1 else [dx]
        given = [each.contiguous() if want else None for each, want in zip(of_parts, wanted, strict=True)]
        return None, None, *given, None, None, None, None, *d_down.split(ranks_of(downs)), *d_ups


@torch.library.custom_op("flux_dreambooth::adapted_fp8", mutates_args=())
def _forward(
    values: Tensor,
    row_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor,
    inputs: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """The output [..., N] of all layers and the hidden values [tokens, sum of ranks] that backward needs.

    values, row_scale: the input [tokens, K] in 8 bits.
    """
    x = inputs[0]
    down, casts = in_precision_of_product(downs, ups, x.dtype)
    hidden = hidden_values([rows_of(each) for each in inputs], down)
    y = multiply_fp8(values, row_scale, weight, weight_scale, bias, x.dtype, LowRank(hidden, casts, scale))
    return [y.view(*x.shape[:-1], -1), hidden]


@_forward.register_fake
def _(_values, _row_scale, weight, _weight_scale, _bias, inputs, downs, _ups, _scale):
    x = inputs[0]
    return [x.new_empty(*x.shape[:-1], len(weight)), x.new_empty(x.shape[:-1].numel(), sum(ranks_of(downs)))]


@torch.library.custom_op("flux_dreambooth::adapted_fp8_backward", mutates_args=())
def _backward(
    values: Tensor,
    row_scale: Tensor,
    turned: Tensor,
    gradients: Sequence[Tensor],
    hidden: Tensor,
    inputs: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """The gradient of the whole input [..., K], then of all downs as one, then of each up.

    gradients: of each layer's output [..., N_i]; values, row_scale: all of them in 8 bits, the scales of the weight's
    rows multiplied in; turned: the weight [K, N].
    """
    x = inputs[0]
    down, casts = in_precision_of_product(downs, ups, x.dtype)
    dys, rows = [rows_of(dy) for dy in gradients], [rows_of(each) for each in inputs]
    d_hidden, d_down, d_ups = adapter_gradients(dys, hidden, rows, downs, casts, scale)
    dx = multiply_fp8(values, row_scale, turned, None, None, x.dtype, LowRank(d_hidden, [down.t()], 1.0))
    return [dx.view(*x.shape[:-1], -1), d_down, *d_ups]


@_backward.register_fake
def _(_values, _row_scale, turned, _gradients, _hidden, inputs, downs, ups, _scale):
    x = inputs[0]
    return [x.new_empty(*x.shape[:-1], len(turned)), *empty_gradients(downs, ups)]
