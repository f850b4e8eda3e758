"""Tensors of the original FLUX.1 files in diffusers' names and shapes, and back.

The names of the transformer's layers are in `trainer.lora_file.flux_names`. The autoencoder's file has the layout of
latent diffusion, which numbers the decoder's levels in the opposite order.
"""

import re
from collections.abc import Mapping, Sequence

import torch

from trainer.lora_file.flux_names import SWAPPED_HALVES, bfl_module, diffusers_modules, fused_rows

PREFIX = "model.diffusion_model."


def strip_prefix(name: str) -> str:
    """A tensor's name without ComfyUI's `model.diffusion_model.`."""
    return name.removeprefix(PREFIX)


def transformer_to_diffusers(name: str, tensor: torch.Tensor, hidden: int) -> dict[str, torch.Tensor]:
    """One tensor of the transformer's original file as the tensors of diffusers that it contains, by name.

    name: with or without the `model.diffusion_model.` prefix. hidden: width of the hidden states, by which fused layers
    are split; their parts are copies, not views. Raises KeyError for an unknown name.
    """
    module, _, leaf = strip_prefix(name).rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    if module == SWAPPED_HALVES:
        tensor = _swap_halves(tensor)
    parts = fused_rows(diffusers_modules(module), tensor.shape[0], hidden)
    if len(parts) == 1:
        return {f"{part}.{leaf}": tensor for part in parts}
    return {f"{part}.{leaf}": tensor[rows].clone() for part, rows in parts.items()}


def transformer_to_bfl(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A transformer's complete state dict, from diffusers' names to the original file's, with q, k, v and MLP fused."""
    joined: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        fused, part = bfl_module(module)
        leaf = "scale" if fused.endswith(("query_norm", "key_norm")) else leaf
        tensor = _swap_halves(tensor) if fused == SWAPPED_HALVES else tensor
        joined.setdefault(f"{fused}.{leaf}", []).append((part, tensor))
    return {name: _stack(parts) for name, parts in joined.items()}


def autoencoder_to_diffusers(name: str, tensor: torch.Tensor, levels: int) -> tuple[str, torch.Tensor]:
    """Name and tensor of the original `ae.safetensors` as `AutoencoderKL` has them.

    levels: the number of resolutions. A 1×1 convolution of the attention becomes a linear layer.
    """
    new = _rename(name, levels, forward=True)
    return new, tensor[:, :, 0, 0] if _is_attention_matrix(new) and tensor.ndim == 4 else tensor


def autoencoder_to_bfl(name: str, tensor: torch.Tensor, levels: int) -> tuple[str, torch.Tensor]:
    """Name and tensor of `AutoencoderKL` as the original `ae.safetensors` has them.

    levels: the number of resolutions. A linear layer of the attention becomes a 1×1 convolution.
    """
    old = _rename(name, levels, forward=False)
    return old, tensor[:, :, None, None] if _is_attention_matrix(name) and tensor.ndim == 2 else tensor


# (original, diffusers); every rule that matches is applied. {i}: a level; {r}: a level counted from the other end; {j}:
# a block.
_AUTOENCODER_RULES = (
    ("encoder.down.{i}.block.{j}.", "encoder.down_blocks.{i}.resnets.{j}."),
    ("encoder.down.{i}.downsample.", "encoder.down_blocks.{i}.downsamplers.0."),
    ("decoder.up.{i}.block.{j}.", "decoder.up_blocks.{r}.resnets.{j}."),
    ("decoder.up.{i}.upsample.", "decoder.up_blocks.{r}.upsamplers.0."),
    (".mid.block_1.", ".mid_block.resnets.0."),
    (".mid.block_2.", ".mid_block.resnets.1."),
    (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
    (".mid.attn_1.q.", ".mid_block.attentions.0.to_q."),
    (".mid.attn_1.k.", ".mid_block.attentions.0.to_k."),
    (".mid.attn_1.v.", ".mid_block.attentions.0.to_v."),
    (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
    (".nin_shortcut.", ".conv_shortcut."),
    ("coder.norm_out.", "coder.conv_norm_out."),
)


def _rename(name: str, levels: int, forward: bool) -> str:
    for original, diffusers in _AUTOENCODER_RULES:
        source, target = (original, diffusers) if forward else (diffusers, original)
        pattern = re.escape(source)
        for letter in "irj":
            pattern = pattern.replace(rf"\{{{letter}\}}", rf"(?P<{letter}>\d+)")
        match = re.search(pattern, name)
        if match:
            numbers = {letter: int(number) for letter, number in match.groupdict().items()}
            level = numbers.get("i", numbers.get("r", 0))
            other = levels - 1 - level
            known = {"i": other if "r" in numbers else level, "r": other, "j": numbers.get("j", 0)}
            name = name[: match.start()] + target.format(**known) + name[match.end() :]
    return name


def _is_attention_matrix(name: str) -> bool:
    return bool(re.search(r"\.attentions\.0\.to_(q|k|v|out\.0)\.weight$", name))


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_meta:
        return tensor  # only its shape counts; joining meta tensors would import torch's compiler, which takes seconds
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first], dim=0)


def _stack(parts: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    ordered = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=0)
