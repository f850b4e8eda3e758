"""The names of the original FLUX.1 files and of the diffusers classes, each in terms of the other.

The transformer's file is in Black Forest Labs' layout, where q, k, v (and the MLP of a single block)
are one matrix; diffusers keeps them apart. The autoencoder's file is in the layout of latent
diffusion, where the decoder's levels count the other way round. Everything here is names and row
ranges, for any depth and width, so it serves loading, writing and LoRA conversion alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

PREFIX = "model.diffusion_model."

DOUBLE_BLOCK: Mapping[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.norm.query_norm": ("attn.norm_q",),
    "img_attn.norm.key_norm": ("attn.norm_k",),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.norm.query_norm": ("attn.norm_added_q",),
    "txt_attn.norm.key_norm": ("attn.norm_added_k",),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE_BLOCK: Mapping[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
    "norm.query_norm": ("attn.norm_q",),
    "norm.key_norm": ("attn.norm_k",),
}
OUTSIDE_BLOCKS: Mapping[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",),
    "txt_in": ("context_embedder",),
    "time_in.in_layer": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.out_layer": ("time_text_embed.timestep_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "guidance_in.in_layer": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.out_layer": ("time_text_embed.guidance_embedder.linear_2",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    "final_layer.linear": ("proj_out",),
}
# BFL's last modulation is (shift, scale), diffusers' is (scale, shift).
SWAPPED_HALVES = "final_layer.adaLN_modulation.1"

_BLOCKS = (
    ("double_blocks.", "transformer_blocks.", DOUBLE_BLOCK),
    ("single_blocks.", "single_transformer_blocks.", SINGLE_BLOCK),
)


@dataclass(frozen=True)
class Part:
    """A diffusers module and the rows of the BFL matrix that it is; `rows` counts output features."""

    module: str
    rows: slice


def strip_prefix(name: str) -> str:
    """A tensor's name without ComfyUI's `model.diffusion_model.`."""
    return name.removeprefix(PREFIX)


def diffusers_modules(bfl_module: str) -> tuple[str, ...]:
    """The diffusers modules that one BFL module holds, stacked by rows in this order.

    Raises KeyError for a name that FLUX.1 does not have.
    """
    for bfl_blocks, diffusers_blocks, table in _BLOCKS:
        if bfl_module.startswith(bfl_blocks):
            index, _, rest = bfl_module.removeprefix(bfl_blocks).partition(".")
            if not index.isdecimal():
                raise KeyError(bfl_module)
            return tuple(f"{diffusers_blocks}{index}.{name}" for name in table[rest])
    return OUTSIDE_BLOCKS[bfl_module]


def bfl_module(diffusers_module: str) -> tuple[str, int]:
    """The BFL module that holds a diffusers module, and which of its parts it is.

    Raises KeyError for a name that FLUX.1 does not have.
    """
    for bfl_blocks, diffusers_blocks, table in _BLOCKS:
        if diffusers_module.startswith(diffusers_blocks):
            index, _, rest = diffusers_module.removeprefix(diffusers_blocks).partition(".")
            name, part = _reversed(table)[rest]
            return f"{bfl_blocks}{index}.{name}", part
    return _reversed(OUTSIDE_BLOCKS)[diffusers_module]


def fused_parts(bfl_module: str, rows: int, hidden: int) -> tuple[Part, ...]:
    """Which rows of a BFL matrix with `rows` outputs belong to which diffusers module.

    hidden: the model's width; q, k and v have that many rows each and an MLP the rest.
    Raises KeyError for an unknown name and ValueError when the rows do not fit.
    """
    modules = diffusers_modules(bfl_module)
    if len(modules) == 1:
        return (Part(modules[0], slice(0, rows)),)
    rest = rows - 3 * hidden
    if (rest > 0) != (len(modules) == 4) or rest < 0:
        raise ValueError(f"{bfl_module} has {rows} rows, which does not fit a width of {hidden}")
    ends = [hidden, 2 * hidden, 3 * hidden, rows][: len(modules)]
    starts = [0, *ends[:-1]]
    return tuple(Part(module, slice(start, end)) for module, start, end in zip(modules, starts, ends, strict=True))


def kohya_name(bfl_module: str) -> str:
    """kohya's name of a transformer module: `lora_unet_double_blocks_0_img_attn_qkv`."""
    return "lora_unet_" + bfl_module.replace(".", "_")


def bfl_from_kohya(name: str) -> str:
    """The BFL module of a kohya name; raises KeyError for a name that FLUX.1 does not have."""
    rest = name.removeprefix("lora_unet_")
    if rest == name:
        raise KeyError(name)
    match = re.fullmatch(r"(double|single)_blocks_(\d+)_(.+)", rest)
    if not match:
        return _dotted(OUTSIDE_BLOCKS)[rest]
    kind, index, module = match.groups()
    table = DOUBLE_BLOCK if kind == "double" else SINGLE_BLOCK
    return f"{kind}_blocks.{index}.{_dotted(table)[module]}"


def transformer_to_diffusers(name: str, tensor: torch.Tensor, hidden: int) -> dict[str, torch.Tensor]:
    """One tensor of a BFL file as the diffusers tensors it holds; parts are copies, not views.

    name: with or without the `model.diffusion_model.` prefix. Raises KeyError for an unknown name.
    """
    module, _, leaf = strip_prefix(name).rpartition(".")
    leaf = "weight" if leaf == "scale" else leaf
    if module == SWAPPED_HALVES:
        tensor = _swap_halves(tensor)
    parts = fused_parts(module, tensor.shape[0], hidden)
    if len(parts) == 1:
        return {f"{parts[0].module}.{leaf}": tensor}
    return {f"{part.module}.{leaf}": tensor[part.rows].clone() for part in parts}


def transformer_to_bfl(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A whole diffusers state dict in BFL names, q, k, v and MLP joined."""
    joined: dict[str, list[tuple[int, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        module, _, leaf = name.rpartition(".")
        fused, part = bfl_module(module)
        leaf = "scale" if fused.endswith(("query_norm", "key_norm")) else leaf
        tensor = _swap_halves(tensor) if fused == SWAPPED_HALVES else tensor
        joined.setdefault(f"{fused}.{leaf}", []).append((part, tensor))
    return {name: _stack(parts) for name, parts in joined.items()}


def autoencoder_to_diffusers(name: str, tensor: torch.Tensor, levels: int) -> tuple[str, torch.Tensor]:
    """One tensor of an `ae.safetensors` as AutoencoderKL names and shapes it.

    levels: the number of resolutions. A 1×1 convolution of the attention becomes a linear layer.
    """
    new = _rename(name, levels, forward=True)
    return new, tensor[:, :, 0, 0] if _is_attention_matrix(new) and tensor.ndim == 4 else tensor


def autoencoder_to_bfl(name: str, tensor: torch.Tensor, levels: int) -> tuple[str, torch.Tensor]:
    """The inverse of `autoencoder_to_diffusers`."""
    old = _rename(name, levels, forward=False)
    return old, tensor[:, :, None, None] if _is_attention_matrix(name) and tensor.ndim == 2 else tensor


# (original, diffusers); every rule that matches is applied. {i}: a level, {r}: it, counted from the
# other end; {j}: a block.
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


def _reversed(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int]]:
    return {part: (name, index) for name, parts in table.items() for index, part in enumerate(parts)}


def _dotted(table: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    return {name.replace(".", "_"): name for name in table}


def _swap_halves(tensor: torch.Tensor) -> torch.Tensor:
    first, second = tensor.chunk(2, dim=0)
    return torch.cat([second, first], dim=0)


def _stack(parts: Sequence[tuple[int, torch.Tensor]]) -> torch.Tensor:
    ordered = [tensor for _, tensor in sorted(parts, key=lambda part: part[0])]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=0)
