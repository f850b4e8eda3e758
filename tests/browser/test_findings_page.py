"""The Training tab marks the checkpoint to keep, says why, opens the report safely, and shows the guard's verdicts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import TAB, TOAST
from tests.browser.test_browser import widget
from tests.nodes.run_writer import write_lora
from tests.nodes.server import ComfyServer
from tests.nodes.test_findings import FILES, compared, written

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
HOSTILE = """<!doctype html><meta charset="utf-8"><style>h1 { color: rgb(1, 2, 3) }</style><h1>tj</h1>
<script>document.querySelector('h1').textContent = 'broken in'</script><img src=x onerror="document.title = 'x'">"""
CARD, VERDICTS, ROWS, CHART = ".fdb-recommended", ".fdb-verdicts", ".fdb-checkpoints li", ".fdb-curves .fdb-chart"


def test_the_checkpoint_to_keep_is_marked_and_used_with_one_click(
    open_page: Callable[..., Any], runs: Path, comfyui: ComfyServer
):
    run = written(runs)
    for file in FILES.values():
        write_lora(comfyui.loras / file)
    raised = {"loss": 0.9, "loss_at_start": 0.3}
    run.line("verdict", verdict="too_high", holds=True, text="learning rate too high: …", **raised)
    run.line("verdict", verdict="overfitting", holds=True, text="…", since=80, held_out=0.52, best=0.5)
    page = open_page()
    page.click(TAB)
    page.wait_for_selector(f"{CARD} >> text=Best so far: Epoch 2, with a score of 62.5 ± 2; 3 were measured")
    assert page.locator(".fdb-good:has(.pi-star-fill)").all_inner_texts() == ["best so far"]
    assert kept(page) == ("best so far", "Checkpoint · 80")
    page.wait_for_selector(f"{ROWS}:has-text('Epoch 2') >> text=likeness 73 · bleed 4 · drift 6")
    said = page.locator(VERDICTS).inner_text()
    assert "The loss is 3 times what it was without training. Start again with a third" in said
    assert "Overfitting since step 80" in said and "The loss on held-out images is 4 % above its best." in said
    run.line("verdict", verdict="too_high", holds=False, text="no longer so: too high", **raised)
    compared(run)
    (run.folder / "report.html").write_text(HOSTILE)
    page.wait_for_selector(f"{CARD} >> text=Recommended: Epoch 1, with a score of 86 ± 1.5; 3 were measured")
    assert "The next best has a score of 82." in page.locator(CARD).inner_text()
    page.wait_for_selector(".fdb-keep text:has-text('recommended')")
    assert kept(page) == ("recommended", "Checkpoint · 40")
    assert "No longer so: learning rate too high" in page.locator(VERDICTS).inner_text()
    page.click(f"{CARD} button:has-text('Use')")
    page.wait_for_selector(f"{TOAST} >> text={FILES[40]}")
    (node,) = page.evaluate("() => app.graph.nodes.map(({ id }) => id)")
    assert widget(page, node, "lora_name") == FILES[40]
    with page.context.expect_page() as opened:
        page.click(f"{CARD} a:has-text('Report')")
    report = opened.value
    report.wait_for_load_state()
    assert (report.inner_text("h1"), report.title()) == ("tj", "")  # nothing in it has run
    report.close()
    headers = page.request.get(f"{comfyui.url}/flux_dreambooth/runs/tj/report").headers
    assert headers["content-security-policy"].startswith("sandbox; default-src 'none'")  # not --disable-api-nodes' own
    korean = open_page("ko", "light")
    korean.click(TAB)
    korean.wait_for_selector(f"{CARD} >> text=추천: 에포크 1. 점수는 86 ± 1.5이며, 모두 3개를 측정했습니다")
    assert "80스텝부터 과적합" in korean.locator(VERDICTS).inner_text()
    assert kept(korean) == ("추천", "체크포인트 · 40")
    assert "findings." not in korean.locator(".fdb-panel").inner_text()


def kept(page: Any) -> tuple[str, str]:
    """What the loss chart says at the checkpoint to keep, and the title of the checkpoint's mark under its star."""
    (keep,), marks = (page.locator(place).all() for place in (f"{CHART} .fdb-keep", f"{CHART} .fdb-mark"))
    middles = [box["x"] + box["width"] / 2 for box in (each.bounding_box() for each in marks)]
    star = keep.locator("path").bounding_box()
    distances = [abs(star["x"] + star["width"] / 2 - middle) for middle in middles]
    assert min(distances) < 1 and star["height"] > 5
    return keep.locator("text").text_content(), marks[distances.index(min(distances))].text_content()
