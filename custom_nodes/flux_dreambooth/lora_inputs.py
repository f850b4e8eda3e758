"""The LoRA files that the inputs of one node name, whichever pack the node is from.

Loaders write them in many ways: `lora_name` (ComfyUI, pysssss), `lora_01` and `strength_01` or `lora_name_1`,
`switch_1` and a `lora_count` (stacks), {"on": true, "lora": NAME, "strength": 1} (rgthree), lists of
{"name": NAME, "active": true}, and `<lora:NAME:1>` within a text.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from .lora_files import NEWEST, Names, newest_name

ENDINGS = (".safetensors", ".sft", ".pt", ".pth", ".ckpt", ".bin")
MAX_TEXT = 20_000  # characters of a text in which <lora:NAME:1> is looked for
MAX_DEPTH = 4  # of lists and objects in one value
_OTHER_FILES = re.compile(r"ckpt|checkpoint|unet|vae|clip|encoder|control|upscale|diffusion|embed|style|gguf", re.I)
_LORA = re.compile(r"lora|lyco", re.I)
_SWITCH = re.compile(r"(?:^|_)(?:on|is_on|enabled?|active|switch|toggle)(?:_|$|\d)", re.I)
_STRENGTH = re.compile(r"str(?:ength)?(?=_|$|[A-Z\d])|(?:^|_)(?:weight|wt)", re.I)
_FOR_ONE = re.compile(r"model|clip", re.I)
_COUNT = re.compile(r"(?:^|_)(?:count|num)(?:_|$)", re.I)
_NUMBER = re.compile(r"(?:^|_)(\d+)(?=_|$)|(?<=[a-zA-Z])(\d+)$")
_IN_TEXT = re.compile(r"<(?:lora|lyco):([^:<>]{1,300})((?::[^:<>]{0,40})*)>", re.I)
_OFF = (False, "off", "disable", "disabled", "no", "false")


@dataclass
class Named:
    """What a node's inputs name: LoRAs of the list, files that it lacks, and whether that is all of them."""

    names: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    complete: bool = True

    def add(self, written: Any, names: Names, loosely: bool) -> None:
        """Add a file by the name that is written for it."""
        if name := names.find(written, loosely):
            self.names.append(name)
        elif isinstance(written, str) and written.lower().endswith(ENDINGS):
            self.missing.append(written)


def is_link(value: Any) -> TypeGuard[list[Any]]:
    """Whether an input's value is the output of another node: [its id, the slot]."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int


def named_loras(inputs: Mapping[str, Any], names: Names, constant: Callable[[Any], Any]) -> Named:
    """The LoRAs that are switched on in a node, by its inputs.

    constant: gives the value behind a link, None if only a run can tell.
    """
    found = Named()
    groups = _groups(inputs)
    whole = groups.get(None, {})
    if any(_is_off(key, value) for key, value in whole.items()):
        return found
    mode = inputs.get("input_mode", inputs.get("mode"))
    counts = [value for key, value in whole.items() if _COUNT.search(key) and type(value) is int]
    for number, group in groups.items():
        beyond = number is not None and any(number > count for count in counts)
        if beyond or any(_is_off(key, value) for key, value in group.items()) or _has_no_strength(group, mode):
            continue
        for key, value in group.items():
            _add(found, key, value, names, constant)
    if inputs.get("checkpoint") == NEWEST:
        found.names = [newest_name(name, names.listed) for name in found.names]
    return found


def _groups(inputs: Mapping[str, Any]) -> dict[int | None, dict[str, Any]]:
    """Inputs by the number in their names; those of None are the whole node's."""
    groups: dict[int | None, dict[str, Any]] = {}
    for key, value in inputs.items():
        numbers = [int(a or b) for a, b in _NUMBER.findall(str(key))]
        groups.setdefault(numbers[-1] if numbers else None, {})[str(key)] = value
    return groups


def _is_off(key: str, value: Any) -> bool:
    value = value.lower() if isinstance(value, str) else value
    return bool(_SWITCH.search(key)) and isinstance(value, bool | str) and value in _OFF


def _has_no_strength(group: Mapping[str, Any], mode: Any = None) -> bool:
    """Whether all strengths of a LoRA are 0; one that another node gives does not count as 0.

    mode: "simple" or "advanced" of a stack that has one strength for both models, and one for each.
    """
    given = {key: value for key, value in group.items() if _STRENGTH.search(key) and value is not None}
    if mode in ("simple", "advanced"):
        used = [value for key, value in given.items() if bool(_FOR_ONE.search(key)) == (mode == "advanced")]
    else:
        used = [*given.values()]
    return bool(used) and all(type(value) in (int, float) and value == 0 for value in used)


def _add(found: Named, key: str, value: Any, names: Names, constant: Callable[[Any], Any]) -> None:
    for_lora = bool(_LORA.search(key))
    if is_link(value):
        if not for_lora:
            return
        value = constant(value)
        found.complete &= value is not None
    if isinstance(value, str):
        if for_lora:
            found.add(value, names, loosely=False)
        elif name := None if _OTHER_FILES.search(key) else names.find(value):
            found.names.append(name)
        for written, strengths in _IN_TEXT.findall(value[:MAX_TEXT]):
            if not _all_zero(strengths):
                found.add(written.strip(), names, loosely=True)
        value = _json(value)
    if isinstance(value, dict | list):
        for written in _in_objects(value, for_lora):
            found.add(written, names, loosely=True)


def _all_zero(strengths: str) -> bool:
    """Whether the strengths of <lora:NAME:0:0> are all 0."""
    given = [part for part in strengths.split(":") if part.strip()]
    return bool(given) and all(re.fullmatch(r"\s*[+-]?0*(\.0*)?\s*", part) for part in given)


def _json(text: str) -> Any:
    if text[:1] not in ("[", "{") or len(text) > MAX_TEXT:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _in_objects(value: Any, for_lora: bool, depth: int = 0) -> Iterator[str]:
    """The files in objects such as {"on": true, "lora": NAME, "strength": 1}, and in lists of them."""
    if depth > MAX_DEPTH:
        return
    if isinstance(value, list):
        for each in value:
            yield from _in_objects(each, for_lora, depth + 1)
    if not isinstance(value, dict):
        return
    if any(_is_off(str(key), each) for key, each in value.items()) or _has_no_strength(value):
        return
    for key, each in value.items():
        is_name = key in ("name", "content", "file", "path") and for_lora
        if isinstance(each, str) and (is_name or _LORA.search(str(key))):
            yield each
        elif isinstance(each, dict | list):
            yield from _in_objects(each, for_lora or bool(_LORA.search(str(key))), depth + 1)
