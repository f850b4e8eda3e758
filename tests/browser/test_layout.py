"""The project's workflows as they open: centred, fitting, no wire behind a node, nodes in their groups, readable."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import Graph
from tests.browser.test_browser import lora_for, small_workflow
from tests.nodes.run_writer import RunWriter, write_lora
from tests.nodes.server import ComfyServer
from tests.nodes.workflows import NAMES, WORKFLOWS

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
OPEN = """async (name) => {
  while (!app.extensionManager.workflow.activeWorkflow?.changeTracker) await new Promise(requestAnimationFrame)
  const found = app.extensionManager.workflow.getWorkflowByPath(`workflows/${name}.json`)
  await found.load()
  await app.loadGraphData(found.activeState, true, true, found)
  await new Promise((resolve) => setTimeout(resolve, 1000))
}"""
# Wires are ComfyUI's splines: their two handles are a quarter of the distance long.
LAYOUT = """() => {
  const { graph, ds } = app.canvas
  const boxes = graph.nodes.map((node) => ({ node, left: node.pos[0], top: node.pos[1] - 30,
    right: node.pos[0] + node.size[0], bottom: node.pos[1] + node.size[1] }))
  const groups = graph.groups.map(({ title, pos, size }) => ({ title, left: pos[0], top: pos[1],
    right: pos[0] + size[0], bottom: pos[1] + size[1] }))
  const name = ({ node }) => `${node.type} ${node.id}`
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom
  const holds = (a, b) => a.left <= b.left && a.top <= b.top && a.right >= b.right && a.bottom >= b.bottom
  const at = ([a, b, c, d], t) => (1 - t) ** 3 * a + 3 * (1 - t) ** 2 * t * b + 3 * (1 - t) * t ** 2 * c + t ** 3 * d
  const behind = []
  for (const link of graph.links instanceof Map ? graph.links.values() : Object.values(graph.links)) {
    const start = graph.getNodeById(link.origin_id).getOutputPos(link.origin_slot)
    const end = graph.getNodeById(link.target_id).getInputPos(link.target_slot)
    const bend = Math.hypot(start[0] - end[0], start[1] - end[1]) / 4
    for (let t = 0; t <= 1; t += 0.01) {
      const x = at([start[0], start[0] + bend, end[0] - bend, end[0]], t)
      const y = at([start[1], start[1], end[1], end[1]], t)
      const ends = { [link.origin_id]: start, [link.target_id]: end }
      const isEnd = ({ node }) => ends[node.id] && Math.hypot(x - ends[node.id][0], y - ends[node.id][1]) < 30
      const over = (box) => x > box.left + 2 && x < box.right - 2 && y > box.top && y < box.bottom
      behind.push(...boxes.filter((box) => over(box) && !isEnd(box)).map((box) => `${link.id} behind ${name(box)}`))
    }
  }
  const all = [...boxes, ...groups]
  const [left, top] = ['left', 'top'].map((side) => Math.min(...all.map((box) => box[side])))
  const [right, bottom] = ['right', 'bottom'].map((side) => Math.max(...all.map((box) => box[side])))
  const { width, height } = app.canvas.canvas.getBoundingClientRect()
  const screen = (x, y) => [(x + ds.offset[0]) * ds.scale / width, (y + ds.offset[1]) * ds.scale / height]
  return { scale: ds.scale, topLeft: screen(left, top), bottomRight: screen(right, bottom),
    behind: [...new Set(behind)],
    overlaps: boxes.flatMap((a, i) => boxes.slice(i + 1).filter((b) => meet(a, b)).map((b) => [name(a), name(b)])),
    outside: groups.flatMap((g) => boxes.filter((b) => meet(g, b) && !holds(g, b)).map((b) => [g.title, name(b)])) }
}"""
# The contrast of each text, and of each line of the charts, with what is behind it, by WCAG's formula.
CONTRAST = """() => {
  const read = (colour) => {
    const numbers = colour.match(/[\\d.]+/g).map(Number)
    const rgb = numbers.slice(0, 3).map((each) => colour.startsWith('color(') ? each * 255 : each)
    return [...rgb, numbers[3] ?? 1]
  }
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
  const light = (colour) => colour.slice(0, 3).map((each) => each / 255)
    .map((each) => each <= 0.03928 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
    .reduce((sum, each, i) => sum + each * [0.2126, 0.7152, 0.0722][i], 0)
  const ratio = (a, b) => (Math.max(light(a), light(b)) + 0.05) / (Math.min(light(a), light(b)) + 0.05)
  const behind = (element) => {
    const layers = []
    for (let each = element; each; each = each.parentElement) {
      layers.unshift(read(getComputedStyle(each).backgroundColor))
      if (layers[0][3] === 1) break
    }
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255, 1])
  }
  const found = {}
  const ours = '.fdb-panel *, .fdb-concepts *, .fdb-loras *, .fdb-result, .fdb-examples *'
  for (const element of document.querySelectorAll(ours)) {
    const style = getComputedStyle(element)
    const line = element.matches('.fdb-average, .fdb-rate, .fdb-validation, .fdb-mark, .fdb-axis')
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())
    if (style.visibility === 'hidden' || !(own || line || element.matches('i.pi'))) continue
    const paint = line ? (style.stroke === 'none' ? style.fill : style.stroke) : style.color
    const colour = read(paint)
    for (let each = element; each; each = each.parentElement) colour[3] *= Number(getComputedStyle(each).opacity)
    const background = behind(element)
    const kind = element.className.baseVal ?? element.className
    const place = `${element.tagName} ${kind} ${element.textContent.slice(0, 20)}`
    found[place] = ratio(over(colour, background), background)
  }
  return found
}"""


@pytest.mark.parametrize("size", [(1440, 900), (800, 560)])
def test_workflows_open_centred_and_tidy(open_page: OpenPage, comfyui: ComfyServer, size: tuple[int, int]):
    for name in NAMES:
        shutil.copy(WORKFLOWS / f"{name}.json", comfyui.folder / "user/default/workflows")
    page = open_page(size=size)
    for name in NAMES:
        page.evaluate(OPEN, name)
        found = page.evaluate(LAYOUT)
        assert not found["behind"] and not found["overlaps"] and not found["outside"], (name, found)
        (left, top), (right, bottom) = found["topLeft"], found["bottomRight"]
        assert 0.02 < left < right < 1 and 0.05 < top < bottom < 1, (name, found)
        assert abs(left + right - 1) < 0.15 and abs(top + bottom - 1) < 0.2, (name, found)
        assert right - left > 0.8 or bottom - top > 0.6, (name, found)
        if size[0] > 1000:
            assert found["scale"] > 0.572  # below it, ComfyUI leaves out the nodes' texts


@pytest.mark.parametrize("name", ["mini_finetuned", "mini_routed"])
def test_nodes_stay_in_their_groups_when_images_are_shown(open_page: OpenPage, comfyui: ComfyServer, name: str):
    small_workflow(comfyui.folder / f"user/default/workflows/{name}.json")
    lora_for(comfyui.folder / "models/mini/flux1-mini.safetensors", comfyui.loras / "demo.safetensors")
    page = open_page()
    page.evaluate(OPEN, name)
    page.evaluate("() => app.queuePrompt(0, 1)")
    shown = "() => app.graph.nodes.find(({ type }) => type === 'SaveImage')?.imgs?.[0]?.naturalWidth"
    page.wait_for_function(shown, timeout=90_000)
    page.wait_for_timeout(1000)
    found = page.evaluate(LAYOUT)
    assert not found["outside"] and not found["overlaps"] and not found["behind"], found


def test_texts_can_be_read_on_every_palette(open_page: OpenPage, runs: Any, comfyui: ComfyServer):
    write_lora(comfyui.loras / "a.safetensors")
    for name in ("old", "new"):
        run = RunWriter(runs, name)
        run.steps(60)
        run.validation()
        run.samples("tjtoy toy on a beach")
        run.checkpoint(comfyui.loras, with_state=True)
    page = open_page(palette="light")
    graph = Graph(page)
    for x, text in ((0, "a TJ toy {nobody}"), (500, "a tjtoy toy"), (1000, "tjtoy toy, sparkgpu gpu (small)")):
        graph.add("ConceptPrompt", x, lora_name="a.safetensors", text=text)
    rows = [{"lora": "a.safetensors"}, {"lora": "new-step00000060.safetensors", "on": False}]
    graph.add("LoadFluxDreamBoothLoRAs", 0, 500, loras=json.dumps(rows))
    report = graph.add("LoRAReport", 500, 500, lora_name="a.safetensors")
    page.evaluate("(id) => app.graph.getNodeById(id).onExecuted({ text: ['what it did'] })", report)
    page.evaluate("() => app.extensionManager.sidebarTab.toggleSidebarTab('fluxDreamBooth')")
    page.wait_for_selector(".fdb-list li")
    page.wait_for_function("() => document.querySelectorAll('.fdb-lora-words').length === 2")
    page.wait_for_function("() => document.querySelectorAll('.fdb-chip.fdb-present').length === 3")
    (runs / "new" / "save").touch()
    page.wait_for_timeout(2500)
    for palette in ("light", "dark", "solarized", "arc", "nord", "github"):
        page.evaluate("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_timeout(1000)
        found = page.evaluate(CONTRAST)
        low = {place: round(value, 2) for place, value in found.items() if value < 4.5}
        assert len(found) > 50 and not low, (palette, json.dumps(low, indent=1))


def test_options_and_long_names(open_page: OpenPage, comfyui: ComfyServer):
    long = "portraits/a_name_that_says_everything_about_a_lora_and_its_training-000025.safetensors"
    write_lora(comfyui.loras / long)
    write_lora(comfyui.loras / "a.safetensors")
    page = open_page("ko")
    graph = Graph(page)
    loader = graph.add("LoadFluxDreamBoothLoRA", lora_name="a.safetensors")
    other = graph.add("ConceptPrompt", 600)
    widget = "([id, name]) => { const w = app.graph.getNodeById(id).widgets.find((w) => w.name === name); return %s }"
    label = widget % "w.options.getOptionLabel(w.value)"
    assert page.evaluate(label, [loader, "checkpoint"]) == "이 파일"
    assert page.evaluate(label, [other, "lora_name"]) == "(로더의 LoRA)"
    assert page.evaluate(widget % "w.value", [loader, "checkpoint"]) == "this file"
    pick = widget % f"w.value = {long!r}, w.callback({long!r}), [w.tooltip, app.graph.getNodeById(id).size[0]]"
    tooltip, width = page.evaluate(pick, [loader, "lora_name"])
    assert tooltip.startswith(long + "\n\n") and 500 < width < 600
