"""Tensors that lie one after another in memory, taken as one without a copy."""

from collections.abc import Sequence

import torch
from torch import Tensor


def one_below_another(matrices: Sequence[Tensor]) -> Tensor:
    """Matrices of one width as one, without a copy where they lie so in memory."""
    whole = in_one_memory(matrices)
    return torch.cat(list(matrices)) if whole is None else whole.view(-1, matrices[0].shape[1])


def in_one_memory(tensors: Sequence[Tensor]) -> Tensor | None:
    """All of them as one [numbers] where they lie one after another."""
    first = tensors[0]
    end = first.data_ptr()
    for tensor in tensors:
        if tensor.dtype != first.dtype or tensor.data_ptr() != end or not tensor.is_contiguous():
            return None
        end += tensor.nbytes
    if end - first.untyped_storage().data_ptr() > first.untyped_storage().nbytes():
        return None  # neighbours by chance
    return first.as_strided((sum(tensor.numel() for tensor in tensors),), (1,))
