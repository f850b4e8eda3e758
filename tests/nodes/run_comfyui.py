"""Run by tests/nodes/server.py in ComfyUI's interpreter: main.py of the checkout, with its arguments.

python run_comfyui.py COMFYUI_DIR ARGUMENT...
"""

import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from comfyui_apply import patch_torch_imports

if __name__ == "__main__":
    patch_torch_imports()
    _, comfyui, *arguments = sys.argv
    sys.argv = [f"{comfyui}/main.py", *arguments]
    sys.path[0:2] = [comfyui]  # in place of our two folders
    runpy.run_path(sys.argv[0], run_name="__main__")
