"""Headless Chromium on ComfyUI's real page; needs ComfyUI, playwright and a Chromium."""

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.nodes.server import COMFYUI, NO_COMFYUI, PACK, ComfyServer, prepare_base

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
NO_CHROMIUM = "no browser: apt-get install chromium, or set CHROMIUM to one's path"
NO_PLAYWRIGHT = "playwright is not here: pip install playwright"
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Locale": "en"}  # else the page opens on ComfyUI's templates
LOCALES = [json.loads(path.read_text()) for path in sorted(PACK.glob("locales/*/main.json"))]
# the button of our sidebar tab has our tooltip as its accessible name, in whatever element ComfyUI draws it
TAB = ", ".join(f"[aria-label='{texts['fluxDreamBooth']['training']['tooltip']}']" for texts in LOCALES)
# ready: our tab is there, and the page has opened its own graph, which would otherwise come into a test's
READY = f"""() => window.app?.graph?.nodes && document.querySelector({json.dumps(TAB)})
  && Boolean(app.extensionManager.workflow.activeWorkflow)"""
TOAST = "[role=alert]"
REFUSED = re.compile("Failed to load resource: the server responded with a status of (400|409)")
WORKFLOWS = "[role=button][aria-label^='Workflows'], button[aria-label^='Workflows']"


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server of the browser tests' own; its runs/ folder is FLUX_RUNS_DIR."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    folder = prepare_base(tmp_path_factory.mktemp("comfyui"))
    (folder / "user/default/comfy.settings.json").write_text(json.dumps(SETTINGS))
    (folder / "shared").mkdir()
    with ComfyServer(folder, environment={"FLUX_RUNS_DIR": str(folder / "shared")}) as server:
        yield server


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    if not importlib.util.find_spec("playwright"):
        pytest.skip(NO_PLAYWRIGHT)
    if not CHROMIUM:
        pytest.skip(NO_CHROMIUM)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def runs(comfyui: ComfyServer) -> Iterator[Path]:
    """The shared runs/ folder and models/loras, empty."""
    folder = comfyui.folder / "shared"
    yield folder
    for found in [*folder.iterdir(), *comfyui.loras.iterdir()]:
        shutil.rmtree(found) if found.is_dir() else found.unlink()


@pytest.fixture
def data(comfyui: ComfyServer) -> Iterator[Path]:
    """The folder flux_data/, empty apart from a preset; emptied afterwards too."""
    folder = comfyui.folder / "flux_data"
    (folder / "train.toml").write_text("# As usual\nmax_train_epochs = 100\nnetwork_dim = 256\nnetwork_alpha = 256\n")
    yield folder
    for found in folder.iterdir():
        shutil.rmtree(found) if found.is_dir() else found.unlink()


@pytest.fixture
def open_page(comfyui: ComfyServer, chromium: Any) -> Iterator[Callable[..., Any]]:
    """open_page(locale="en", palette="dark", size=(1400, 1000), server=None, …): ComfyUI's empty page.

    Any uncaught error on it, and any error or warning of our scripts, fails the test at its end. outage: the server
    will be away for a while, so that requests may fail. refused: it will refuse requests of the test as wrong.
    """
    pages, errors = [], []

    def open_one(
        locale: str = "en",
        palette: str = "dark",
        size: tuple[int, int] = (1400, 1000),
        server: Any = None,
        outage: bool = False,
        refused: bool = False,
    ) -> Any:
        server = server or comfyui
        server.post("/settings", SETTINGS | {"Comfy.Locale": locale, "Comfy.ColorPalette": palette})
        page = chromium.new_page(viewport={"width": size[0], "height": size[1]})
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(told(line)) if is_ours(line, outage, refused) else None)
        page.goto(server.url)
        page.wait_for_function(READY, timeout=90_000)
        page.evaluate("() => app.graph.clear()")
        pages.append(page)
        return page

    yield open_one
    for page in pages:
        page.close()
    assert errors == []


def told(line: Any) -> str:
    """A line of the console with the address that it is about."""
    return f"{line.text} {line.location.get('url', '')}"


def is_ours(line: Any, outage: bool = False, refused: bool = False) -> bool:
    """Whether a line of the console is an error of, or a warning about, this node pack's scripts."""
    place = told(line)
    lost = outage and line.text.startswith("Failed to load resource: net::ERR_")
    lost |= refused and bool(REFUSED.match(line.text))
    named = any(name in place for name in ("flux_dreambooth", "FluxDreamBooth"))  # our folder, our extensions
    return line.type in ("error", "warning") and named and not lost
