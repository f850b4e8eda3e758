"""Run by tests/nodes/test_battery.py in ComfyUI's interpreter: the same files with our loader node and with ComfyUI's.

    python apply_battery.py COMFYUI_DIR FOLDER

FOLDER holds models/mini and loras/*.safetensors. Written: answers.json with, for each file, how many weights each
loader patched, the largest relative difference of one that ComfyUI patched, and our loader's error.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path[0:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from comfyui_apply import prepare_imports  # noqa: E402


def patched_weights(model: Any) -> dict[str, torch.Tensor]:
    import comfy.lora
    import comfy.utils

    weights = model.model.state_dict()
    return {
        key: comfy.lora.calculate_weight(patches, weights[key].clone().float(), key) - weights[key]
        for key, patches in model.patches.items()
    }


def compare(ours: dict[str, torch.Tensor], core: dict[str, torch.Tensor]) -> float:
    """The largest relative difference between two changes of a weight, over those that ComfyUI makes."""
    return max(
        (float((ours[key] - change).norm() / change.norm()) if key in ours else float("inf"))
        for key, change in core.items()
    )


def main() -> None:
    comfyui, folder = Path(sys.argv[1]), Path(sys.argv[2])
    prepare_imports(comfyui)
    import comfy.sd
    import comfy.utils
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folder / "loras"), is_default=True)
    from custom_nodes.flux_dreambooth import mini
    from custom_nodes.flux_dreambooth.nodes_lora import LoadFluxDreamBoothLoRA

    model, clip, _ = mini.load(folder / "models/mini", [])
    answers = {}
    for path in sorted((folder / "loras").glob("*.safetensors")):
        lora = comfy.utils.load_torch_file(str(path), safe_load=True)
        core = patched_weights(comfy.sd.load_lora_for_models(model, clip, lora, 0.8, 0.8)[0])
        answer: dict[str, Any] = {"core": len(core), "ours": 0, "difference": None, "error": ""}
        try:
            node = LoadFluxDreamBoothLoRA()
            ours = patched_weights(node.load(model, path.name, "this file", 0.8, 0.8, clip=clip)["result"][0])
            answer |= {"ours": len(ours), "difference": compare(ours, core) if core else None}
        except ValueError as error:
            answer["error"] = str(error)
        answers[path.stem] = answer
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
