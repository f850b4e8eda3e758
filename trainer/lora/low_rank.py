"""Low-rank matrix products of the adapters on one input: x A_iᵀ for all layers at once, and their gradients.

Call them inside custom operators only, which torch.compile leaves as they are: it would turn in-place writes into
copies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.kernels.contiguous import as_one_vector
from trainer.kernels.low_rank import down_gradient_through_gelu, float32_product


def rows_of(x: Tensor) -> Tensor:
    """[..., K] as [tokens, K]."""
    return x.reshape(-1, x.shape[-1])


def columns_of(inputs: Sequence[Tensor]) -> list[int]:
    """The number of columns (features) of each part of an input."""
    return [x.shape[-1] for x in inputs]


def ranks_of(downs: Sequence[Tensor]) -> list[int]:
    """The rank of each adapter."""
    return [len(down) for down in downs]


def split(matrix: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """The matrix's columns, in groups of these widths."""
    return torch.split(matrix, list(widths), dim=1)


def place_together(downs: Sequence[nn.Parameter], ups: Sequence[nn.Parameter]) -> None:
    """Move adapters' weights into one new contiguous buffer, downs then ups, so that one kernel can cast them all.

    The parameters stay the same objects with the same values; their `data` become views of the buffer.
    """
    adapters = [*downs, *ups]
    buffer = torch.cat([parameter.detach().flatten() for parameter in adapters])
    parts = buffer.split([parameter.numel() for parameter in adapters])
    for parameter, part in zip(adapters, parts, strict=True):
        parameter.data = part.view(parameter.shape)


def in_precision_of_product(
    downs: Sequence[Tensor], ups: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """All down projections stacked, [sum of ranks, K], and each up projection [N_i, r_i], in dtype.

    downs, ups: the adapters' weights, [r_i, K] and [N_i, r_i]. The results are views of them, without a copy, if
    `place_together` made them adjacent and they already have this dtype.
    """
    flat = as_one_vector([*downs, *ups])
    if flat is None:
        flat = torch.cat([each.flatten() for each in (*downs, *ups)])
    parts = flat.to(dtype).split([sum(down.numel() for down in downs), *(up.numel() for up in ups)])
    return parts[0].view(-1, downs[0].shape[1]), [part.view(up.shape) for part, up in zip(parts[1:], ups, strict=True)]


def hidden_values(rows: Sequence[Tensor], down: Tensor) -> Tensor:
    """The output of all down projections, [tokens, sum of ranks].

    rows: the parts of the input, each [tokens, K_j]; down: all down projections stacked, [sum of ranks, K].
    """
    return sum_of_products(rows, [part.t() for part in split(down, columns_of(rows))])


def up_gradients(
    dys: Sequence[Tensor], hidden: Tensor, casts: Sequence[Tensor], scale: float, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The gradients of the hidden activations [tokens, sum of ranks], and of each up projection [N_i, r_i] in `dtype`.

    dys: gradients of the layers' outputs, [tokens, N_i]; hidden: the outputs of all down projections, [tokens, sum of
    ranks]; casts: the up projections in the precision of the product; scale: alpha / rank, the factor of every adapter.
    """
    ranks = [up.shape[1] for up in casts]
    d_hidden, scaled = torch.empty_like(hidden), hidden if scale == 1 else hidden * scale
    d_ups = []
    for dy, up, own, d_own in zip(dys, casts, split(scaled, ranks), split(d_hidden, ranks), strict=True):
        torch.mm(dy, up, out=d_own)
        d_ups.append(_product(dy.t(), own, dtype))
    if scale != 1:
        d_hidden *= scale
    return d_hidden, d_ups


def down_gradient(d_hidden: Tensor, rows: Sequence[Tensor], activated: Sequence[bool], dtype: torch.dtype) -> Tensor:
    """The gradient of all down projections, stacked, [sum of ranks, K] in `dtype`.

    d_hidden: the gradient of their outputs, [tokens, sum of ranks]; rows: the parts of their input, each [tokens, K_j];
    activated: for each part, whether the projections read GELU of what `rows` holds.
    """
    parts = [
        down_gradient_through_gelu(d_hidden, x).to(dtype) if on else _product(d_hidden.t(), x, dtype)
        for x, on in zip(rows, activated, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def gelu_gradient(dy: Tensor, x: Tensor) -> Tensor:
    """The gradient of GELU's input x (tanh approximation), given dy, that of its output; all of one shape."""
    return torch.ops.aten.gelu_backward(dy, x, approximate="tanh")


def empty_gradients(downs: Sequence[Tensor], ups: Sequence[Tensor]) -> list[Tensor]:
    """Uninitialized gradients: of all down projections, stacked, [sum of ranks, K], then of each up projection."""
    return [downs[0].new_empty(sum(ranks_of(downs)), downs[0].shape[1]), *map(torch.empty_like, ups)]


def _product(left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    return float32_product(left, right) if dtype == torch.float32 else (left @ right).to(dtype)


def sum_of_products(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    """The sum of left @ right over the pairs of both sequences, accumulated in place in one new tensor."""
    total = lefts[0] @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total.addmm_(left, right)
    return total
