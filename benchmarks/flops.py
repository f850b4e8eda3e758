"""The arithmetic of one FLUX LoRA step, counted from shapes.

A product of [m, k] and [k, n] counts as 2 m k n. Included are the base model's products, forward and back to their
inputs (its weights are frozen), the adapters' products, attention, and what checkpointing recomputes. Embeddings count
forward only, because no gradient reaches them. Norms, activations and RoPE are not products and are not counted.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields

from torch import nn

DOUBLE, SINGLE = "transformer_blocks.", "single_transformer_blocks."
LAST_LAYERS = ("proj_out",)  # outside the blocks, but reached by the gradient
# number of attention products that grow with the square of the length: scores and values forward; backward recomputes
# the scores, then computes the gradients of scores, values, queries and keys
ATTENTION_FORWARD, ATTENTION_BACKWARD = 2, 5

Sizes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one forward and backward pass."""

    base_forward: int = 0
    base_backward: int = 0
    attention_forward: int = 0
    attention_backward: int = 0
    adapter_forward: int = 0
    adapter_backward: int = 0
    recomputed: int = 0

    @property
    def needed(self) -> int:
        """Without recomputation; the share of the device's peak is based on this."""
        return self.done - self.recomputed

    @property
    def done(self) -> int:
        """With recomputation."""
        return sum(getattr(self, field.name) for field in fields(self))

    def __add__(self, other: "Flops") -> "Flops":
        return Flops(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Tokens:
    """The shape of a batch: tokens of each image, tokens of its text, and number of images."""

    img: int
    txt: int
    batch: int = 1


def linear_sizes(transformer: nn.Module) -> dict[str, tuple[int, int]]:
    """(in features, out features) of every linear layer of diffusers' FLUX, by name; weights are not read."""
    found = ((name, module) for name, module in transformer.named_modules() if isinstance(module, nn.Linear))
    return {name: (module.in_features, module.out_features) for name, module in found}


def block_of(name: str) -> str | None:
    """The block of a layer, `transformer_blocks.0`; None outside the blocks."""
    return ".".join(name.split(".")[:2]) if name.startswith((DOUBLE, SINGLE)) else None


def blocks(sizes: Sizes) -> list[str]:
    """The blocks in the order of the forward pass."""
    return list(dict.fromkeys(block for name in sizes if (block := block_of(name))))


def in_backward(sizes: Sizes, ranks: Mapping[str, int]) -> list[str]:
    """The blocks that the backward pass reaches: all from the first adapted one on, in the order of `blocks`."""
    order, adapted = blocks(sizes), {block_of(name) for name, rank in ranks.items() if rank}
    first = next((index for index, block in enumerate(order) if block in adapted), len(order))
    return order[first:]


def pass_flops(sizes: Sizes, ranks: Mapping[str, int], tokens: Tokens, recomputed: Collection[str] = ()) -> Flops:
    """The arithmetic of one forward and backward pass.

    sizes: see `linear_sizes`. ranks: the rank of each layer's adapter, by name; other layers have none. recomputed: the
    checkpointed blocks. Blocks before the first adapted one run forward only.
    """
    order, trained = blocks(sizes), set(in_backward(sizes, ranks))
    total = Flops()
    for block in (*order, None):
        layers = {name: size for name, size in sizes.items() if block_of(name) == block}
        one = sum((_layer(name, size, ranks, tokens, block in trained) for name, size in layers.items()), Flops())
        if block:
            one += _attention(_width(layers), tokens, block in trained)
        if block in recomputed:
            one += Flops(recomputed=one.base_forward + one.attention_forward + one.adapter_forward)
        total += one
    return total


def _layer(name: str, size: tuple[int, int], ranks: Mapping[str, int], tokens: Tokens, trained: bool) -> Flops:
    (inputs, outputs), rank, rows = size, ranks.get(name, 0), _rows(name, tokens)
    base, adapter = 2 * rows * inputs * outputs, 2 * rows * rank * (inputs + outputs)
    goes_back = (trained and not _is_modulation(name)) or name in LAST_LAYERS
    # backward through the adapter: both weights, the hidden values, and the input if it needs a gradient
    to_input = 2 * rows * rank * inputs if goes_back else 0
    adapter_backward = 2 * rows * rank * (inputs + 2 * outputs) + to_input if rank else 0
    return Flops(
        base_forward=base,
        base_backward=base if goes_back else 0,
        adapter_forward=adapter,
        adapter_backward=adapter_backward,
    )


def _rows(name: str, tokens: Tokens) -> int:
    """The number of rows of a layer's input."""
    if name.startswith("time_text_embed.") or name == "norm_out.linear" or _is_modulation(name):
        return tokens.batch
    if name.startswith(SINGLE):
        return tokens.batch * (tokens.img + tokens.txt)
    of_text = ("context_embedder", ".add_", ".to_add_out", ".ff_context.")
    return tokens.batch * (tokens.txt if any(part in name for part in of_text) else tokens.img)


def _is_modulation(name: str) -> bool:
    """Whether a block's layer reads the time embedding, which needs no gradient."""
    return block_of(name) is not None and name.split(".")[2].startswith("norm")


def _width(layers: Sizes) -> int:
    return next(outputs for name, (_, outputs) in layers.items() if name.endswith(".attn.to_q"))


def _attention(width: int, tokens: Tokens, trained: bool) -> Flops:
    square = 2 * tokens.batch * (tokens.img + tokens.txt) ** 2 * width
    back = ATTENTION_BACKWARD * square if trained else 0
    return Flops(attention_forward=ATTENTION_FORWARD * square, attention_backward=back)
