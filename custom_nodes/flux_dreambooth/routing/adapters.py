"""LoRA that is added to some tokens only, by forward hooks on the model's linear layers. Uses torch.

For a layer y = W x + b and adapters i with masks m_i over the tokens,

    y_t + sum over i of m_i(t) * B_i A_i x_t

A modulation layer reads one vector for all tokens. Its output becomes one for each token where an adapter acts on it,
[B, tokens, N], so that scale, shift and gate of a block differ between tokens, too.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Stream = Literal["image", "text", "both"]
TEXT_PARTS = (".attn.add_", ".attn.to_add_out", ".ff_context.", ".norm1_context.")


@dataclass(frozen=True)
class MaskedLayer:
    """One adapter on one linear layer.

    adapter: its index; layer: the name of the linear layer in the model; stream: whose tokens the layer reads; down:
    [r, in]; up: [out, r], the scale included; rows: the layer's outputs that the adapter changes, None for all.
    """

    adapter: int
    layer: str
    stream: Stream
    down: Tensor
    up: Tensor
    rows: slice | None = None


@dataclass(frozen=True)
class TokenMasks:
    """Where each adapter acts: text [B, adapters, L] and image [B, adapters, I], from 0 (not at all) to 1."""

    text: Tensor
    image: Tensor

    def of(self, adapter: int, stream: Stream) -> Tensor:
        """One adapter's mask over the tokens of a stream, text before image: [B, tokens, 1]."""
        parts = {"text": (self.text,), "image": (self.image,), "both": (self.text, self.image)}[stream]
        return torch.cat([part[:, adapter] for part in parts], dim=1)[..., None]


def stream_of(name: str) -> Stream | None:
    """Whose tokens a layer of FLUX.1 reads, by diffusers' name for it, such as `transformer_blocks.0.attn.add_q_proj`.

    None for a layer that works on no tokens of the blocks, as the embedders of timestep and text: an adapter on it
    cannot be limited to some tokens.
    """
    if name.startswith("single_transformer_blocks."):
        return "both"
    if name.startswith("transformer_blocks."):
        return "text" if any(part in name for part in TEXT_PARTS) else "image"
    outside: dict[str, Stream] = {"x_embedder": "image", "context_embedder": "text"}
    return outside.get(name)


@contextmanager
def acting(model: nn.Module, layers: Sequence[MaskedLayer], masks: TokenMasks) -> Iterator[None]:
    """While the block runs, the adapters act on the model's tokens within their masks.

    layers: on the model's device and in its compute dtype; an adapter whose mask is 0 everywhere costs nothing. For
    inference only: outputs are changed in place. The model is unchanged afterwards.
    """
    present = (masks.text.sum((0, 2)) + masks.image.sum((0, 2))).tolist()
    by_layer: dict[str, list[MaskedLayer]] = {}
    for layer in layers:
        if present[layer.adapter]:
            by_layer.setdefault(layer.layer, []).append(layer)
    cache: dict[tuple[int, Stream], Tensor] = {}
    with ExitStack() as stack:
        for name, parts in by_layer.items():
            handle = model.get_submodule(name).register_forward_hook(_adding(parts, masks, cache))
            stack.callback(handle.remove)
        yield


def _adding(parts: Sequence[MaskedLayer], masks: TokenMasks, cache: dict[tuple[int, Stream], Tensor]) -> Any:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x, y = (each if each.ndim == 3 else each[:, None] for each in (inputs[0], output))  # a vector is one token
        for part in parts:
            key = part.adapter, part.stream
            if key not in cache:
                cache[key] = masks.of(*key).to(y.device, y.dtype)
            mask = cache[key]
            if 1 != x.shape[1] > mask.shape[1]:  # tokens of reference images come last; nothing acts on them
                mask = nn.functional.pad(mask, (0, 0, 0, x.shape[1] - mask.shape[1]))
            if y.shape[1] != mask.shape[1]:
                y = y.repeat(1, mask.shape[1], 1)
            y[..., part.rows or slice(None)] += (x @ part.down.T * mask) @ part.up.T
        return y

    return hook


def on_device(layers: Sequence[MaskedLayer], device: torch.device, dtype: torch.dtype) -> list[MaskedLayer]:
    """Copies of the layers with their factors on a device, in a dtype."""
    moved = []
    for layer in layers:
        down, up = layer.down.to(device, dtype), layer.up.to(device, dtype)
        moved.append(MaskedLayer(layer.adapter, layer.layer, layer.stream, down, up, layer.rows))
    return moved
