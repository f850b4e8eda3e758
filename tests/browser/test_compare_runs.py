"""The Training tab compares: one prompt's samples at all steps, and the curves of two runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import TAB
from tests.browser.test_bench_page import shoot
from tests.nodes.run_writer import RunWriter

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]

# Labels of the charts that reach out of them.
CUT_OFF = """() => [...document.querySelectorAll('.fdb-axis')].filter((label) => {
  const [inner, outer] = [label.getBoundingClientRect(), label.ownerSVGElement.getBoundingClientRect()]
  return inner.left < outer.left || inner.right > outer.right
}).map((label) => label.textContent)"""

END = "(path) => path.getPointAtLength(path.getTotalLength()).x"


def test_samples_of_a_prompt_and_curves_of_two_runs(open_page: Callable[..., Any], runs: Path):
    before = RunWriter(runs, "before", total=300)
    before.steps(150)
    before.validation()
    before.steps(150)
    before.samples("tjtoy toy on a beach", "another prompt")
    run = RunWriter(runs, "now", total=200)
    for _ in range(3):
        run.steps(40)
        run.samples("tjtoy toy on a beach", "sparkgpu gpu")
    page = open_page()
    page.click(TAB)
    page.click(".fdb-run:has-text('now')")
    page.click(".fdb-pictures a:has-text('sparkgpu') button[title^='This prompt at all steps']")
    page.wait_for_selector(".fdb-series a >> nth=2")
    assert page.locator(".fdb-series a").all_inner_texts() == ["step 40", "step 80", "step 120"]
    assert "sparkgpu gpu" in page.locator(".fdb-samples").inner_text()
    run.steps(40)
    run.samples("tjtoy toy on a beach", "sparkgpu gpu")
    page.wait_for_selector(".fdb-series a:has-text('step 160')")  # it grows and stays
    page.select_option(".fdb-compare select", "before")
    page.wait_for_selector("path.fdb-other", state="attached")
    assert "before" in page.locator(".fdb-legend").inner_text()
    assert page.locator(".fdb-differences tbody").inner_text().split() == ["max_train_steps", "200", "300"]
    labels = page.locator(".fdb-pair .fdb-pictures a").all_inner_texts()
    assert labels == ["now · step 160", "before · step 300"], "the newest of the prompt that both have"
    page.wait_for_function("() => [...document.querySelectorAll('.fdb-pair img')].every((i) => i.naturalWidth)")
    shoot(page, "two_runs")
    assert "e−5" in page.locator(".fdb-curves").text_content()
    assert page.evaluate(CUT_OFF) == []
    assert page.locator(".fdb-validation-other").count() == 1
    ends = [page.locator(f".fdb-{kind}").evaluate(END) for kind in ("average", "rate", "other", "rate-other")]
    assert ends[0] == ends[1] < ends[2] == ends[3]  # both charts have the steps of the longer run
    page.locator(".fdb-chart").first.hover(position={"x": 100, "y": 60})
    page.wait_for_selector(".fdb-read-other >> text=/^ ?\\/ 0[.]\\d+$/")
    page.select_option(".fdb-compare select", "")
    page.wait_for_selector("path.fdb-other", state="detached")
    assert page.locator(".fdb-differences").count() == 0
    page.click(".fdb-samples button[title^='Back to all']")
    page.wait_for_selector(".fdb-pictures a >> nth=1")
