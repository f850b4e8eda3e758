"""The names of FLUX.1's layers in Black Forest Labs' (BFL) files and in diffusers, each in terms of the other.

In BFL's files q, k and v (and the MLP of a single block) are one matrix; diffusers keeps them apart. Everything here
is names and row ranges, for any width and up to FLUX.1's depth.
"""

from collections.abc import Mapping, Sequence

NUM_DOUBLE_BLOCKS, NUM_SINGLE_BLOCKS = 19, 38  # of FLUX.1
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


def diffusers_modules(bfl_module: str) -> tuple[str, ...]:
    """The diffusers modules that one BFL module holds, stacked by rows in this order.

    "double_blocks.0.img_attn.qkv" holds "transformer_blocks.0.attn.to_q", to_k and to_v. Raises KeyError for a name
    that FLUX.1 does not have.
    """
    for bfl_blocks, diffusers_blocks, table in _BLOCKS:
        if bfl_module.startswith(bfl_blocks):
            index, _, rest = bfl_module.removeprefix(bfl_blocks).partition(".")
            if not index.isdecimal():
                raise KeyError(bfl_module)
            return tuple(f"{diffusers_blocks}{index}.{name}" for name in table[rest])
    return OUTSIDE_BLOCKS[bfl_module]


def bfl_module(diffusers_module: str) -> tuple[str, int]:
    """The BFL module that holds a diffusers module, and the index of that module among its parts.

    "transformer_blocks.0.attn.to_k" is part 1 of "double_blocks.0.img_attn.qkv". Raises KeyError for a name that FLUX.1
    does not have.
    """
    for bfl_blocks, diffusers_blocks, table in _BLOCKS:
        if diffusers_module.startswith(diffusers_blocks):
            index, _, rest = diffusers_module.removeprefix(diffusers_blocks).partition(".")
            name, part = _reversed(table)[rest]
            return f"{bfl_blocks}{index}.{name}", part
    return _reversed(OUTSIDE_BLOCKS)[diffusers_module]


def fused_rows(modules: Sequence[str], rows: int, hidden: int) -> dict[str, slice]:
    """Which rows of a fused matrix belong to which of its diffusers modules.

    modules: what `diffusers_modules` gives, or q, k and v alone; rows: the number of rows (outputs) of the matrix;
    hidden: the model's width: q, k and v have that many rows each and an MLP the rest. Raises ValueError when the rows
    do not fit.
    """
    if len(modules) == 1:
        return {modules[0]: slice(0, rows)}
    rest = rows - 3 * hidden
    if (rest > 0) != (len(modules) == 4) or rest < 0:
        raise ValueError(
            f"{modules[0]} and what is fused with it has {rows} rows, which does not fit a width of {hidden}"
        )
    ends = [hidden, 2 * hidden, 3 * hidden, rows][: len(modules)]
    return {module: slice(start, end) for module, start, end in zip(modules, [0, *ends], ends, strict=False)}


def kohya_name(bfl_module: str) -> str:
    """kohya's name of a BFL module of the transformer, such as `lora_unet_double_blocks_0_img_attn_qkv`."""
    return "lora_unet_" + bfl_module.replace(".", "_")


def _reversed(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int]]:
    return {part: (name, index) for name, parts in table.items() for index, part in enumerate(parts)}
