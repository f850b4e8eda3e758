"""From images to a generated image without a terminal: ComfyUI's page, and a real trainer that waits for jobs."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from tests.browser.conftest import TAB
from tests.browser.test_bench_page import drop, image
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
max_train_epochs = 2
log_with = "none"
"""
CONCEPTS = {"toy": "tjtoy toy", "gpu": "sparkgpu gpu"}
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


@pytest.mark.usefixtures("trainer")
def test_two_concepts_are_trained_and_used(open_page: Callable[..., Any], comfyui: ComfyServer):
    small_workflow(comfyui.folder / "user/default/workflows/mini_finetuned.json")
    page = open_page(size=(1440, 900))
    page.evaluate(OPEN, "mini_finetuned")
    page.click(TAB)
    page.get_by_role("tab", name="Images").click()
    for number, concept in enumerate(CONCEPTS):
        page.fill(".fdb-concept-name", concept)
        page.keyboard.press("Enter")
        page.wait_for_selector(".fdb-concept >> text=Drop images here")
        shades = (40 + 50 * number, 150 + 50 * number)
        drop(page, ".fdb-concept", [image(f"{shade}.png", shade, (96, 80)) for shade in shades])
        page.wait_for_selector(".fdb-status >> text=images added: 2")
        if concept != "gpu":
            page.click(".fdb-back")
    page.click("text=Train this")
    for concept, words in CONCEPTS.items():
        page.get_by_label(f"Trigger words of {concept}").fill(words)
    page.get_by_label("resolution", exact=True).fill("64")
    page.fill(".fdb-output-name", "ours")
    page.get_by_label("Best").check()
    page.click(".fdb-start")
    ended = page.locator(JOB).locator("text=/Finished|Failed/").first
    ended.wait_for(timeout=180_000)
    assert "Finished" in page.locator(JOB).inner_text(), page.locator(JOB).inner_text()

    with safe_open(comfyui.loras / "ours.safetensors", "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4" and file.metadata()["ss_steps"] == "8"
    page.get_by_role("tab", name="Runs").click()
    page.click(".fdb-checkpoints button:has-text('Use')")
    page.wait_for_function(f"() => ({LOADED})() === 'ours.safetensors'")
    for words in CONCEPTS.values():
        page.click(f".fdb-chip.fdb-missing >> text={words}")
        page.wait_for_selector(f".fdb-chip.fdb-present >> text={words}")
    before = {*(comfyui.folder / "output").iterdir()}
    page.click("[data-testid='queue-button']")
    page.wait_for_function(SEEN, timeout=90_000)
    page.wait_for_selector(".fdb-result >> text=applied", state="attached")
    (saved,) = {*(comfyui.folder / "output").iterdir()} - before
    saved.unlink()
