"""Where the GPU shares the computer's memory, ComfyUI starts with flags that leave no model file mapped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.nodes.server import COMFYUI, NO_COMFYUI, ROOT

pytestmark = pytest.mark.comfyui
FILE = ROOT / "models/mini/flux1-mini.safetensors"


def still_mapped(*flags: str) -> int:
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    script = Path(__file__).with_name("mapped_files.py")
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), script, COMFYUI, FILE, *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout.splitlines()[-1])


def test_weights_are_in_memory_once_with_the_flag_and_twice_without():
    assert still_mapped() >= 0.95 * FILE.stat().st_size
    assert still_mapped("--disable-mmap") == 0


def test_the_pin_maps_files_whatever_the_flag_says_unless_dynamic_vram_is_off():
    """If a release changes this, comfyui.sh may leave one of its flags out."""
    if not COMFYUI:
        pytest.skip(NO_COMFYUI)
    text = (Path(COMFYUI) / "comfy/utils.py").read_text()
    if "aimdo_enabled" in text:
        loader = text.partition("def load_torch_file")[2]
        assert loader.index("aimdo_enabled") < loader.index("DISABLE_MMAP")
        assert '"--disable-dynamic-vram"' in (Path(COMFYUI) / "comfy/cli_args.py").read_text()
