"""The pack's subgraph blueprint: the graph of workflows/finetuned_flux.json as one node, with what one changes outside.

It is written by python -m tests.nodes.workflows, with the other copies of the workflows.
"""

import json
import uuid
from typing import Any

from tests.nodes.server import PACK, ROOT

SOURCE = ROOT / "workflows/finetuned_flux.json"
BLUEPRINT = PACK / "subgraphs/FLUX DreamBooth LoRA.json"
DESCRIPTION = (
    "Generates an image with FLUX.1-dev and a LoRA of your own, with the nodes and settings of the workflow "
    "finetuned_flux. Trigger words in the prompt are checked."
)
CATEGORY = "FLUX DreamBooth"
OUTSIDE = ("SaveImage", "MarkdownNote")  # nodes that are not part of it
INPUT, OUTPUT = -10, -20  # LiteGraph's ids of a subgraph's two ends
# the subgraph's inputs: name, label, and the node and widget behind it; a node without a title is named by its type
WIDGETS = (
    ("prompt", "prompt", "ConceptPrompt", "text", "STRING"),
    ("lora_name", "LoRA", "LoadFluxDreamBoothLoRA", "lora_name", "COMBO"),
    ("strength_model", "strength", "LoadFluxDreamBoothLoRA", "strength_model", "FLOAT"),
    ("width", "width", "width", "value", "INT"),
    ("height", "height", "height", "value", "INT"),
    ("steps", "steps", "BasicScheduler", "steps", "INT"),
    ("noise_seed", "seed", "RandomNoise", "noise_seed", "INT"),
    ("ckpt_name", "model", "CheckpointLoaderSimple", "ckpt_name", "COMBO"),
)
Graph = dict[str, Any]


def _uuid(what: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"flux_dreambooth/{BLUEPRINT.stem}/{what}"))


def make(graph: Graph) -> Graph:
    """The blueprint of finetuned_flux, in the form that ComfyUI saves one in."""
    nodes = {node["id"]: node for node in graph["nodes"] if node["type"] not in OUTSIDE}
    links = [_inner(link) for link in graph["links"] if {link[1], link[3]} <= nodes.keys()]
    (image,) = (link for link in graph["links"] if link[1] in nodes and link[3] not in nodes)
    links.append(_inner([*image[:3], OUTPUT, 0, image[5]]))
    inputs = []
    for slot, (name, label, place, widget, kind) in enumerate(WIDGETS):
        (node,) = (node for node in nodes.values() if place in (node.get("title"), node["type"]))
        number = graph["last_link_id"] + 1 + slot
        links.append(_inner([number, INPUT, slot, node["id"], len(node["inputs"]), kind]))
        node["inputs"].append({"name": widget, "type": kind, "widget": {"name": widget}, "link": number})
        inputs.append({"id": _uuid(name), "name": name, "label": label, "type": kind, "linkIds": [number]})
    left, right = min(node["pos"][0] for node in nodes.values()), max(node["pos"][0] for node in nodes.values())
    subgraph = {
        "id": _uuid("subgraph"),
        "version": 1,
        "state": {"lastGroupId": 0, "lastNodeId": max(nodes), "lastLinkId": links[-1]["id"], "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": BLUEPRINT.stem,
        "inputNode": {"id": INPUT, "bounding": [left - 260, 100, 140, 40 + 20 * len(inputs)]},
        "outputNode": {"id": OUTPUT, "bounding": [right + 600, 100, 120, 60]},
        "inputs": inputs,
        "outputs": [{"id": _uuid("IMAGE"), "name": "IMAGE", "type": "IMAGE", "linkIds": [image[0]]}],
        "widgets": [],
        "nodes": list(nodes.values()),
        "groups": [],
        "links": links,
        "extra": {},
        "category": CATEGORY,
        "description": DESCRIPTION,
    }
    return {
        "id": _uuid("workflow"),
        "revision": 0,
        "last_node_id": max(nodes) + 1,
        "last_link_id": 0,
        "nodes": [_instance(max(nodes) + 1, subgraph)],
        "links": [],
        "groups": [],
        "definitions": {"subgraphs": [subgraph]},
        "config": {},
        "extra": {"BlueprintDescription": DESCRIPTION},
        "version": 0.4,
    }


def _inner(link: list[Any]) -> Graph:
    keys = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(keys, link, strict=True))


def _instance(number: int, subgraph: Graph) -> Graph:
    """The node that stands for the subgraph."""
    inputs = [
        {
            "name": each["name"],
            "label": each["label"],
            "type": each["type"],
            "widget": {"name": each["name"]},
            "link": None,
        }
        for each in subgraph["inputs"]
    ]
    return {
        "id": number, "type": subgraph["id"], "title": subgraph["name"], "pos": [0, 0], "size": [420, 420], "flags": {},
        "order": 0, "mode": 0, "inputs": inputs, "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": []}],
        "properties": {}, "widgets_values": [],
    }  # fmt: skip


def as_text() -> str:
    """The file's content, made from the workflow as it is now."""
    return json.dumps(make(json.loads(SOURCE.read_text())), indent=2, ensure_ascii=False) + "\n"
