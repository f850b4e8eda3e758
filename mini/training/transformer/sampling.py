"""Generate images with the model in training, many prompts at once."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import Tensor

from mini.training.autoencoder.model import decode_latents
from mini.training.images.photos import save_picture, side_by_side
from mini.training.transformer.text import TextEncoders
from trainer.models.transformer import Conditioning
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import denoise, start_noise

PROMPTS_AT_ONCE = 64
SHEET_PROMPTS = (
    "a red bear toy on a beach",
    "a blue robot toy in a datacenter",
    "a green gpu with three fans on a desk",
    "a yellow bunny toy holding a red gpu in the snow",
    "a purple cat toy next to a white mug in a kitchen",
    "a black penguin toy on the moon",
    "an orange dinosaur toy in a forest",
    "a pink monster toy on top of a blue cube in a desert",
    "a gray gpu with two fans in a studio",
    "a teal car next to a yellow house in a meadow",
    "a white soldier toy in front of a brown mushroom in the snow",
    "a toy holding a gpu in a datacenter",
)


@torch.no_grad()
def generate(
    transformer: FluxTransformer2DModel,
    texts: TextEncoders,
    autoencoder: AutoencoderKL,
    prompts: Sequence[str],
    guidance: float = 3.5,
    cfg: float = 1.0,
    steps: int = 20,
    seed: int = 0,
    size: int = 256,
) -> Tensor:
    """Generate images, uint8 [n, 3, size, size], for n prompts. All models must be on the same device.

    guidance: the embedded guidance; cfg above 1 adds classifier-free guidance. Prompt i starts from the noise of
    `seed` + i, like `trainer sample`. Pass models whose blocks are not compiled: these shapes would recompile them.
    """
    settings = SamplePrompt("", width=size, height=size, steps=steps, guidance=guidance, cfg=cfg)
    pictures = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        noise = start_noise(transformer, settings, range(seed + start, seed + start + len(part)))
        with torch.autocast(transformer.device.type, torch.bfloat16, enabled=transformer.device.type == "cuda"):
            positive = texts.encode(part)
            negative = _repeated(texts.encode([""]), len(part)) if cfg > 1 else None
            latents = denoise(transformer, noise, settings, positive, negative)
        pictures.append(decode_latents(autoencoder, latents))
    return torch.cat(pictures)


def _repeated(conditioning: Conditioning, count: int) -> Conditioning:
    return Conditioning(conditioning.txt.expand(count, -1, -1), conditioning.pooled.expand(count, -1))


def save_sheet(file: Path, rows: Sequence[Tensor]) -> None:
    """Write rows of images, [n, 3, h, w] each, as one image file."""
    save_picture(side_by_side(torch.cat(list(rows)), len(rows[0])), file)
