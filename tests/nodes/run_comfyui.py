"""Run by tests/nodes/server.py in ComfyUI's interpreter: main.py of the checkout, with its arguments.

    python run_comfyui.py COMFYUI_DIR ARGUMENT...

Lets ComfyUI import where torchvision's binary part or torchaudio does not fit the torch that is here.
"""

import contextlib
import runpy
import sys
import types
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from comfyui_apply import TORCHVISION_OPS

if __name__ == "__main__":
    sys.path[0:1] = []
    for op in TORCHVISION_OPS.split():
        with contextlib.suppress(RuntimeError):  # it is there
            torch.library.define(f"torchvision::{op}", "(Tensor x) -> Tensor")
    import transformers  # noqa: F401  (before a torchaudio that is none)

    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    _, comfyui, *arguments = sys.argv
    sys.argv = [f"{comfyui}/main.py", *arguments]
    sys.path[0] = comfyui
    runpy.run_path(sys.argv[0], run_name="__main__")
