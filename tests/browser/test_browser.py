"""Training and Concept Prompt in the real frontend: seen, clicked, and followed while files change."""

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from custom_nodes.flux_dreambooth.run_state import LOCK
from custom_nodes.flux_dreambooth.safetensors_header import read_header
from tests.browser.conftest import TAB, TOAST, WORKFLOWS
from tests.nodes.run_writer import CONCEPTS, RunWriter, write_lora
from tests.nodes.server import ROOT, ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
ADD_NODES = """(types) => {
  const nodes = types.map((type, index) => {
    const node = LiteGraph.createNode(type)
    node.pos = [60 + 430 * index, 120]
    app.graph.add(node)
    return node
  })
  for (const [from, to] of nodes.slice(1).map((node, index) => [nodes[index], node])) {
    const output = from.outputs.findIndex(({ type }) => type === 'CLIP')
    const input = to.inputs.findIndex(({ type }) => type === 'CLIP')
    if (output >= 0 && input >= 0) from.connect(output, to, input)
  }
  return nodes.map(({ id }) => id)
}"""
LISTEN = """(id) => {
  window.heard = []
  app.graph.getNodeById(id).onWidgetChanged = (...facts) => heard.push(facts)
}"""


def widget(page: Any, node: int, name: str) -> Any:
    found = "([id, name]) => app.graph.getNodeById(id).widgets.find((w) => w.name === name).value"
    return page.evaluate(found, [node, name])


def set_widget(page: Any, node: int, name: str, value: Any) -> None:
    found = "([id, name, value]) => { app.graph.getNodeById(id).widgets.find((w) => w.name === name).value = value }"
    page.evaluate(found, [node, name, value])


def test_without_a_run_the_tab_says_how_to_start_one(open_page: OpenPage):
    page = open_page()
    page.click(TAB)
    page.wait_for_selector(".fdb-notice >> text=No training run yet")
    assert page.locator(".fdb-progress").inner_text() == ""


def test_the_tab_follows_a_run_that_is_being_written(open_page: OpenPage, runs: Path, comfyui: ComfyServer):
    page = open_page()
    page.click(TAB)
    page.wait_for_selector(".fdb-notice >> text=No training run yet")
    run = RunWriter(runs, total=400, per_epoch=40)
    page.wait_for_selector(".fdb-state >> text=Preparing")
    run.start()
    page.wait_for_selector("text=prepared: step 0 of 400")
    assert page.locator(".fdb-state").inner_text() == "Running"
    run.steps(60)
    page.wait_for_selector("text=step 60 of 400")
    assert "9 min left" in page.locator(".fdb-progress").inner_text()
    before = page.get_attribute(".fdb-average", "d")
    run.steps(20)
    run.validation()
    run.samples("tjtoy toy on a beach", "<img src=x onerror=alert(1)>")
    file = run.checkpoint(comfyui.loras, with_state=True)
    page.wait_for_selector("text=step 80 of 400")
    page.wait_for_selector(f"{TOAST} >> text={file}")
    assert len(page.get_attribute(".fdb-average", "d")) > len(before)
    assert page.locator(".fdb-validation").count() == 1 and page.locator(".fdb-mark").count() == 1
    assert page.locator(".fdb-rate").count() == 1
    assert "2 / 10" in page.locator(".fdb-facts").inner_text()
    page.wait_for_function("() => [...document.querySelectorAll('.fdb-pictures img')].every((i) => i.naturalWidth)")
    assert page.locator(".fdb-pictures img").count() == 2
    assert page.locator(".fdb-pictures").inner_text().endswith("<img src=x onerror=alert(1)>")
    page.wait_for_selector(".fdb-list li >> text=Epoch 2")
    run.steps(320)
    run.checkpoint(comfyui.loras)
    page.wait_for_selector(".fdb-state >> text=Finished")
    assert page.locator(".fdb-buttons button").count() == 0


def test_earlier_pictures_can_be_seen(open_page: OpenPage, runs: Path):
    run = RunWriter(runs)
    for _ in range(2):
        run.steps(50)
        run.samples("a")
    page = open_page()
    page.click(TAB)
    page.wait_for_selector(".fdb-stepper >> text=step 100")
    page.click(".fdb-stepper button[title='Earlier images']")
    page.wait_for_selector(".fdb-stepper >> text=step 50")
    assert "step00000050" in page.get_attribute(".fdb-pictures img", "src")


def test_news_come_while_the_tab_is_closed_and_loaders_know_the_file(
    open_page: OpenPage, runs: Path, comfyui: ComfyServer
):
    run = RunWriter(runs)
    run.steps(30)
    page = open_page()
    (node,) = page.evaluate(ADD_NODES, ["LoraLoader"])
    page.wait_for_timeout(1500)  # the first look finds what was there before
    run.steps(10)
    file = run.checkpoint(comfyui.loras)
    page.wait_for_selector(f"{TOAST} >> text={file}")
    values = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'lora_name').options.values"
    assert file in page.evaluate(values, node)


@pytest.mark.parametrize("loader", ["LoadFluxDreamBoothLoRA", "LoraLoader", None])
def test_one_click_puts_a_checkpoint_into_the_graph(
    open_page: OpenPage, runs: Path, comfyui: ComfyServer, loader: str | None
):
    run = RunWriter(runs, per_epoch=10)
    for _ in range(2):
        run.steps(10)
        run.checkpoint(comfyui.loras)
    page = open_page()
    nodes = page.evaluate(ADD_NODES, [loader]) if loader else []
    page.click(TAB)
    page.click(".fdb-list li:has-text('Epoch 1') button")
    page.wait_for_selector(f"{TOAST} >> text=tj-000001.safetensors")
    (found,) = page.evaluate("() => app.graph.nodes.map(({ id, type }) => [id, type])")
    assert found[1] == (loader or "LoadFluxDreamBoothLoRA") and (not nodes or found[0] == nodes[0])
    assert widget(page, found[0], "lora_name") == "tj-000001.safetensors"


def test_save_and_stop(open_page: OpenPage, runs: Path):
    run = RunWriter(runs)
    run.steps(10)
    page = open_page()
    page.click(TAB)
    page.click(".fdb-save")
    page.wait_for_selector(".fdb-save:disabled >> text=Saving")
    assert (run.folder / "save").is_file() and not (run.folder / "stop").exists()
    page.click(".fdb-stop")
    page.get_by_role("button", name=re.compile("Cancel$")).click()
    page.wait_for_timeout(300)
    assert not (run.folder / "stop").exists()
    page.click(".fdb-stop")
    page.get_by_role("button", name=re.compile("Confirm$")).click()
    page.wait_for_selector(".fdb-stop:disabled >> text=Stopping")
    assert (run.folder / "stop").is_file()
    (run.folder / "save").unlink()  # as the trainer does
    page.wait_for_selector(".fdb-save:not(:disabled)")


def test_several_runs_and_the_going_one_is_chosen(open_page: OpenPage, runs: Path):
    gone = RunWriter(runs, "old", total=20)
    gone.steps(20)
    (gone.folder / LOCK).touch()  # its trainer holds it no more
    for file in gone.folder.iterdir():
        os.utime(file, (time.time() - 60,) * 2)
    ended = RunWriter(runs, "ended", total=20)
    ended.steps(20)
    ended.checkpoint()
    RunWriter(runs, "news", total=40).steps(30)
    page = open_page()
    page.click(TAB)
    page.wait_for_selector(".fdb-runs .fdb-run >> nth=2")
    page.click(".fdb-run:has-text('old')")
    page.wait_for_selector(".fdb-state >> text=Ended before its last step")
    page.click(".fdb-run:has-text('ended')")
    page.wait_for_selector(".fdb-state >> text=Finished")
    page.click(".fdb-run:has-text('news')")
    page.wait_for_selector("text=step 30 of 40")


def test_korean(open_page: OpenPage, runs: Path, comfyui: ComfyServer):
    write_lora(comfyui.loras / "tj.safetensors")
    RunWriter(runs).steps(60)
    page = open_page("ko")
    page.click(TAB)
    page.wait_for_selector("text=400스텝 중 60스텝")
    (node,) = page.evaluate(ADD_NODES, ["ConceptPrompt"])
    set_widget(page, node, "lora_name", "tj.safetensors")
    page.wait_for_selector(".fdb-says >> text=콘셉트가 프롬프트에 없습니다")
    assert page.evaluate("(id) => app.graph.getNodeById(id).title", node) == "콘셉트 프롬프트"


def test_concepts_are_offered_checked_and_put_into_the_prompt(open_page: OpenPage, comfyui: ComfyServer):
    write_lora(comfyui.loras / "tj.safetensors")
    page = open_page()
    (node,) = page.evaluate(ADD_NODES, ["ConceptPrompt"])
    page.wait_for_selector(".fdb-says >> text=No LoRA is loaded")
    set_widget(page, node, "lora_name", "tj.safetensors")
    set_widget(page, node, "text", "a TJ Toy on a table")
    page.wait_for_selector(".fdb-chip.fdb-differs >> text=tjtoy toy")
    page.wait_for_selector(".fdb-says >> text=“TJ Toy” should be “tjtoy toy”")
    assert page.locator(".fdb-chip").count() == len([concept for concept in CONCEPTS if not concept["is_reg"]])
    page.evaluate(LISTEN, node)
    page.click(".fdb-chip.fdb-differs")
    page.wait_for_selector(".fdb-chip.fdb-present >> text=tjtoy toy")
    page.click(".fdb-chip.fdb-missing")
    page.wait_for_function("() => document.querySelectorAll('.fdb-chip.fdb-present').length === 2")
    assert page.evaluate("() => heard.map(([name, value]) => [name, value])")[0] == ["text", "a tjtoy toy on a table"]
    assert widget(page, node, "text") == "a tjtoy toy on a table sparkgpu gpu (small)"
    assert page.locator(".fdb-says.fdb-good").count() == 1


def test_concepts_follow_the_loader(open_page: OpenPage, comfyui: ComfyServer):
    write_lora(comfyui.loras / "a.safetensors")
    write_lora(comfyui.loras / "b.safetensors", [{"concept": "fox", "trigger": "zwx fox", "pictures": 4}])
    page = open_page()
    loader, _ = page.evaluate(ADD_NODES, ["LoraLoader", "ConceptPrompt"])
    page.wait_for_selector(".fdb-chip >> text=tjtoy toy")
    set_widget(page, loader, "lora_name", "b.safetensors")
    page.wait_for_selector(".fdb-chip >> text=zwx fox")
    page.evaluate("(id) => { app.graph.getNodeById(id).mode = 4 }", loader)
    page.wait_for_selector(".fdb-says >> text=No LoRA is loaded")


def test_a_workflow_of_the_left_panel_draws_with_a_concept(open_page: OpenPage, comfyui: ComfyServer):
    small_workflow(comfyui.folder / "user/default/workflows/mini_finetuned.json")
    lora_for(comfyui.folder / "models/mini/flux1-mini.safetensors", comfyui.loras / "demo.safetensors")
    page = open_page()
    page.click(WORKFLOWS)
    page.click("[role=treeitem] >> text=mini_finetuned")
    page.wait_for_function("() => app.graph.nodes.some(({ type }) => type === 'ConceptPrompt')")
    page.click(".fdb-chip.fdb-missing >> text=tjtoy toy")
    page.wait_for_selector(".fdb-chip.fdb-present >> text=tjtoy toy")
    page.click("[data-testid='queue-button']")
    page.wait_for_function(
        "() => app.graph.nodes.find(({ type }) => type === 'SaveImage')?.imgs?.[0]?.naturalWidth", timeout=90_000
    )
    (saved,) = (comfyui.folder / "output").glob("mini_finetuned*.png")
    assert saved.stat().st_size > 100


def small_workflow(target: Path) -> None:
    """Our workflow of the name, generating 64 x 64 in two steps; Concept Prompt gets a prompt without a trigger."""
    graph = json.loads((ROOT / "workflows" / target.name).read_text())
    for node in graph["nodes"]:
        if node["type"] in ("FluxSampleAsTrained", "FluxSampleRouted"):
            first = node["widgets_values"].index(256)  # width, height, seed, what follows it, steps
            node["widgets_values"][first : first + 2] = [64, 64]
            node["widgets_values"][first + 4] = 2
        if node["type"] == "ConceptPrompt":
            node["widgets_values"][1] = "on a table"
    target.write_text(json.dumps(graph))


def lora_for(model: Path, target: Path, concepts: list[dict[str, Any]] = CONCEPTS) -> None:
    """A LoRA of rank 2 for a transformer's attention projections, which was taught these concepts."""
    tensors = {}
    for name, shape in read_header(model).shapes.items():
        if re.search(r"_blocks\..*attn\.proj\.weight$", name):
            key = "lora_unet_" + name.removesuffix(".weight").replace(".", "_")
            tensors[f"{key}.lora_down.weight"] = torch.randn(2, shape[1]) / shape[1] ** 0.5
            tensors[f"{key}.lora_up.weight"] = torch.randn(shape[0], 2) * 0.1
            tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, target, {"flux_dreambooth": json.dumps({"concepts": concepts})})
