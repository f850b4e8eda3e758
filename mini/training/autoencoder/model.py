"""The autoencoder: diffusers' AutoencoderKL at the recipe's sizes, with the latents' scale folded into its weights."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from mini.training.modules import moved
from mini.training.recipe import Recipe
from trainer.common.problems import Problem, Problems
from trainer.models.description import FLUX1

SHIFT, SCALE = FLUX1.latents.shift, FLUX1.latents.scale  # (latents - SHIFT) * SCALE has mean 0 and deviation 1


class PlainGroupNorm(nn.GroupNorm):
    """A group norm that keeps its input's dtype under autocast, which would otherwise run it in float32."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def build_autoencoder(recipe: Recipe) -> AutoencoderKL:
    """A new autoencoder, float32, channels last; torch's global generator initializes the weights."""
    levels = len(recipe.autoencoder_widths)
    blocks: dict[str, Any] = {  # diffusers declares these as tuples of one element
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": recipe.autoencoder_widths,
    }
    autoencoder = AutoencoderKL(
        **blocks,
        layers_per_block=recipe.autoencoder_layers,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.autoencoder_groups,
        use_quant_conv=False,
        use_post_quant_conv=False,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        sample_size=recipe.size,
    )
    _replace_group_norms(autoencoder)
    return moved(autoencoder, memory_format=torch.channels_last)


def load_autoencoder(recipe: Recipe, folder: Path, device: torch.device) -> AutoencoderKL:
    """The trained autoencoder, frozen. Raises `Problems` if its stage has not finished."""
    file = folder / "autoencoder.safetensors"
    if not file.exists():
        raise Problems([Problem(str(file), "the autoencoder is not trained yet", "run the stage autoencoder first")])
    autoencoder = build_autoencoder(recipe)
    autoencoder.load_state_dict(load_file(file))
    return moved(autoencoder, device=device).eval().requires_grad_(False)


def to_unit_range(pixels: Tensor) -> Tensor:
    """uint8 images as input of the autoencoder: float32 in [-1, 1], channels last."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def to_pixels(pictures: Tensor) -> Tensor:
    """The inverse of `to_unit_range`, clamped and rounded."""
    return ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def latent_distribution(moments: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance, float32 [n, channels, h, w] each, from the encoder's output [n, 2 * channels, h, w]."""
    mean, log_variance = moments.float().chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode_latents(autoencoder: AutoencoderKL, latents: Tensor, batch: int = 32) -> Tensor:
    """Decode scaled latents [n, 16, h, w] to uint8 images; computed in bfloat16 on a GPU."""
    pictures = []
    with torch.no_grad(), torch.autocast(latents.device.type, torch.bfloat16, enabled=latents.is_cuda):
        for part in latents.split(batch):
            unscaled = (part.float() / SCALE + SHIFT).contiguous(memory_format=torch.channels_last)
            pictures.append(to_pixels(autoencoder.decoder(unscaled)))
    return torch.cat(pictures)


@torch.no_grad()
def fold_latent_scale(autoencoder: AutoencoderKL, mean: float, deviation: float) -> None:
    """Fold z' = (z - mean) / (deviation * SCALE) + SHIFT into the encoder's last and the decoder's first convolution.

    Latents of the given mean and standard deviation then have FLUX.1's. Reconstructions stay the same except at the
    border: the decoder pads with zeros, which correspond to another value when the shift is not 0.
    """
    gain = 1 / (deviation * SCALE)
    out, into = autoencoder.encoder.conv_out, autoencoder.decoder.conv_in
    channels = into.in_channels
    assert out.bias is not None and into.bias is not None
    out.weight[:channels] *= gain
    out.bias[:channels] = gain * (out.bias[:channels] - mean) + SHIFT
    out.bias[channels:] += 2 * math.log(gain)
    into.bias += into.weight.sum((1, 2, 3)) * (mean - SHIFT / gain)
    into.weight /= gain


def reconstruction_loss(decoded: Tensor, pictures: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Weighted sum of the mean absolute error, the mean squared error and the absolute error of the gradients."""
    error = decoded.float() - pictures
    absolute, squared, gradient = weights
    loss = absolute * error.abs().mean() + squared * error.square().mean()
    return loss + gradient * (error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean())


def mean_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the standard normal distribution, averaged over latent values."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def signal_to_noise(decoded: Tensor, pictures: Tensor) -> Tensor:
    """PSNR in dB, [n], of images [n, 3, h, w] in [-1, 1]."""
    error = (decoded.float().clamp(-1, 1) - pictures).square().mean((1, 2, 3))
    return -10 * torch.log10(error.clamp_min(1e-12) / 4)


def _replace_group_norms(module: nn.Module) -> None:
    for parent, name, norm in list(_group_norms(module)):
        plain = PlainGroupNorm(norm.num_groups, norm.num_channels, norm.eps, norm.affine)
        plain.load_state_dict(norm.state_dict())
        setattr(parent, name, plain)


def _group_norms(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.GroupNorm]]:
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.GroupNorm):
                yield parent, name, child
