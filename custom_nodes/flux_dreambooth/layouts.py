"""What each key of a LoRA file belongs to, in all layouts that FLUX.1 LoRAs come in. Without torch.

Canonical names are those of diffusers and PEFT, as our trainer writes them:
`transformer.transformer_blocks.0.attn.to_q`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`,
`text_encoder_2.encoder.block.0.layer.0.SelfAttention.q`. Other layouts put other prefixes before
diffusers' or Black Forest Labs' (BFL) module names, or write `_` for every dot.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .foreign import what_it_is

DOUBLE_BLOCK: Mapping[str, tuple[str, ...]] = {
    "img_mod.lin": ("norm1.linear",),
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
}
SINGLE_BLOCK: Mapping[str, tuple[str, ...]] = {
    "modulation.lin": ("norm.linear",),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": ("proj_out",),
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
CLIP_MODULES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
T5_MODULES = (
    "layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o",
    "layer.1.DenseReluDense.wi_0", "layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wo",
)  # fmt: skip

ROLES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".lora_mid.weight": "mid",
    ".reshape_weight": "reshape",
}
# Kinds of adapter that ComfyUI applies too, but that are not a product of two matrices.
OTHER_KINDS = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".oft_": "OFT",
    ".diff": "difference",
    ".set_weight": "replacement",
}
# prefix -> layout; a PEFT prefix may stand before another one
PREFIXES = {
    "base_model.model.": "peft",
    "transformer.": "diffusers",
    "lora_unet_": "kohya",
    "diffusion_model.": "comfyui",
    "lora_transformer_": "onetrainer",
    "lycoris_": "simpletuner",
}
TEXT_PREFIXES = {
    "text_encoder_2.": "diffusers",
    "text_encoder.": "diffusers",
    "lora_te1_": "kohya",
    "lora_te2_": "kohya",
    "lora_te3_": "kohya",
    "lora_te_": "kohya",
    "text_encoders.clip_l.transformer.": "comfyui",
    "text_encoders.t5xxl.transformer.": "comfyui",
}


@dataclass(frozen=True)
class Target:
    """What a module of a file stands for: canonical modules of one part of the model.

    part: transformer, clip or t5; bfl: the BFL matrix, if the file's module is the whole of it.
    """

    part: str
    modules: tuple[str, ...]
    bfl: str | None = None


@dataclass(frozen=True)
class Module:
    """One adapted layer of a file: its name there, its keys by role, and the shapes of its factors."""

    name: str
    target: Target | None
    keys: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    kind: str = "LoRA"

    @property
    def rank(self) -> int | None:
        """The number of rows of the down matrix; None for another kind of adapter."""
        return self.shapes["down"][0] if "down" in self.shapes else None


@dataclass(frozen=True)
class Survey:
    """A file's modules by their names, the keys that belong to none, and the layout's name."""

    modules: dict[str, Module]
    unknown: tuple[str, ...]
    layout: str


def survey(shapes: Mapping[str, Sequence[int]], metadata: Mapping[str, str]) -> Survey:
    """Sort a file's keys into modules. Raises ValueError, saying what it is, for a file without any adapter."""
    keys: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    unknown = []
    for key in shapes:
        name, role, kind = split_key(key)
        if role is None:
            unknown.append(key)
            continue
        keys.setdefault(name, {})[role] = key
        if kind != "LoRA":
            kinds[name] = kind
    for name in [name for name, roles in keys.items() if name not in kinds and roles.keys() <= {"alpha", "dora_scale"}]:
        unknown += keys.pop(name).values()
    if not keys:
        raise ValueError(what_it_is(shapes))
    modules = {
        name: Module(
            name,
            resolve(name),
            roles,
            {role: tuple(shapes[key]) for role, key in roles.items() if role in ("down", "up")},
            kinds.get(name, "DoRA" if "dora_scale" in roles else "LoRA"),
        )
        for name, roles in keys.items()
    }
    return Survey(modules, tuple(unknown), layout_of(shapes, modules, metadata))


def split_key(key: str) -> tuple[str, str | None, str]:
    """A tensor's module, role (down, up, alpha, …) and kind of adapter; role None for a key of no adapter."""
    for suffix, role in ROLES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), role, "LoRA"
    for mark, kind in OTHER_KINDS.items():
        name, found, rest = key.rpartition(mark)
        if found and "." not in rest.removesuffix(".weight"):
            return name, mark + rest, kind
    return key, None, ""


def resolve(name: str) -> Target | None:
    """What a file's module name means; None for a name that no FLUX.1 layout has."""
    for prefix in TEXT_PREFIXES:
        if name.startswith(prefix):
            return _text_target(name.removeprefix(prefix).replace(".", "_"))
    for prefix in PREFIXES:  # in the order in which they nest
        name = name.removeprefix(prefix)
    return _transformer_target(name.replace(".", "_"))


def comfyui_names(target: Target) -> tuple[str, ...]:
    """Names that ComfyUI's own key map has for a target that it may not know under the file's name."""
    if target.bfl:
        return (f"diffusion_model.{target.bfl}",)
    module = target.modules[0]
    if target.part == "clip":
        return (f"text_encoders.clip_l.transformer.{module.removeprefix('text_encoder.')}",)
    if target.part == "t5":
        return (f"text_encoders.t5xxl.transformer.{module.removeprefix('text_encoder_2.')}",)
    return (module,)


def fused_rows(target: Target, rows: int, hidden: int) -> dict[str, slice]:
    """Which rows of a target's up matrix are which canonical module.

    rows: outputs of the whole; hidden: the model's width; q, k and v have that many rows each and an
    MLP the rest. Raises ValueError when the rows do not fit.
    """
    modules = target.modules
    if len(modules) == 1:
        return {modules[0]: slice(0, rows)}
    rest = rows - 3 * hidden
    if (rest > 0) != (len(modules) == 4) or rest < 0:
        raise ValueError(f"{target.bfl} has {rows} rows, which does not fit a width of {hidden}")
    ends = [hidden, 2 * hidden, 3 * hidden, rows][: len(modules)]
    return {name: slice(start, end) for name, start, end in zip(modules, [0, *ends], ends, strict=False)}


def block_of(target: Target | None) -> str:
    """The block that a module belongs to, like `double 3`, `single 12`, `CLIP 0`, `T5 1` or `other`."""
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


def layout_of(keys: Iterable[str], names: Iterable[str], metadata: Mapping[str, str]) -> str:
    """The name of a file's layout for a person: by who wrote it where the metadata says so."""
    keys = list(keys)
    known = PREFIXES | TEXT_PREFIXES
    found = {next((known[prefix] for prefix in known if name.startswith(prefix)), "bare") for name in names}
    if "flux_dreambooth" in metadata or "flux-dreambooth" in metadata.get("modelspec.implementation_version", ""):
        return "kohya, by FLUX DreamBooth" if "kohya" in found else "FLUX DreamBooth"
    if "ai-toolkit" in metadata.get("software", ""):
        return "ai-toolkit"
    if "onetrainer" in found or any(key.startswith("ot_") for key in metadata):
        return "OneTrainer"
    if found == {"diffusers"}:
        return "diffusers with alpha" if any(key.endswith(".alpha") for key in keys) else "diffusers/PEFT"
    return "+".join(sorted(found))


def _flat(modules: Iterable[str]) -> dict[str, str]:
    return {module.replace(".", "_"): module for module in modules}


def _parts_of(table: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [part for parts in table.values() for part in parts]


_FLAT_CLIP, _FLAT_T5 = _flat(CLIP_MODULES), _flat(T5_MODULES)
_FLAT_OUTSIDE, _FLAT_OUTSIDE_PARTS = _flat(OUTSIDE_BLOCKS), _flat(_parts_of(OUTSIDE_BLOCKS))
_BLOCKS = (
    ("double_blocks", "transformer_blocks", DOUBLE_BLOCK, _flat(DOUBLE_BLOCK), _flat(_parts_of(DOUBLE_BLOCK))),
    ("single_blocks", "single_transformer_blocks", SINGLE_BLOCK, _flat(SINGLE_BLOCK), _flat(_parts_of(SINGLE_BLOCK))),
)
_BLOCK_NAME = re.compile(r"((?:double|single)_blocks|(?:single_)?transformer_blocks)_(\d+)_(.+)")


def _text_target(flat: str) -> Target | None:
    if match := re.fullmatch(r"(?:text_model_)?encoder_layers_(\d+)_(.+)", flat):
        module = _FLAT_CLIP.get(match[2])
        name = f"text_encoder.text_model.encoder.layers.{match[1]}.{module}"
        return Target("clip", (name,)) if module else None
    if match := re.fullmatch(r"encoder_block_(\d+)_(.+)", flat):
        module = _FLAT_T5.get(match[2])
        return Target("t5", (f"text_encoder_2.encoder.block.{match[1]}.{module}",)) if module else None
    return None


def _transformer_target(flat: str) -> Target | None:
    if match := _BLOCK_NAME.fullmatch(flat):
        return _block_target(*match.groups())
    if bfl := _FLAT_OUTSIDE.get(flat):
        return Target("transformer", tuple(f"transformer.{part}" for part in OUTSIDE_BLOCKS[bfl]), bfl)
    part = _FLAT_OUTSIDE_PARTS.get(flat)
    return Target("transformer", (f"transformer.{part}",)) if part else None


def _block_target(kind: str, index: str, rest: str) -> Target | None:
    for bfl_kind, kind_of_diffusers, table, flat_table, flat_parts in _BLOCKS:
        prefix = f"transformer.{kind_of_diffusers}.{index}"
        if kind == bfl_kind and (bfl := flat_table.get(rest)):
            return Target("transformer", tuple(f"{prefix}.{part}" for part in table[bfl]), f"{kind}.{index}.{bfl}")
        if kind == kind_of_diffusers and (part := flat_parts.get(rest)):
            return Target("transformer", (f"{prefix}.{part}",))
    return None


def header_alphas(keys: Iterable[str], metadata: Mapping[str, str]) -> dict[str, float]:
    """The alpha keys that a diffusers file's `lora_adapter_metadata` tells and its tensors do not."""
    try:
        settings = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    if not settings or not isinstance(settings, dict):
        return {}
    keys, found = set(keys), {}
    for key in keys:
        name, role, _ = split_key(key)
        part, _, rest = name.partition(".")
        own = settings.get(f"{part}.alpha_pattern")
        alpha = own[rest] if isinstance(own, dict) and rest in own else settings.get(f"{part}.lora_alpha")
        if role == "down" and f"{name}.alpha" not in keys and isinstance(alpha, int | float):
            found[f"{name}.alpha"] = float(alpha)
    return found
