"""Losses at fixed noise: what a LoRA has learned and changed, without any other model.

They see less than features do: a loss does not tell the concept from its background, and a small loss on held-out
images is no proof of likeness.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from PIL import Image

from trainer.common.rng import torch_generator
from trainer.comparison.measures import Figure
from trainer.data.batches import scale_latents
from trainer.flow import add_noise, velocity_target
from trainer.images.resize import to_tensor
from trainer.models.transformer import Conditioning, predict_velocity, rotary_table

SIGMAS = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class LossItem:
    """An image and its text, at fixed noise.

    latents: [1, 16, H/8, W/8] in the transformer's scale; noise: one for each of SIGMAS, [4, 16, H/8, W/8].
    """

    latents: torch.Tensor
    noise: torch.Tensor
    text: str


def loss_items(
    images: Sequence[Image.Image], texts: Sequence[str], vae: AutoencoderKL, what: str, seed: int = 0
) -> list[LossItem]:
    """Encode images. what: names the images, so that others have other noise."""
    items = []
    for index, (image, text) in enumerate(zip(images, texts, strict=True)):
        pixels = to_tensor(image)[None].to(vae.device, vae.dtype)
        with torch.no_grad():
            latents = scale_latents(vae.encode(pixels).latent_dist.mean.float().cpu())  # type: ignore[union-attr]
        generator = torch_generator(seed, "compare", what, index)
        items.append(LossItem(latents, torch.randn(len(SIGMAS), *latents.shape[1:], generator=generator), text))
    return items


@torch.no_grad()
def fixed_noise_losses(
    transformer: FluxTransformer2DModel, items: Sequence[LossItem], texts: Mapping[str, Conditioning], guidance: float
) -> list[float]:
    """The mean squared error of the predicted velocity for each item, over SIGMAS.

    texts: the encoded texts, each [1, L, D]; guidance: the value to embed.
    """
    device, dtype, losses = transformer.device, transformer.x_embedder.weight.dtype, []
    for item in items:
        height, width = item.latents.shape[-2:]
        sigmas = torch.tensor(SIGMAS, device=device)
        latents, noise = item.latents.to(device).expand_as(item.noise), item.noise.to(device)
        text = texts[item.text].to(device, dtype).at(torch.zeros(len(SIGMAS), dtype=torch.long, device=device))
        rotary = rotary_table(transformer, height, width, text.txt.shape[1], device)
        noisy = add_noise(latents, noise, sigmas).to(dtype)
        predicted = predict_velocity(transformer, noisy, sigmas, text, guidance, rotary).float()
        losses.append(float((predicted - velocity_target(latents, noise)).square().mean()))
    return losses


@dataclass(frozen=True)
class Losses:
    """A checkpoint's losses against the base model's, in percent of the base model's, a Figure over images.

    held_out: how much the loss on the concepts' images fell; drift: how much that on the base model's own images of
    prompts without a trigger rose.
    """

    held_out: Figure
    drift: Figure


def relative_losses(
    base: tuple[Sequence[float], Sequence[float]], found: tuple[Sequence[float], Sequence[float]]
) -> Losses:
    """base, found: of the base model and the checkpoint, the losses on the concepts' images and on plain ones."""
    (images, plain), (own, own_plain) = base, found
    fell = tuple(100 * (before - after) / before for before, after in zip(images, own, strict=True))
    rose = tuple(100 * (after - before) / before for before, after in zip(plain, own_plain, strict=True))
    return Losses(Figure(fell), Figure(rose))
