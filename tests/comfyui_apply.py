"""Run by tests/parity/test_lora_comfyui.py in ComfyUI's interpreter: apply LoRA files with ComfyUI's own code.

    python comfyui_apply.py COMFYUI_DIR FOLDER

FOLDER holds transformer.safetensors, clip_l.safetensors, t5xxl.safetensors (any width), inputs.safetensors
and loras/*.safetensors. The script writes outputs.safetensors, with `<name>.velocity` and `<name>.clip` of each LoRA
and of `base`, and report.json, with the number of patched weights and every warning of ComfyUI's.
"""

import contextlib
import json
import logging
import sys
import types
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

TORCHVISION_OPS = (
    "nms qnms roi_align qroi_align roi_pool ps_roi_align ps_roi_pool deform_conv2d _roi_align_backward "
    "_roi_pool_backward _ps_roi_align_backward _ps_roi_pool_backward _deform_conv2d_backward"
)


def patch_torch_imports() -> None:
    """Let ComfyUI be imported even if the compiled parts of torchvision or torchaudio do not fit this torch."""
    for op in TORCHVISION_OPS.split():
        with contextlib.suppress(RuntimeError):  # it exists already
            torch.library.define(f"torchvision::{op}", "(Tensor x) -> Tensor")
    import transformers  # noqa: F401  (before torchaudio is replaced)

    try:
        import torchaudio  # noqa: F401
    except (ImportError, OSError):
        for name in ("torchaudio", "torchaudio.functional", "torchaudio.transforms"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__path__ = []


def prepare_imports(comfyui: Path) -> None:
    """Make ComfyUI's modules importable, set up for a CPU."""
    patch_torch_imports()
    sys.path.insert(0, str(comfyui))
    sys.argv = [sys.argv[0], "--cpu", "--fp32-text-enc"]
    import comfy.options

    comfy.options.enable_args_parsing()


def load_transformer(path: Path):
    """A ModelPatcher with ComfyUI's Flux in float32; each attention head has 128 channels."""
    import comfy.model_detection
    import comfy.model_patcher
    import comfy.supported_models

    tensors = load_file(path)
    config = comfy.model_detection.detect_unet_config(tensors, "")
    config["num_heads"] = config["hidden_size"] // 128
    settings = comfy.supported_models.Flux(config)
    settings.set_inference_dtype(torch.float32, None)
    model = settings.get_model(tensors, "", device=torch.device("cpu"))
    model.load_model_weights(dict(tensors), "")
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


def load_text_encoders(folder: Path):
    import comfy.sd
    import comfy.text_encoders.flux as flux
    from comfy.supported_models_base import ClipTarget

    clip, t5 = load_file(folder / "clip_l.safetensors"), load_file(folder / "t5xxl.safetensors")
    sizes = json.loads((folder / "text_encoders.json").read_text())
    target = ClipTarget(flux.FluxTokenizer, flux.flux_clip(dtype_t5=torch.float32))
    return comfy.sd.CLIP(target, state_dict=[clip, t5], parameters=1, model_options=sizes)


def velocity(patcher, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    model = patcher.patch_model().diffusion_model
    result = model(inputs["x"], inputs["sigma"], inputs["txt"], inputs["pooled"], guidance=inputs["guidance"])
    patcher.unpatch_model()
    return result


def clip_hidden(clip, tokens: torch.Tensor) -> torch.Tensor:
    model = clip.patcher.patch_model()
    result = model.clip_l.transformer(tokens)[0]
    clip.patcher.unpatch_model()
    return result


def main() -> None:
    comfyui, folder = Path(sys.argv[1]), Path(sys.argv[2])
    complaints: list[str] = []
    prepare_imports(comfyui)
    import comfy.sd
    import comfy.utils

    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())
    model, clip = load_transformer(folder / "transformer.safetensors"), load_text_encoders(folder)
    logging.getLogger().addHandler(handler)
    inputs = load_file(folder / "inputs.safetensors")
    outputs, report = {}, {}
    for path in [None, *sorted((folder / "loras").glob("*.safetensors"))]:
        name, patched = "base", (model, clip)
        if path:
            name, complaints[:] = path.stem, []
            patched = comfy.sd.load_lora_for_models(model, clip, comfy.utils.load_torch_file(str(path)), 1.0, 1.0)
        with torch.no_grad():
            outputs[f"{name}.velocity"] = velocity(patched[0], inputs).contiguous()
            outputs[f"{name}.clip"] = clip_hidden(patched[1], inputs["tokens"]).contiguous()
        counts = [sum(len(each) for each in part.patches.values()) for part in (patched[0], patched[1].patcher)]
        report[name] = {"transformer": counts[0], "clip": counts[1], "complaints": list(complaints)}
    save_file(outputs, folder / "outputs.safetensors")
    (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main()
