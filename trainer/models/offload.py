"""Block swap: the frozen weights of some blocks wait in host memory and come to the device when needed.

A swapped block's weights lie in one piece of page-locked host memory. On the device there are a few
slots, each as large as the largest swapped block; the n-th swapped block always uses slot n modulo
their number, and its parameters point there for good. Only the bytes in a slot change. So nothing that
autograd or a compiled block keeps of a parameter (a transposed view, an address, a guard) is ever
wrong or new, as long as the right bytes are there before the block runs, forward, backward or again.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

NUM_SLOTS = 2  # one in use, one being filled
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
ALIGNMENT = 256  # bytes; what compiled kernels and tensor cores expect of an address


def swappable_order(num_double: int, num_single: int) -> list[int]:
    """The blocks that may be swapped, counted through both kinds in the order in which they run.

    Single blocks go first, since a slot for one is less than half a double block's. The first of
    each kind stays on the device: what looks at one block before training finds it there.
    """
    return [*range(num_double + 1, num_double + num_single), *range(1, num_double)]


def swapped_blocks(num_double: int, num_single: int, count: int) -> list[int]:
    """Which `count` blocks are swapped, in the order in which they run: as far apart as can be.

    The blocks in between are the time in which the next one's weights are copied.
    """
    order = swappable_order(num_double, num_single)
    count = min(count, len(order))
    singles = order[: max(num_single - 1, 0)]
    doubles = order[len(singles) :]
    of_singles = min(count, len(singles))
    return sorted(_spread(singles, of_singles) + _spread(doubles, count - of_singles))


def _spread(items: Sequence[int], count: int) -> list[int]:
    return [items[(2 * place + 1) * len(items) // (2 * count)] for place in range(count)]


class BlockSwap:
    """Keeps the weights of `indices` of `blocks` in host memory; call `bring` before each of them runs.

    The frozen parameters and the buffers of these blocks may be on any device when it is made, and
    point into the slots afterwards. Trained parameters stay where they are. On the CPU the same is
    done with plain copies.
    """

    def __init__(self, blocks: Sequence[nn.Module], indices: Sequence[int], device: torch.device):
        self.positions = {index: position for position, index in enumerate(sorted(indices))}
        frozen = [list(_frozen_tensors(blocks[index])) for index in self.positions]
        sizes = [sum(map(_padded_bytes, tensors)) for tensors in frozen]
        pin = device.type == "cuda"
        self.hosts = [_packed(tensors, size, pin) for tensors, size in zip(frozen, sizes, strict=True)]
        slots = min(NUM_SLOTS, len(frozen))
        self.slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(slots)]
        self.held: list[int | None] = [None] * slots  # which position's bytes a slot has, or is getting
        for position, tensors in enumerate(frozen):
            _point_into(self.slots[position % slots], tensors)
        self.copying = _CopyStream(device, slots) if device.type == "cuda" else None

    @property
    def host_bytes(self) -> int:
        """What waits in host memory."""
        return sum(len(host) for host in self.hosts)

    def bring(self, index: int, direction: int = 1) -> None:
        """Have the block's weights in place for what is enqueued next, and fetch those of the blocks after it.

        direction: 1 in forward, -1 in backward, where the next block is the one before. Never waits
        on the host. A block that is not swapped needs nothing.
        """
        position = self.positions.get(index)
        if position is None:
            return
        if self.copying:
            self.copying.mark()
        for ahead in range(len(self.slots)):
            if 0 <= position + direction * ahead < len(self.hosts):
                self._fetch(position + direction * ahead)
        if self.copying:
            self.copying.wait_for(position % len(self.slots))

    def bring_for_backward(self, index: int, txt: torch.Tensor, img: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's outputs, unchanged; their gradients bring its weights before its backward begins."""
        if index not in self.positions or not (txt.requires_grad or img.requires_grad):
            return txt, img
        return _BringInBackward.apply(self, index, txt, img)  # type: ignore[return-value]

    def _fetch(self, position: int) -> None:
        slot = position % len(self.slots)
        if self.held[slot] == position:
            return
        self.held[slot] = position
        host = self.hosts[position]
        target = self.slots[slot][: len(host)]
        if self.copying:
            self.copying.copy(slot, target, host)
        else:
            target.copy_(host)


class _CopyStream:
    """Copies to the device beside the computation, each after what used its slot before."""

    def __init__(self, device: torch.device, slots: int):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.enqueued = torch.cuda.Event()  # the computation so far
        self.copied = [torch.cuda.Event() for _ in range(slots)]

    def mark(self) -> None:
        """Let later copies start only after all computation that was enqueued so far."""
        self.enqueued.record(torch.cuda.current_stream(self.device))

    def copy(self, slot: int, target: torch.Tensor, host: torch.Tensor) -> None:
        self.stream.wait_event(self.enqueued)
        with torch.cuda.stream(self.stream):
            target.copy_(host, non_blocking=True)
            self.copied[slot].record(self.stream)

    def wait_for(self, slot: int) -> None:
        """Let later computation start only after the slot's last copy."""
        torch.cuda.current_stream(self.device).wait_event(self.copied[slot])


class _BringInBackward(torch.autograd.Function):
    """The identity of a block's two outputs: one node, so that its backward is before all of the block's."""

    @staticmethod
    def forward(ctx, swap: BlockSwap, index: int, txt: torch.Tensor, img: torch.Tensor):  # type: ignore[override]
        ctx.swap, ctx.index = swap, index
        ctx.set_materialize_grads(False)
        return txt[...], img[...]  # with their very strides, which view_as changes for one picture

    @staticmethod
    def backward(ctx, txt, img):  # type: ignore[override]
        ctx.swap.bring(ctx.index, direction=-1)
        return None, None, txt, img


def swap_blocks(transformer: nn.Module, count: int, device: torch.device) -> None:
    """Let the weights of `count` blocks wait in host memory from now on; `block_swap` finds them."""
    double, single = (list(transformer.get_submodule(kind).children()) for kind in (DOUBLE, SINGLE))
    indices = swapped_blocks(len(double), len(single), count)
    if indices:
        transformer.block_swap = BlockSwap([*double, *single], indices, device)  # type: ignore[assignment]


def block_swap(transformer: nn.Module) -> BlockSwap | None:
    """What `swap_blocks` has made of this transformer."""
    return getattr(transformer, "block_swap", None)


def swapped_names(num_double: int, num_single: int, count: int) -> tuple[str, ...]:
    """How the names of the swapped blocks' tensors begin."""
    return tuple(
        f"{DOUBLE}.{index}." if index < num_double else f"{SINGLE}.{index - num_double}."
        for index in swapped_blocks(num_double, num_single, count)
    )


def _frozen_tensors(block: nn.Module) -> Iterator[torch.Tensor]:
    yield from (parameter for parameter in block.parameters() if not parameter.requires_grad)
    yield from block.buffers()


def _padded_bytes(tensor: torch.Tensor) -> int:
    return -(-tensor.numel() * tensor.element_size() // ALIGNMENT) * ALIGNMENT


def _packed(tensors: Sequence[torch.Tensor], size: int, pin: bool) -> torch.Tensor:
    """The tensors' bytes one after another in host memory, page-locked for a GPU."""
    host = torch.empty(size, dtype=torch.uint8)
    offset = 0
    for tensor in tensors:
        raw = tensor.detach().contiguous().view(-1).view(torch.uint8)
        host[offset : offset + len(raw)].copy_(raw)
        offset += _padded_bytes(tensor)
    if pin:
        _lock_pages(host)
    return host


def _lock_pages(host: torch.Tensor) -> None:
    """Register what is there: torch's own page-locked memory comes in powers of two, up to twice as much."""
    runtime: Any = torch.cuda.cudart()
    address = host.data_ptr()
    torch.cuda.check_error(int(runtime.cudaHostRegister(address, len(host), 0)))
    weakref.finalize(host, runtime.cudaHostUnregister, address)


def _point_into(slot: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    offset = 0
    for tensor in tensors:
        num_bytes = tensor.numel() * tensor.element_size()
        tensor.data = slot[offset : offset + num_bytes].view(tensor.dtype).view(tensor.shape)
        offset += _padded_bytes(tensor)
