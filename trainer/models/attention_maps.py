"""Records where an image attends to words, from diffusers' FLUX transformer while it predicts.

The hooks are on the linear layers that project queries and keys, so they work with diffusers' blocks and with those of
`trainer.lora.blocks`.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch import nn

from trainer.routing.attention import AttentionMaps


@contextmanager
def recording(transformer: FluxTransformer2DModel, maps: AttentionMaps, txt_length: int) -> Iterator[None]:
    """While the block runs, every forward pass adds the attention of all of the transformer's blocks to `maps`.

    txt_length: text tokens, padding included. To find the region of a word in an image, predict its noisy latents once
    or more within the block; `maps.mean()` is the answer.
    """
    with ExitStack() as stack:
        for block in transformer.transformer_blocks:
            attn: Any = block.attn
            _record(stack, maps, attn, (attn.to_q, attn.norm_q, 0), (attn.add_k_proj, attn.norm_added_k, 0))
        for block in transformer.single_transformer_blocks:
            attn = block.attn
            _record(stack, maps, attn, (attn.to_q, attn.norm_q, txt_length), (attn.to_k, attn.norm_k, 0))
        yield


def _record(
    stack: ExitStack,
    maps: AttentionMaps,
    attn: FluxAttention,
    query: tuple[nn.Module, nn.Module, int],
    key: tuple[nn.Module, nn.Module, int],
) -> None:
    """Hook one attention. query, key: the linear layer, the norm of its heads, and the index of the first token."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, norm: nn.Module, first: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:
            found[name] = norm(output[:, first:].unflatten(-1, (-1, attn.head_dim)))
            if len(found) == 2:  # the second of the two completes this pass
                maps.add(found.pop("query"), found.pop("key"))

        return hook

    for name, (layer, norm, first) in (("query", query), ("key", key)):
        stack.callback(layer.register_forward_hook(keep(name, norm, first)).remove)
