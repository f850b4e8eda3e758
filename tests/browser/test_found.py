"""What the page finds of ours: nodes by other words for them, and the blueprint of the graph with a LoRA."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.nodes.blueprint import BLUEPRINT
from tests.nodes.server import ComfyServer
from tests.nodes.workflows import WORKFLOWS

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
SEARCH = "() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')"


def test_search_finds_our_nodes(open_page: Callable[..., Any], comfyui: ComfyServer):
    if "search_aliases" not in comfyui.object_info("ConceptPrompt"):
        pytest.skip("this ComfyUI searches in names only")
    page = open_page()
    for word, node in (
        ("trigger", "Concept Prompt"),
        ("xy plot", "Checkpoint Grid"),
        ("dreambooth", "Checkpoint Grid"),
        ("lora", "Load FLUX DreamBooth LoRA"),
    ):
        page.evaluate(SEARCH)
        page.wait_for_function("() => document.activeElement?.tagName === 'INPUT'")
        page.keyboard.type(word)
        page.locator("[role=option]").get_by_text(node, exact=True).first.wait_for()
        page.evaluate(SEARCH)
        page.wait_for_function("() => !document.querySelector('[role=option]')")


def test_the_blueprint_is_the_workflows_graph(open_page: Callable[..., Any]):
    """In the page, whose form for the server has the subgraph's nodes in place of it."""
    page = open_page()
    page.evaluate("(graph) => app.loadGraphData(graph)", json.loads(BLUEPRINT.read_text()))
    page.wait_for_function("() => app.graph.nodes.length === 1 && app.graph.nodes[0].widgets?.length")
    found = page.evaluate("async () => (await app.graphToPrompt()).output")
    whole = json.loads((WORKFLOWS / "api/finetuned_flux.json").read_text())
    outside = {name for name, node in whole.items() if node["class_type"] == "SaveImage"}
    expected = {name: node for name, node in whole.items() if name not in outside}
    assert {name.rpartition(":")[2]: plain(node) for name, node in found.items()} == {
        name: plain(node) for name, node in expected.items()
    }
    shown = page.evaluate("() => app.graph.nodes[0].widgets.map(({ label, name, value }) => [label ?? name, value])")
    assert ["LoRA", "flux_dreambooth.safetensors"] in shown and ["steps", 50] in shown
    assert ["prompt", whole["5"]["inputs"]["text"]] in shown


def plain(node: dict[str, Any]) -> list[Any]:
    """A node's type and inputs, its links by the plain ids of the nodes that they come from."""
    inputs = {
        name: [value[0].rpartition(":")[2], value[1]] if isinstance(value, list) else value
        for name, value in node["inputs"].items()
    }
    return [node["class_type"], inputs]
