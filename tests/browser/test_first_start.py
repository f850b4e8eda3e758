"""What a browser sees that comes for the first time, and for the second, at the server's plain address."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import READY, WORKFLOWS
from tests.nodes.server import COMFYUI, NO_COMFYUI, PACK, ROOT, ComfyServer, prepare_base
from tests.nodes.workflows import NAMES

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OPENED = "FluxDreamBooth.OpenedWorkflows"
TITLES = "() => app.extensionManager.workflow.openWorkflows.map(({ path }) => path)"
TYPES = "() => app.graph.nodes.map(({ type }) => type)"
STORED = """(word) => [localStorage, sessionStorage].some((storage) =>
  Object.keys(storage).some((key) => storage.getItem(key).includes(word)))"""
OPEN = "(path) => app.extensionManager.workflow.activeWorkflow?.path === path"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """As our launcher starts it: with our workflows in the left panel and the name of the first."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    folder = prepare_base(tmp_path_factory.mktemp("first"))
    with ComfyServer(folder, environment={"FLUX_FIRST_WORKFLOW": "base_flux"}) as server:
        yield server


@pytest.fixture
def user(server: ComfyServer) -> Path:
    """The user's folder as it is before the first visit."""
    folder = server.folder / "user/default"
    for file in [*folder.rglob("*.json"), *folder.glob(".flux*")]:
        file.unlink()
    subprocess.run([sys.executable, PACK / "user_folder.py", ROOT / "workflows", folder], check=True)
    return folder


@pytest.fixture
def profile(chromium: Any) -> Iterator[Callable[[], Any]]:
    """profile(): a browser that knows nothing yet. Errors of our scripts fail the test at its end."""
    profiles, errors = [], []

    def fresh() -> Any:
        context = chromium.new_context(viewport={"width": 1400, "height": 1000})
        context.set_default_timeout(30_000)
        context.on("weberror", lambda error: errors.append(str(error.error)))
        profiles.append(context)
        return context

    yield fresh
    for context in profiles:
        context.close()
    assert errors == []


def visit(profile: Any, server: ComfyServer, query: str = "") -> Any:
    page = profile.new_page()
    page.goto(f"{server.url}/{query}")
    page.wait_for_function(READY, timeout=90_000)
    return page


def settings(user: Path) -> dict[str, Any]:
    return json.loads((user / "comfy.settings.json").read_text())


def stays(page: Any, path: str) -> None:
    """This workflow is open now, and still after the time that ours would need to come."""
    page.wait_for_function(OPEN, arg=path)
    page.wait_for_timeout(2000)
    assert page.evaluate(OPEN, path)


def test_the_first_visit_opens_our_workflow_and_the_second_what_the_user_left(
    server: ComfyServer, user: Path, profile: Callable[[], Any]
):
    browser = profile()
    page = visit(browser, server)
    page.wait_for_function(OPEN, arg="workflows/base_flux.json")
    page.wait_for_timeout(1000)
    assert page.evaluate(TITLES) == ["workflows/base_flux.json"]
    assert "ModelSamplingFlux" in page.evaluate(TYPES) and page.get_by_role("dialog").count() == 0
    assert not page.evaluate("() => app.extensionManager.workflow.activeWorkflow.isModified")
    assert page.locator(WORKFLOWS).is_visible()
    assert settings(user)[OPENED] == ["base_flux"]
    before = (user / "workflows/base_flux.json").read_bytes()
    assert before == (ROOT / "workflows/base_flux.json").read_bytes()

    page.evaluate("() => { app.graph.clear(); app.graph.add(LiteGraph.createNode('VAELoader')) }")
    page.evaluate("() => app.extensionManager.workflow.activeWorkflow.changeTracker.checkState()")
    page.wait_for_function(STORED, arg="VAELoader")
    page.close()
    page = visit(browser, server)
    stays(page, "workflows/base_flux.json")
    assert page.evaluate(TYPES) == ["VAELoader"]
    assert (user / "workflows/base_flux.json").read_bytes() == before


def test_another_browser_of_a_user_who_has_seen_it(server: ComfyServer, user: Path, profile: Callable[[], Any]):
    (user / "comfy.settings.json").write_text(json.dumps(settings(user) | {OPENED: ["base_flux"]}))
    stays(visit(profile(), server), "workflows/Unsaved Workflow.json")


def test_a_users_own_workflows_are_not_pushed_aside(server: ComfyServer, user: Path, profile: Callable[[], Any]):
    (user / "workflows/mine.json").write_text((ROOT / "workflows/mini_base.json").read_text())
    stays(visit(profile(), server), "workflows/Unsaved Workflow.json")
    assert OPENED not in settings(user)


def test_a_workflow_that_was_changed_opens_as_it_is_and_a_deleted_one_not(
    server: ComfyServer, user: Path, profile: Callable[[], Any]
):
    file = user / "workflows/base_flux.json"
    file.write_text((ROOT / "workflows/mini_base.json").read_text())
    page = visit(profile(), server)
    page.wait_for_function(OPEN, arg="workflows/base_flux.json")
    assert "LoadMiniFlux" in page.evaluate(TYPES)
    (user / "comfy.settings.json").write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    file.unlink()
    stays(visit(profile(), server), "workflows/Unsaved Workflow.json")


@pytest.mark.usefixtures("user")
def test_an_address_that_names_a_template_wins(server: ComfyServer, profile: Callable[[], Any]):
    page = visit(profile(), server, "?template=mini_base&source=flux_dreambooth")
    page.wait_for_function("() => app.graph.nodes.some(({ type }) => type === 'LoadMiniFlux')")
    page.wait_for_timeout(2000)
    assert "workflows/base_flux.json" not in page.evaluate(TITLES)


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One for several users. The launcher has put our workflows into the default user's folder alone."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    folder = prepare_base(tmp_path_factory.mktemp("shared"))
    with ComfyServer(folder, "--multi-user", environment={"FLUX_FIRST_WORKFLOW": "base_flux"}) as server:
        yield server


def logged_in(profile: Any, user: str) -> Any:
    """A browser that has chosen its user on ComfyUI's page before."""
    keys = {"Comfy.userId": user, "Comfy.userName": user}
    profile.add_init_script(f"location.protocol === 'http:' && Object.assign(localStorage, {json.dumps(keys)})")
    return profile


def test_a_user_of_several_gets_our_workflows_once(shared_server: ComfyServer, profile: Callable[[], Any]):
    ada = shared_server.post("/users", {"username": "ada"})
    folder = shared_server.folder / "user" / ada
    page = visit(logged_in(profile(), ada), shared_server)
    page.wait_for_function(OPEN, arg="workflows/base_flux.json")
    assert page.get_by_role("dialog").count() == 0
    assert {file.name for file in (folder / "workflows").iterdir()} == {f"{name}.json" for name in NAMES}
    assert not (shared_server.folder / "user/default/workflows/base_flux.json").exists()
    page.wait_for_function("(id) => app.extensionManager.setting.get(id).includes('base_flux')", arg=OPENED)
    (folder / "workflows/base_flux.json").unlink()
    (folder / "comfy.settings.json").write_text(json.dumps({"Comfy.TutorialCompleted": True}))
    page.close()
    stays(visit(logged_in(profile(), ada), shared_server), "workflows/Unsaved Workflow.json")
    assert not (folder / "workflows/base_flux.json").exists()
