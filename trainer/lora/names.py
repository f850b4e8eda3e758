"""What the LoRA formats of FLUX.1 call a module, in terms of our names.

Ours: `transformer.<diffusers module>` and `text_encoder.text_model.encoder.layers.<n>.<module>`.
Others put other prefixes before diffusers' or Black Forest Labs' module names, or write `_` for every dot.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from trainer.models.names import DOUBLE_BLOCK, OUTSIDE_BLOCKS, SINGLE_BLOCK, bfl_from_kohya, diffusers_modules

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
CLIP_PREFIXES = {
    "text_encoder.": "diffusers",
    "lora_te1_": "kohya",
    "lora_te_": "kohya",
    "text_encoders.clip_l.transformer.": "comfyui",
}
CLIP_MODULES = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)


@dataclass(frozen=True)
class Target:
    """What a module of a file stands for: our modules, and the BFL matrix if it is named by that."""

    modules: tuple[str, ...]
    bfl: str | None = None


def split_key(key: str) -> tuple[str, str | None]:
    """A tensor's module and its role (down, up, alpha), or the key and None if it has none of them."""
    for suffix, role in ROLES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), role
    return key, None


def resolve(name: str) -> Target | None:
    """Which of our modules a file's module name means; None for a name that no format has."""
    for prefix in CLIP_PREFIXES:
        if name.startswith(prefix):
            return _clip_target(name.removeprefix(prefix).replace(".", "_"))
    return _transformer_target(_without_prefix(name).replace(".", "_"))


def layout_of(names: Iterable[str]) -> str:
    """The layouts of a file's module names, joined by `+`; `bare` for names without a prefix."""
    known = PREFIXES | CLIP_PREFIXES
    found = {next((known[prefix] for prefix in known if name.startswith(prefix)), "bare") for name in names}
    return "+".join(sorted(found))


def kohya_clip_name(module: str) -> str:
    """kohya's name of one of our CLIP modules."""
    return "lora_te1_" + module.removeprefix("text_encoder.").replace(".", "_")


def _without_prefix(name: str) -> str:
    for prefix in PREFIXES:  # in the order in which they nest
        name = name.removeprefix(prefix)
    return name


def _clip_target(flat: str) -> Target | None:
    match = re.fullmatch(r"(?:text_model_)?encoder_layers_(\d+)_(.+)", flat)
    module = _flat(CLIP_MODULES).get(match[2]) if match else None
    return Target((f"text_encoder.text_model.encoder.layers.{match[1]}.{module}",)) if match and module else None


def _transformer_target(flat: str) -> Target | None:
    try:
        bfl = bfl_from_kohya(f"lora_unet_{flat}")
        return Target(tuple(f"transformer.{module}" for module in diffusers_modules(bfl)), bfl)
    except KeyError:
        module = _diffusers_module(flat)
    return Target((f"transformer.{module}",)) if module else None


def _diffusers_module(flat: str) -> str | None:
    match = re.fullmatch(r"((?:single_)?transformer_blocks)_(\d+)_(.+)", flat)
    if not match:
        return _flat(_parts_of(OUTSIDE_BLOCKS)).get(flat)
    table = SINGLE_BLOCK if match[1].startswith("single") else DOUBLE_BLOCK
    module = _flat(_parts_of(table)).get(match[3])
    return f"{match[1]}.{match[2]}.{module}" if module else None


def _parts_of(table) -> list[str]:
    return [part for parts in table.values() for part in parts]


def _flat(modules: Iterable[str]) -> dict[str, str]:
    return {module.replace(".", "_"): module for module in modules}
