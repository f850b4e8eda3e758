"""The judge's training data: labels as tensors, and images augmented the way generated images may differ."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from mini.training.autoencoder.model import SCALE, SHIFT, decode_latents
from mini.training.autoencoder.train import encode_means
from mini.world.scene import COLOURS, CONCEPTS, KINDS, PLACES, TOYS, Labels
from trainer.common.rng import derive_seed
from trainer.sampling.judge import Classes

REDRAWN_AT_ONCE = 64  # images
ZOOM, SHIFTED = 0.1, 0.16  # maximum; the shift is in units of half an image
CONTRAST, BRIGHTNESS, SATURATION = 0.15, 0.08, 0.2  # maximum; mild, because a colour must keep its name


def classes_of(concepts: tuple[str, ...] = CONCEPTS) -> Classes:
    """What a judge of these concepts knows: everything of the base world, and them."""
    return Classes(KINDS, tuple(COLOURS), PLACES, concepts)


@dataclass(frozen=True)
class Targets:
    """Labels of n images.

    kinds [n, K], colours of each kind [n, K, C] and concepts [n, N] are 0 or 1 in float32; places [n] are indices.
    """

    kinds: Tensor
    colours: Tensor
    places: Tensor
    concepts: Tensor

    def at(self, index: Tensor) -> "Targets":
        """The targets of the images with these indices."""
        return Targets(self.kinds[index], self.colours[index], self.places[index], self.concepts[index])


def targets_of(labels: Sequence[Labels], classes: Classes, device: torch.device) -> Targets:
    """Labels as tensors on `device`, in the order of `classes`; each named kind of toy also counts as "toy"."""
    colours = torch.zeros(len(labels), len(classes.kinds), len(classes.colours))
    for index, label in enumerate(labels):
        for kind, colour in label.objects:
            for name in {kind, "toy"} if kind in TOYS else {kind}:
                colours[index, classes.kinds.index(name), classes.colours.index(colour)] = 1
    places = torch.tensor([classes.places.index(label.place) for label in labels])
    concepts = torch.tensor([[float(name in label.concepts) for name in classes.concepts] for label in labels])
    return Targets(colours.amax(2).to(device), colours.to(device), places.to(device), concepts.to(device))


def reconstruct(autoencoder: AutoencoderKL, pixels: Tensor, max_noise: float, seed: int) -> Tensor:
    """Reconstruct uint8 images with the autoencoder, with noise on their scaled latents.

    The noise has a random standard deviation of up to `max_noise` per image, which imitates generated latents that are
    slightly off. Returns uint8 of the same shape on the same device.
    """
    parts = []
    for number, part in enumerate(pixels.split(REDRAWN_AT_ONCE)):
        generator = torch.Generator(pixels.device).manual_seed(derive_seed(seed, "redrawn", number))
        with torch.no_grad():
            latents = (encode_means(autoencoder, part) - SHIFT) * SCALE
        level = max_noise * torch.rand(len(part), 1, 1, 1, generator=generator, device=pixels.device)
        noise = torch.randn(latents.shape, generator=generator, device=pixels.device)
        parts.append(decode_latents(autoencoder, latents + level * noise, REDRAWN_AT_ONCE))
    return torch.cat(parts)


def augment(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, zoom, recolour and blur each image float32 [n, 3, H, W] in [-1, 1] slightly and independently.

    Images are never mirrored: the mirror image of a design is another design.
    """
    moved = _moved(pictures, generator)
    return _blurred(_recoloured(moved, generator), generator).clamp(-1, 1)


def _moved(pictures: Tensor, generator: torch.Generator) -> Tensor:
    zoom = 1 + ZOOM * _spread(pictures, generator, 1)
    matrices = torch.zeros(len(pictures), 2, 3, device=pictures.device)
    matrices[:, 0, 0] = matrices[:, 1, 1] = zoom[:, 0]
    matrices[:, :, 2] = SHIFTED * _spread(pictures, generator, 2)
    grid = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="reflection", align_corners=False)


def _recoloured(pictures: Tensor, generator: torch.Generator) -> Tensor:
    contrast, brightness, saturation = _spread(pictures, generator, 3)[:, :, None, None, None].unbind(1)
    centre = pictures.mean((1, 2, 3), keepdim=True)
    pictures = centre + (pictures - centre) * (1 + CONTRAST * contrast) + 2 * BRIGHTNESS * brightness
    gray = pictures.mean(1, keepdim=True)
    return gray + (pictures - gray) * (1 + SATURATION * saturation)


def _blurred(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mix half of the images with a blurred copy of themselves."""
    weights = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=pictures.device) / 16
    channels = pictures.shape[1]
    padded = F.pad(pictures, (2, 2, 2, 2), mode="reflect")
    across = F.conv2d(padded, weights.expand(channels, 1, 1, 5), groups=channels)
    blurred = F.conv2d(across, weights[:, None].expand(channels, 1, 5, 1), groups=channels)
    share = _spread(pictures, generator, 1)[:, :, None, None].clamp_min(0)
    return torch.lerp(pictures, blurred, share)


def _spread(pictures: Tensor, generator: torch.Generator, count: int) -> Tensor:
    """Random numbers between -1 and 1 for each image, [n, count]."""
    return 2 * torch.rand(len(pictures), count, generator=generator, device=pictures.device) - 1
