"""Layers, adapted or not, whose frozen weights are one fp8 matrix, computed together.

Like `trainer.lora.projection`, for weights that `trainer.models.quantized.join` stores as one: all layers on an input
share one 8-bit matrix product, forward and backward, to which the outputs of their adapters are added. The input is
quantized once for all layers (in compiled blocks by the kernel that produces it) and saved like that: the adapters read
the same 8-bit values as the frozen layers, which brings their gradients closer to those of bf16. The gradients of the
layers' outputs are quantized next to each other as one row and are never concatenated in their own precision.
"""

from collections.abc import Sequence
from itertools import compress
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
    split,
    up_gradients,
)
from trainer.models.products import multiply_fp8
from trainer.models.quantized import Joined

# for each part of the input, whether GELU (tanh approximation) is applied to it first; for each layer, whether it has
# an adapter, and its number of outputs
Facts = tuple[tuple[bool, ...], tuple[bool, ...], tuple[int, ...]]


def project_fp8(
    inputs: Sequence[Tensor],
    joined: Joined,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
    facts: Facts,
) -> tuple[Tensor, ...]:
    """The outputs of layers that read the same input and are joined in fp8, one [..., N_i] per layer.

    inputs: the parts of the input along its last dimension, each [..., K_j], K in all; joined: the frozen weights and
    biases; downs, ups: the adapters, [r_i, K] and [N_i, r_i]; scale: alpha / rank, the factor of every adapter.
    """
    frozen = (joined.weight, joined.scale, joined.transposed, joined.bias)
    return _Fp8Projection.apply(scale, facts, *inputs, *frozen, *downs, *ups)


class _Fp8Projection(torch.autograd.Function):
    """apply(scale, facts, *inputs, weight, its scale, weight transposed, bias, *downs, *ups) -> an output per layer.

    The outputs share one buffer.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, facts: Facts, *tensors: Tensor):  # type: ignore[override]
        activated, adapted, widths = facts
        parts, adapters = len(activated), sum(adapted)
        inputs, (weight, weight_scale, transposed, bias) = list(tensors[:parts]), tensors[parts : parts + 4]
        downs, ups = list(tensors[parts + 4 : -adapters]), list(tensors[-adapters:])
        values, row_scale = _quantized([rows_of(x) for x in inputs], [], activated)
        layers, dtype = (list(adapted), list(widths)), inputs[0].dtype
        y, hidden = _forward(values, row_scale, weight, weight_scale, bias, downs, ups, scale, *layers, dtype)
        before = [x for x, on in zip(inputs, activated, strict=True) if on]
        ctx.scale, ctx.facts, ctx.columns = scale, facts, columns_of(inputs)
        ctx.save_for_backward(hidden, values, row_scale, weight, weight_scale, transposed, *before, *downs, *ups)
        return y.view(*inputs[0].shape[:-1], -1).split(list(widths), dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # type: ignore[override]
        hidden, values, row_scale, weight, weight_scale, transposed, *rest = ctx.saved_tensors
        activated, adapted, widths = ctx.facts
        begin = -sum(adapted)
        before, downs, ups = rest[: sum(activated)], rest[sum(activated) : begin], rest[begin:]
        dys, wanted = [rows_of(dy) for dy in gradients], ctx.needs_input_grad[2 : 2 + len(activated)]
        of_adapters = [*compress(dys, adapted)]
        if not any(wanted):
            d_down, *d_ups = _backward(None, None, None, of_adapters, hidden, values, row_scale, downs, ups, ctx.scale)
            return None, None, *[None] * (len(activated) + 4), *d_down.split(ranks_of(downs)), *d_ups
        weight_t = weight.t().contiguous() if transposed is None else transposed
        d_values, d_scale = _quantized(dys, list(weight_scale.split(list(widths))), [False] * len(dys))
        dx, d_down, *d_ups = _backward(
            d_values, d_scale, weight_t, of_adapters, hidden, values, row_scale, downs, ups, ctx.scale
        )
        kept = iter(before)
        of_parts = dx.view(*gradients[0].shape[:-1], -1).split(ctx.columns, dim=-1)
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
    adapted: Sequence[bool],
    widths: Sequence[int],
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The output of all layers [tokens, N], and the hidden activations [tokens, sum of ranks] for backward, in dtype.

    values, row_scale: the input [tokens, K] in 8 bits.
    """
    down, casts = in_precision_of_product(downs, ups, dtype)
    hidden = hidden_from_fp8(values, row_scale, down)
    if all(adapted):
        y = multiply_fp8(values, row_scale, weight, weight_scale, bias, dtype, LowRank(hidden, casts, scale))
        return y, hidden
    y = multiply_fp8(values, row_scale, weight, weight_scale, bias, dtype)
    for own_y, up, own in zip(compress(split(y, widths), adapted), casts, split(hidden, ranks_of(downs)), strict=True):
        own_y.addmm_(own, up.t(), alpha=scale)
    return y, hidden


@_forward.register_fake
def _(values, _row_scale, weight, _weight_scale, _bias, downs, _ups, _scale, _adapted, _widths, dtype):
    tokens = values.shape[0]
    return (
        values.new_empty(tokens, len(weight), dtype=dtype),
        values.new_empty(tokens, sum(ranks_of(downs)), dtype=dtype),
    )


@torch.library.custom_op("flux_dreambooth::adapted_fp8_backward", mutates_args=())
def _backward(
    d_values: Tensor | None,
    d_scale: Tensor | None,
    weight_t: Tensor | None,
    dys: Sequence[Tensor],
    hidden: Tensor,
    values: Tensor,
    row_scale: Tensor,
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """The gradient of the complete input [tokens, K], then of all down projections stacked, then of each up projection.

    dys: gradients of the adapted layers' outputs, [tokens, N_i]; d_values, d_scale: those of all layers' in 8 bits,
    multiplied by the row scales of the weight; weight_t: the weight, transposed to [K, N]; values, row_scale: the input
    in 8 bits. Without d_values, d_scale and weight_t the input needs no gradient, and the first result is left out.
    """
    down, casts = in_precision_of_product(downs, ups, hidden.dtype)
    d_hidden, d_ups = up_gradients(dys, hidden, casts, scale, ups[0].dtype)
    d_down = down_gradient_from_fp8(d_hidden, values, row_scale).to(downs[0].dtype)
    if d_values is None or d_scale is None or weight_t is None:
        return [d_down, *d_ups]
    dx = multiply_fp8(d_values, d_scale, weight_t, None, None, hidden.dtype, LowRank(d_hidden, [down.t()], 1.0))
    return [dx, d_down, *d_ups]


@_backward.register_fake
def _(_d_values, _d_scale, weight_t, _dys, hidden, values, _row_scale, downs, ups, _scale):
    dx = [] if weight_t is None else [hidden.new_empty(values.shape[0], len(weight_t))]
    return [*dx, *empty_gradients(downs, ups)]
