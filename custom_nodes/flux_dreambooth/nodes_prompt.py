"""Concept prompt: a text encoder that knows a LoRA's concepts and their trigger words."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from .concepts import build_prompt
from .lora_file.concepts import Concept, read_concepts
from .lora_files import lora_names
from .node_texts import Node
from .safetensors_header import read_header

log = logging.getLogger(__name__)

FOLLOW = "(the loader's)"  # the LoRAs that are loaded before the CLIP input
PLAIN, WEIGHTS = "plain characters", "weights"


class ConceptPrompt(Node):
    """Encodes a prompt with the triggers of a LoRA's concepts, and says when one is missing or written differently."""

    SEARCH_ALIASES = ("trigger words", "trigger phrase", "class tokens", "clip text encode", "concept")
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
            "hidden": {"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        }

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
        prompt: Mapping[str, Any] | None = None,
        unique_id: str | None = None,
    ) -> dict[str, Any]:
        """Returns what ComfyUI wants: the warnings for the browser, and the node's two outputs."""
        if clip is None:
            raise ValueError("Concept Prompt has no CLIP: connect a CLIP loader, or the LoRA loader's CLIP output.")
        names = loras_before(prompt or {}, str(unique_id), lora_names()) if lora_name == FOLLOW else [lora_name]
        built = build_prompt(text, concepts_of(names), weights=parentheses == WEIGHTS)
        warnings = built.warnings or ([] if built.found else [_nothing_known(names)])
        for warning in warnings:
            log.warning("Concept Prompt: %s", warning)
        conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(built.text))
        return {"ui": {"text": [built.text], "warnings": warnings}, "result": (conditioning, built.text)}


def _nothing_known(names: list[str]) -> str:
    if names:
        return f"{', '.join(names)} does not say what it was taught."
    return "No LoRA is loaded before this node; choose one in it to check the prompt."


def concepts_of(names: Iterable[str]) -> list[Concept]:
    """The concepts of LoRA files by their names in ComfyUI's list. Raises LookupError, ValueError or OSError."""
    return [concept for name in names for concept in read_concepts(read_header(lora_path(name)).metadata)]


def lora_path(name: str) -> Path:
    """A LoRA's path; only names of ComfyUI's own list lead to a file. Raises LookupError."""
    import folder_paths

    path = folder_paths.get_full_path("loras", name) if name in lora_names() else None
    if path is None:
        raise LookupError(f"There is no LoRA called {name!r} in models/loras.")
    return Path(path)


def file_version(name: str) -> tuple[int, int] | None:
    """Time and size of a LoRA file, None if it is not there."""
    try:
        stat = lora_path(name).stat()
    except (LookupError, OSError):
        return None
    return stat.st_mtime_ns, stat.st_size


def loras_before(prompt: Mapping[str, Any], node_id: str, known: Iterable[str]) -> list[str]:
    """The LoRAs named in the inputs of nodes before this one, in the order of loading. prompt: in API format."""
    names, found, queue = set(known), [], [node_id]
    for node in queue:  # grows while it is read
        inputs = prompt.get(node, {}).get("inputs", {})
        queue += [str(value[0]) for value in inputs.values() if _is_link(value) and str(value[0]) not in queue]
        named = [value for value in inputs.values() if isinstance(value, str) and value in names]
        found += [name for name in named if node != node_id and name not in found]
    return found[::-1]


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2


NODES = (ConceptPrompt,)
