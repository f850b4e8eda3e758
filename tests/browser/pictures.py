"""The images of ComfyUI in the documentation: docs/pictures/comfyui_{concepts,images,sidebar,train}.png.

    COMFYUI_DIR=… python -m tests.browser.pictures RUN LORAS SAMPLES

RUN: runs/demo of `make demo`, compared with `python -m trainer compare demo`; LORAS: the folder with its files;
SAMPLES: images that the last of these files generated, as `python -m trainer sample` writes them, in the order of
PROMPTS. The tab shows the finished run with the checkpoint to keep, and the images of the demo. The plan in the form is
that of a real trainer.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from tests.browser.conftest import CHROMIUM, READY, SETTINGS, TAB
from tests.browser.test_layout import OPEN
from tests.nodes.server import ROOT, ComfyServer, prepare_base

PICTURES = ROOT / "docs/pictures"
PROMPTS = (
    "tjtoy toy in a forest",
    "sparkgpu gpu on a desk",
    "tjtoy toy holding sparkgpu gpu in a datacenter",
    "tjtoy toy on a beach",
)
# The right side of the graph, as large as its texts need, in the middle of the height.
RIGHT_SIDE = """(scale) => {
  const { ds, canvas, graph } = app.canvas
  const ends = (share, i) => [...graph.groups, ...graph.nodes].map((each) => each.pos[i] + share * each.size[i])
  const { width, height } = canvas.getBoundingClientRect()
  ds.scale = scale
  ds.offset[0] = (width - 24) / scale - Math.max(...ends(1, 0))
  ds.offset[1] = (height + 60) / 2 / scale - (Math.min(...ends(0, 1)) + Math.max(...ends(1, 1))) / 2
  app.canvas.setDirty(true, true)
}"""
LOOK_AT = """([kinds, scale]) => {
  const { ds, canvas, graph } = app.canvas
  const nodes = graph.nodes.filter(({ type }) => kinds.includes(type))
  ds.scale = scale
  ds.offset[0] = 90 / scale - Math.min(...nodes.map(({ pos }) => pos[0]))
  ds.offset[1] = 190 / scale - Math.min(...nodes.map(({ pos }) => pos[1]))
  app.canvas.setDirty(true, true)
}"""
LOADED = "(selector) => [...document.querySelectorAll(selector)].every((image) => image.naturalWidth)"
SEEN = "() => app.graph.nodes.find(({ type }) => type === 'SaveImage')?.imgs?.[0]?.naturalWidth"


def prepare(folder: Path, run: Path, loras: Path, samples: Path) -> None:
    """models/loras, the workflow, and runs/demo with its comparison and images of its last step."""
    for file in loras.glob("demo*.safetensors"):
        shutil.copy(file, folder / "models/loras")
    for concept in ("tjtoy", "sparkgpu"):
        shutil.copytree(ROOT / "flux_data" / concept, folder / "flux_data" / concept)
    shutil.copy(ROOT / "workflows/mini_finetuned.json", folder / "user/default/workflows")
    (folder / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS))
    target = folder / "runs/demo"
    (target / "samples").mkdir(parents=True)
    for name in ("config.toml", "compare.json", "report.html"):
        shutil.copy(run / name, target)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    end = max(index for index, line in enumerate(lines) if line["kind"] == "checkpoint")
    facts = {name: lines[end][name] for name in ("time", "step")}
    for index, (prompt, image) in enumerate(zip(PROMPTS, sorted(samples.glob("*.png")), strict=True)):
        file = target / f"samples/demo-step{facts['step']:08d}-{index:02d}.png"
        shutil.copy(image, file)
        lines.insert(end + index, {"kind": "sample", **facts, "file": str(file), "prompt": prompt})
    (target / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def take(page: Any, server: ComfyServer) -> None:
    page.goto(server.url)
    page.wait_for_function(READY, timeout=90_000)
    page.evaluate(OPEN, "mini_finetuned")
    page.click(TAB)
    page.wait_for_function(LOADED, arg=".fdb-pictures img")
    page.evaluate("() => app.queuePrompt(0, 1)")
    page.wait_for_function(SEEN, timeout=300_000)
    page.evaluate(RIGHT_SIDE, 0.64)
    page.evaluate("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
    page.mouse.move(700, 5)
    page.wait_for_timeout(6000)  # until messages have gone
    page.screenshot(path=PICTURES / "comfyui_sidebar.png")

    page.click(TAB)
    text = "() => app.graph.nodes.find(({ type }) => type === 'ConceptPrompt').widgets.find((w) => w.name === 'text')"
    page.evaluate(f"() => {{ ({text})().value = 'a TJ toy holding sparkgpu gpu in a datacenter (at night)' }}")
    page.wait_for_selector(".fdb-chip.fdb-differs")
    page.set_viewport_size({"width": 1160, "height": 860})
    page.wait_for_timeout(500)
    page.evaluate(LOOK_AT, [["LoadFluxDreamBoothLoRA", "ConceptPrompt"], 1.0])
    page.wait_for_timeout(1000)
    page.screenshot(path=PICTURES / "comfyui_concepts.png")


def take_form(page: Any, server: ComfyServer) -> None:
    """While a trainer waits: a concept whose captions are checked; the form with its plan, and a queue with a job."""
    settings = (ROOT / "flux_data/demo.toml").read_text().splitlines()
    preset = [line for line in settings if not line.startswith(("#", "output_name", "dataset_config"))]
    (server.folder / "flux_data/train.toml").write_text("# The tiny FLUX\n" + "\n".join(preset))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trainer", "serve", f"--comfyui={server.url}"]
    trainer = subprocess.Popen(command, cwd=server.folder, env=environment)
    try:
        page.goto(server.url)
        page.wait_for_function(READY, timeout=90_000)
        page.click(TAB)
        _take_images(page)
        _fill_form(page)
    finally:
        trainer.send_signal(signal.SIGINT)
        trainer.wait(60)


def _take_images(page: Any) -> None:
    page.click("#fdb-tab-images")
    widen(page, 900)
    page.click(".fdb-card:has-text('tjtoy')")
    page.fill(".fdb-words", "tjtoy toy")
    page.locator(".fdb-words").blur()
    page.wait_for_selector(".fdb-live >> text=The trainer has no objection", timeout=120_000)
    page.wait_for_function(LOADED, arg=".fdb-images img")
    page.wait_for_timeout(1000)
    panel = page.locator(".fdb-panel").bounding_box()
    images = page.locator(".fdb-images").bounding_box()
    clip = {"x": 0, "y": 0, "width": panel["x"] + panel["width"], "height": images["y"] + images["height"] + 16}
    page.screenshot(path=PICTURES / "comfyui_images.png", clip=clip)


def _fill_form(page: Any) -> None:
    widen(page, 640)
    page.click("#fdb-tab-train")
    page.wait_for_selector(".fdb-choice >> nth=1")
    for concept, words in (("tjtoy", "tjtoy toy"), ("sparkgpu", "sparkgpu gpu")):
        page.get_by_label(f"Trigger words of {concept}").fill(words)
    page.get_by_label("resolution", exact=True).fill("256")
    page.get_by_label("composites", exact=True).fill("0")
    page.fill(".fdb-output-name", "short trial")
    page.get_by_label("Best").check()
    page.click("text=All settings")
    page.get_by_label("max_train_steps").fill("6")
    page.click(".fdb-start")
    page.wait_for_selector(".fdb-state-finished", timeout=300_000)
    page.get_by_label("max_train_steps").fill("")
    page.click("text=All settings")
    page.fill(".fdb-output-name", "toy and gpu")
    page.locator(".fdb-dataset").select_option(label="choose concepts…")
    page.get_by_label("composites", exact=True).fill("160")
    page.wait_for_selector(".fdb-plan:not(.fdb-stale) dl >> text=/^104$/", timeout=120_000)
    page.mouse.move(700, 5)
    page.wait_for_timeout(7000)  # until messages have gone
    panel, last = (page.locator(each).bounding_box() for each in (".fdb-panel", ".fdb-job >> nth=0"))
    clip = {"x": 0, "y": 0, "width": panel["x"] + panel["width"], "height": last["y"] + last["height"] + 16}
    page.screenshot(path=PICTURES / "comfyui_train.png", clip=clip)


def widen(page: Any, width: int) -> None:
    """Drag the edge of the tab's panel until it is about `width` pixels wide."""
    box = page.locator(".fdb-panel").bounding_box()
    y = box["y"] + 300
    page.mouse.move(box["x"] + box["width"] + 1, y)
    page.mouse.down()
    page.mouse.move(box["x"] + width, y, steps=8)
    page.mouse.up()


def main() -> int:
    run, loras, samples = map(Path, sys.argv[1:])
    with tempfile.TemporaryDirectory() as name:
        folder = prepare_base(Path(name))
        prepare(folder, run, loras, samples)
        environment = {"FLUX_RUNS_DIR": str(folder / "runs")}
        with ComfyServer(folder, environment=environment) as server, sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            take(browser.new_page(viewport={"width": 1440, "height": 1060}), server)
            take_form(browser.new_page(viewport={"width": 1440, "height": 1240}), server)
            browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
