"""Find the layers of ComfyUI's models that a LoRA file's modules belong to, and say why others have none."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .lora_file.keys import Module, Survey
from .lora_file.module_names import comfyui_names

PREFIX_PARTS = {"diffusion_model.": "transformer", "clip_l.": "clip", "t5xxl.": "t5"}
BIASES = ("bias", "diff_b")  # roles of a bias's change: PEFT's, times the scale, and as it is


@dataclass(frozen=True)
class Match:
    """How a file's modules fit a model: by name, the key that ComfyUI patches, and what does not fit.

    names: file's module -> ComfyUI's name; targets: that name -> what ComfyUI patches; widened: modules that make a
    layer wider; skipped: modules of parts that are not connected; unmatched: modules and keys that name nothing;
    misshapen: module -> what is wrong.
    """

    names: dict[str, str]
    targets: dict[str, Any]
    widened: tuple[str, ...]
    skipped: tuple[str, ...]
    unmatched: tuple[str, ...]
    misshapen: dict[str, str]


def match(found: Survey, model: Any | None, clip: Any | None) -> Match:
    """Find the place of each module in a MODEL and a CLIP of ComfyUI; either may be None."""
    key_map = _key_map(model, clip)
    connected = {part for part, given in (("transformer", model), ("clip", clip), ("t5", clip)) if given is not None}
    names: dict[str, str] = {}
    targets: dict[str, Any] = {}
    widened, skipped, unmatched, misshapen = [], [], list(found.unknown), {}
    for name, module in found.modules.items():
        known = _known_name(module, key_map)
        if known is None and module.target and module.target.part not in connected:
            skipped.append(name)
        elif known is None or known in targets:
            unmatched.append(name)
        elif (problem := _shape_problem(module, key_map[known], model, clip)) and not _widens(found, module):
            misshapen[name] = problem
        else:
            names[name], targets[known] = known, key_map[known]
            widened += [name] if problem else []
    return Match(names, targets, tuple(widened), tuple(skipped), tuple(unmatched), misshapen)


def part_of(target: Any) -> str:
    """The part of the model that a value of ComfyUI's key map lies in: transformer, clip or t5."""
    key = target if isinstance(target, str) else target[0]
    return next((part for prefix, part in PREFIX_PARTS.items() if key.startswith(prefix)), "clip")


def bias_of(target: Any) -> Any:
    """The bias of a layer, by its weight: both are values of ComfyUI's key map."""
    key, *rest = [target] if isinstance(target, str) else target
    key = f"{key.removesuffix('.weight')}.bias"
    return (key, *rest) if rest else key


def _key_map(model: Any | None, clip: Any | None) -> dict[str, Any]:
    import comfy.lora

    key_map: dict[str, Any] = {}
    if model is not None:
        key_map = comfy.lora.model_lora_keys_unet(model.model, key_map)
    if clip is not None:
        key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, key_map)
    return key_map


def _weight(key: str, model: Any | None, clip: Any | None) -> Any | None:
    import comfy.utils

    owner = getattr(model, "model", None) if part_of(key) == "transformer" else getattr(clip, "cond_stage_model", None)
    try:
        return comfy.utils.get_attr(owner, key)
    except AttributeError:
        return None


def weight_part(target: Any, model: Any | None, clip: Any | None) -> Any | None:
    """The model's weight, or the rows of it, that a value of ComfyUI's key map means."""
    key, *rest = [target] if isinstance(target, str) else target
    weight = _weight(key, model, clip)
    return weight.narrow(*rest[0]) if weight is not None and rest and rest[0] and weight.dim() else weight


def _known_name(module: Module, key_map: Mapping[str, Any]) -> str | None:
    if module.name in key_map:
        return module.name
    names = comfyui_names(module.target) if module.target else ()
    return next((name for name in names if name in key_map), None)


def _widens(found: Survey, module: Module) -> bool:
    """BFL's control LoRAs give the image's input layer more inputs, which the model does not have yet."""
    return found.layout == "bfl_control" and module.name == "img_in" and module.problem is None


def _shape_problem(module: Module, target: Any, model: Any | None, clip: Any | None) -> str | None:
    """Why ComfyUI could not make this module's change; it would only log that, image by image."""
    if module.problem:
        return module.problem
    for role in BIASES:
        bias = weight_part(bias_of(target), model, clip) if role in module.keys else None
        if role in module.keys and (bias is None or math.prod(bias.shape) != math.prod(module.shapes[role])):
            return f"changes a bias of {math.prod(module.shapes[role])} numbers, which the model's layer does not have"
    weight = weight_part(target, model, clip)
    if weight is None or weight.dim() not in (1, 2) or not weight.is_floating_point() or "reshape" in module.keys:
        return None  # packed or reshaped weights are ComfyUI's to judge
    for role in ("diff", "set"):
        if role in module.keys and module.shapes[role] != tuple(weight.shape):
            return f"is {list(module.shapes[role])}, the model's weight {list(weight.shape)}"
    if module.kind not in ("LoRA", "DoRA") or weight.dim() != 2:
        return None
    down, up = module.shapes["down"], module.shapes["up"]
    outputs, inputs = weight.shape
    if (up[0], math.prod(down[1:])) != (outputs, inputs):
        return f"goes from {down[1]} to {up[0]}, the model's layer from {inputs} to {outputs}"
    return None
