"""Run by tests/nodes/test_lora_nodes.py in ComfyUI's interpreter: the LoRA nodes on a small FLUX.

    python apply_loras.py COMFYUI_DIR FOLDER

FOLDER holds models/mini, loras/*.safetensors and changes.safetensors, the expected weight changes by
ComfyUI's keys. Written: answers.json.
"""

import gc
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path[0:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from comfyui_apply import prepare_imports  # noqa: E402

LAYOUTS = ("ours", "kohya", "diffusers", "ai_toolkit", "onetrainer")


def changes_of(model: Any, clip: Any) -> dict[str, torch.Tensor]:
    """What the patches add to each weight, by ComfyUI's own arithmetic in float32."""
    import comfy.lora

    found = {}
    for patcher in (model, clip.patcher):
        shapes = {key: weight.shape for key, weight in patcher.model.state_dict().items()}
        for key, patches in patcher.patches.items():
            found[key] = comfy.lora.calculate_weight(patches, torch.zeros(shapes[key]), key)
    return found


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest one, relative to the largest expected number; infinite if other weights are changed."""
    if found.keys() != expected.keys():
        return float("inf")
    scale = max(float(change.abs().max()) for change in expected.values())
    return max(float((found[key] - expected[key]).abs().max()) for key in expected) / scale


def load(node: Any, model: Any, clip: Any, name: str, **options: Any) -> tuple[Any, Any, str]:
    settings = {"checkpoint": "this file", "strength_model": 1.0, "strength_clip": 1.0} | options
    return node.load(model, f"{name}.safetensors", clip=clip, **settings)["result"]


def error_of(call: Any) -> str:
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


def five_layouts(node: Any, model: Any, clip: Any, expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    answers = {}
    for name in LAYOUTS:
        changed, changed_clip, text = load(node, model, clip, name)
        wanted = expected if name != "ai_toolkit" else {k: v for k, v in expected.items() if "clip_l" not in k}
        answers[name] = {"text": text, "difference": difference(changes_of(changed, changed_clip), wanted)}
    return answers


def refusals(node: Any, model: Any, clip: Any, names: list[str]) -> dict[str, str]:
    return {name: error_of(lambda name=name: load(node, model, clip, name)) for name in names}


def options(node: Any, model: Any, clip: Any, expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    halved = {key: change * (0.5 if key.startswith("diffusion") else 2.0) for key, change in expected.items()}
    found = load(node, model, clip, "ours", strength_model=0.5, strength_clip=2.0)
    alone = load(node, model, None, "ours")
    zero = load(node, model, clip, "ours", strength_model=0.0)
    partial = load(node, model, clip, "part", allow_partial=True)
    return {
        "strengths": difference(changes_of(*found[:2]), halved),
        "without_clip": [alone[1] is None, alone[2]],
        "zero_is_the_same_model": zero[0] is model and zero[1] is not clip,
        "base_has_patches": bool(model.patches or clip.patcher.patches),
        "partial": [partial[2], len(partial[0].patches)],
        "clip_file_without_clip": error_of(lambda: load(node, model, None, "clip_only")),
    }


def freshness(node: Any, model: Any, clip: Any, folder: Path, expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The same name with another content, replaced and then overwritten in place, times set back."""
    path = folder / "fresh.safetensors"
    shutil.copy(folder / "other.safetensors", path)
    stamp = path.stat().st_mtime_ns
    held = load(node, model, clip, "fresh")
    before, mark = changes_of(*held[:2]), type(node).IS_CHANGED("fresh.safetensors")
    again = type(node).IS_CHANGED("fresh.safetensors")
    path.write_bytes((folder / "ours.safetensors").read_bytes())
    os.utime(path, ns=(stamp, stamp))
    after = changes_of(*load(node, model, clip, "fresh")[:2])
    path.write_bytes(b"")  # what a file mapped into memory would not survive
    return {
        "stable": mark == again,
        "noticed": type(node).IS_CHANGED("fresh.safetensors") != mark,
        "first_is_the_other": difference(before, expected) > 0.1,
        "second_is_ours": difference(after, expected),
        "held_is_untouched": difference(changes_of(*held[:2]), before),
        "newest": load(node, model, clip, "run", checkpoint="newest of its run")[2],
        "gone": error_of(lambda: load(node, model, clip, "absent")),
    }


def seconds(call: Any) -> float:
    """The processor's time, which other processes do not add to; the file is in memory since it was written."""
    gc.collect()
    start = time.process_time()
    call()
    return time.process_time() - start


def cost(model_class: Any, small: Any) -> dict[str, float]:
    """Our loader and ComfyUI's core one on rank 16 for all layers of a FLUX.1-dev: the fastest of 15 turns of each."""
    import comfy.model_patcher
    import comfy.supported_models
    import nodes

    sizes = {"hidden_size": 3072, "num_heads": 24, "depth": 19, "depth_single_blocks": 38, "context_in_dim": 4096}
    config = small.model.model_config.unet_config | sizes | {"vec_in_dim": 768}
    settings = comfy.supported_models.Flux(config)
    settings.set_inference_dtype(torch.bfloat16, None)
    meta, host = torch.device("meta"), torch.device("cpu")
    network = settings.get_model({}, "", device=meta)
    model = comfy.model_patcher.ModelPatcher(network, load_device=host, offload_device=host)
    name = "rank16.safetensors"

    def read_all(patched: Any) -> None:
        for patches in patched.patches.values():
            for _, adapter, *_ in patches:
                adapter.weights[0].sum(), adapter.weights[1].sum()

    def ours() -> None:
        found = model_class().load(model, name, "this file", 1.0, 1.0)["result"]
        read_all(found[0])

    def theirs() -> None:
        read_all(nodes.LoraLoaderModelOnly().load_lora_model_only(model, name, 1.0)[0])

    calls = {"ours": ours, "core": theirs}
    times: dict[str, list[float]] = {key: [] for key in calls}
    for turn in range(16):
        for key in sorted(calls, reverse=turn % 2 == 1):
            spent = seconds(calls[key])
            times[key] += [spent] if turn else []
    modules = len(model_class().load(model, name, "this file", 1.0, 1.0)["result"][0].patches)
    return {key: min(values) for key, values in times.items()} | {"modules": modules}


def reports(model: Any, clip: Any) -> dict[str, Any]:
    from custom_nodes.flux_dreambooth.nodes_lora import LoRAReport

    answers = {}
    for name in (*LAYOUTS, "part"):
        answer = LoRAReport().report(f"{name}.safetensors", model, clip)
        text, plot = answer["result"]
        answers[name] = {"text": text, "shape": list(plot.shape), "images": len(answer["ui"]["images"])}
    return answers


def main() -> None:
    comfyui, folder = Path(sys.argv[1]), Path(sys.argv[2])
    prepare_imports(comfyui)
    import folder_paths

    folder_paths.add_model_folder_path("loras", str(folder / "loras"), is_default=True)
    folder_paths.set_temp_directory(str(folder / "temp"))
    from custom_nodes.flux_dreambooth import mini
    from custom_nodes.flux_dreambooth.nodes_lora import LoadFluxDreamBoothLoRA

    model, clip, _ = mini.load(folder / "models/mini", [])
    expected = load_file(folder / "changes.safetensors")
    node = LoadFluxDreamBoothLoRA()
    refused = json.loads((folder / "refused.json").read_text())
    answers = {
        "layouts": five_layouts(node, model, clip, expected),
        "refused": refusals(node, model, clip, list(refused)),
        "options": options(node, model, clip, expected),
        "fresh": freshness(node, model, clip, folder / "loras", expected),
        "reports": reports(model, clip),
        "cost": cost(LoadFluxDreamBoothLoRA, model),
    }
    (folder / "answers.json").write_text(json.dumps(answers))


if __name__ == "__main__":
    main()
