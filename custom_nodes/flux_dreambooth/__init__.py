"""ComfyUI nodes for LoRAs of FLUX DreamBooth training; can be imported without ComfyUI."""

import sys
from typing import Any

from . import (
    nodes_grid,
    nodes_lora,
    nodes_lora_write,
    nodes_loras,
    nodes_mini,
    nodes_prompt,
    nodes_routed,
    nodes_sample,
    routes,
)

# Each nodes_*.py has NODES, a tuple of classes with a DISPLAY_NAME; a node's id is its class name.
_NODES = (
    *nodes_lora.NODES,
    *nodes_loras.NODES,
    *nodes_lora_write.NODES,
    *nodes_prompt.NODES,
    *nodes_sample.NODES,
    *nodes_routed.NODES,
    *nodes_grid.NODES,
    *nodes_mini.NODES,
)

NODE_CLASS_MAPPINGS = {node.__name__: node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {node.__name__: node.DISPLAY_NAME for node in _NODES}
WEB_DIRECTORY = "./web"


def _prompt_server() -> Any | None:
    """ComfyUI's running server, or None where there is none (tests, scripts)."""
    return getattr(getattr(sys.modules.get("server"), "PromptServer", None), "instance", None)


if (_server := _prompt_server()) is not None:
    routes.register(_server)
