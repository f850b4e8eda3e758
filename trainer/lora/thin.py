"""The thin products of adapters on one input: x A_iᵀ for all layers in one, and their gradients.

They belong inside of operators that the compiler takes as they are: it would turn what is written in place
into copies.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def rows_of(x: Tensor) -> Tensor:
    """[..., K] as [tokens, K]."""
    return x.reshape(-1, x.shape[-1])


def columns_of(inputs: Sequence[Tensor]) -> list[int]:
    """How many numbers of a token each part of an input has."""
    return [x.shape[-1] for x in inputs]


def ranks_of(downs: Sequence[Tensor]) -> list[int]:
    """The rank of each adapter."""
    return [len(down) for down in downs]


def split(matrix: Tensor, widths: Sequence[int]) -> tuple[Tensor, ...]:
    """Its columns in groups of these widths."""
    return torch.split(matrix, list(widths), dim=1)


def in_precision_of_product(
    downs: Sequence[Tensor], ups: Sequence[Tensor], dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """All down projections [sum of ranks, K], one below the other, and each up projection: one kernel for all."""
    stack = downs[0].new_empty(sum(ranks_of(downs)), downs[0].shape[1], dtype=dtype)
    casts = [up if up.dtype == dtype else torch.empty_like(up, dtype=dtype) for up in ups]
    copied = [(cast, up) for cast, up in zip(casts, ups, strict=True) if cast is not up]
    copied += zip(stack.split(ranks_of(downs)), downs, strict=True)
    torch._foreach_copy_([target for target, _ in copied], [source for _, source in copied])
    return stack, casts


def hidden_values(rows: Sequence[Tensor], down: Tensor) -> Tensor:
    """What all down projections give, [tokens, sum of ranks]. rows: the parts of the input, each [tokens, K_j]."""
    return sum_of_products(rows, [part.t() for part in split(down, columns_of(rows))])


def adapter_gradients(
    dys: Sequence[Tensor],
    hidden: Tensor,
    rows: Sequence[Tensor],
    downs: Sequence[Tensor],
    ups: Sequence[Tensor],
    casts: Sequence[Tensor],
    scale: float,
) -> tuple[Tensor, list[Tensor]]:
    """The gradient of the hidden values [tokens, sum of ranks], and those of all downs, then of all ups.

    dys: of each layer's output, [tokens, N_i]; casts: the up projections in the precision of the product.
    """
    ranks = ranks_of(downs)
    d_hidden, scaled = torch.empty_like(hidden), hidden * scale
    d_ups = []
    for dy, up, own, d_own in zip(dys, casts, split(scaled, ranks), split(d_hidden, ranks), strict=True):
        torch.mm(dy, up, out=d_own)
        d_ups.append(dy.t() @ own)
    d_hidden *= scale
    d_downs = torch.cat([d_hidden.t() @ x for x in rows], dim=1) if len(rows) > 1 else d_hidden.t() @ rows[0]
    found = [torch.empty_like(each) for each in (*downs, *ups)]  # the parts of d_downs are one tensor's
    torch._foreach_copy_(found, [*d_downs.split(ranks), *d_ups])
    return d_hidden, found


def sum_of_products(lefts: Sequence[Tensor], rights: Sequence[Tensor]) -> Tensor:
    """The sum of left @ right over pairs, each product added onto what is there."""
    total = lefts[0] @ rights[0]
    for left, right in zip(lefts[1:], rights[1:], strict=True):
        total.addmm_(left, right)
    return total
