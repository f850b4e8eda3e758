"""The node that generates images with several LoRAs, each of which acts only in its own region."""

import logging
from collections.abc import Mapping
from typing import Any

from . import lora_files, lora_loading, routed, sampling
from .applied_loras import AppliedLoras
from .node_texts import Node
from .nodes_lora import fresh, state_of
from .nodes_lora_write import NO_LORA
from .nodes_sample import sampling_widgets, t5_length_of
from .routing.words import route_prompt

MOST = 4
STRENGTH = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.01}


class FluxSampleRouted(Node):
    """Two passes: masks from the base model's attention to class words, then each LoRA within its mask."""

    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "MASK", "IMAGE", "STRING")
    RETURN_NAMES = ("LATENT", "masks", "preview", "settings")
    OUTPUT_NODE = True
    SEARCH_ALIASES = ("regional lora", "multi concept", "several characters", "attention mask")

    def __init__(self):
        self._loaded: dict[int, lora_loading.LoadedLora] = {}

    @classmethod
    def inputs(cls) -> dict[str, Any]:
        names, more = lora_files.lora_names(), {}
        for number in range(2, MOST + 1):
            more |= {f"lora_{number}": ([NO_LORA, *names],), f"strength_{number}": ("FLOAT", STRENGTH)}
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "prompt": ("STRING", {"multiline": True, "dynamicPrompts": True}),
                "lora_1": (names,),
                "strength_1": ("FLOAT", STRENGTH),
                **sampling_widgets(),
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                **more,
                "class_words": ("STRING", {"multiline": True, "default": ""}),
                "threshold": ("FLOAT", {"default": 0.45, "min": 0.05, "max": 0.95, "step": 0.05}),
                "latent": ("LATENT",),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(  # noqa: N802 (ComfyUI's name)
        cls,
        lora_1: str | None,
        lora_2: str | None = NO_LORA,
        lora_3: str | None = NO_LORA,
        lora_4: str | None = NO_LORA,
    ) -> bool | str:
        return lora_files.valid_names(*(name for name in (lora_1, lora_2, lora_3, lora_4) if name != NO_LORA))

    @classmethod
    def IS_CHANGED(cls, **inputs: Any) -> str:  # noqa: N802
        return "\n".join(state_of(name) for name, _ in _chosen(inputs).values())

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
        class_words: str = "",
        threshold: float = 0.45,
        latent: Mapping[str, Any] | None = None,
        **loras: Any,
    ) -> dict[str, Any]:
        from .routing.masks import MaskSettings, mask_pixels

        sampling.refuse_other_models(model, clip)
        chosen = _chosen(loras)
        files = [(self._lora(number, name), strength) for number, (name, strength) in chosen.items()]
        acting, notes = routed.routed_loras(files, class_words)
        route = route_prompt(prompt, [lora.triggers for lora in acting])
        settings = sampling.Settings(seed, steps, guidance, sampler, schedule)
        given = AppliedLoras(tuple((lora.path.name, lora.metadata) for lora, _ in files))
        length = sampling.T5Length(t5_length) if t5_length else t5_length_of(model, given)
        start = latent or sampling.empty_latent(model, width, height, batch_size)
        passes = routed.Passes(model, clip, route, routed.token_counter(clip), length.tokens, start, settings)
        rows, columns = (-(-size // 2) for size in start["samples"].shape[-2:])
        masks = passes.masks(MaskSettings(threshold=threshold)) if route.called else None
        drawn = passes.sample(acting, masks)
        shown = _shown(masks, len(start["samples"]), len(acting), rows, columns)
        pixels = [mask_pixels(each.flatten(1), rows, columns, rows * 16, columns * 16) for each in shown]
        preview = _stacked(pixels)
        text = "\n".join([*_told(acting, route.class_text, route.called), *notes, str(length)])
        logging.info(text)
        result = (drawn, shown.flatten(0, 1), preview, text)
        return {"ui": {"text": [text], **_preview(preview)}, "result": result}

    def _lora(self, number: int, name: str) -> lora_loading.LoadedLora:
        path = lora_files.lora_path(name)
        self._loaded[number] = fresh(self._loaded.get(number), path)
        return self._loaded[number]


def _chosen(inputs: Mapping[str, Any]) -> dict[int, tuple[str, float]]:
    """The chosen LoRAs and their strengths, by the number of their inputs."""
    found = {}
    for number in range(1, MOST + 1):
        name = inputs.get(f"lora_{number}") or NO_LORA
        if name != NO_LORA:
            found[number] = (name, float(inputs.get(f"strength_{number}", 1.0)))
    return found


def _told(loras: list[routed.RoutedLora], class_text: str, called: tuple[int, ...]) -> list[str]:
    lines = [f"class prompt: {class_text}"] if called else ["the prompt calls no LoRA: the base model's image"]
    for index, lora in enumerate(loras):
        by = ", ".join(f'"{trigger.phrase}"' for trigger in lora.triggers)
        lines.append(f"{lora.name}: called by {by}" if index in called else f"{lora.name}: not called by {by}")
    return lines


def _shown(masks: Any, batch: int, count: int, rows: int, columns: int) -> Any:
    """Masks as [B, LoRAs, rows, columns] on the CPU; black where there are none."""
    import torch

    masks = torch.zeros(batch, count, rows * columns) if masks is None else masks.float().cpu()
    return masks.view(batch, count, rows, columns)


def _stacked(pixels: list[Any]) -> Any:
    import torch

    return torch.stack(pixels).float() / 255


def _preview(image: Any) -> dict[str, Any]:
    import nodes

    return nodes.PreviewImage().save_images(image, filename_prefix="routing")["ui"]


NODES = (FluxSampleRouted,)
