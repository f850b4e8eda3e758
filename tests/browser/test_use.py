"""The button Use: the checkpoint goes into a loader of any pack, or into a new one, connected and covering nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import TOAST
from tests.browser.graphs import Graph
from tests.nodes.run_writer import RunWriter, write_lora
from tests.nodes.server import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
FILE = "tj-000001.safetensors"
WIRES = """() => Object.fromEntries(app.graph.nodes.map((node) => [node.type, (node.inputs ?? []).map((input, slot) => {
  const origin = node.getInputNode(slot)
  return origin ? `${input.name} <- ${origin.type}` : null
}).filter(Boolean)]))"""
OVERLAPS = """() => app.graph.nodes.flatMap((a, i) => app.graph.nodes.slice(i + 1).filter((b) =>
  a.pos[0] < b.pos[0] + b.size[0] && b.pos[0] < a.pos[0] + a.size[0] &&
  a.pos[1] - 30 < b.pos[1] + b.size[1] && b.pos[1] - 30 < a.pos[1] + a.size[1]).map((b) => [a.type, b.type]))"""


class Use:
    """Clicks the first checkpoint's button, and waits for what the page says of it."""

    def __init__(self, page: Any):
        self.graph, self.page = Graph(page), page

    def __call__(self) -> None:
        said = self.page.locator(TOAST, has_text=FILE)
        said.first.wait_for(state="detached")
        self.page.click(".fdb-list li:has-text('Epoch 1') button")
        said.first.wait_for()


@pytest.fixture
def use(open_page: OpenPage, runs: Path, comfyui: ComfyServer) -> Use:
    """A page with the Training tab open, which shows a run of two checkpoints."""
    run = RunWriter(runs, per_epoch=10)
    for _ in range(2):
        run.steps(10)
        run.checkpoint(comfyui.loras)
    write_lora(comfyui.loras / "other.safetensors")
    page = open_page(size=(1440, 900))
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('fluxDreamBooth')")
    page.wait_for_selector(".fdb-list li:has-text('Epoch 1') button")
    return Use(page)


def test_a_new_loader_is_connected_and_covers_nothing(use: Use):
    graph, page = use.graph, use.page
    base, sampler, prompt = (
        graph.add("LoadMiniFlux"),
        graph.add("FluxSampleAsTrained", 340),
        graph.add("ConceptPrompt", 340, 600),
    )
    graph.link(base, "MODEL", sampler, "model")
    for node in (sampler, prompt):
        graph.link(base, "CLIP", node, "clip")
    use()
    wires, loader = page.evaluate(WIRES), "LoadFluxDreamBoothLoRA"
    assert wires[loader] == ["model <- LoadMiniFlux", "clip <- LoadMiniFlux"]
    assert wires["FluxSampleAsTrained"] == [f"model <- {loader}", f"clip <- {loader}"]
    assert wires["ConceptPrompt"] == [f"clip <- {loader}"]
    assert page.evaluate(OVERLAPS) == []
    found = (
        "() => app.graph.nodes.filter(({ type }) => type === 'LoadFluxDreamBoothLoRA').map((n) => n.widgets[0].value)"
    )
    assert page.evaluate(found) == [FILE]
    use()
    assert page.evaluate(found) == [FILE]


def test_two_models_are_not_guessed_between(use: Use):
    graph, page = use.graph, use.page
    samplers = []
    for y in (50, 700):
        base, sampler = graph.add("LoadMiniFlux", 0, y), graph.add("FluxSampleAsTrained", 340, y)
        graph.link(base, "MODEL", sampler, "model")
        samplers.append((base, sampler))
    use()
    assert page.evaluate(WIRES)["LoadFluxDreamBoothLoRA"] == [] and page.evaluate(OVERLAPS) == []
    page.evaluate("() => app.graph.remove(app.graph.nodes.find(({ type }) => type === 'LoadFluxDreamBoothLoRA'))")
    page.evaluate(
        "(id) => { app.canvas.deselectAll(); app.canvas.selectNode(app.graph.getNodeById(id)) }", samplers[1][0]
    )
    use()
    assert (
        page.evaluate("(id) => app.graph.getNodeById(id).getInputNode(0).type", samplers[1][1])
        == "LoadFluxDreamBoothLoRA"
    )
    assert page.evaluate("(id) => app.graph.getNodeById(id).getInputNode(0).type", samplers[0][1]) == "LoadMiniFlux"


def test_the_loader_that_is_there_takes_it(use: Use):
    graph, page = use.graph, use.page
    loader = graph.add("LoraLoaderModelOnly", lora_name="other.safetensors")
    use()
    value = "(id) => app.graph.getNodeById(id).widgets[0].value"
    assert page.evaluate(value, loader) == FILE
    graph.set_widget(loader, "lora_name", "other.safetensors")
    wrapped = graph.wrap(loader)
    use()
    inner = "(id) => app.graph.getNodeById(id).subgraph.nodes[0].widgets[0].value"
    assert page.evaluate(inner, wrapped) == FILE
    assert page.evaluate("() => app.graph.nodes.length") == 1


def test_the_list_of_loras_takes_it_once(use: Use):
    graph, page = use.graph, use.page
    loader = graph.add("LoadFluxDreamBoothLoRAs", loras='[{"lora": "other.safetensors", "on": true, "strength": 0.5}]')
    rows = f"() => JSON.parse(app.graph.getNodeById({loader}).widgets[0].value).map((r) => [r.lora, r.on, r.strength])"
    use()
    assert page.evaluate(rows) == [["other.safetensors", True, 0.5], [FILE, True, 1]]
    page.click(".fdb-list li:has-text('Epoch 2') button")
    page.wait_for_function(f"() => ({rows})()[1][0] === 'tj-000002.safetensors'")
    use()
    assert page.evaluate(rows) == [["other.safetensors", True, 0.5], [FILE, True, 1]]
    assert page.evaluate("() => app.graph.nodes.length") == 1
