"""The workbench of the tab Training: from images to a job in the queue, on the real page and the real server."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from custom_nodes.flux_dreambooth.exchange.files import take_lock
from custom_nodes.flux_dreambooth.exchange.job_queue import SERVER_LOCK, JobQueue
from tests.browser.conftest import READY, TAB
from tests.nodes.run_writer import RunWriter
from tests.nodes.server import ComfyServer
from tests.nodes.workbench import encoded

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
OpenPage = Callable[..., Any]
SCREENSHOTS = os.environ.get("FLUX_SCREENSHOTS")
TOO_WIDE = """() => [...document.querySelectorAll('.fdb-panel *')].filter((e) => e.clientWidth
  && e.scrollWidth > e.clientWidth + 2 && getComputedStyle(e).overflowX === 'visible').map((e) => e.className)"""
QUEUED = ".fdb-job:has-text('my dog')"


def shoot(page: Any, name: str) -> None:
    if SCREENSHOTS:
        page.wait_for_timeout(500)
        page.screenshot(path=f"{SCREENSHOTS}/bench_{name}.png")


def drop(page: Any, selector: str, files: list[dict[str, Any]]) -> None:
    """Drop files on an element, as from the desktop."""
    held = [{**file, "buffer": list(file["buffer"])} for file in files]
    transfer = page.evaluate_handle(
        """(files) => {
          const transfer = new DataTransfer()
          for (const { name, mimeType, buffer } of files) {
            transfer.items.add(new File([new Uint8Array(buffer)], name, { type: mimeType }))
          }
          return transfer
        }""",
        held,
    )
    page.dispatch_event(selector, "drop", {"dataTransfer": transfer})


def image(name: str, shade: int, size: tuple[int, int] = (320, 240)) -> dict[str, Any]:
    return {"name": name, "mimeType": "image/png", "buffer": encoded(shade, size)}


def checked(runs: Path, image: dict[str, Any]) -> None:
    """A check that has looked at one image, which is cropped by 24 pixels on the left."""
    queue = JobQueue(runs / "queue")
    job = queue.submit("check", {"output_name": "tj"}).id
    found = {"summary": "The plan", "images": [{**image, "crop": [24, 0], "messages": []}], "warnings": []}
    queue.path(job, ".result.json").write_text(json.dumps(found))
    queue.update(job, lambda status: replace(status, state="finished", ended=time.time()))


def test_from_images_to_a_job(data: Path, open_page: OpenPage, runs: Path, comfyui: ComfyServer):
    page = open_page(size=(800, 560), refused=True)
    page.click(TAB)
    page.get_by_role("tab", name="Images").click()
    page.fill(".fdb-concept-name", "my dog")
    page.keyboard.press("Enter")
    page.wait_for_selector(".fdb-concept >> text=Drop images here")

    caption = {"name": "one.txt", "mimeType": "text/plain", "buffer": b"tjdog dog on a sofa\n"}
    broken = {"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"}
    drop(page, ".fdb-concept", [image("one.png", 10), image("two.png", 200), caption, broken])
    page.wait_for_selector(".fdb-status >> text=images added: 2 · captions added: 1")
    assert page.evaluate("() => app.graph.nodes.length") == 0, "ComfyUI took the drop too"
    assert "broken.png" in page.locator(".fdb-concept .fdb-problems").first.inner_text()
    assert sorted(file.name for file in (data / "my dog").iterdir()) == ["one.png", "one.txt", "two.png"]
    page.locator(".fdb-image").last.scroll_into_view_if_needed()
    page.wait_for_function("() => [...document.querySelectorAll('.fdb-image img')].every((i) => i.naturalWidth)")
    shoot(page, "concept_dark_800")

    first = page.get_by_label("Caption of one.png")
    assert first.input_value() == "tjdog dog on a sofa"
    first.fill("tjdog dog on a beach")
    first.press("Control+Enter")
    page.wait_for_selector(".fdb-image >> text=Saved")
    assert (data / "my dog/one.txt").read_text() == "tjdog dog on a beach\n"
    (data / "my dog/one.txt").write_text("tjdog dog, by another browser\n")
    first.fill("tjdog dog in snow")
    first.press("Control+Enter")
    page.wait_for_selector(".fdb-image >> text=“tjdog dog, by another browser”")
    page.click("text=Take the other one", delay=300)  # as slowly as a person
    assert first.input_value() == "tjdog dog, by another browser"
    (data / "my dog/one.txt").write_text("tjdog dog on a beach\n")
    page.click(".fdb-undo")
    page.wait_for_selector(".fdb-status >> text=Undone: the caption of one.png")
    assert (data / "my dog/one.txt").read_text() == "tjdog dog on a sofa\n"
    page.wait_for_function("() => document.querySelector('.fdb-image textarea').value === 'tjdog dog on a sofa'")

    page.click("text=Train this")
    page.wait_for_selector(".fdb-serving >> text=sh launch_train.sh --serve")
    assert page.locator(".fdb-output-name").input_value() == "my dog"
    page.click(".fdb-start")
    page.wait_for_selector(".fdb-form >> text=my dog needs trigger words")
    page.get_by_label("Trigger words of my dog").fill("tjdog dog")
    assert page.locator(".fdb-effect").inner_text() == "50 epochs · rank 32"
    page.get_by_label("Quick").check()
    shoot(page, "train_dark_800")
    page.get_by_label("Quick").press("Tab")
    page.click(".fdb-start")
    page.wait_for_selector(f"{QUEUED} >> text=Waiting")
    job = (runs / "queue/my dog.toml").read_text()
    assert "max_train_epochs = 20" in job and "network_dim = 32" in job and "flux_data/my dog.toml" in job
    assert 'class_tokens = "tjdog dog"' in (data / "my dog.toml").read_text()

    page.fill(".fdb-output-name", "another")
    page.click(".fdb-start")
    page.wait_for_selector(".fdb-job >> nth=1")
    page.locator(".fdb-job:has-text('another') [data-key=up]").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('.fdb-job').innerText.startsWith('another')")
    assert page.evaluate("() => document.activeElement.closest('.fdb-job')?.dataset.row") == "another"
    page.locator(f"{QUEUED} [data-key=pause]").click()
    page.wait_for_selector(f"{QUEUED} >> text=Paused")
    page.locator(f"{QUEUED} [data-key=cancel]").click()
    page.wait_for_selector(f"{QUEUED} >> text=Cancelled")
    page.locator(f"{QUEUED} [data-key=log]").click()
    page.wait_for_selector(".fdb-log >> text=printed nothing yet")
    shoot(page, "queue_dark_800")
    page.locator(f"{QUEUED} [data-key=again]").click()
    page.wait_for_selector(".fdb-form .fdb-status >> text=The settings of my dog: change what you like")
    assert page.locator(".fdb-output-name").input_value() == "my dog"
    assert page.locator("[data-setting=max_train_epochs]").input_value() == "20", "as it was quick"
    page.click("text=All settings")

    page.click("text=All settings")
    page.get_by_label("Other settings").fill("output_dir = /etc")
    page.fill(".fdb-output-name", "third")
    page.click(".fdb-start")
    page.wait_for_selector(".fdb-form [role=alert] >> text=must be inside models/loras/")

    run = RunWriter(runs, total=20, per_epoch=10)
    for _ in range(2):
        run.steps(10)
        run.checkpoint(comfyui.loras, with_state=True)
    page.get_by_role("tab", name="Runs").click()
    page.get_by_label("Train on from this one").first.click()
    page.wait_for_selector(".fdb-form .fdb-status >> text=tj-2 is a new training that begins with")
    assert page.locator(".fdb-output-name").input_value() == "tj-2"
    begins = page.get_by_label("Other settings").input_value()
    assert 'network_weights = "models/loras/tj' in begins and "dim_from_weights = true" in begins
    page.get_by_role("tab", name="Runs").click()
    page.click("text=Which to keep?")
    page.wait_for_selector(".fdb-checkpoints >> text=its comparison is in the queue")
    assert [job.settings for job in JobQueue(runs / "queue").jobs() if job.kind == "compare"] == [{"run": "tj"}]
    shoot(page, "runs_dark_800")
    page.click("text=Continue this run")
    page.wait_for_selector(".fdb-form .fdb-status >> text=tj continues from its latest state")
    assert page.locator("select.fdb-resume").input_value() == "tj" == page.locator(".fdb-output-name").input_value()


def test_a_preset_is_shared_and_many_things_stay_usable_in_two_browsers(
    data: Path, open_page: OpenPage, runs: Path, tmp_path: Path
):
    queue, folder = JobQueue(runs / "queue"), data / "many"
    folder.mkdir()
    for number in range(500):
        (folder / f"{number:03}.png").write_bytes(encoded(number % 256, (32, 24)))
    for number in range(20):
        queue.submit("train", {"output_name": f"job{number:02}"})
    first, second = open_page(size=(1000, 800), outage=True), open_page(size=(1000, 800), refused=True)
    for page in (first, second):
        page.click(TAB)
        page.get_by_role("tab", name="Train").click()
        page.wait_for_selector(".fdb-job >> nth=19")
    first.locator(".fdb-job:has-text('job01') [data-key=up]").click()
    for page in (first, second):
        page.wait_for_function("() => document.querySelector('.fdb-job').innerText.startsWith('job01')")
    second.locator(".fdb-job:has-text('job19') [data-key=cancel]").click()
    first.wait_for_selector(".fdb-job:has-text('job19') >> text=Cancelled")

    first.click("text=All settings")
    with first.expect_download() as download:
        first.click("text=Download the preset")
    shared = tmp_path / "shared by me.toml"
    shared.write_bytes(Path(download.value.path()).read_bytes())
    assert shared.read_text().startswith("# As usual\n")
    with second.expect_file_chooser() as chooser:
        second.click("text=All settings")
        second.click("text=Load a preset")
    chooser.value.set_files(shared)
    second.wait_for_selector(".fdb-form >> text=Kept as flux_data/presets/shared by me.toml")
    assert second.locator(".fdb-preset").input_value() == "flux_data/presets/shared by me.toml"
    assert (data / "presets/shared by me.toml").read_bytes() == shared.read_bytes()

    for page in (first, second):
        page.get_by_role("tab", name="Images").click()
        page.click(".fdb-card")
        page.wait_for_selector(".fdb-image >> nth=499", state="attached")
    shoot(first, "many_dark_1000")
    first.get_by_label("Caption of 499.png").fill("many of them")
    first.get_by_label("Caption of 499.png").press("Control+Enter")
    second.wait_for_function("() => document.querySelectorAll('.fdb-image textarea')[499].value === 'many of them'")

    def kill(route: Any) -> None:
        """The server ends in the middle of the second upload and those after it."""
        sent.append(route.request.url)
        route.continue_() if len(sent) == 1 else route.abort("connectionreset")

    sent: list[str] = []
    first.route("**/data/many/images?name=*", kill)
    files = [image(f"new{number}.png", 7 * number, (50, 40)) for number in range(4)]
    drop(first, ".fdb-concept", files)
    first.wait_for_selector(".fdb-status >> text=images added: 1")
    assert first.locator(".fdb-concept .fdb-problems >> text=the server did not answer").count() == 3
    first.unroute("**/data/many/images?name=*")
    drop(first, ".fdb-concept", files)
    first.wait_for_selector(".fdb-status >> text=images added: 3 · already there: 1")
    assert len([*folder.glob("new?.png")]) == 4 and not [*folder.glob(".part-*")]

    first.route("**/flux_dreambooth/**", lambda route: route.abort("connectionrefused"))
    caption = first.get_by_label("Caption of 498.png")
    caption.fill("written while the server is away")
    caption.press("Control+Enter")
    first.wait_for_selector(".fdb-image:has-text('498.png') >> text=The server does not answer")
    first.click(".fdb-back")
    first.get_by_role("tab", name="Train").click()
    first.wait_for_selector(".fdb-body > [role=alert] >> text=The server does not answer")
    first.unroute("**/flux_dreambooth/**")
    first.wait_for_selector(".fdb-body > [role=alert] >> text=The server does not answer", state="detached")
    first.get_by_role("tab", name="Images").click()
    first.click(".fdb-card")  # nothing that was written is lost, and it is saved without being asked for
    assert caption.input_value() == "written while the server is away"
    first.wait_for_selector(".fdb-image:has-text('498.png') >> text=Saved")
    assert (folder / "498.txt").read_text() == "written while the server is away\n"


@pytest.fixture
def serving(runs: Path) -> Iterator[JobQueue]:
    """A queue with a failed job, from which a trainer takes jobs."""
    queue = JobQueue(runs / "queue")
    job = queue.submit("train", {"output_name": "bad"}).id
    problem = {"where": "settings", "what": "network_dim is 0", "hint": "use 16"}
    queue.update(job, lambda status: replace(status, state="failed", ended=time.time(), problems=(problem,)))
    queue.path(job, ".log").write_bytes(b"first line\nstep 1\rstep 2\r\nlast line")
    lock = take_lock(queue.folder / SERVER_LOCK)
    assert lock is not None
    queue.say(time.time(), "It waits.", "python holds 3.1 GiB")
    yield queue
    os.close(lock)


@pytest.mark.usefixtures("serving")
def test_it_fits_in_light_and_in_korean(data: Path, open_page: OpenPage, runs: Path):
    folder = data / "tjtoy"
    folder.mkdir()
    for number in range(5):
        (folder / f"{number}.png").write_bytes(encoded(40 * number, (400, 300 + 20 * number)))
        (folder / f"{number}.txt").write_text("tjtoy toy on a very long desk that somebody described in detail")
    (folder / "0.mask.png").write_bytes(encoded(255, (400, 300)))
    (folder / "notes.pdf").write_bytes(b"x")
    (runs / "tj").mkdir()
    Image.new("RGB", (64, 32)).save(runs / "tj/composites.jpg")
    checked(
        runs,
        {"path": "flux_data/tjtoy/1.png", "width": 400, "height": 320, "bucket": [512, 448], "resized": [560, 448]},
    )
    page = open_page("ko", "light", (1440, 900))
    page.click(TAB)
    for view in ("images", "train", "runs"):
        page.click(f"#fdb-tab-{view}")
        page.wait_for_selector(".fdb-card, .fdb-serving strong, .fdb-notice")
        if view == "train":
            page.wait_for_selector(".fdb-serving >> text=python holds 3.1 GiB")
            page.click(".fdb-job:has-text('bad') [data-key=log]")
            page.click(".fdb-job:has-text('check-tj') [data-key=log]")
            page.wait_for_selector(".fdb-job:has-text('check-tj') >> text=The plan")
            page.wait_for_selector(".fdb-job:has-text('bad') .fdb-log >> text=last line")
            assert page.locator(".fdb-job:has-text('bad') .fdb-log").inner_text() == "first line\nstep 2\nlast line"
            assert "use 16" in page.locator(".fdb-job:has-text('bad') .fdb-problems").inner_text()
        page.wait_for_timeout(600)
        shoot(page, f"{view}_light_1440")
        assert not re.search(r"\b(bench|training)\.\w", page.locator(".fdb-panel").inner_text())
        assert page.evaluate(TOO_WIDE) == []
    page.click("#fdb-tab-images")
    page.click(".fdb-card")
    page.wait_for_selector(".fdb-image >> nth=4")
    page.click(".fdb-concept input[type=checkbox]")
    page.wait_for_function("() => document.querySelector('.fdb-image img').src.includes('mask=1')")
    page.wait_for_selector(".fdb-image:has-text('1.png') .fdb-crop:visible")
    page.wait_for_function("() => document.querySelector('.fdb-sheets img')?.naturalWidth")  # composites as trained
    assert page.locator(".fdb-crop:visible").count() == 1
    assert "448" in page.locator(".fdb-image:has-text('1.png')").inner_text()
    shoot(page, "concept_light_1440")

    page.set_viewport_size({"width": 390, "height": 844})
    page.reload()
    page.wait_for_function(READY, timeout=90_000)
    page.click(TAB)
    for view in ("images", "train", "runs"):
        page.click(f"#fdb-tab-{view}")
        page.wait_for_selector(".fdb-card, .fdb-serving strong, .fdb-notice")
        page.wait_for_timeout(300)
        shoot(page, f"{view}_light_390")
        panel = page.locator(".fdb-panel").bounding_box()
        assert panel and panel["x"] > 30 and panel["x"] + panel["width"] == 390, "all of a phone but the icons"
        assert page.evaluate(TOO_WIDE) == []
