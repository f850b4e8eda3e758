"""Run by tests/nodes/test_other_tools.py in ComfyUI's interpreter: files of other tools through the loader node.

    python apply_others.py COMFYUI_DIR FOLDER

FOLDER holds models/mini, loras/*.safetensors, and for each LoRA changes/*.safetensors: what is added to which weight
(`+` before the key) or put in its place (`=`). Written: answers.json with the largest relative difference of each.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path[0:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from comfyui_apply import prepare_imports  # noqa: E402


def current_key(key: str, known: Any) -> str:
    """The key as this ComfyUI has it: newer ones call the scale of a norm its weight."""
    return key if key in known or not key.endswith("_norm.scale") else key.removesuffix("scale") + "weight"


def difference(model: Any, clip: Any, expected: dict[str, torch.Tensor]) -> float:
    """The largest one between patched weights and expected ones, relative; infinite if other weights are patched."""
    import comfy.lora

    patched, wanted, worst = {}, {}, 0.0
    for patcher in (model, clip.patcher):
        weights = patcher.model.state_dict()
        patched |= {key: (weights[key].float(), patches) for key, patches in patcher.patches.items()}
        for name, tensor in expected.items():
            key = current_key(name[1:], weights)
            if key in weights:
                wanted[key] = name[0], tensor
    if patched.keys() != wanted.keys() or len(wanted) != len(expected):
        print(sorted(patched.keys() ^ wanted.keys())[:5], flush=True)
        return float("inf")
    for key, (weight, patches) in patched.items():
        kind, tensor = wanted[key]
        result = comfy.lora.calculate_weight(patches, weight.clone(), key)
        if result.shape != weight.shape:  # wider than before
            weight = torch.nn.functional.pad(weight, (0, result.shape[1] - weight.shape[1]))
        true = tensor if kind == "=" else tensor + weight
        worst = max(worst, float((result - true).norm() / (true - weight).norm()))
    return worst


def dora(model: Any, clip: Any, node: Any, tensors: dict[str, torch.Tensor], scale: float) -> float:
    """Of PEFT's DoRA: magnitude * (W + change) / |W + change|, row by row."""
    import comfy.lora
    import comfy.utils

    patched = node.load(model, "dora.safetensors", "this file", 1.0, 1.0, clip=clip)["result"][0]
    keys = comfy.utils.flux_to_diffusers(model.model.model_config.unet_config, output_prefix="diffusion_model.")
    worst = 0.0
    results = {}
    for name, magnitude in tensors.items():
        if not name.endswith("lora_magnitude_vector"):
            continue
        module = name.removesuffix(".lora_magnitude_vector")
        target = keys[module.removeprefix("transformer.") + ".weight"]
        key, rows = (target, None) if isinstance(target, str) else (target[0], target[1])
        weight = comfy.utils.get_attr(model.model, key).float()
        if key not in results:
            results[key] = comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key)
        found = results[key]
        if rows:
            weight, found = weight.narrow(*rows), found.narrow(*rows)
        changed = weight + scale * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        true = magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)
        worst = max(worst, float((found - true).norm() / (true - weight).norm()))
    return worst


def main() -> None:
    comfyui, folder = Path(sys.argv[1]), Path(sys.argv[2])
    prepare_imports(comfyui)
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folder / "loras"), is_default=True)
    from custom_nodes.flux_dreambooth import mini
    from custom_nodes.flux_dreambooth.nodes_lora import LoadFluxDreamBoothLoRA

    model, clip, _ = mini.load(folder / "models/mini", [])
    node, differences, texts, errors = LoadFluxDreamBoothLoRA(), {}, {}, {}
    for path in sorted((folder / "changes").glob("*.safetensors")):
        name = (
            f"{path.stem}.safetensors"
            if (folder / "loras" / path.name).exists()
            else f"{path.stem}/adapter_model.safetensors"
        )
        loaded = node.load(model, name, "this file", 1.0, 1.0, clip=clip)["result"]
        differences[path.stem], texts[path.stem] = difference(*loaded[:2], load_file(path)), loaded[2]
    for path in sorted((folder / "loras").glob("bad_*.safetensors")):
        try:
            node.load(model, path.name, "this file", 1.0, 1.0, clip=clip)
            errors[path.stem] = ""
        except ValueError as error:
            errors[path.stem] = str(error)
    differences["dora"] = dora(model, clip, node, load_file(folder / "loras/dora.safetensors"), scale=2.0)
    partial = node.load(model, "bad_fill.safetensors", "this file", 1.0, 1.0, clip=clip, allow_partial=True)["result"][
        2
    ]
    answers = {"differences": differences, "texts": texts, "errors": errors, "partial": partial}
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
