"""Adapted linear layers on one input, multiplied together.

For layers i with frozen W_i, b_i and an adapter A_i, B_i of scale s

    y_i = x W_iᵀ + b_i + s (x A_iᵀ) B_iᵀ

is written once: the frozen product first, then the adapter's is added onto it by the matrix product itself.
Layer by layer, as peft does, the adapter's output is a tensor of its own that has to be written, read and
added, and so is each layer's gradient of x; at FLUX's sizes that costs more time than the adapter's
arithmetic. The thin products x A_iᵀ of all layers are one product too.

x may come in parts that stand side by side, x = [x_1 | x_2], and is never put together.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from trainer.lora.adapter import ADAPTER, DownLinear


def project(inputs: Sequence[Tensor], layers: Sequence[nn.Module]) -> tuple[Tensor, ...]:
    """What each linear layer gives for the same input, whose parts are `inputs`, each [..., K_j].

    Together where all of them are adapted alike: plain weights with a bias, adapters switched on, of one
    scale, without dropouts. Otherwise each layer does its own work.
    """
    if not are_alike(layers):
        x = inputs[0] if len(inputs) == 1 else torch.cat(list(inputs), dim=-1)
        return tuple(layer(x) for layer in layers)
    adapted = cast(Sequence[LoraLayer], layers)
    bases = [cast(nn.Linear, layer.base_layer) for layer in adapted]
    return _Projection.apply(
        adapted[0].scaling[ADAPTER],
        (len(inputs), len(layers)),
        *inputs,
        *(base.weight for base in bases),
        *(base.bias for base in bases),
        *(layer.lora_A[ADAPTER].weight for layer in adapted),
        *(layer.lora_B[ADAPTER].weight for layer in adapted),
    )


def are_alike(layers: Sequence[nn.Module]) -> bool:
    """Whether `project` takes the layers together."""
    return all(_is_plain(layer) for layer in layers) and len({_scale(layer) for layer in layers}) == 1


def _is_plain(layer: nn.Module) -> bool:
    if not isinstance(layer, LoraLayer) or layer.disable_adapters or ADAPTER not in layer.lora_A:
        return False
    base, down = layer.base_layer, layer.lora_A[ADAPTER]
    plain = type(base) is nn.Linear and base.bias is not None  # a quantised one multiplies in its own way
    return plain and isinstance(down, DownLinear) and not (down.training and down.drops)


def _scale(layer: nn.Module) -> float:
    return cast(LoraLayer, layer).scaling[ADAPTER]


class _Projection(torch.autograd.Function):
    """apply(scale, (inputs, layers), *inputs, *weights, *biases, *downs, *ups) → one output for each layer."""

    @staticmethod
    def forward(ctx: Any, scale: float, counts: tuple[int, int], *tensors: Tensor):  # type: ignore[override]
        inputs, weights, biases, downs, ups = _grouped(tensors, counts)
        *outputs, hidden = _forward(inputs, weights, biases, downs, ups, scale)
        ctx.scale, ctx.counts = scale, counts
        ctx.save_for_backward(hidden, *inputs, *weights, *downs, *ups)
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # type: ignore[override]
        hidden, *tensors = ctx.saved_tensors
        parts, layers = ctx.counts
        inputs, weights, downs, ups = _grouped(tensors, (parts, layers))
        wanted = list(ctx.needs_input_grad[2 : 2 + parts])
        found = _backward(list(gradients), hidden, inputs, weights, downs, ups, ctx.scale, wanted)
        of_inputs = iter(found[: sum(wanted)])
        dx = [next(of_inputs) if each else None for each in wanted]
        return None, None, *dx, *[None] * (2 * layers), *found[sum(wanted) :]


def _grouped(tensors: Sequence[Tensor], counts: tuple[int, int]) -> list[list[Tensor]]:
    """The inputs, then groups with one tensor of each layer."""
    parts, layers = counts
    starts = range(parts, len(tensors), layers)
    return [list(tensors[:parts]), *(list(tensors[start : start + layers]) for start in starts)]


# The compiler takes the two operators as they are: it would turn what is added in place into copies.


@torch.library.custom_op("flux_dreambooth::adapted_linear", mutates_args=())
def _forward(
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """Outputs [..., N_i], and the hidden values of all layers [tokens, sum of ranks] that backward needs."""
    rows, columns = [_rows(x) for x in inputs], _columns(inputs)
    shape, dtype = inputs[0].shape[:-1], inputs[0].dtype
    down, casts = _in_precision_of_product(downs, ups, dtype)
    hidden = _sum_of_products(rows, [part.t() for part in _split(down, columns)])
    outputs = []
    for weight, bias, up, own in zip(weights, biases, casts, _split(hidden, _ranks(downs)), strict=True):
        first, *others = _split(weight, columns)
        y = torch.addmm(bias, rows[0], first.t())
        for x, part in zip(rows[1:], others, strict=True):
            y.addmm_(x, part.t())
        y.addmm_(own, up.t(), alpha=scale)
        outputs.append(y.view(*shape, -1))
    return [*outputs, hidden]


@_forward.register_fake
def _(inputs, weights, _biases, downs, _ups, _scale):
    x = inputs[0]
    outputs = [x.new_empty(*x.shape[:-1], len(weight)) for weight in weights]
    return [*outputs, x.new_empty(x.shape[:-1].numel(), sum(_ranks(downs)))]


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
) -> list[Tensor]:
    """The gradients of those inputs that are wanted, then of all downs, then of all ups."""
    dtype, columns, ranks = inputs[0].dtype, _columns(inputs), _ranks(downs)
    rows, dys = [_rows(x) for x in inputs], [_rows(dy) for dy in gradients]
    down, casts = _in_precision_of_product(downs, ups, dtype)
    d_hidden, scaled = torch.empty_like(hidden), hidden * scale
    d_ups = []
    for dy, up, own, d_own in zip(dys, casts, _split(scaled, ranks), _split(d_hidden, ranks), strict=True):
        torch.mm(dy, up, out=d_own)
        d_ups.append(dy.t() @ own)
    d_hidden *= scale
    d_downs = torch.cat([d_hidden.t() @ x for x in rows], dim=1) if len(rows) > 1 else d_hidden.t() @ rows[0]
    down_parts = _split(down, columns)
    weight_parts = [_split(weight, columns) for weight in weights]
    dx = [
        _sum_of_products([*dys, d_hidden], [*(parts[index] for parts in weight_parts), down_parts[index]]).view(x.shape)
        for index, x in enumerate(inputs)
        if wanted[index]
    ]
    found = [torch.empty_like(each) for each in (*downs, *ups)]  # the parts of d_downs are one tensor's
    torch._foreach_copy_(found, [*d_downs.split(ranks), *d_ups])
    return [*dx, *found]


@_backward.register_fake
def _(_gradients, _hidden, inputs, _weights, downs, ups, _scale, wanted):
    dx = [
        torch.empty_like(x, memory_format=torch.contiguous_format)
        for x, want in zip(inputs, wanted, strict=True)
        if want
    ]
    return [*dx, *(torch.empty_like(each) for each in (*downs, *ups))]


def _rows(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


def _columns(inputs: Sequence[Tensor]) -> list[int]:
    return [x.shape[-1] for x in inputs]


def _ranks(downs: Sequence[Tensor]) -> list[int]:
    return [len(down) for down in downs]


def _split(matrix: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Its columns in groups of these widths."""
    return torch.split(matrix, list(widths), dim=1)


def _in_precision_of_product(
    downs: Sequence[Tensor], ups: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """All down projections [sum of ranks, K], one below the other, and each up projection: one kernel for all."""
    stack = downs[0].new_empty(sum(_ranks(downs)), downs[0].shape[1], dtype=dtype)
    casts = [up if up.dtype == dtype else torch.empty_like(up, dtype=dtype) for up in ups]
    copied = [(cast, up) for cast, up in zip(casts, ups, strict=True) if cast is not up]
    copied += zip(stack.split(_ranks(downs)), downs, strict=True)
    torch._foreach_copy_([target for target, _ in copied], [source for _, source in copied])
    return stack, casts


def _sum_of_products(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    total = lefts[0] @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total.addmm_(left, right)
    return total
