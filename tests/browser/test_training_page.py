"""From images to a generated image without a terminal: ComfyUI's page, and a real trainer that waits for jobs."""

import io
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from safetensors import safe_open

from tests.browser.conftest import TAB
from tests.browser.test_bench_page import drop, shoot
from tests.browser.test_browser import small_workflow
from tests.browser.test_layout import OPEN
from tests.nodes.server import ROOT, ComfyServer

pytestmark = [pytest.mark.browser, pytest.mark.comfyui, pytest.mark.slow]
PRESET = """
pretrained_model_name_or_path = "models/mini/flux1-mini.safetensors"
clip_l = "models/mini/clip_l-mini.safetensors"
t5xxl = "models/mini/t5-mini.safetensors"
ae = "models/mini/ae-mini.safetensors"
t5xxl_max_token_length = 64
mixed_precision = "no"
network_dim = 4
learning_rate = 1e-3
max_train_epochs = 5
log_with = "none"
"""
CONCEPTS = (("toy", "tjtoy toy"), ("gpu", "sparkgpu gpu"))
JOB = ".fdb-job:has-text('ours')"
LOADED = "() => app.graph.nodes.find(({ type }) => type === 'LoadFluxDreamBoothLoRA').widgets[0].value"
SEEN = "() => app.graph.nodes.find(({ type }) => type === 'SaveImage')?.imgs?.[0]?.naturalWidth"


@pytest.fixture
def trainer(comfyui: ComfyServer, data: Path, runs: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m trainer serve` in a folder that shares its models, images and runs with ComfyUI."""
    (data / "train.toml").write_text(PRESET)
    for name, target in {"models": comfyui.folder / "models", "flux_data": data, "runs": runs}.items():
        (tmp_path / name).symlink_to(target)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "trainer", "serve", f"--comfyui={comfyui.url}"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    yield process
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130


def photographs(shape: str, seed: int) -> list[dict[str, Any]]:
    """Ten images of one thing on ten backgrounds, a mask for each, and a caption for the first, as files to drop."""
    files = []
    rng = random.Random(seed)
    for number in range(10):
        ground = tuple(rng.randrange(256) for _ in range(3))
        left, top = rng.randrange(8, 40), rng.randrange(8, 24)
        box = (left, top, left + 44, top + 44)
        for name, mode, below, colour in (("", "RGB", ground, (220, 40 * seed, 60)), (".mask", "L", 0, 255)):
            drawn = Image.new(mode, (96, 80), below)
            getattr(ImageDraw.Draw(drawn), shape)(box, colour)
            files.append({"name": f"{number}{name}.png", "mimeType": "image/png", "buffer": as_png(drawn)})
    return [*files, {"name": "0.txt", "mimeType": "text/plain", "buffer": f"{CONCEPTS[seed][1]} on a dask".encode()}]


def as_png(drawn: Image.Image) -> bytes:
    target = io.BytesIO()
    drawn.save(target, "PNG")
    return target.getvalue()


def steps_planned(page: Any, steps: int) -> None:
    page.wait_for_selector(
        f".fdb-plan:not(.fdb-stale):has-text('ready to start') dl >> text=/^{steps}$/", timeout=120_000
    )


@pytest.mark.usefixtures("trainer")
def test_two_concepts_are_trained_and_used(open_page: Callable[..., Any], comfyui: ComfyServer, data: Path):
    small_workflow(comfyui.folder / "user/default/workflows/mini_finetuned.json")
    page = open_page(size=(1440, 900))
    page.evaluate(OPEN, "mini_finetuned")
    page.click(TAB)
    page.get_by_role("tab", name="Images").click()
    for seed, (concept, _) in enumerate(CONCEPTS):
        page.fill(".fdb-concept-name", concept)
        page.keyboard.press("Enter")
        page.wait_for_selector(".fdb-concept >> text=Drop images here")
        drop(page, ".fdb-concept", photographs(("ellipse", "rectangle")[seed], seed))
        page.wait_for_selector(".fdb-status >> text=images added: 10 · captions added: 1 · masks added: 10")
        caption = page.get_by_label("Caption of 0.png")
        caption.fill(caption.input_value().replace("dask", "desk"))
        caption.press("Control+Enter")
        page.wait_for_selector(".fdb-image >> text=Saved")
        assert (data / concept / "0.txt").read_text() == f"{CONCEPTS[seed][1]} on a desk\n"
        page.get_by_label("Show masks").check()
        shown = "(i) => i.src.includes('mask=1') && i.naturalWidth"
        page.wait_for_function(f"() => [...document.querySelectorAll('.fdb-image img')].slice(0, 3).every({shown})")
        if seed == 0:
            page.click(".fdb-back")
    shoot(page, "journey_masks")

    page.click("text=Train this")
    page.fill(".fdb-output-name", "ours")
    for concept, words in CONCEPTS:
        page.get_by_label(f"Trigger words of {concept}").fill(words)
    page.get_by_label("composites", exact=True).fill("0")
    page.get_by_label("resolution", exact=True).fill("64")
    steps_planned(page, 60)  # "good": half of the preset's epochs, 20 images each
    page.get_by_label("Best").check()
    steps_planned(page, 100)
    shoot(page, "journey_plan")
    assert not (data / "ours.toml").exists() and not (comfyui.folder / "shared/ours").exists()
    page.click(".fdb-start")

    job = page.locator(JOB)
    job.locator(".fdb-state-running").wait_for()
    job.locator("[data-key=run]").click(timeout=60_000)
    page.wait_for_selector(".fdb-progress >> text=/step [1-9]\\d* of 100/", timeout=60_000)
    shoot(page, "journey_watched")
    page.get_by_role("tab", name="Train").click()
    job.locator("[data-key=pause]").click()
    job.locator(".fdb-state-paused").wait_for(timeout=60_000)
    saved = len([*(comfyui.folder / "shared/ours").glob("state-*")])
    assert saved and not (comfyui.loras / "ours.safetensors").exists()
    job.locator("[data-key=resume]").click()
    job.locator("[data-key=log]").click()
    job.locator(".fdb-state-finished, .fdb-state-failed").wait_for(timeout=120_000)
    assert "Finished" in job.inner_text(), job.inner_text()
    page.wait_for_selector(".fdb-log >> text=/resum/i")
    shoot(page, "journey_finished")

    with safe_open(comfyui.loras / "ours.safetensors", "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4" and file.metadata()["ss_steps"] == "100"
    page.get_by_role("tab", name="Runs").click()
    page.click(".fdb-checkpoints button:has-text('Use')")
    page.wait_for_function(f"() => ({LOADED})() === 'ours.safetensors'")
    for _, words in CONCEPTS:
        page.click(f".fdb-chip.fdb-missing >> text={words}")
        page.wait_for_selector(f".fdb-chip.fdb-present >> text={words}")
    before = {*(comfyui.folder / "output").iterdir()}
    page.click("[data-testid='queue-button']")
    page.wait_for_function(SEEN, timeout=90_000)
    page.wait_for_selector(".fdb-result >> text=applied", state="attached")
    shoot(page, "journey_generated")
    (saved,) = {*(comfyui.folder / "output").iterdir()} - before
    saved.unlink()
