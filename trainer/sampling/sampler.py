"""Generating images: an Euler sampler, decoding, and PNG files that record how they were made."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from trainer.common.files import atomic_write
from trainer.data.batches import unscale_latents
from trainer.flow import euler_sigmas
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table, takes_guidance
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.step_cache import StepCache


def sample_latents(
    transformer: FluxTransformer2DModel,
    prompt: SamplePrompt,
    seed: int,
    positive: Conditioning,
    negative: Conditioning | None,
    cache: StepCache | None = None,
    predict: Callable[..., torch.Tensor] = predict_velocity,
) -> torch.Tensor:
    """Generate the latents of one image with the Euler sampler, [1, C, H/8, W/8] in float32.

    prompt: its size, steps, guidance and cfg are used; seed: of the noise, in place of `prompt.seed`; positive,
    negative: the encoded texts, negative None to sample without cfg; cache: decides which steps to evaluate, None for
    all; predict: as of `denoising_steps`.
    """
    return denoise(transformer, start_noise(transformer, prompt, [seed]), prompt, positive, negative, cache, predict)


def start_noise(transformer: FluxTransformer2DModel, prompt: SamplePrompt, seeds: Sequence[int]) -> torch.Tensor:
    """The initial noise for each seed, [B, C, H/8, W/8] in float32 on the CPU, the same as ComfyUI's for that seed.

    prompt: only its width and height are used.
    """
    shape = (1, transformer.x_embedder.in_features // 4, prompt.height // 8, prompt.width // 8)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def denoise(
    transformer: FluxTransformer2DModel,
    noise: torch.Tensor,
    prompt: SamplePrompt,
    positive: Conditioning,
    negative: Conditioning | None,
    cache: StepCache | None = None,
    predict: Callable[..., torch.Tensor] = predict_velocity,
) -> torch.Tensor:
    """Euler steps from noise [B, C, H/8, W/8] to the latents of B images, float32.

    prompt: its steps, guidance and cfg are used, for all images; positive, negative: B encoded texts, negative None to
    sample without cfg; cache: decides which steps to evaluate, None for all; predict: as of `denoising_steps`.
    FLUX.1-schnell is sampled without a timestep shift, as it was trained.
    """
    return deque(denoising_steps(transformer, noise, prompt, positive, negative, predict, cache), maxlen=1).pop()


@torch.inference_mode()
def denoising_steps(
    transformer: FluxTransformer2DModel,
    noise: torch.Tensor,
    prompt: SamplePrompt,
    positive: Conditioning,
    negative: Conditioning | None,
    predict: Callable[..., torch.Tensor] = predict_velocity,
    cache: StepCache | None = None,
) -> Iterator[torch.Tensor]:
    """The latents after each of the steps of `denoise`, whose arguments these are; a step runs when it is asked for.

    predict: called with the arguments of `predict_velocity` in place of it; its conditioning is `positive` or
    `negative` itself.
    """
    device, dtype = transformer.device, transformer.x_embedder.weight.dtype
    height, width = noise.shape[-2:]
    latents = noise.to(device)
    rotary = rotary_table(transformer, height, width, positive.txt.shape[1], device)
    sigmas = euler_sigmas(prompt.steps, height * width // 4, shifted=takes_guidance(transformer)).to(device)

    def velocity(conditioning: Conditioning, sigma: torch.Tensor) -> torch.Tensor:
        sigma_of_each = sigma.expand(len(latents))
        noisy = latents.to(dtype)
        return predict(transformer, noisy, sigma_of_each, conditioning, prompt.guidance, rotary).float()

    def guided(sigma: torch.Tensor) -> torch.Tensor:
        v = velocity(positive, sigma)
        return v if negative is None else (base := velocity(negative, sigma)) + prompt.cfg * (v - base)

    for sigma, following in pairwise(sigmas):
        v = cache.velocity(float(sigma), latents, partial(guided, sigma)) if cache else guided(sigma)
        latents = latents + (following - sigma) * v
        yield latents


@torch.inference_mode()
def decode_pixels(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode the transformer's latents [B, C, H/8, W/8] to images uint8 [B, 3, H, W] on the autoencoder's device."""
    pixels = vae.decode(unscale_latents(latents).to(vae.device, vae.dtype)).sample  # type: ignore[union-attr]
    return ((pixels.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def decode_picture(vae: AutoencoderKL, latents: torch.Tensor) -> Image.Image:
    """Decode the transformer's latents [1, C, H/8, W/8] to an RGB image."""
    return as_image(decode_pixels(vae, latents)[0])


def as_image(picture: torch.Tensor) -> Image.Image:
    """Convert an RGB image, uint8 [3, H, W] on any device, to a Pillow image."""
    return Image.fromarray(picture.permute(1, 2, 0).cpu().numpy())


def save_picture(path: Path, picture: Image.Image, facts: dict[str, Any]) -> None:
    """Write a PNG, atomically, with a text chunk for each of the facts.

    facts: how it was made (prompt, seed, step …); values are written as `str` gives them.
    """
    info = PngInfo()
    for key, value in facts.items():
        info.add_text(key, str(value))
    atomic_write(path, lambda target: picture.save(target, format="PNG", pnginfo=info))
