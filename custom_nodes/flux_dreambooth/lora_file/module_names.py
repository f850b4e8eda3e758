"""Which layer of FLUX.1 and its text encoders a module's name in a LoRA file means, whatever tool wrote it.

Canonical names are those of diffusers and PEFT, as our trainer writes them:
`transformer.transformer_blocks.0.attn.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`,
`text_encoder_2.encoder.block.0.layer.0.SelfAttention.q`. Other tools put other prefixes, often several, before
diffusers' or Black Forest Labs' (BFL) module names, or write `_` for dots.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from .flux_names import DOUBLE_BLOCK, NUM_DOUBLE_BLOCKS, NUM_SINGLE_BLOCKS, OUTSIDE_BLOCKS, SINGLE_BLOCK

CLIP_MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
T5_MODULES = (
    "layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o",
    "layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wo",
)  # fmt: skip
TRANSFORMER, CLIP, T5 = "transformer", "clip", "t5"
# prefix, with _ for dots -> the parts of the model that may follow
_PREFIXES: Mapping[str, frozenset[str]] = {
    "base_model_model_": frozenset((TRANSFORMER, CLIP, T5)),
    "text_encoders_clip_l_transformer_": frozenset((CLIP,)),
    "text_encoders_t5xxl_transformer_": frozenset((T5,)),
    "text_encoder_2_": frozenset((T5,)),
    "text_encoder_": frozenset((CLIP,)),
    "lora_te1_": frozenset((CLIP,)),
    "lora_te2_": frozenset((T5,)),
    "lora_te3_": frozenset((T5,)),
    "lora_te_": frozenset((CLIP,)),
    "model_diffusion_model_": frozenset((TRANSFORMER,)),
    "diffusion_model_": frozenset((TRANSFORMER,)),
    "lora_unet_": frozenset((TRANSFORMER,)),
    "lora_transformer_": frozenset((TRANSFORMER,)),
    "lycoris_": frozenset((TRANSFORMER, CLIP, T5)),
    "transformer_": frozenset((TRANSFORMER,)),
}
_BLOCK = re.compile(r"((?:double|single)_blocks|(?:single_)?transformer_blocks)_(\d+)_(.+)")
# XLabs and USO name their LoRA by the block's attention processor, not by the layer.
_PROCESSOR = re.compile(r"(double|single)_blocks_(\d+)_processor_(qkv|proj)_lora([12]?)")
_PROCESSOR_LAYERS = {
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "proj", "2"): "txt_attn.proj",
    ("single", "proj", ""): "linear2",
}


@dataclass(frozen=True)
class Target:
    """The layers of the model that a module of a LoRA file adapts.

    part: transformer, clip or t5; modules: their canonical names, several for a fused matrix; bfl: the BFL module that
    they are, if the module adapts all of it.
    """

    part: str
    modules: tuple[str, ...]
    bfl: str | None = None


@lru_cache(maxsize=8192)
def resolve(name: str) -> Target | None:
    """The layers that a module's name in a LoRA file means, whatever tool wrote it.

    None for a name of no layer that FLUX.1 or its text encoders have.
    """
    flat, parts = name.replace(".", "_").rstrip("_"), frozenset((TRANSFORMER, CLIP, T5))
    while prefix := next((each for each in _PREFIXES if flat.startswith(each) and not _is_block(flat)), None):
        flat, parts = flat.removeprefix(prefix), parts & _PREFIXES[prefix]
    target = _processor_target(flat) or _transformer_target(flat.replace("_processor_", "_")) or _text_target(flat)
    return target if target and target.part in parts else None


def comfyui_names(target: Target) -> tuple[str, ...]:
    """A layer's names in ComfyUI's own key map: what the node tries when ComfyUI does not know the name in the file.

    target: the layer, as `resolve` returns it.
    """
    if target.bfl:
        name = f"diffusion_model.{target.bfl}"
        return (name, f"{name}.scale") if target.bfl.endswith("_norm") else (name,)
    module = target.modules[0]
    if target.part == CLIP:
        return (f"text_encoders.clip_l.transformer.{module.removeprefix('text_encoder.')}",)
    if target.part == T5:
        return (f"text_encoders.t5xxl.transformer.{module.removeprefix('text_encoder_2.')}",)
    if len(target.modules) == 3:  # q, k and v of a single block
        block = module.split(".")[2]
        return (f"diffusion_model.single_blocks.{block}.linear1_qkv",)
    return (module,)


def block_of(target: Target | None) -> str:
    """The block that a module belongs to, like `double 3`, `single 12`, `CLIP 0` or `T5 1`.

    `other` for layers outside of blocks and for None.
    """
    module = target.modules[0] if target else ""
    for pattern, label in (
        (r"transformer\.transformer_blocks\.(\d+)\.", "double"),
        (r"transformer\.single_transformer_blocks\.(\d+)\.", "single"),
        (r"text_encoder\.text_model\.encoder\.layers\.(\d+)\.", "CLIP"),
        (r"text_encoder_2\.encoder\.block\.(\d+)\.", "T5"),
    ):
        if match := re.match(pattern, module):
            return f"{label} {match[1]}"
    return "other"


def _is_block(flat: str) -> bool:
    return flat.startswith("transformer_blocks_")  # whose beginning is a prefix too


def _processor_target(flat: str) -> Target | None:
    match = _PROCESSOR.fullmatch(flat)
    if not match:
        return None
    kind, block, matrix, stream = match.groups()
    if (kind, matrix, stream) == ("single", "qkv", "") and int(block) < NUM_SINGLE_BLOCKS:
        prefix = f"transformer.single_transformer_blocks.{block}.attn"
        return Target(TRANSFORMER, (f"{prefix}.to_q", f"{prefix}.to_k", f"{prefix}.to_v"))
    layer = _PROCESSOR_LAYERS.get((kind, matrix, stream))
    return _block_target(f"{kind}_blocks", block, layer.replace(".", "_")) if layer else None


def _transformer_target(flat: str) -> Target | None:
    if match := _BLOCK.fullmatch(flat):
        return _block_target(*match.groups())
    if bfl := _FLAT_OUTSIDE.get(flat):
        return Target(TRANSFORMER, tuple(f"transformer.{part}" for part in OUTSIDE_BLOCKS[bfl]), bfl)
    part = _FLAT_OUTSIDE_PARTS.get(flat)
    return Target(TRANSFORMER, (f"transformer.{part}",)) if part else None


def _block_target(kind: str, index: str, rest: str) -> Target | None:
    if int(index) >= (NUM_SINGLE_BLOCKS if kind.startswith("single") else NUM_DOUBLE_BLOCKS):
        return None
    for bfl_kind, kind_of_diffusers, table, flat_table, flat_parts in _BLOCK_TABLES:
        prefix = f"transformer.{kind_of_diffusers}.{index}"
        if kind == bfl_kind and (bfl := flat_table.get(rest)):
            return Target(TRANSFORMER, tuple(f"{prefix}.{part}" for part in table[bfl]), f"{kind}.{index}.{bfl}")
        if kind == kind_of_diffusers and (part := flat_parts.get(_OLD_NAMES.get(rest, rest))):
            return Target(TRANSFORMER, (f"{prefix}.{part}",))
    return None


def _text_target(flat: str) -> Target | None:
    if match := re.fullmatch(r"(?:text_model_)?encoder_layers_(\d+)_(.+)", flat):
        module = _FLAT_CLIP.get(match[2])
        return Target(CLIP, (f"text_encoder.text_model.encoder.layers.{match[1]}.{module}",)) if module else None
    if match := re.fullmatch(r"encoder_block_(\d+)_(.+)", flat):
        module = _FLAT_T5.get(match[2])
        return Target(T5, (f"text_encoder_2.encoder.block.{match[1]}.{module}",)) if module else None
    return None


def _flat(modules: Iterable[str]) -> dict[str, str]:
    return {module.replace(".", "_"): module for module in modules}


def _parts_of(table: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [part for parts in table.values() for part in parts]


_OLD_NAMES = {"attn_to_out": "attn_to_out_0"}  # of diffusers' attention processors
_FLAT_CLIP, _FLAT_T5 = _flat(CLIP_MODULES), _flat(T5_MODULES)
_FLAT_OUTSIDE, _FLAT_OUTSIDE_PARTS = _flat(OUTSIDE_BLOCKS), _flat(_parts_of(OUTSIDE_BLOCKS))
_BLOCK_TABLES = (
    ("double_blocks", "transformer_blocks", DOUBLE_BLOCK, _flat(DOUBLE_BLOCK), _flat(_parts_of(DOUBLE_BLOCK))),
    ("single_blocks", "single_transformer_blocks", SINGLE_BLOCK, _flat(SINGLE_BLOCK), _flat(_parts_of(SINGLE_BLOCK))),
)
