"""The node that loads several LoRAs, each with a switch and a strength."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import lora_files, lora_loading
from .node_texts import Node
from .nodes_lora import fresh, state_of

MOST = 32
EXAMPLE = '[{"lora": "toy.safetensors", "strength": 0.8, "on": true}]'
WIDGET = "FLUX_DREAMBOOTH_LORAS"  # what the page draws for the input, see web/loras.js


@dataclass(frozen=True)
class Row:
    """One LoRA of the list: its name in ComfyUI's list, and its strength for the transformer and for CLIP."""

    lora: str
    strength: float
    strength_clip: float


def read_rows(text: str) -> list[Row]:
    """The LoRAs that are switched on, in the order of loading. Raises ValueError, saying which entry is wrong."""
    try:
        entries = json.loads(text or "[]")
    except (ValueError, RecursionError):
        raise ValueError(f"loras must be a list in JSON such as {EXAMPLE}") from None
    if not isinstance(entries, list) or len(entries) > MOST:
        raise ValueError(f"loras must be a list of at most {MOST} entries such as {EXAMPLE}")
    rows = []
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            raise ValueError(f"loras, entry {number}: {entry!r} is not an object such as {EXAMPLE[1:-1]}")
        name, is_on, strength = entry.get("lora"), entry.get("on", True), entry.get("strength", 1.0)
        strength_clip = entry.get("strength_clip", strength)
        if not isinstance(name, str):
            raise ValueError(f'loras, entry {number}: "lora" must be the name of a file')
        if not isinstance(is_on, bool):
            raise ValueError(f'loras, entry {number}: "on" must be true or false')
        if not _is_strength(strength) or not _is_strength(strength_clip):
            raise ValueError(f"loras, entry {number}: a strength must be a number from -100 to 100")
        if is_on and (strength or strength_clip):
            rows.append(Row(name, float(strength), float(strength_clip)))
    return rows


def _is_strength(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and abs(value) <= 100


class LoadFluxDreamBoothLoRAs(Node):
    """Applies a list of LoRAs, one after the other, as the node for one LoRA does."""

    SEARCH_ALIASES = ("lora stack", "power lora loader", "several loras", "multiple loras", "load lora")
    RETURN_TYPES = ("MODEL", "CLIP", "STRING")
    RETURN_NAMES = ("model", "clip", "applied")
    FUNCTION = "load"

    def __init__(self):
        self._loaded: dict[Path, lora_loading.LoadedLora] = {}

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL",),
                "loras": ("STRING", {"default": "[]", "widgetType": WIDGET}),
            },
            "optional": {
                "clip": ("CLIP",),
                "allow_partial": ("BOOLEAN", {"default": False}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, loras: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        if loras is None:  # of another node
            return True
        try:
            return lora_files.valid_names(*(row.lora for row in read_rows(loras)))
        except ValueError as error:
            return str(error)

    @classmethod
    def IS_CHANGED(cls, loras: str | None = None, **_: Any) -> str:  # noqa: N802
        """The files that are switched on and their signatures."""
        try:
            return "\n".join(state_of(row.lora) for row in read_rows(loras or "[]"))
        except ValueError as error:
            return str(error)

    def load(self, model: Any, loras: str, clip: Any = None, allow_partial: bool = False) -> dict[str, Any]:
        rows = read_rows(loras)
        paths = [lora_files.lora_path(row.lora) for row in rows]
        self._loaded = {path: fresh(self._loaded.get(path), path) for path in paths}
        model, clip, lines = self._applied(model, clip, list(zip(rows, paths, strict=True)), allow_partial)
        text = "\n".join(lines) or "no LoRA is switched on"
        logging.info(text)
        return {"ui": {"text": [text]}, "result": (model, clip, text)}

    def _applied(
        self, model: Any, clip: Any, rows: Sequence[tuple[Row, Path]], allow_partial: bool
    ) -> tuple[Any, Any, list[str]]:
        lines = []
        for row, path in rows:
            done = lora_loading.apply(model, clip, self._loaded[path], row.strength, row.strength_clip, allow_partial)
            model, clip = done.model, done.clip
            lines.append(done.summary)
        return model, clip, lines


NODES = (LoadFluxDreamBoothLoRAs,)
