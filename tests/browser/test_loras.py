"""Several LoRAs in one node: picked from folders, switched, their words edited, and known to the nodes behind it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.browser.graphs import Graph
from tests.browser.test_truth import FOX, NONE, pytestmark  # noqa: F401
from tests.nodes.run_writer import RunWriter, write_lora
from tests.nodes.server import ComfyServer

OpenPage = Callable[..., Any]
VALUE = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'loras').value"


def test_a_list_of_loras(open_page: OpenPage, comfyui: ComfyServer, runs: Path):
    run = RunWriter(runs, per_epoch=10)
    run.steps(10)
    run.samples("tjtoy toy on a beach")
    run.checkpoint(comfyui.loras)
    write_lora(comfyui.loras / "animals/fox.safetensors", FOX)
    graph = Graph(page := open_page(palette="light"))
    _, loader, _ = graph.chain("LoadFluxDreamBoothLoRAs")
    graph.says(line=NONE)
    page.click(".fdb-loras > .fdb-button")
    page.locator(".litemenu-entry", has_text="animals").click()
    page.locator(".litemenu-entry", has_text="fox.safetensors").click()
    graph.says("zwx fox")
    page.click(".fdb-loras > .fdb-button")
    page.locator(".litemenu-entry", has_text="tj-000001.safetensors").click()
    page.wait_for_selector(".fdb-lora-words >> text=tjtoy toy")
    page.wait_for_function("() => document.querySelector('.fdb-lora-facts img')?.naturalWidth")
    graph.says("tjtoy toy")
    page.fill(".fdb-lora-strength >> nth=1", "0.5")
    page.press(".fdb-lora-strength >> nth=1", "Enter")
    page.click(".fdb-lora input[type=checkbox] >> nth=0")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.fdb-chip')].every((c) => c.textContent !== 'zwx fox')"
    )
    rows = json.loads(page.evaluate(VALUE, loader))
    assert [(row["lora"], row["on"], row["strength"]) for row in rows] == [
        ("animals/fox.safetensors", False, 1),
        ("tj-000001.safetensors", True, 0.5),
    ]
    page.click(".fdb-lora-words >> nth=1")
    page.get_by_role("dialog").get_by_role("textbox").fill("my own words")
    page.keyboard.press("Enter")
    graph.says("my own words")
    again = "() => { const graph = app.graph.serialize(); app.graph.clear(); app.graph.configure(graph) }"
    page.evaluate(again)
    graph.says("my own words")
    assert json.loads(page.evaluate(VALUE, loader)) == rows
