"""Tensors that are adjacent in memory, viewed as one without a copy."""

from collections.abc import Sequence

import torch
from torch import Tensor


def stack_rows(matrices: Sequence[Tensor]) -> Tensor:
    """Matrices [N_i, K] stacked to [sum of N_i, K]; a view where they are adjacent in memory, else a copy."""
    joined = as_one_vector(matrices)
    return torch.cat(list(matrices)) if joined is None else joined.view(-1, matrices[0].shape[1])


def as_one_vector(tensors: Sequence[Tensor]) -> Tensor | None:
    """A one-dimensional view of all tensors; None if they are not adjacent in memory, in this order.

    They must be contiguous, of one dtype, and parts of one allocation.
    """
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.dtype != first.dtype or tensor.data_ptr() != end or not tensor.is_contiguous():
            return None
        end += tensor.nbytes
    if end - first.untyped_storage().data_ptr() > first.untyped_storage().nbytes():
        return None  # adjacent by chance, in separate allocations
    return first.as_strided((sum(tensor.numel() for tensor in tensors),), (1,))
