"""Concept prompt: a text encoder that knows a LoRA's concepts and their trigger words."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from .concepts import build_prompt
from .loaded_loras import (
    Loaded,
    NodeClasses,
    comfyui_classes,
    comfyui_names,
    loras_before,
    loras_of_users,
    running_prompt,
)
from .lora_file.concepts import Concept, read_concepts
from .lora_files import Names, lora_names, lora_path, valid_names
from .node_texts import Node
from .safetensors_header import read_header
from .triggers import edited_concepts, triggers_file

log = logging.getLogger(__name__)

FOLLOW = "(the loader's)"  # the LoRAs that are loaded before the CLIP input
PLAIN, WEIGHTS = "plain characters", "weights"


class ConceptPrompt(Node):
    """Encodes a prompt with the triggers of a LoRA's concepts, and says when one is missing or written differently."""

    SEARCH_ALIASES = ("trigger", "lora trigger words", "trigger phrase", "class tokens", "clip text encode", "concept")
    RETURN_TYPES = ("CONDITIONING", "STRING")
    RETURN_NAMES = ("CONDITIONING", "prompt")
    FUNCTION = "encode"

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        return {
            "required": {
                "clip": ("CLIP",),
                "lora_name": ([FOLLOW, *lora_names()],),
                "text": ("STRING", {"multiline": True, "default": ""}),
                "parentheses": ([PLAIN, WEIGHTS],),
            },
            "hidden": {"dynamic": "DYNPROMPT", "unique_id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, lora_name: str | None) -> bool | str:  # noqa: N802 (ComfyUI's name)
        return True if lora_name == FOLLOW else valid_names(lora_name)

    @classmethod
    def IS_CHANGED(cls, lora_name: str, **_: Any) -> Any:  # noqa: N802 (ComfyUI's name)
        """Changes if the chosen file is replaced. LoRAs of loaders before this node have an IS_CHANGED of their own."""
        return None if lora_name == FOLLOW else file_version(lora_name)

    def encode(
        self,
        clip: Any,
        lora_name: str,
        text: str,
        parentheses: str = PLAIN,
        dynamic: Any = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Returns what ComfyUI wants: the warnings for the browser, and the node's two outputs."""
        if clip is None:
            raise ValueError("Concept Prompt has no CLIP: connect a CLIP loader, or the LoRA loader's CLIP output.")
        prompt = running_prompt(dynamic)
        chosen = LoraChoice.of(lora_name, prompt, str(unique_id), comfyui_names(), comfyui_classes())
        try:
            elsewhere = concepts_of(chosen.elsewhere)
        except (ValueError, OSError) as error:  # of a file that this node does not need
            log.warning("Concept Prompt: %s", error)
            elsewhere = []
        built = build_prompt(text, concepts_of(chosen.names), parentheses == WEIGHTS, elsewhere)
        warnings = built.warnings or ([] if built.found else chosen.nothing_known())
        for warning in warnings:
            log.warning("Concept Prompt: %s", warning)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(built.text))
        return {"ui": {"text": [built.text], "warnings": warnings}, "result": (conditioning, built.text)}


@dataclass(frozen=True)
class LoraChoice:
    """The LoRAs whose concepts a Concept Prompt offers.

    names: chosen in the node, or loaded before its CLIP input; elsewhere: where there are none, those of the models
    that its prompt is used with; loaded: what the graph says.
    """

    names: tuple[str, ...]
    elsewhere: tuple[str, ...]
    loaded: Loaded

    @classmethod
    def of(
        cls, lora_name: str, prompt: Mapping[str, Any], node_id: str, names: Names, classes: NodeClasses
    ) -> "LoraChoice":
        """The choice of a node in a prompt of API format."""
        if lora_name != FOLLOW:
            name = names.find(lora_name)
            loaded = Loaded((name,)) if name else Loaded(missing=(lora_name,))
            return cls(loaded.names, (), loaded)
        before = loras_before(prompt, node_id, names, classes)
        if before.names:
            return cls(before.names, (), before)
        users = loras_of_users(prompt, node_id, names, classes)
        missing, complete = before.missing + users.missing, before.complete and users.complete
        return cls((), users.names, Loaded(users.names, tuple(dict.fromkeys(missing)), complete, users.certain))

    def nothing_known(self) -> list[str]:
        """Why a prompt cannot be checked, as far as the graph tells."""
        if names := (*self.names, *self.elsewhere):
            return [f"{', '.join(names)} does not say what it was taught."]
        if self.loaded.complete and not self.loaded.missing:
            return ["No LoRA is loaded before this node; choose one in it to check the prompt."]
        return []


def concepts_of(names: Iterable[str]) -> list[Concept]:
    """The concepts of LoRA files by their names in ComfyUI's list, or the triggers that a user wrote for them.

    Raises LookupError, ValueError or OSError.
    """
    found = []
    for name in names:
        path = lora_path(name)
        found += edited_concepts(triggers_file(), name) or concepts_in(path)
    return found


def concepts_in(path: Path) -> tuple[Concept, ...]:
    """The concepts that a LoRA file itself names. Raises ValueError or OSError."""
    stat = path.stat()
    return _concepts_in(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _concepts_in(path: Path, _time: int, _size: int) -> tuple[Concept, ...]:
    return tuple(read_concepts(read_header(path).metadata))


def file_version(name: str) -> tuple[int, int] | None:
    """Time and size of a LoRA file, None if it is not there."""
    try:
        stat = lora_path(name).stat()
    except (LookupError, OSError):
        return None
    return stat.st_mtime_ns, stat.st_size


NODES = (ConceptPrompt,)
