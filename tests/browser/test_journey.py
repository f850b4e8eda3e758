"""The journey of the README on a fresh profile: first start, base_flux, finetuned_flux with both concepts.

FLUX_SCREENSHOTS names a folder for an image of the page at each stage.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops

from tests.browser.conftest import READY, is_ours
from tests.browser.test_browser import lora_for
from tests.browser.test_layout import LAYOUT
from tests.browser.test_truth import PACKS
from tests.nodes.run_writer import CONCEPTS
from tests.nodes.server import COMFYUI, NO_COMFYUI, PACK, ROOT, ComfyServer, prepare_base

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
LOADERS = ROOT / "tests/nodes/small_loaders"
LORA = "flux_dreambooth.safetensors"
TAUGHT = [concept | {"trigger": concept["trigger"].removesuffix(" (small)")} for concept in CONCEPTS]
OPEN = "(name) => app.extensionManager.workflow.activeWorkflow?.path === `workflows/${name}.json`"
SEEN = "() => app.graph.nodes.find(({ type }) => type === 'SaveImage')?.imgs?.[0]?.naturalWidth"
PRESENT = "() => document.querySelectorAll('.fdb-chip.fdb-present').length === 2"
SCREENSHOTS = os.environ.get("FLUX_SCREENSHOTS")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """As our launcher starts it, next to other packs where they are; the loaders give the small FLUX."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    folder = prepare_base(tmp_path_factory.mktemp("journey"), LOADERS, *filter(Path.is_dir, PACKS))
    environment = {"FLUX_FIRST_WORKFLOW": "base_flux", "FLUX_RUNS_DIR": str(folder / "runs")}
    with ComfyServer(folder, environment=environment) as started:
        yield started


@pytest.mark.parametrize(
    ("locale", "palette", "size"),
    [
        ("en", "dark", (1440, 900)),
        ("en", "light", (800, 560)),
        ("ko", "dark", (800, 560)),
        ("ko", "light", (1440, 900)),
    ],
)
def test_from_the_first_start_to_ones_own_concepts(
    server: ComfyServer, chromium: Any, locale: str, palette: str, size: tuple[int, int]
):
    start_afresh(server, palette)
    browser = chromium.new_context(locale=locale, viewport={"width": size[0], "height": size[1]})
    errors: list[str] = []
    browser.on("weberror", lambda error: errors.append(str(error.error)))
    browser.on("console", lambda line: errors.append(line.text) if is_ours(line) else None)
    try:
        page = Page(browser.new_page(), f"{locale}_{palette}_{size[0]}")
        page.page.goto(server.url)
        page.page.wait_for_function(READY, timeout=90_000)
        journey(page, server, locale)
    finally:
        browser.close()
    assert errors == []


def start_afresh(server: ComfyServer, palette: str) -> None:
    """A user who has never opened the page; the workflows generate 64 x 64 pixels in two steps."""
    folder = server.folder / "user/default"
    for file in [*folder.rglob("*.json"), *folder.glob(".flux*"), *server.loras.glob("*")]:
        file.unlink()
    subprocess.run([sys.executable, PACK / "user_folder.py", ROOT / "workflows", folder], check=True)
    for name in ("base_flux", "finetuned_flux"):
        file = folder / f"workflows/{name}.json"
        graph = json.loads(file.read_text())
        for node in graph["nodes"]:
            if node["type"] == "PrimitiveInt":
                node["widgets_values"][0] = 64
            if node["type"] == "BasicScheduler":
                node["widgets_values"][1] = 2
        file.write_text(json.dumps(graph))
    (folder / "comfy.settings.json").write_text(json.dumps({"Comfy.ColorPalette": palette}))


class Page:
    """A browser's page, and where images of it go."""

    def __init__(self, page: Any, name: str):
        self.page, self.name, self.number = page, name, 0
        page.set_default_timeout(30_000)

    def shoot(self, what: str) -> None:
        if SCREENSHOTS:
            self.number += 1
            self.page.wait_for_timeout(600)
            self.page.screenshot(path=f"{SCREENSHOTS}/{self.name}_{self.number}_{what}.png")

    def generate(self, server: ComfyServer, name: str) -> Image.Image:
        """Run the open workflow as a user does, and return the image that it saved."""
        before = {*(server.folder / "output").glob(f"{name}*.png")}
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function(SEEN, timeout=90_000)
        (saved,) = {*(server.folder / "output").glob(f"{name}*.png")} - before
        return Image.open(saved).convert("RGB")

    def is_tidy(self, fits: bool = True) -> None:
        """fits: all of it is on the screen, which another pack's bar may make smaller later."""
        found = self.page.evaluate(LAYOUT)
        (left, top), (right, bottom) = found["topLeft"], found["bottomRight"]
        assert not found["behind"] and not found["overlaps"] and not found["outside"], found
        assert not fits or (0.02 < left < right < 1 and 0.05 < top < bottom < 1), found


def journey(page: Page, server: ComfyServer, locale: str) -> None:
    """Steps 4 and 7 of the README."""
    page.page.wait_for_function(OPEN, arg="base_flux")
    page.page.wait_for_timeout(500)
    page.is_tidy()
    page.shoot("first_start")
    assert page.page.get_by_role("dialog").all_inner_texts() == []
    groups = page.page.evaluate("() => app.graph.groups.map(({ title }) => title)")
    assert (
        groups[:3]
        == {"en": ["Models", "Shift and schedule", "Prompt"], "ko": ["모델", "시프트와 스케줄", "프롬프트"]}[locale]
    )
    assert not page.page.evaluate("() => app.extensionManager.workflow.activeWorkflow.isModified")
    base = page.generate(server, "base_flux")
    page.shoot("base_flux")

    lora_for(server.folder / "models/mini/flux1-mini.safetensors", server.loras / LORA, TAUGHT)
    page.page.reload()  # a user trains in between, and starts ComfyUI again
    page.page.wait_for_function(READY, timeout=90_000)
    page.page.wait_for_function(OPEN, arg="base_flux")
    page.page.keyboard.press("w")  # Workflows, in every language
    page.page.click("[role=treeitem] >> text=finetuned_flux")
    page.page.wait_for_function(OPEN, arg="finetuned_flux")
    page.page.keyboard.press("w")
    page.page.wait_for_function(PRESENT)
    assert page.page.locator(".fdb-chip").all_inner_texts() == ["tjtoy toy", "sparkgpu gpu"]
    page.page.wait_for_selector(".fdb-says.fdb-good")
    page.is_tidy()
    page.shoot("finetuned_flux")
    tuned = page.generate(server, "finetuned_flux")
    assert tuned.size == base.size == (64, 64)
    assert ImageChops.difference(base, tuned).getbbox()
    applied = {"en": "applied", "ko": "적용함"}[locale]
    page.page.wait_for_selector(f".fdb-result >> text={applied}", state="attached")
    page.page.wait_for_timeout(500)
    page.is_tidy(fits=False)
    page.shoot("finetuned_flux_done")
