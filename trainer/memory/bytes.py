"""The memory and the arithmetic of one training step, computed from shapes alone.

What a block keeps for the backward pass is counted layer by layer, in numbers of the compute dtype per token, as
autograd keeps them: the input of a norm, the input of a product with an adapter, both sides of a gate, and what
attention and the activation function need. Frozen products keep nothing.

The backward pass ends at the first block with an adapter; blocks before it keep nothing. Blocks are recomputed from the
first one on that it reaches. A double block keeps more than a single one (17 against 14 times the width)
for the same arithmetic. The first blocks are also recomputed last, when the activations of all later ones have been
freed, so each recomputed block lowers the peak by everything that it does not keep. Recomputing the last block never
helps: its backward pass starts at the peak, right after its forward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

from torch import nn

from trainer.models.offload import DOUBLE, NUM_SLOTS, SINGLE, copied_positions, swapped_blocks
from trainer.models.quantized import Precision, WeightFormat

# Gradients of activations that exist at the same time within a block, in widths per token: the MLP's (4 and 4, or 5 and
# 4 in a single block), attention's four and the residual's. Measured: 0.4 GiB at 1024 px.
WORK_WIDTHS = 14
GRAPH_RESERVE = 3 << 29  # bytes that stay free next to captured CUDA graphs, for work between steps
MIN_GRAPH_RESERVE = GRAPH_RESERVE // 2  # bytes of it that have to be left for the optimizer
GIB = 2**30


@dataclass(frozen=True)
class Block:
    """The sizes of one block of the transformer.

    hidden, mlp: widths of the hidden states and of the MLP. heads: attention heads. matrices, other: frozen weights of
    linear layers, and all other frozen parameters. ranks: of its adapter, by layer ("attn.to_q"). adapter: parameters
    of its adapter.
    """

    is_double: bool
    hidden: int
    heads: int
    mlp: int
    matrices: int
    other: int
    ranks: Mapping[str, int]
    adapter: int


@dataclass(frozen=True)
class Work:
    """What one training step has to compute, independent of what is recomputed or swapped.

    outside: frozen parameters outside the blocks. img_tokens, txt_tokens: per image of the largest batch. batch: images
    in it. itemsize: bytes per number of the compute dtype. trained: parameters of all adapters, CLIP's included.
    trained_itemsize: bytes of each. optimizer: bytes of its state, weight averages included. accumulates: whether a
    step has several batches. compiled: whether blocks are compiled. beside: bytes of other models on the device.
    recorded: whether steps are captured as CUDA graphs. drops: whether adapters have dropout, which keeps layers from
    being fused. through_all: whether gradients pass through all blocks, adapted or not, as they do to reach CLIP.
    """

    blocks: tuple[Block, ...]
    outside: int
    img_tokens: int
    txt_tokens: int
    batch: int
    itemsize: int
    trained: int
    trained_itemsize: int
    optimizer: int
    accumulates: bool
    compiled: bool
    beside: int = 0
    recorded: bool = False
    drops: bool = False
    through_all: bool = False

    @cached_property
    def first_in_backward(self) -> int:
        """The index of the first block that the backward pass reaches."""
        if self.through_all:
            return 0
        return next((index for index, block in enumerate(self.blocks) if block.adapter), len(self.blocks))

    @property
    def num_in_backward(self) -> int:
        """The number of blocks that the backward pass reaches."""
        return len(self.blocks) - self.first_in_backward

    def is_recomputed(self, index: int, checkpointed: int) -> bool:
        """Whether block `index` is recomputed in the backward pass if the first `checkpointed` ones it reaches are."""
        return self.first_in_backward <= index < self.first_in_backward + checkpointed

    @property
    def has_gradients(self) -> bool:
        """Whether gradients exist before a batch: from earlier batches, or because a CUDA graph adds to them."""
        return self.accumulates or self.recorded

    @property
    def num_double(self) -> int:
        return sum(block.is_double for block in self.blocks)

    @property
    def tokens(self) -> int:
        """Tokens of all images of a batch, text included."""
        return self.batch * (self.img_tokens + self.txt_tokens)

    @cached_property
    def kept(self) -> Mapping[Precision, tuple[int, ...]]:
        """Precision of the base -> bytes that each block keeps for the backward pass if it is not recomputed."""
        precisions: tuple[Precision, ...] = get_args(Precision)
        reached = self.blocks[self.first_in_backward :]
        nothing = (0,) * self.first_in_backward
        return {
            precision: nothing + tuple(kept_bytes(block, self, precision) for block in reached)
            for precision in precisions
        }


@dataclass(frozen=True)
class Choice:
    """How a run saves memory.

    precision, both_layouts: how the blocks' frozen weights are stored, as in `WeightFormat`. checkpointed: how many
    blocks are recomputed in the backward pass, from the first one on that it reaches. swapped: how many have their
    weights in host memory.
    """

    precision: Precision = "bf16"
    both_layouts: bool = False
    checkpointed: int = 0
    swapped: int = 0

    @property
    def weight_format(self) -> WeightFormat:
        """How the blocks' frozen weights are stored."""
        return WeightFormat(self.precision, self.both_layouts)


@dataclass(frozen=True)
class StepBytes:
    """The device memory of a training step, in bytes.

    base: frozen weights, other models' included. trained: adapters' parameters. optimizer: its state, weight averages
    included. activations: at the peak of the forward and backward pass, gradients included.
    """

    base: int
    trained: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        """The most that torch's allocator will have allocated."""
        return self.base + self.trained + self.optimizer + self.activations


def blocks_of(transformer: nn.Module, ranks: Mapping[str, int]) -> tuple[tuple[Block, ...], int]:
    """A transformer's blocks with an adapter of these ranks, and the number of frozen parameters outside the blocks.

    The transformer's parameters may be on the meta device. ranks: layer name ("transformer_blocks.0.attn.to_q") ->
    rank; 0 or absent: not adapted.
    """
    blocks = []
    for kind in (DOUBLE, SINGLE):
        for index, module in enumerate(transformer.get_submodule(kind).children()):
            start = f"{kind}.{index}."
            own = {name.removeprefix(start): rank for name, rank in ranks.items() if name.startswith(start) and rank}
            blocks.append(_block(module, kind == DOUBLE, own))
    inside = sum(block.matrices + block.other for block in blocks)
    return tuple(blocks), sum(parameter.numel() for parameter in transformer.parameters()) - inside


def _block(module: nn.Module, is_double: bool, ranks: Mapping[str, int]) -> Block:
    linear = {name: each for name, each in module.named_modules() if isinstance(each, nn.Linear)}
    matrices = sum(each.in_features * each.out_features for each in linear.values())
    return Block(
        is_double=is_double,
        hidden=linear["attn.to_q"].in_features,
        heads=linear["attn.to_q"].out_features // module.get_parameter("attn.norm_q.weight").numel(),
        mlp=linear["ff.net.0.proj" if is_double else "proj_mlp"].out_features,
        matrices=matrices,
        other=sum(parameter.numel() for parameter in module.parameters()) - matrices,
        ranks=ranks,
        adapter=sum((linear[name].in_features + linear[name].out_features) * rank for name, rank in ranks.items()),
    )


def step_bytes(work: Work, choice: Choice) -> StepBytes:
    """The device memory that a step with the largest batch takes with this choice."""
    return StepBytes(
        base=base_bytes(work, choice),
        trained=work.trained * work.trained_itemsize,
        optimizer=work.optimizer,
        activations=_peak_activations(work, choice),
    )


def base_bytes(work: Work, choice: Choice) -> int:
    """Bytes of frozen weights on the device, other models' included.

    Swapped blocks count as the slots on the device that they share.
    """
    sizes = [block_bytes(block, work, choice) for block in work.blocks]
    swapped = _swapped_sizes(work, sizes, choice.swapped)
    slots = min(NUM_SLOTS, len(swapped)) * max(swapped, default=0)
    return sum(sizes) - sum(swapped) + slots + work.outside * work.itemsize + work.beside


def host_bytes(work: Work, choice: Choice) -> int:
    """Bytes of host memory that swapped blocks take."""
    return sum(_swapped_sizes(work, [block_bytes(block, work, choice) for block in work.blocks], choice.swapped))


def copied_bytes(work: Work, choice: Choice) -> int:
    """Bytes of swapped blocks that are copied to the device in one forward and backward pass."""
    sizes, indices = [block_bytes(block, work, choice) for block in work.blocks], _swapped(work, choice.swapped)
    reached = sum(index < work.first_in_backward for index in indices)
    return sum(sizes[indices[position]] for position in copied_positions(len(indices), reached))


def _swapped_sizes(work: Work, sizes: Sequence[int], count: int) -> list[int]:
    return [sizes[index] for index in _swapped(work, count)]


def _swapped(work: Work, count: int) -> list[int]:
    return swapped_blocks(work.num_double, len(work.blocks) - work.num_double, count)


def block_bytes(block: Block, work: Work, choice: Choice) -> int:
    """Bytes of a block's frozen weights as this choice stores them."""
    each = work.itemsize if choice.precision == "bf16" else choice.weight_format.bytes_per_weight()
    return int(block.matrices * each) + block.other * work.itemsize


def _peak_activations(work: Work, choice: Choice) -> int:
    """The peak, found by walking backward from the last block: activations are freed, gradients are added."""
    full, checkpointed = work.kept[choice.precision], choice.checkpointed
    unit = work.tokens * work.blocks[0].hidden * work.itemsize  # a block's input is all that a recomputed block keeps
    kept = [unit if work.is_recomputed(index, checkpointed) else size for index, size in enumerate(full)]
    gradients = [block.adapter * work.trained_itemsize for block in work.blocks]
    there = work.trained * work.trained_itemsize if work.has_gradients else 0
    left, peak = sum(kept), WORK_WIDTHS * unit + there
    for index in reversed(range(work.first_in_backward, len(kept))):
        again = full[index] if work.is_recomputed(index, checkpointed) else 0
        peak = max(peak, left + again + WORK_WIDTHS * unit + there)
        left -= kept[index]
        there += 0 if work.has_gradients else gradients[index]
    return max(peak, work.trained * work.trained_itemsize)


def kept_bytes(block: Block, work: Work, precision: Precision = "bf16") -> int:
    """Bytes that autograd keeps of one block that is not recomputed, its input included. precision: of the base."""
    img, txt = work.batch * work.img_tokens, work.batch * work.txt_tokens
    attention = (img + txt) * block.heads * 4  # one float32 per token and head
    inputs = _inputs_as_kept(work, precision)
    if block.is_double:
        streams = ((img, "norm1.linear", _IMG), (txt, "norm1_context.linear", _TXT))
        numbers = sum(_stream_numbers(block, tokens, gate, names, work, inputs) for tokens, gate, names in streams)
    else:
        numbers = _single_numbers(block, img + txt, work, inputs)
    casts = 0 if work.compiled or work.trained_itemsize == work.itemsize else block.adapter
    return int((numbers + casts) * work.itemsize) + attention


@dataclass(frozen=True)
class _Inputs:
    """How many numbers of the compute dtype are kept per number of an input that an adapter multiplies.

    plain: for most inputs. attended: for attention's output, which attention also keeps. activated: for GELU's output,
    whose input is kept in any case. values: for attention's values.
    """

    plain: float = 1.0
    attended: float = 0.0
    activated: float = 0.0
    values: float = 0.0


def _inputs_as_kept(work: Work, precision: Precision) -> _Inputs:
    if work.drops or precision in ("int8", "nf4"):  # layers are not fused
        return _Inputs(activated=1.0)
    if precision == "fp8":
        eighth = 1 / work.itemsize
        return _Inputs(plain=eighth, attended=eighth, activated=eighth, values=1.0)
    return _Inputs()


_IMG = ("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "ff.net.0.proj", "ff.net.2")
_TXT = (
    "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj",
    "attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2",
)  # fmt: skip
_ONE = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")


def _stream_numbers(
    block: Block, tokens: int, modulation: str, names: Sequence[str], work: Work, inputs: _Inputs
) -> float:
    ranks = [block.ranks.get(name, 0) for name in names]
    *qkv, out, up, down = (rank > 0 for rank in ranks)
    modulated, normed = modulation in block.ranks, 0 if work.compiled else 1
    widths = 2 + 2 + 3 + 1  # inputs of both norms; q and k before their norms; q, k, v; attention's output
    widths += inputs.plain * (any(qkv) + up) + inputs.values * any(qkv)
    apart = work.batch > 1 and not inputs.attended  # text and image are copied apart unless the batch is one image
    widths += out * (inputs.attended + apart)
    widths += modulated * (2 + 2 * normed)  # both gates; both scales, since a compiled block recomputes the norm
    return tokens * (widths * block.hidden + (1 + inputs.activated * down) * block.mlp + sum(ranks))


def _single_numbers(block: Block, tokens: int, work: Work, inputs: _Inputs) -> float:
    ranks = [block.ranks.get(name, 0) for name in _ONE]
    *first, last = (rank > 0 for rank in ranks)
    modulated, normed = "norm.linear" in block.ranks, 0 if work.compiled else 1
    widths = 1 + 2 + 3 + 1 + inputs.plain * any(first) + inputs.attended * last + modulated * (1 + normed)
    return tokens * (widths * block.hidden + (1 + inputs.activated * last) * block.mlp + sum(ranks))


def step_flops(work: Work, checkpointed: int) -> float:
    """Floating-point operations of a forward and backward pass, without the adapter's, which are few.

    checkpointed: how many blocks are recomputed, from the first one on that the backward pass reaches. A product counts
    twice there, forward and for the gradient of its input. Attention's backward pass counts 2.5 times.
    """
    total = 0.0
    for index in range(len(work.blocks)):
        products, attention = _block_flops(work, index)
        total += products + attention + (products + 2.5 * attention if index >= work.first_in_backward else 0)
        total += products + attention if work.is_recomputed(index, checkpointed) else 0
    return total


def forward_flops(work: Work) -> float:
    """Floating-point operations of a forward pass without the adapter."""
    return sum(sum(_block_flops(work, index)) for index in range(len(work.blocks)))


def _block_flops(work: Work, index: int) -> tuple[float, float]:
    """Of a block's forward pass: those of its products, and of its attention."""
    block = work.blocks[index]
    per_token = 4 * block.hidden**2 + 2 * block.hidden * block.mlp
    return 2 * per_token * work.tokens, 4 * work.batch * (work.img_tokens + work.txt_tokens) ** 2 * block.hidden
