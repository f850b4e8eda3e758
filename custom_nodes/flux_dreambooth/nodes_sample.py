"""The node that generates images with FLUX.1 as it was trained."""

from collections.abc import Mapping
from typing import Any

from . import mini, sampling
from .applied_loras import AppliedLoras, applied_loras
from .loaded_loras import comfyui_classes, comfyui_names, loras_before, running_prompt
from .node_texts import Node

LARGEST = 16384


def sampling_widgets(steps: int = 28) -> dict[str, Any]:
    """The inputs that all of our nodes that generate images have."""
    import comfy.samplers

    schedules = [sampling.AS_TRAINED, *comfy.samplers.SCHEDULER_NAMES]
    seed = {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True}
    return {
        "width": ("INT", {"default": 1024, "min": 16, "max": LARGEST, "step": 16}),
        "height": ("INT", {"default": 1024, "min": 16, "max": LARGEST, "step": 16}),
        "seed": ("INT", seed),
        "steps": ("INT", {"default": steps, "min": 1, "max": 10000}),
        "guidance": ("FLOAT", {"default": 3.5, "min": 0.0, "max": 100.0, "step": 0.1}),
        "sampler": (comfy.samplers.SAMPLER_NAMES, {"default": "euler"}),
        "schedule": (schedules, {"default": sampling.AS_TRAINED}),
        "t5_length": ("INT", {"default": 0, "min": 0, "max": sampling.LONGEST}),
    }


def t5_length_of(model: Any, loras: AppliedLoras) -> sampling.T5Length:
    """What prompts were padded to in training, by the LoRAs that are applied to a MODEL."""
    return sampling.trained_t5_length(
        loras.files, model.get_attachment(mini.T5_LENGTH), sampling.is_schnell(model), loras.unknown
    )


class FluxSampleAsTrained(Node):
    """One node instead of nine: from MODEL, CLIP and a prompt to a LATENT, as FLUX.1 and its LoRA were trained."""

    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("LATENT", "settings")
    SEARCH_ALIASES = ("flux sampler", "ksampler", "sampler custom advanced")

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        shift = {"min": 0.0, "max": 100.0, "step": 0.01, "advanced": True}
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                **sampling_widgets(),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            },
            "optional": {
                "latent": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.01, "max": 1.0, "step": 0.01, "advanced": True}),
                "base_shift": ("FLOAT", {"default": sampling.BASE_SHIFT, **shift}),
                "max_shift": ("FLOAT", {"default": sampling.MAX_SHIFT, **shift}),
            },
            "hidden": {"dynamic": "DYNPROMPT", "unique_id": "UNIQUE_ID"},
        }

    def sample(
        self,
        model: Any,
        clip: Any,
        prompt: str,
        width: int,
        height: int,
        seed: int,
        steps: int,
        guidance: float,
        sampler: str,
        schedule: str,
        t5_length: int,
        batch_size: int = 1,
        latent: Mapping[str, Any] | None = None,
        denoise: float = 1.0,
        base_shift: float = sampling.BASE_SHIFT,
        max_shift: float = sampling.MAX_SHIFT,
        dynamic: Any = None,
        unique_id: str | None = None,
    ) -> tuple[dict[str, Any], str]:
        sampling.refuse_other_models(model, clip)
        settings = sampling.Settings(seed, steps, guidance, sampler, schedule, denoise, base_shift, max_shift)
        length = sampling.T5Length(t5_length)
        if not t5_length:
            names = comfyui_names()
            likely = loras_before(running_prompt(dynamic), str(unique_id), names, comfyui_classes()).names
            length = t5_length_of(model, applied_loras(model, clip, likely, names.listed))
        start = latent or sampling.empty_latent(model, width, height, batch_size)
        positive = sampling.encode(clip, prompt, length.tokens, guidance)
        shift = sampling.shift_for(model, start, settings)
        told = "none" if shift is None else f"{shift:.4f}"
        text = f"seed {seed}, {steps} steps, {sampler}, {schedule}, guidance {guidance:g}, shift {told}, {length}"
        return sampling.sample(model, positive, start, settings), text


NODES = (FluxSampleAsTrained,)
