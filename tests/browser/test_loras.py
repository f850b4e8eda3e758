"""Several LoRAs in one node: picked from folders, switched, their words edited, and known to the nodes behind it.

Images of a LoRA's run next to its name, in this node's menu and in those of other nodes.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from custom_nodes.flux_dreambooth.lora_file.concepts import read_concepts
from custom_nodes.flux_dreambooth.safetensors_header import read_header
from tests.browser.graphs import Graph
from tests.browser.test_truth import FOX, NONE, pytestmark  # noqa: F401
from tests.nodes.run_writer import RunWriter, write_lora
from tests.nodes.server import ComfyServer

OpenPage = Callable[..., Any]
EXAMPLES = "() => document.querySelectorAll('.fdb-examples img').length"
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
    page.get_by_role("menuitem", name="animals").click()
    page.get_by_role("menuitem", name="fox.safetensors").click()
    graph.says("zwx fox")
    page.click(".fdb-loras > .fdb-button")
    page.get_by_role("menuitem", name="tj-000001.safetensors").click()
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


def test_names_of_folders_and_many_files_in_its_menu(open_page: OpenPage, comfyui: ComfyServer):
    """ComfyUI filters a menu of many entries, for which it needs to know a canvas that nobody has clicked yet."""
    name = "cats & <b>dogs"
    for number in range(6):
        write_lora(comfyui.loras / f"{name}/{number}.safetensors")
        write_lora(comfyui.loras / f"{number}.safetensors")
    graph = Graph(page := open_page())
    loader = graph.add("LoadFluxDreamBoothLoRAs")
    page.click(".fdb-loras > .fdb-button")
    page.get_by_role("menuitem", name=name).click()
    page.get_by_role("menuitem", name="5.safetensors").last.click()
    page.wait_for_selector(".fdb-lora-words >> text=tjtoy toy")
    (row,) = json.loads(page.evaluate(VALUE, loader))
    assert row["lora"] == f"{name}/5.safetensors"


def test_words_are_written_into_the_file_when_asked(open_page: OpenPage, comfyui: ComfyServer):
    file = write_lora(comfyui.loras / "fox.safetensors", FOX)
    page = open_page()
    graph = Graph(page)
    loader = graph.add("LoadFluxDreamBoothLoRAs")
    page.evaluate("([id, lora]) => app.graph.getNodeById(id).addNewLoraWidget(lora)", [loader, file.name])
    page.click(".fdb-lora-words >> text=zwx fox")
    page.get_by_role("dialog").get_by_role("textbox").fill("my fox, tail")
    page.keyboard.press("Enter")
    page.wait_for_selector(".fdb-lora-words >> text=my fox, tail")
    before = file.read_bytes()
    for answer in ("Cancel", "Confirm"):
        assert file.read_bytes() == before
        page.click(".fdb-write")
        page.get_by_role("button", name=re.compile(f"{answer}$")).click()
    page.wait_for_selector(".fdb-write", state="detached")
    header = read_header(file)
    assert [each.trigger for each in read_concepts(header.metadata)] == ["my fox", "tail"]
    assert header.metadata["modelspec.trigger_phrase"] == "my fox, tail"


def test_menus_show_what_a_loras_run_generated(open_page: OpenPage, comfyui: ComfyServer, runs: Path):
    run = RunWriter(runs, per_epoch=10)
    run.steps(10)
    run.samples("tjtoy toy on a beach", "sparkgpu gpu")
    run.checkpoint(comfyui.loras)
    write_lora(comfyui.loras / "animals/fox.safetensors", FOX)
    page = open_page()
    graph = Graph(page)
    for x, kind in enumerate(("LoraLoader", "LoRAReport", "ConceptPrompt")):
        node = graph.add(kind, 100 + 400 * x, 200)
        page.wait_for_timeout(300)  # until it is drawn
        graph.click_widget(node, "lora_name")
        page.get_by_role("menuitem", name="tj-000001.safetensors").hover()
        page.wait_for_function(f"{EXAMPLES} === 2")
        assert "step 10 · tjtoy toy" in page.locator(".fdb-examples").inner_text()
        page.get_by_role("menuitem", name="fox.safetensors").hover()
        page.wait_for_selector(".fdb-examples", state="detached")
        page.get_by_role("menuitem", name="tj-000001.safetensors").click()
        page.wait_for_timeout(300)
        assert page.locator(".fdb-examples").count() == 0
        assert page.evaluate("(id) => app.graph.getNodeById(id).widgets[0].value", node) == "tj-000001.safetensors"
