"""How strong each module of a LoRA file is: the scale of up @ down, as the tool that wrote the file has it.

In this order: the module's alpha tensor; the settings of PEFT, which diffusers keeps in the header
(`lora_adapter_metadata`) and PEFT in adapter_config.json beside the file; `lora_alpha` in the header. A file that says
nothing has alpha = rank, which is what diffusers and ComfyUI take then.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .keys import Module, Survey
from .metadata import json_value

ADAPTER_CONFIG = "adapter_config.json"
PEFT_FILE = "adapter_model.safetensors"
FOLDER_FILES = (PEFT_FILE, "pytorch_lora_weights.safetensors")  # as PEFT and diffusers call them
SCALE_IS_ONE = ("ai-toolkit", "XLabs", "BFL control LoRA")  # whose files never have an alpha
_PREFIX = re.compile(r"^(?:base_model\.model\.|transformer\.|(?:model\.)?diffusion_model\.|text_encoder(?:_2)?\.)+")


@dataclass(frozen=True)
class Strengths:
    """How strong the LoRA and DoRA modules of a file are.

    scales: what up @ down is multiplied by, by the module's name in the file; note: a sentence if scales were assumed,
    since alphas are missing.
    """

    scales: dict[str, float]
    note: str | None = None


def file_in(path: Path) -> Path:
    """The LoRA file that a path means: itself, or the one in a folder that PEFT or diffusers wrote.

    Raises ValueError for a folder without a LoRA file or with several.
    """
    if not path.is_dir():
        return path
    if named := [path / name for name in FOLDER_FILES if (path / name).is_file()]:
        return named[0]
    found = sorted(path.glob("*.safetensors"))
    if len(found) != 1:
        if not found:
            raise ValueError("a folder with no *.safetensors file")
        raise ValueError(f"a folder with these LoRA files: {', '.join(each.name for each in found[:5])}")
    return found[0]


def adapter_config(path: Path) -> dict[str, Any] | None:
    """PEFT's settings in the adapter_config.json next to a LoRA file; None if there are none.

    path: the LoRA file. The settings count only if the file has PEFT's name or is the only LoRA file in its folder.
    Raises ValueError for settings that cannot be read, and OSError.
    """
    config = path.with_name(ADAPTER_CONFIG)
    if not config.is_file() or (path.name != PEFT_FILE and len(list(path.parent.glob("*.safetensors"))) > 1):
        return None
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{ADAPTER_CONFIG} beside it, which holds its alpha, is no JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{ADAPTER_CONFIG} beside it, which holds its alpha, is no JSON object")
    return settings


def strengths(
    found: Survey,
    alphas: Mapping[str, Sequence[float]],
    metadata: Mapping[str, str],
    config: Mapping[str, Any] | None = None,
) -> Strengths:
    """The scale alpha / rank of every module that has a down matrix; an unknown alpha is taken to be the rank.

    found: the result of `survey` for the file; alphas: the numbers of each alpha tensor, of whatever shape, by its key;
    metadata: of the file's header; config: the result of `adapter_config` for the file. Raises ValueError for an alpha
    that is no number.
    """
    settings = [each for each in (_from_header(metadata), config) if each]
    scales, assumed = {}, []
    for name, module in found.modules.items():
        rank = module.rank
        if not rank:
            continue
        alpha = _number(name, alphas[module.keys["alpha"]]) if "alpha" in module.keys else None
        for each in settings:
            alpha = _peft_alpha(each, module, rank) if alpha is None else alpha
        if not alpha:  # kohya takes 0 for "as the rank"
            assumed.append(name)
        scales[name] = (alpha or rank) / rank
    return Strengths(scales, _note(found, assumed, len(scales), metadata))


def _note(found: Survey, assumed: Sequence[str], total: int, metadata: Mapping[str, str]) -> str | None:
    if not assumed or found.title in SCALE_IS_ONE:
        return None
    where = "the file" if len(assumed) == total else f"{len(assumed)} of {total} modules, as {assumed[0]},"
    text = f"{where} has no alpha: it is taken to be the rank, as diffusers and ComfyUI do"
    if "peft" in found.layout:
        text += f"; PEFT keeps it in {ADAPTER_CONFIG}, which is not beside the file"
    elif metadata.get("ss_network_alpha", "None") not in ("None", metadata.get("ss_network_dim")):
        text += f"; its metadata says that it was trained with alpha {metadata['ss_network_alpha']}"
    return text


def _number(name: str, values: Sequence[float]) -> float:
    numbers = {float(value) for value in values}
    if len(numbers) != 1 or not math.isfinite(next(iter(numbers))):
        shown = ", ".join(f"{value:g}" for value in list(values)[:3]) or "nothing"
        raise ValueError(f"the alpha of {name} is no number: it holds {shown}")
    return numbers.pop()


def _from_header(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The settings in a header: diffusers' (with the part's name before each), PEFT's as JSON, or plain values."""
    if settings := json_value(metadata.get("lora_adapter_metadata"), dict):
        return settings
    for text in metadata.values():
        if '"lora_alpha"' in text and (settings := json_value(text, dict)) and "lora_alpha" in settings:
            return settings
    plain = {key: value for key in ("lora_alpha", "use_rslora") if (value := json_value(metadata.get(key), object))}
    return plain or None


def _peft_alpha(settings: Mapping[str, Any], module: Module, rank: int) -> float | None:
    """alpha of PEFT's settings so that alpha / rank is PEFT's scale; None where they say nothing of this module."""
    names = _peft_names(module)
    for prefix in (*dict.fromkeys(f"{name.partition('.')[0]}." for name in _canonical(module)), ""):
        alpha = settings.get(f"{prefix}lora_alpha")
        pattern = settings.get(f"{prefix}alpha_pattern")
        if isinstance(pattern, dict) and (key := next((key for key in pattern if _matches(key, names)), None)):
            alpha = pattern[key]
        if isinstance(alpha, int | float) and not isinstance(alpha, bool) and math.isfinite(alpha):
            return alpha * (math.sqrt(rank) if settings.get(f"{prefix}use_rslora") else 1)
    return None


def _matches(pattern: str, names: Iterable[str]) -> bool:
    """As peft.utils.other.get_pattern_key: a regular expression for the end of a name, after a dot."""
    try:
        return any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)
    except re.error:
        return pattern in names


def _canonical(module: Module) -> tuple[str, ...]:
    return module.target.modules if module.target else ()


def _peft_names(module: Module) -> list[str]:
    """The module's names in the model that PEFT adapted: the file's own, then diffusers'."""
    return [_PREFIX.sub("", module.name), *(name.partition(".")[2] for name in _canonical(module))]
