"""Adapted linear layers that read the same input, computed together.

For layers i with frozen W_i, b_i and an adapter A_i, B_i of scale s,

    y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ

is accumulated in place: first the adapter's low-rank product plus the bias, onto which the matrix product x W_iᵀ then
accumulates. PEFT works layer by layer: each adapter's output, and each layer's gradient of x, is a separate tensor that
is written, read and added. At FLUX's sizes that memory traffic takes longer than the adapter's arithmetic. The low-rank
products x A_iᵀ of all layers are one product, too.

Layers without an adapter take part: their y_i is the frozen product alone, and their share of x's gradient is added in
place like the others'. x may come in parts, x = [x_1 | x_2], which are never concatenated. GELU may be applied to a
part first; on a GPU its output is not saved for backward but recomputed by the adapter's gradient.
"""

import math
from collections.abc import Sequence
from itertools import compress, islice
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.kernels.quantize import FP8, gelu
from trainer.lora.adapter import ADAPTER, DownLinear
from trainer.lora.fp8_projection import project_fp8
from trainer.lora.low_rank import (
    columns_of,
    down_gradient,
    empty_gradients,
    gelu_gradient,
    hidden_values,
    in_precision_of_product,
    ranks_of,
    rows_of,
    split,
    sum_of_products,
    up_gradients,
)
from trainer.models.quantized import Joined, QuantizedLinear


def project(
    inputs: Sequence[Tensor], layers: Sequence[nn.Module], activated: Sequence[bool] | None = None
) -> tuple[Tensor, ...]:
    """The outputs of linear layers on the same input, one [..., N_i] per layer.

    inputs: the parts of the input along its last dimension, each [..., K_j]; activated: for each part, whether GELU
    (tanh approximation) is applied to it first, by default to none. The layers are computed together if
    `can_go_together` says so, otherwise one by one.
    """
    activated = [False] * len(inputs) if activated is None else activated
    together = can_go_together(layers)
    if not (together and _recomputes_gelu(inputs[0])):
        inputs, activated = _after_gelu(inputs, activated), [False] * len(inputs)
    if not together:
        x = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=-1)
        return tuple(layer(x) for layer in layers)
    adapted = tuple(_is_adapted(layer) for layer in layers)
    scale = _scales(layers).pop()
    downs, ups = adapters_of(layers)
    bases = [_base(layer) for layer in layers]
    if isinstance(bases[0], QuantizedLinear):
        widths = tuple(base.out_features for base in bases)
        return project_fp8(
            inputs, cast(Joined, bases[0].joined), downs, ups, scale, (tuple(activated), adapted, widths)
        )
    weights, biases = [base.weight for base in bases], [base.bias for base in bases]
    return _Projection.apply(scale, (tuple(activated), adapted), *inputs, *weights, *biases, *downs, *ups)


def _recomputes_gelu(x: Tensor) -> bool:
    """Whether GELU's output is recomputed in backward: on a CPU, memory is cheaper than time."""
    return x.is_cuda


def _after_gelu(parts: Sequence[Tensor], activated: Sequence[bool]) -> list[Tensor]:
    return [gelu(part) if on else part for part, on in zip(parts, activated, strict=True)]


def adapters_of(layers: Sequence[nn.Module]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The weights of the adapters among these layers: down projections, each [r_i, K], and up, each [N_i, r_i]."""
    adapted = [layer for layer in layers if _is_adapted(layer)]
    downs, ups = ([getattr(layer, key)[ADAPTER].weight for layer in adapted] for key in ("lora_A", "lora_B"))
    return downs, ups


def are_alike(layers: Sequence[nn.Module]) -> bool:
    """Whether all layers have an adapter and `can_go_together`."""
    return all(_is_adapted(layer) for layer in layers) and can_go_together(layers)


def can_go_together(layers: Sequence[nn.Module]) -> bool:
    """Whether `project` can compute the layers together.

    At least one has an adapter. Adapters have one scale and no active dropouts, and none is switched off. The frozen
    weights are all plain with a bias, or joined in fp8.
    """
    adapted = [_is_adapted(layer) for layer in layers]
    others = (layer for layer, own in zip(layers, adapted, strict=True) if not own)
    if not any(adapted) or any(isinstance(layer, LoraLayer) for layer in others):
        return False
    bases = [_base(layer) for layer in layers]
    plain = all(type(base) is nn.Linear and base.bias is not None for base in bases)
    return (plain or _are_joined(bases)) and len(_scales(layers)) == 1


def _base(layer: nn.Module) -> nn.Linear:
    return cast(nn.Linear, layer.base_layer if isinstance(layer, LoraLayer) else layer)


def _scales(layers: Sequence[nn.Module]) -> set[float]:
    return {layer.scaling[ADAPTER] for layer in layers if isinstance(layer, LoraLayer)}


def _is_adapted(layer: nn.Module) -> bool:
    if not isinstance(layer, LoraLayer) or layer.disable_adapters or ADAPTER not in layer.lora_A:
        return False
    down = layer.lora_A[ADAPTER]
    return isinstance(down, DownLinear) and not (down.training and down.drops)


def _are_joined(bases: Sequence[nn.Module]) -> bool:
    first = bases[0]
    if not isinstance(first, QuantizedLinear) or first.joined is None or first.joined.weight.dtype != FP8:
        return False
    return len(first.joined.weight) == sum(cast(nn.Linear, base).out_features for base in bases)


class _Projection(torch.autograd.Function):
    """apply(scale, (activated, adapted), *inputs, *weights, *biases, *downs, *ups) -> one output per layer.

    activated: for each input; adapted: for each layer.
    """

    @staticmethod
    def forward(ctx: Any, scale: float, facts: tuple[tuple[bool, ...], tuple[bool, ...]], *tensors: Tensor):  # type: ignore[override]
        activated, adapted = facts
        counts = (len(activated), len(adapted), len(adapted), sum(adapted), sum(adapted))
        inputs, weights, biases, downs, ups = _grouped(tensors, counts)
        given = _after_gelu(inputs, activated)
        *outputs, hidden = _forward(given, weights, biases, downs, ups, scale, list(adapted))
        ctx.scale, ctx.facts = scale, facts
        ctx.save_for_backward(hidden, *inputs, *weights, *downs, *ups)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # type: ignore[override]
        hidden, *tensors = ctx.saved_tensors
        activated, adapted = ctx.facts
        counts = (len(activated), len(adapted), sum(adapted), sum(adapted))
        inputs, weights, downs, ups = _grouped(tensors, counts)
        wanted = list(ctx.needs_input_grad[2 : 2 + len(activated)])
        of_each = wanted, list(activated), list(adapted)
        found = _backward(list(gradients), hidden, inputs, weights, downs, ups, ctx.scale, *of_each)
        of_inputs = iter(found[: sum(wanted)])
        dx = [next(of_inputs) if each else None for each in wanted]
        for index, (gradient, on) in enumerate(zip(dx, activated, strict=True)):
            if gradient is not None and on:
                dx[index] = gelu_gradient(gradient, inputs[index])
        d_down, *d_ups = found[sum(wanted) :]
        return None, None, *dx, *[None] * (2 * len(adapted)), *d_down.split(ranks_of(downs)), *d_ups


def _grouped(tensors: Sequence[Tensor], counts: Sequence[int]) -> list[list[Tensor]]:
    """The tensors in groups of these sizes."""
    left = iter(tensors)
    return [list(islice(left, count)) for count in counts]


@torch.library.custom_op("flux_dreambooth::adapted_linear", mutates_args=())
def _forward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
    adapted: Sequence[bool],
) -> list[Tensor]:
    """Outputs [..., N_i], and the hidden activations of all adapters, [tokens, sum of ranks], for backward."""
    rows, columns = [rows_of(x) for x in inputs], columns_of(inputs)
    shape, dtype = inputs[0].shape[:-1], inputs[0].dtype
    down, casts = in_precision_of_product(downs, ups, dtype)
    hidden = hidden_values(rows, down)
    low_rank, outputs = zip(casts, split(hidden, ranks_of(downs)), strict=True), []
    for weight, bias, has_adapter in zip(weights, biases, adapted, strict=True):
        terms, factor = [*zip(rows, split(weight, columns), strict=True)], 1.0
        if has_adapter:
            up, own = next(low_rank)
            terms, factor = [(own, up), *terms], scale
        (x, matrix), *others = terms
        y = torch.addmm(bias, x, matrix.t(), alpha=factor)
        for x, matrix in others:
            y.addmm_(x, matrix.t())
        outputs.append(y.view(*shape, -1))
    return [*outputs, hidden]


@_forward.register_fake
def _(inputs, weights, _biases, downs, _ups, _scale, _adapted):
    x = inputs[0]
    outputs = [x.new_empty(*x.shape[:-1], len(weight)) for weight in weights]
    return [*outputs, x.new_empty(math.prod(x.shape[:-1]), sum(ranks_of(downs)))]


@torch.library.custom_op("flux_dreambooth::adapted_linear_backward", mutates_args=())
def _backward(
    gradients: Sequence[Tensor],
    hidden: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
    wanted: Sequence[bool],
    activated: Sequence[bool],
    adapted: Sequence[bool],
) -> list[Tensor]:
    """The gradients of the wanted inputs, then of all down projections stacked, then of each up projection.

    adapted: for each layer, whether it has an adapter. inputs: an activated one is the input of GELU, but its gradient
    here is that of GELU's output.
    """
    columns, rows = columns_of(inputs), [rows_of(x) for x in inputs]
    dys = [rows_of(dy) for dy in gradients]
    down, casts = in_precision_of_product(downs, ups, inputs[0].dtype)
    d_hidden, d_ups = up_gradients([*compress(dys, adapted)], hidden, casts, scale, ups[0].dtype)
    d_down = down_gradient(d_hidden, rows, activated, downs[0].dtype)
    down_parts = split(down, columns)
    weight_parts = [split(weight, columns) for weight in weights]
    dx = [
        sum_of_products([d_hidden, *dys], [down_parts[index], *(parts[index] for parts in weight_parts)]).view(x.shape)
        for index, x in enumerate(inputs)
        if wanted[index]
    ]
    return [*dx, d_down, *d_ups]


@_backward.register_fake
def _(_gradients, _hidden, inputs, _weights, downs, ups, _scale, wanted, _activated, _adapted):
    dx = [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, want in zip(inputs, wanted, strict=True)
        if want
    ]
    return [*dx, *empty_gradients(downs, ups)]
