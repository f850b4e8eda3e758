"""What the waiting trainer says about captions while they are written, on the real page; the test answers for it."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from custom_nodes.flux_dreambooth.exchange.files import take_lock
from custom_nodes.flux_dreambooth.exchange.job_queue import SERVER_LOCK
from custom_nodes.flux_dreambooth.exchange.plans import Plans
from tests.browser.conftest import TAB
from tests.browser.test_bench_page import shoot
from tests.nodes.workbench import encoded

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]


@pytest.fixture
def plans(runs: Path) -> Iterator[Plans]:
    """The questions to a trainer that waits, as far as the page knows."""
    (runs / "queue").mkdir()
    lock = take_lock(runs / "queue" / SERVER_LOCK)
    assert lock is not None
    yield Plans(runs / "queue")
    os.close(lock)


def test_captions_are_checked_while_they_are_written(data: Path, open_page: Callable[..., Any], plans: Plans):
    (data / "dog").mkdir()
    for number in (1, 2):
        (data / f"dog/{number}.png").write_bytes(encoded(40 * number, (400, 300)))
        (data / f"dog/{number}.txt").write_text(f"tjdog dog on desk {number}")
    answered: set[str] = set()

    def answer(warnings: list[dict[str, str]]) -> None:
        while not (asked := {path.name.split(".")[0] for path in plans.folder.glob("*.toml")} - answered):
            page.wait_for_timeout(50)
        for plan in asked:
            plans.answer(plan, {"plan": {"steps": 1}, "warnings": warnings})
        answered.update(asked)

    page = open_page(size=(800, 700))
    page.click(TAB)
    page.get_by_role("tab", name="Images").click()
    page.click(".fdb-card")
    page.wait_for_selector(".fdb-live >> text=With trigger words, the captions are checked")
    first = page.get_by_label("Caption of 1.png")
    first.fill("a dog on a desk")
    first.press("Control+Enter")
    page.fill(".fdb-words", "tjdog dog")
    page.press(".fdb-words", "Tab")
    where = "the new dataset file: datasets[0].subsets[0]"
    missing = {"where": where, "what": "'tjdog dog' is missing in 1 of 2 captions: 1.png", "hint": "put it into them"}
    answer([missing, {"where": "--prior_loss_weight", "what": "has no effect", "hint": ""}])
    page.wait_for_selector(".fdb-live >> text=is missing in 1 of 2 captions")
    page.wait_for_selector(".fdb-image:has-text('1.png') >> text=is missing in 1 of 2 captions")
    assert "missing" not in page.locator(".fdb-image").nth(1).inner_text()
    assert "no effect" not in page.locator(".fdb-concept").inner_text()
    shoot(page, "live_dark_800")
    first.fill("tjdog dog on a desk")
    first.press("Control+Enter")
    answer([])
    page.wait_for_selector(".fdb-live >> text=The trainer has no objection")
    assert "missing" not in page.locator(".fdb-concept").inner_text()
    page.click("text=Train this")
    page.wait_for_function("() => document.querySelector('.fdb-output-name').value === 'dog'")
    assert page.get_by_label("Trigger words of dog").input_value() == "tjdog dog"
