"""FLUX.1 sampled as it was trained: shift by the latent's size, T5's length, and the trainer's own line of sigmas.

The shift is linear in the number of image tokens, 0.5 at 256 and 1.15 at 4096, its exponential moves the
sigmas towards noise (Black Forest Labs' flux, sampling.py). FLUX.1-schnell was trained without it.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BASE_SHIFT, MAX_SHIFT = 0.5, 1.15
BASE_TOKENS, MAX_TOKENS = 256, 4096
AS_TRAINED = "as trained"  # of the schedules: the trainer's own
DEV_LENGTH, SCHNELL_LENGTH = 512, 256  # T5 tokens of a prompt, padding included
LONGEST = 4096
OURS = "flux_dreambooth"  # the metadata key of our trainer's settings


@dataclass(frozen=True)
class Settings:
    """The settings of one image; schedule is `AS_TRAINED` or one of ComfyUI's."""

    seed: int
    steps: int
    guidance: float = 3.5
    sampler: str = "euler"
    schedule: str = AS_TRAINED
    denoise: float = 1.0
    base_shift: float = BASE_SHIFT
    max_shift: float = MAX_SHIFT


@dataclass(frozen=True)
class T5Length:
    """How many T5 tokens a prompt is padded or truncated to, and where that number is from."""

    tokens: int
    source: str = ""

    def __str__(self) -> str:
        return f"T5 {self.tokens} ({self.source})" if self.source else f"T5 {self.tokens}"


def flux_shift(width: int, height: int, base_shift: float = BASE_SHIFT, max_shift: float = MAX_SHIFT) -> float:
    """The shift's exponent for an image's size in pixels, bit for bit that of ComfyUI's ModelSamplingFlux."""
    slope = (max_shift - base_shift) / (MAX_TOKENS - BASE_TOKENS)
    return (width * height / (8 * 8 * 2 * 2)) * slope + (base_shift - slope * BASE_TOKENS)


def trained_sigmas(steps: int, shift: float | None, denoise: float = 1.0) -> list[float]:
    """The trainer's sigmas, [steps + 1] from 1 (or, with denoise below 1, from less) to 0; None: not shifted."""
    if denoise <= 0:
        return []
    total = int(steps / denoise) if denoise < 1 else steps
    factor = 1.0 if shift is None else math.exp(shift)
    line = [1 - index / total for index in range(total + 1)]
    return [factor * x / (1 + (factor - 1) * x) for x in line][-(steps + 1) :]


def trained_t5_length(
    loras: Iterable[tuple[str, Mapping[str, str]]], own: int | None, schnell: bool, unknown: bool = False
) -> T5Length:
    """How many T5 tokens a prompt had in training.

    loras: names and metadata; the last that states a length counts. own: what the base model itself was trained with,
    if known. unknown: whether a LoRA is applied whose file is not known.
    """
    unstated = []
    for name, metadata in reversed([*loras]):
        if length := _stated_length(metadata):
            return T5Length(length, f"as {name} was trained")
        unstated.append(name)
    usual = own or (SCHNELL_LENGTH if schnell else DEV_LENGTH)
    if unknown:
        return T5Length(usual, "the base model's; the length that the applied LoRA was trained with is not known")
    return T5Length(usual, f"the base model's; {unstated[0]} does not state its own" if unstated else "")


def _stated_length(metadata: Mapping[str, str]) -> int | None:
    try:
        length = json.loads(metadata.get(OURS, ""))["config"]["t5xxl_max_token_length"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return length if type(length) is int and 0 < length <= LONGEST else None


def cut_tokens(rows: list[list[Any]], length: int) -> list[list[Any]]:
    """ComfyUI's T5 tokens of a prompt. A prompt that is too long keeps its end token, as in training."""
    return [row if len(row) <= length else [*row[: length - 1], row[-1]] for row in rows]


def is_schnell(model: Any) -> bool:
    """Whether a MODEL has no guidance input, like FLUX.1-schnell."""
    return not model.model.model_config.unet_config.get("guidance_embed", True)


def refuse_other_models(model: Any, clip: Any) -> None:
    """Raises ValueError if the MODEL or CLIP is not FLUX.1's."""
    config = getattr(model.model, "model_config", None)
    kind = config.unet_config.get("image_model") if config is not None else None
    if kind != "flux":
        raise ValueError(
            f"this node samples from FLUX.1, and the connected model is {kind or type(model.model).__name__}"
        )
    if clip is None:
        raise ValueError("there is no CLIP: a FLUX.1 file has none of its own, so connect DualCLIPLoader's")


def encode(clip: Any, prompt: str, t5_length: int, guidance: float) -> list[Any]:
    """The CONDITIONING of a prompt, with T5's tokens padded or truncated to `t5_length` tokens."""
    tokens = clip.tokenize(prompt, tokenizer_options={"t5xxl_min_length": t5_length})
    if "t5xxl" not in tokens:
        raise ValueError("this CLIP has no T5: FLUX.1 needs DualCLIPLoader with t5xxl, clip_l and type flux")
    tokens["t5xxl"] = cut_tokens(tokens["t5xxl"], t5_length)
    return clip.encode_from_tokens_scheduled(tokens, add_dict={"guidance": guidance})


def empty_latent(model: Any, width: int, height: int, batch_size: int = 1) -> dict[str, Any]:
    """ComfyUI's LATENT of zeros for an image's size in pixels."""
    import comfy.model_management
    import torch

    channels = model.get_model_object("latent_format").latent_channels
    shape = (batch_size, channels, height // 8, width // 8)
    return {"samples": torch.zeros(shape, device=comfy.model_management.intermediate_device())}


def with_shift(model: Any, shift: float | None) -> Any:
    """A clone of a MODEL with FLUX's sampling at this shift; the model itself for None."""
    import comfy.model_sampling

    if shift is None:
        return model

    class ShiftedSampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
        pass

    sampling = ShiftedSampling(model.model.model_config)
    sampling.set_parameters(shift=shift)
    clone = model.clone()
    clone.add_object_patch("model_sampling", sampling)
    return clone


def shift_for(model: Any, latent: Mapping[str, Any], settings: Settings) -> float | None:
    """The shift for a LATENT's size; None for FLUX.1-schnell."""
    rows, columns = latent["samples"].shape[-2:]
    return None if is_schnell(model) else flux_shift(columns * 8, rows * 8, settings.base_shift, settings.max_shift)


def sigmas_for(model: Any, shift: float | None, settings: Settings) -> Any:
    """SIGMAS of a shifted MODEL."""
    import comfy.samplers
    import torch

    if settings.schedule == AS_TRAINED:
        return torch.tensor(trained_sigmas(settings.steps, shift, settings.denoise), dtype=torch.float32)
    if settings.denoise <= 0:
        return torch.zeros(0)
    total = int(settings.steps / settings.denoise) if settings.denoise < 1 else settings.steps
    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, settings.schedule, total).cpu()[-(settings.steps + 1) :]


def sample(
    model: Any,
    positive: list[Any],
    latent: Mapping[str, Any],
    settings: Settings,
    callback: Any = None,
    sigmas: Any = None,
) -> Any:
    """Sample a LATENT from a LATENT.

    callback: as in ComfyUI's samplers; None: a progress bar with previews. sigmas: None for those of the settings.
    """
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import comfy.utils
    import latent_preview

    shift = shift_for(model, latent, settings)
    model = with_shift(model, shift)
    sigmas = sigmas_for(model, shift, settings) if sigmas is None else sigmas
    start = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(start, settings.seed, latent.get("batch_index"))
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds({"positive": positive})
    samples = guider.sample(
        noise,
        start,
        comfy.samplers.sampler_object(settings.sampler),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=callback or latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=settings.seed,
    )
    return {**latent, "samples": samples.to(comfy.model_management.intermediate_device())}
