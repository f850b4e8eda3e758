"""Lists of tensors in pieces, so that a foreach operation never needs a full-size temporary."""

from collections.abc import Callable, Hashable, Iterable, Iterator

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25  # 128 MiB of fp32: large enough to hide launches, small beside the adapter


def chunks(
    tensors: Iterable[Tensor], kind: Callable[[Tensor], Hashable], limit: int | None = None
) -> Iterator[list[Tensor]]:
    """Lists of one `kind`, of at most `limit` elements together; a tensor larger than that stands alone."""
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
    """A flat fp32 tensor that holds copies of all of `tensors`, and its parts in their shapes."""
    sizes = [tensor.numel() for tensor in tensors]
    flat = torch.empty(sum(sizes), dtype=torch.float32, device=tensors[0].device)
    parts = [part.view(like.shape) for part, like in zip(flat.split(sizes), tensors, strict=True)]
    torch._foreach_copy_(parts, tensors)
    return flat, parts


def in_float32(tensors: list[Tensor]) -> list[Tensor]:
    """The tensors themselves where they are fp32, else fp32 copies."""
    return [tensor.float() for tensor in tensors]


def with_gradient(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The parameters that have a gradient this step."""
    return [parameter for parameter in parameters if parameter.grad is not None]


def gradients(parameters: list[Tensor]) -> list[Tensor]:
    """The gradients of parameters that all have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def gradients_or_zeros(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of all parameters; one that has none gets zeros, in `.grad` too."""
    found = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        found.append(parameter.grad)
    return found
