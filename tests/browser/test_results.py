"""A node shows what it did on itself, and the files that it wrote are in every list at once."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import Graph
from tests.browser.test_browser import lora_for
from tests.nodes.server import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
LISTED = """([id, file]) => {
  return app.graph.getNodeById(id).widgets.find((w) => w.name === 'lora_name').options.values.includes(file)
}"""
QUEUE = "() => app.queuePrompt(0)"


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_nodes_show_what_they_did(open_page: OpenPage, comfyui: ComfyServer, palette: str):
    lora_for(comfyui.folder / "models/mini/flux1-mini.safetensors", comfyui.loras / "demo.safetensors")
    graph = Graph(page := open_page(palette=palette))
    base, loader = graph.add("LoadMiniFlux"), graph.add("LoadFluxDreamBoothLoRA", 400)
    resize, report = graph.add("ResizeLoRA", 800, new_name="small/one", rank=1), graph.add("LoRAReport", 1250)
    shown = graph.add("PreviewAny", 400, 500)
    graph.link(base, "MODEL", loader, "model")
    graph.link(loader, "STRING", shown, 0)
    page.evaluate(QUEUE)
    page.wait_for_selector(".fdb-result >> text=written to models/loras/small/one.safetensors")
    page.wait_for_selector(".fdb-result >> text=: applied", state="attached")
    page.wait_for_selector(".fdb-result >> text=norm of the weight change", state="attached")
    page.wait_for_function(LISTED, arg=[loader, "small/one.safetensors"])
    assert page.evaluate(LISTED, [report, "small/one.safetensors"])
    shown = "() => app.graph.nodes.filter((n) => n.widgets?.some((w) => w.name === 'result')).map((n) => n.id)"
    assert {loader, resize, report} <= {*page.evaluate(shown)}
