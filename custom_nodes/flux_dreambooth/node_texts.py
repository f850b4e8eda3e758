"""The base of all nodes. It takes their English from locales/en/nodeDefs.json, the file that the browser shows."""

import json
from functools import cache
from pathlib import Path
from typing import Any

ENGLISH = Path(__file__).with_name("locales") / "en" / "nodeDefs.json"


class Node:
    """A node whose id is its class's name: it has RETURN_TYPES, FUNCTION and `inputs`, and its texts in ENGLISH."""

    DISPLAY_NAME: str
    DESCRIPTION: str
    CATEGORY = "FLUX DreamBooth"
    RETURN_TYPES: tuple[str, ...] = ()
    OUTPUT_TOOLTIPS: tuple[str, ...] = ()
    SEARCH_ALIASES: tuple[str, ...] = ()  # other words that ComfyUI's search finds the node by

    def __init_subclass__(cls) -> None:
        texts = _english()[cls.__name__]
        cls.DISPLAY_NAME, cls.DESCRIPTION = _plain(texts["display_name"]), _plain(texts["description"])
        outputs = [texts["outputs"].get(str(index), {}) for index in range(len(cls.RETURN_TYPES))]
        cls.SEARCH_ALIASES = ("dreambooth", *cls.SEARCH_ALIASES)
        cls.OUTPUT_TOOLTIPS = tuple(_plain(output.get("tooltip", "")) for output in outputs)

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        """INPUT_TYPES without the tooltips: kind (required, optional, hidden) -> name -> (type, options)."""
        raise NotImplementedError

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802 (ComfyUI's name)
        return {
            kind: {name: _with_tooltip(cls.__name__, name, value) for name, value in given.items()}
            for kind, given in cls.inputs().items()
        }


def _with_tooltip(node: str, name: str, value: Any) -> Any:
    text = _english()[node]["inputs"].get(name, {}).get("tooltip")
    if text is None or isinstance(value, str):  # a hidden input is a word
        return value
    kind, *options = value
    return kind, {**(options[0] if options else {}), "tooltip": _plain(text)}


@cache
def _english() -> dict[str, Any]:
    return json.loads(ENGLISH.read_text(encoding="utf-8"))


def _plain(text: str) -> str:
    """The browser's texts write a brace as {'{'}, since braces stand for values there."""
    return text.replace("{'{'}", "{").replace("{'}'}", "}")
