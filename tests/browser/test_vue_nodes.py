"""Our widgets where ComfyUI draws nodes as elements of the page ("Nodes 2.0"), in Korean."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.graphs import Graph
from tests.browser.test_browser import lora_for
from tests.browser.test_truth import FOX, pytestmark  # noqa: F401
from tests.nodes.run_writer import RunWriter, write_lora
from tests.nodes.server import ComfyServer

SHOW = "() => app.extensionManager.setting.set('Comfy.VueNodes.Enabled', true)"
# Whether each of our elements is within its node, and each node as tall as what is in it.
OUTSIDE = """() => [...document.querySelectorAll('.fdb-loras, .fdb-result, .fdb-concepts')].filter((element) => {
  const node = element.closest('[data-node-id]')
  const [inner, outer] = [element.getBoundingClientRect(), node.getBoundingClientRect()]
  return inner.height < 20 || inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom
}).map((element) => element.className)"""


def test_our_widgets_as_elements(open_page: Callable[..., Any], comfyui: ComfyServer, runs: Path):
    run = RunWriter(runs, per_epoch=10)
    run.steps(10)
    run.samples("tjtoy toy on a beach")
    run.checkpoint(comfyui.loras)
    write_lora(comfyui.loras / "animals/fox.safetensors", FOX)
    lora_for(comfyui.folder / "models/mini/flux1-mini.safetensors", comfyui.loras / "demo.safetensors")
    page = open_page("ko")
    page.evaluate(SHOW)
    try:
        graph = Graph(page)
        base, loaders = graph.add("LoadMiniFlux", 100, 100), graph.add("LoadFluxDreamBoothLoRAs", 440, 100)
        prompt = graph.add("ConceptPrompt", 940, 100)
        one = graph.add("LoadFluxDreamBoothLoRA", 440, 550, lora_name="demo.safetensors")
        shown = graph.add("PreviewAny", 940, 550)
        for loader in (loaders, one):
            graph.link(base, "MODEL", loader, "model")
            graph.link(base, "CLIP", loader, "clip")
        graph.link(loaders, "CLIP", prompt, "clip")
        graph.link(one, "STRING", shown, 0)
        node = page.locator(f"[data-node-id='{one}']")
        node.get_by_role("combobox").first.wait_for()
        if not node.locator("[getoptionlabel]").count():  # frontend 1.35.9 shows the values of lists as they are
            node.get_by_text("이 파일").wait_for()  # the option "this file"
        page.click(".fdb-loras > .fdb-button")
        page.get_by_role("menuitem", name="animals").click()
        page.get_by_role("menuitem", name="fox.safetensors").click()
        page.click(".fdb-chip.fdb-missing >> text=zwx fox")
        graph.says("zwx fox", "콘셉트가 프롬프트에 있습니다")
        page.evaluate("() => app.queuePrompt(0)")
        page.wait_for_selector(".fdb-result >> text=: 적용함")
        node.get_by_role("combobox").first.click()
        page.get_by_role("option", name="tj-000001.safetensors").hover()
        page.wait_for_selector(".fdb-examples img")
        page.get_by_role("option", name="tj-000001.safetensors").click()
        page.wait_for_selector(".fdb-examples", state="detached")
        assert page.evaluate("(id) => app.graph.getNodeById(id).widgets[0].value", one) == "tj-000001.safetensors"
        assert page.evaluate(OUTSIDE) == []
    finally:
        page.evaluate(SHOW.replace("true", "false"))
