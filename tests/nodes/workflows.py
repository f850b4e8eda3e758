"""ComfyUI's two forms of a graph: the browser's, resolved by the server's /object_info, and that of scripts.

python -m tests.nodes.workflows      writes workflows/api/, and the pack's example_workflows/ and subgraphs/
"""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from custom_nodes.flux_dreambooth import NODE_DISPLAY_NAME_MAPPINGS
from tests.nodes import blueprint
from tests.nodes.server import PACK, ROOT, ComfyServer, prepare_base

WORKFLOWS = ROOT / "workflows"
NAMES = ("base_flux", "finetuned_flux", "epochs_grid", "mini_base", "mini_finetuned", "mini_routed")
VIRTUAL = {"MarkdownNote", "Note", "Reroute"}  # nodes of the browser alone
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
AFTER = ("fixed", "increment", "decrement", "randomize")  # control_after_generate
Graph = dict[str, Any]


def load(name: str) -> Graph:
    return json.loads((WORKFLOWS / f"{name}.json").read_text())


def inputs_of(info: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """A node's inputs in the browser's order: type (a list: its choices) and options."""
    order = [name for kind in ("required", "optional") for name in info["input_order"].get(kind, [])]
    found = info["input"].get("required", {}) | info["input"].get("optional", {})
    return {name: (found[name][0], found[name][1] if len(found[name]) > 1 else {}) for name in order}


def choices(kind: Any, options: Mapping[str, Any]) -> list[Any] | None:
    """What a combo offers, None for other inputs."""
    return kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None


def widget_values(node: Graph, info: Mapping[str, Any]) -> dict[str, Any]:
    """Name to value of a node's widgets. Raises AssertionError when their number is another."""
    values, found = list(node.get("widgets_values", [])), {}
    for name, (kind, options) in inputs_of(info).items():
        if (isinstance(kind, list) or kind in WIDGETS) and not options.get("forceInput"):
            assert values, f"{node['type']} has no value for {name}"
            found[name] = values.pop(0)
            if options.get("control_after_generate"):
                assert values and values.pop(0) in AFTER, f"{node['type']}.{name} has no control_after_generate"
    assert not values, f"{node['type']} has values left over: {values}"
    return found


def to_api(graph: Graph, object_info: Mapping[str, Any]) -> Graph:
    """The form that POST /prompt takes. Raises AssertionError for whatever does not resolve.

    A node of ComfyUI's has its id as a title, since its displayed name changes from release to release.
    """
    nodes, links = {node["id"]: node for node in graph["nodes"]}, {link[0]: link for link in graph["links"]}

    def source(link_id: int) -> list[Any]:
        _, origin, slot, *_ = links[link_id]
        if nodes[origin]["type"] == "Reroute":
            return source(nodes[origin]["inputs"][0]["link"])
        return [str(origin), slot]

    api = {}
    for node in sorted(graph["nodes"], key=lambda each: each["id"]):
        if node["type"] in VIRTUAL:
            continue
        assert node["type"] in object_info, f"there is no node {node['type']}"
        linked = {each["name"]: source(each["link"]) for each in node.get("inputs", []) if each.get("link") is not None}
        inputs = widget_values(node, object_info[node["type"]]) | linked
        title = node.get("title") or NODE_DISPLAY_NAME_MAPPINGS.get(node["type"], node["type"])
        api[str(node["id"])] = {"class_type": node["type"], "inputs": inputs, "_meta": {"title": title}}
    return api


def as_text(api: Graph) -> str:
    return json.dumps(api, indent=2, ensure_ascii=False) + "\n"


def write_all(object_info: Mapping[str, Any]) -> None:
    for name in NAMES:
        (WORKFLOWS / "api" / f"{name}.json").write_text(as_text(to_api(load(name), object_info)))
        shutil.copyfile(WORKFLOWS / f"{name}.json", PACK / "example_workflows" / f"{name}.json")
    blueprint.BLUEPRINT.write_text(blueprint.as_text())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder, ComfyServer(prepare_base(Path(folder))) as server:
        write_all(server.object_info())
    return 0


if __name__ == "__main__":
    sys.exit(main())
