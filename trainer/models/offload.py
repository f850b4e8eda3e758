"""Block swap: the frozen weights of some blocks stay in host memory and are copied to the device when needed.

A swapped block's weights form one piece of page-locked host memory. The device has a few slots, each as large as the
largest swapped block. The n-th swapped block always uses slot n modulo their number, and its parameters point there
permanently; only the bytes in a slot change. So whatever autograd or a compiled block holds of a parameter (a
transposed view, an address, a guard) stays valid, as long as the right bytes are in the slot before the block runs,
forward, backward or recomputed.

Copies can be captured in a CUDA graph together with the computation. A captured graph relies on the bytes that are in
the slots when a replay starts. Therefore `rewind` is called before a capture and is the last thing captured.
"""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainer.models.quantized import QuantizedLinear

NUM_SLOTS = 2  # one in use, one being filled
DOUBLE, SINGLE = "transformer_blocks", "single_transformer_blocks"
ALIGNMENT = 256  # bytes; compiled kernels and tensor cores expect aligned addresses


def swappable_order(num_double: int, num_single: int) -> list[int]:
    """Indices of the blocks that may be swapped, in order of preference; indices count double blocks, then single ones.

    Single blocks come first, because their slot is less than half of a double block's. The first block of each kind
    stays on the device, for code that inspects one block before training.
    """
    return [*range(num_double + 1, num_double + num_single), *range(1, num_double)]


def swapped_blocks(num_double: int, num_single: int, count: int) -> list[int]:
    """Indices of the `count` blocks to swap (or of all that can be), ascending and spread as evenly as possible.

    Indices count double blocks, then single ones; single blocks are taken first. While the blocks in between run, the
    next swapped block's weights are copied.
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
    """Keeps the weights of the blocks at `indices` in host memory; call `load` before each of them runs.

    Their frozen parameters and buffers, on whatever device they are, are packed into host memory, page-locked for a
    GPU. From then on they point into one of two slots on `device`, into which `load` copies the weights. Trained
    parameters stay where they are. On the CPU the same is done with ordinary copies.
    """

    def __init__(self, blocks: Sequence[nn.Module], indices: Sequence[int], device: torch.device):
        self.positions = {index: position for position, index in enumerate(sorted(indices))}
        frozen = [_pieces(blocks[index]) for index in self.positions]
        sizes = [sum(piece.padded_bytes for piece in pieces) for pieces in frozen]
        slots = min(NUM_SLOTS, len(frozen))
        self.slots = [torch.empty(max(sizes), dtype=torch.uint8, device=device) for _ in range(slots)]
        self.hosts = []
        for position, (pieces, size) in enumerate(zip(frozen, sizes, strict=True)):
            self.hosts.append(_packed(pieces, size, pin=device.type == "cuda"))
            for piece, place in _places(self.slots[position % slots], pieces):
                piece.move_to(place)  # frees the previous memory before the next block is packed
        self.held: list[int | None] = [None] * slots  # whose bytes a slot has, or is receiving
        self.copying = _CopyStream(device, slots) if device.type == "cuda" else None

    @property
    def host_bytes(self) -> int:
        """Bytes of weights in host memory."""
        return sum(len(host) for host in self.hosts)

    def load(self, index: int, direction: int = 1, last: int = 0) -> None:
        """Make block `index`'s weights available to what is enqueued next, and start copying the next swapped block's.

        direction: 1 in the forward pass, -1 in the backward pass, where the next block is the preceding one. last: the
        index of the block at which the backward pass ends; the next block after it is the first one of the next forward
        pass. Never blocks the host on a GPU. Does nothing for a block that is not swapped.
        """
        position = self.positions.get(index)
        if position is None:
            return
        if self.copying:
            self.copying.mark()
        first = sum(other < last for other in self.positions)
        for ahead in range(len(self.slots)):
            wanted = position + direction * ahead
            if direction < 0 and 0 <= wanted < first:
                wanted %= len(self.slots)
            if 0 <= wanted < len(self.hosts):
                self._fetch(wanted)
        if self.copying:
            self.copying.wait_for(position % len(self.slots))

    def rewind(self) -> None:
        """Load the first swapped blocks' weights into the slots, as after a backward pass, with no copy in flight.

        Call it before a CUDA graph is captured, and as the last thing captured.
        """
        if self.copying:
            self.copying.mark()
        for position in range(len(self.slots)):
            self._fetch(position)
            if self.copying:
                self.copying.wait_for(position)

    def invalidate(self) -> None:
        """Treat the slots as empty. Call it after capturing a CUDA graph, whose copies have not been executed."""
        self.held = [None] * len(self.slots)
        if self.copying:
            self.copying.is_under_way = [False] * len(self.slots)

    def load_in_backward(
        self, index: int, txt: torch.Tensor | None, img: torch.Tensor, last: int = 0
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Return (txt, img) unchanged, but so that the backward pass calls `load` before it reaches the block.

        Use the returned tensors in place of those given. index: the block that they come from. txt: None if img holds
        text and image tokens as one sequence. last: the index of the block at which the backward pass ends.
        """
        outputs = [img] if txt is None else [txt, img]
        if index not in self.positions or not any(output.requires_grad for output in outputs):
            return txt, img
        *before, img = _LoadInBackward.apply(self, index, last, *outputs)  # type: ignore[misc]
        return (before[0] if before else None), img

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
    """Copies to the device concurrently with the computation, each after the last use of its slot."""

    def __init__(self, device: torch.device, slots: int):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.enqueued = torch.cuda.Event()  # the computation so far
        self.copied = [torch.cuda.Event() for _ in range(slots)]
        self.is_under_way = [False] * slots  # a copy that the computation does not wait for yet

    def mark(self) -> None:
        """Make later copies wait for all computation enqueued so far."""
        self.enqueued.record(torch.cuda.current_stream(self.device))

    def copy(self, slot: int, target: torch.Tensor, host: torch.Tensor) -> None:
        self.stream.wait_event(self.enqueued)
        with torch.cuda.stream(self.stream):
            target.copy_(host, non_blocking=True)
            self.copied[slot].record(self.stream)
        self.is_under_way[slot] = True

    def wait_for(self, slot: int) -> None:
        """Make later computation wait for the slot's last copy, once: a capture may only wait for its own copies."""
        if self.is_under_way[slot]:
            torch.cuda.current_stream(self.device).wait_event(self.copied[slot])
            self.is_under_way[slot] = False


class _LoadInBackward(torch.autograd.Function):
    """The identity on a block's outputs: one node whose backward runs before the block's."""

    @staticmethod
    def forward(ctx, swap: BlockSwap, index: int, last: int, *outputs: torch.Tensor):  # type: ignore[override]
        ctx.swap, ctx.index, ctx.last = swap, index, last
        ctx.set_materialize_grads(False)
        # keeps the strides, which view_as changes for a single image
        return tuple(output[...] for output in outputs)

    @staticmethod
    def backward(ctx, *gradients):  # type: ignore[override]
        ctx.swap.load(ctx.index, direction=-1, last=ctx.last)
        return None, None, None, *gradients


def swap_blocks(transformer: nn.Module, count: int, device: torch.device) -> None:
    """Keep the weights of `count` of the transformer's blocks in host memory from now on; 0 changes nothing.

    The `BlockSwap` becomes an attribute of the transformer; `block_swap` returns it.
    """
    double, single = (list(transformer.get_submodule(kind).children()) for kind in (DOUBLE, SINGLE))
    indices = swapped_blocks(len(double), len(single), count)
    if indices:
        transformer.block_swap = BlockSwap([*double, *single], indices, device)  # type: ignore[assignment]


def block_swap(transformer: nn.Module) -> BlockSwap | None:
    """The transformer's `BlockSwap`; None if no blocks are swapped."""
    return getattr(transformer, "block_swap", None)


def copied_positions(count: int, reached: int = 0) -> list[int]:
    """The swapped blocks that one step copies to the device, in order, by their position among all `count` of them.

    reached: the position of the first one that the backward pass reaches (`count`: it reaches none). Blocks that are
    still in a slot when their turn comes are not copied. Each step starts with the first blocks in the slots.
    """
    slots = min(NUM_SLOTS, count)
    held, copied = list(range(slots)), []
    for position in (*range(count), *reversed(range(reached, count)), *range(slots)):
        if held[position % slots] != position:
            held[position % slots] = position
            copied.append(position)
    return copied


def swapped_names(num_double: int, num_single: int, count: int) -> tuple[str, ...]:
    """Prefixes of diffusers' names of the swapped blocks' tensors, such as "transformer_blocks.3.".

    count: how many blocks are swapped.
    """
    return tuple(
        f"{DOUBLE}.{index}." if index < num_double else f"{SINGLE}.{index - num_double}."
        for index in swapped_blocks(num_double, num_single, count)
    )


@dataclass(frozen=True)
class _Piece:
    """Frozen tensors of a block that share memory: a parameter, or layers' parts of a matrix and the matrix itself."""

    tensors: Sequence[torch.Tensor]

    @property
    def begin(self) -> int:
        """The first byte that any of the tensors uses."""
        return min(map(_offset, self.tensors))

    @property
    def num_bytes(self) -> int:
        """Bytes from the first to the last one that is used."""
        return max(_offset(tensor) + _span(tensor) for tensor in self.tensors) - self.begin

    @property
    def padded_bytes(self) -> int:
        """Bytes that it takes in a slot."""
        return -(-self.num_bytes // ALIGNMENT) * ALIGNMENT

    def raw(self) -> torch.Tensor:
        """Its bytes, [num_bytes] uint8."""
        first = self.tensors[0].detach()
        storage = torch.empty(0, dtype=torch.uint8, device=first.device).set_(first.untyped_storage())
        return storage[self.begin : self.begin + self.num_bytes]

    def move_to(self, memory: torch.Tensor) -> None:
        """Make all of its tensors point into `memory`, [num_bytes] uint8, at their present offsets."""
        begin = self.begin
        for tensor in self.tensors:
            own = memory[_offset(tensor) - begin :][: _span(tensor)].view(tensor.dtype)
            tensor.data = own.as_strided(tensor.shape, tensor.stride())


def _offset(tensor: torch.Tensor) -> int:
    return int(tensor.storage_offset()) * tensor.element_size()


def _span(tensor: torch.Tensor) -> int:
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() if tensor.numel() else 0


def _pieces(block: nn.Module) -> list[_Piece]:
    pieces: dict[int, list[torch.Tensor]] = {}
    for tensor in _frozen_tensors(block):
        pieces.setdefault(tensor.untyped_storage().data_ptr(), []).append(tensor)
    return [_Piece(tensors) for tensors in pieces.values()]


def _frozen_tensors(block: nn.Module) -> Iterator[torch.Tensor]:
    yield from (parameter for parameter in block.parameters() if not parameter.requires_grad)
    yield from block.buffers()
    for module in block.modules():
        if isinstance(module, QuantizedLinear) and module.joined:
            yield from (tensor for tensor in module.joined if tensor is not None)


def _packed(pieces: Sequence[_Piece], size: int, pin: bool) -> torch.Tensor:
    """The pieces' bytes, concatenated in host memory, page-locked for a GPU."""
    host = torch.empty(size, dtype=torch.uint8)
    for piece, place in _places(host, pieces):
        place.copy_(piece.raw())
    if pin:
        _lock_pages(host)
    return host


def _lock_pages(host: torch.Tensor) -> None:
    """Lock existing memory: torch allocates page-locked memory in powers of two, up to twice as much."""
    runtime: Any = torch.cuda.cudart()
    address = host.data_ptr()
    torch.cuda.check_error(int(runtime.cudaHostRegister(address, len(host), 0)))
    weakref.finalize(host, runtime.cudaHostUnregister, address)


def _places(memory: torch.Tensor, pieces: Sequence[_Piece]) -> Iterator[tuple[_Piece, torch.Tensor]]:
    """Each piece with its place [num_bytes] in `memory`; a block's host memory and its slot have the same layout."""
    begin = 0
    for piece in pieces:
        yield piece, memory[begin : begin + piece.num_bytes]
        begin += piece.padded_bytes
