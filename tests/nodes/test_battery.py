"""Ours against ComfyUI's loader, key by key, on files in 96 layouts: what ComfyUI applies, our node applies alike."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.random_flux import ModelFiles
from tests.nodes.layout_battery import BLOCKS, battery
from tests.nodes.lora_layouts import write_tensors
from tests.nodes.model_files import write_mini
from tests.nodes.server import COMFYUI, NO_COMFYUI

pytestmark = [pytest.mark.comfyui, pytest.mark.skipif(not COMFYUI, reason=NO_COMFYUI)]
APPLY = Path(__file__).with_name("apply_battery.py")


def test_what_comfyui_applies_is_applied_alike(tmp_path: Path, tiny_flux: ModelFiles):
    files = battery()
    for each in ("models/mini", "loras"):
        (tmp_path / each).mkdir(parents=True)
    write_mini(tmp_path / "models/mini", tmp_path / "none", tiny_flux.transformer.parents[1])
    for name, tensors in files.items():
        write_tensors(tmp_path / f"loras/{name}.safetensors", tensors, {})
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), str(APPLY), str(COMFYUI), str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    answers: dict[str, dict[str, Any]] = json.loads((tmp_path / "answers.json").read_text())
    assert len(answers) == len(files) == 96
    complete = [name for name, answer in answers.items() if answer["core"] >= len(BLOCKS)]
    assert len(complete) > 40
    applied = sum(answer["ours"] > 0 for answer in answers.values())
    print(f"ComfyUI applies {len(complete)} of {len(files)} completely, our node {applied}")
    wrong = {
        name: answer
        for name, answer in answers.items()
        if (name in complete and (answer["error"] or answer["difference"] > 1e-5))
        or not (answer["error"] or answer["ours"] >= len(BLOCKS))  # never in part, and never nothing in silence
    }
    assert not wrong, json.dumps(wrong, indent=1)
