"""On a Korean page, what our nodes and routes say is Korean: results, errors of a run, and refusals before one."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.browser.graphs import Graph
from tests.browser.test_browser import lora_for, small_workflow
from tests.browser.test_layout import OPEN
from tests.nodes.server import ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
QUEUE = "Control+Enter"
# Older frontends show a dialog with the text, newer ones a message with a button for a panel that has it.
DETAILS, SAID = "button:has-text('자세히 보기')", ":text('GGUF 파일입니다')"
REFUSED = """() => {
  const { api } = window.comfyAPI.api
  const { queuePrompt } = api
  api.queuePrompt = (...facts) => queuePrompt.apply(api, facts).catch((error) => {
    window.refused = error.response
    throw error
  })
}"""
CREATE = """async () => {
  const { createConcept } = await import('/extensions/flux_dreambooth/workbench/requests.js')
  return createConcept('../x').catch((error) => error.message)
}"""


def test_results_are_korean(open_page: OpenPage, comfyui: ComfyServer):
    lora_for(comfyui.folder / "models/mini/flux1-mini.safetensors", comfyui.loras / "a.safetensors")
    graph = Graph(page := open_page("ko", refused=True))
    base, loader = graph.add("LoadMiniFlux"), graph.add("LoadFluxDreamBoothLoRA", 400, lora_name="a.safetensors")
    report, shown = graph.add("LoRAReport", 1250, lora_name="a.safetensors"), graph.add("PreviewAny", 400, 500)
    graph.link(base, "MODEL", loader, "model")
    graph.link(loader, "STRING", shown, 0)
    page.keyboard.press(QUEUE)
    page.wait_for_selector(".fdb-result >> text=적용함: 트랜스포머 키", state="attached")
    page.wait_for_selector(".fdb-result >> text=블록별 가중치 변화의 노름", state="attached")
    text = "(id) => app.graph.getNodeById(id).widgets.find((w) => w.name === 'result').element.textContent"
    assert "  모듈" in page.evaluate(text, report) and "(알파 / 랭크 1)" in page.evaluate(text, report)
    assert page.evaluate(CREATE).startswith("이름은 글자, 숫자")


def test_errors_are_korean(open_page: OpenPage, comfyui: ComfyServer):
    small_workflow(comfyui.folder / "user/default/workflows/mini_finetuned.json")
    (lora := comfyui.loras / "demo.safetensors").write_bytes(b"GGUF" + bytes(99))
    page = open_page("ko", refused=True)
    page.evaluate(OPEN, "mini_finetuned")
    page.keyboard.press(QUEUE)
    page.wait_for_selector(f"{DETAILS}, {SAID}")
    if page.locator(DETAILS).count():
        page.click(DETAILS)
    page.wait_for_selector(SAID)
    page.keyboard.press("Escape")
    lora.unlink()
    page.evaluate(REFUSED)
    page.evaluate("() => { app.queuePrompt(0) }")
    page.wait_for_function("() => window.refused")
    refused = page.evaluate("() => window.refused")
    details = [error["details"] for node in refused["node_errors"].values() for error in node["errors"]]
    wanted = "lora_name - demo.safetensors 파일이 아직 models/loras에 없습니다. 먼저 `make demo`를 실행하세요."
    assert details and all(each.startswith(wanted) for each in details)
    assert "run `make demo` first" not in str(refused["error"])
