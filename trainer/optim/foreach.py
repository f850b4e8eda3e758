"""Lists of tensors in chunks, so that a foreach operation never needs a full-size temporary."""

from collections.abc import Callable, Hashable, Iterable, Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25  # 128 MiB of float32: large enough to hide kernel launches, small next to the adapter


def chunks(
    tensors: Iterable[Tensor], kind: Callable[[Tensor], Hashable], limit: int | None = None
) -> Iterator[list[Tensor]]:
    """Lists of tensors of one `kind`, with at most `limit` elements in total; a larger tensor is a list of its own.

    kind: the tensors for which it returns equal values may share a list. limit: 2**25 by default.
    """
    limit = CHUNK_ELEMENTS if limit is None else limit
    kinds: dict[Hashable, list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault(kind(tensor), []).append(tensor)
    for members in kinds.values():
        chunk, size = [], 0
        for tensor in members:
            if chunk and size + tensor.numel() > limit:
                yield chunk
                chunk, size = [], 0
            chunk.append(tensor)
            size += tensor.numel()
        yield chunk


def flat_copies(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A flat float32 tensor with copies of all `tensors`, and views of it in their shapes."""
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.empty(sum(sizes), dtype=torch.float32, device=tensors[0].device)
    parts = [part.view(like.shape) for part, like in zip(flat.split(sizes), tensors, strict=True)]
    torch._foreach_copy_(parts, tensors)
    return flat, parts


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors themselves if they are float32, else float32 copies."""
    return [tensor.float() for tensor in tensors]


def with_gradient(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters whose `.grad` is not None."""
    return [parameter for parameter in parameters if parameter.grad is not None]


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The `.grad` of each parameter; parameters without one are left out."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradients_or_zeros(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of all parameters; a missing one is set to zeros, in `.grad` too."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
