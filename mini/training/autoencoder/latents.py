"""The stage that encodes the base images and their mirror images for the transformer's training."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from mini.training.autoencoder.model import SCALE, SHIFT, latent_distribution, load_autoencoder, to_unit_range
from mini.training.distributed import Budget, Distributed
from mini.training.images.pictures import own_files, read_pictures
from mini.training.recipe import Recipe
from trainer.common.files import write_safetensors, write_text

OUTPUTS = {"base": "latents", "held-out-base": "held-out-latents"}  # set of images → name of its latents


@dataclass(frozen=True)
class Latents:
    """Scaled latents and captions.

    values: bfloat16 [m * n, 16, h, w], with mean 0 and standard deviation 1, for n captions. m is 2 if the mirror
    images of all n images follow, in the same order, and otherwise 1.
    """

    values: Tensor
    captions: tuple[str, ...]

    def first(self, count: int) -> "Latents":
        """The latents of the first `count` captions, mirror images included."""
        rounds = self.values.split(len(self.captions))
        return Latents(torch.cat([each[:count] for each in rounds]), self.captions[:count])


def run_latents(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Write `folder`/latents-RANK.safetensors (images, then their mirror images) and held-out-latents-RANK (images).

    Next to each file, a JSON file holds the captions. The stage is short, so it ignores the time limit.
    """
    distributed = Distributed.from_environment()
    encode = latent_encoder(recipe, folder, distributed.device)
    for name, output in OUTPUTS.items():
        file = folder / f"{output}-{distributed.rank}.safetensors"
        if file.exists():
            continue
        pictures = read_pictures(folder, name, distributed)
        start = time.monotonic()
        flips = (False, True) if name == "base" else (False,)
        latents = torch.cat([encode_pictures(encode, pictures.pixels, recipe.encoding_batch, flip) for flip in flips])
        mean, deviation = _moments(latents)
        rate = len(latents) / (time.monotonic() - start)
        distributed.say(
            f"{output}: {len(latents)} a process at {rate:.0f} pictures/s each, "
            f"mean {mean:.3f}, deviation {deviation:.3f}, {budget.seconds():.0f} s"
        )
        write_text(file.with_suffix(".json"), json.dumps({"captions": pictures.captions}, ensure_ascii=False))
        write_safetensors(file, {"latents": latents}, {"mean": f"{mean:.5f}", "deviation": f"{deviation:.5f}"})
    distributed.barrier()


def read_latents(folder: Path, name: str, distributed: Distributed) -> Latents:
    """Read this process's share of "latents" or "held-out-latents" to its device. Raises `Problems` if missing."""
    files = own_files(folder, name, distributed)
    captions = [json.loads(file.with_suffix(".json").read_text())["captions"] for file in files]
    parts = [load_file(file, device=str(distributed.device))["latents"] for file in files]
    if len(parts) == 1:
        return Latents(parts[0], tuple(captions[0]))
    rounds = zip(*(part.split(len(own)) for part, own in zip(parts, captions, strict=True)), strict=True)
    return Latents(torch.cat([half for halves in rounds for half in halves]), tuple(chain.from_iterable(captions)))


def latent_encoder(recipe: Recipe, folder: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function that encodes uint8 images to scaled latents in bfloat16; compiled if the recipe says so."""
    encoder = load_autoencoder(recipe, folder, device).encoder
    run = torch.compile(encoder, fullgraph=True, dynamic=False) if recipe.compile else encoder

    @torch.no_grad()
    def encode(pixels: Tensor) -> Tensor:
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
            mean, _ = latent_distribution(run(to_unit_range(pixels)))
        return ((mean - SHIFT) * SCALE).bfloat16()

    return encode


def encode_pictures(encode: Callable[[Tensor], Tensor], pixels: Tensor, batch: int, flip: bool) -> Tensor:
    """Encode all images, mirrored first if `flip`. Every batch is padded to one size, so compilation happens once."""
    latents = []
    for start in range(0, len(pixels), batch):
        part = pixels[start : start + batch]
        padded = torch.cat([part, part[:1].expand(batch - len(part), -1, -1, -1)]) if len(part) < batch else part
        latents.append(encode(padded.flip(3) if flip else padded)[: len(part)].contiguous())
    return torch.cat(latents)


def _moments(latents: Tensor) -> tuple[float, float]:
    """Mean and standard deviation, computed part by part to save memory."""
    sums = torch.zeros(2, dtype=torch.float64, device=latents.device)
    for part in latents.split(4096):
        values = part.float()
        sums += torch.stack([values.sum(dtype=torch.float64), values.square().sum(dtype=torch.float64)])
    mean, square = (sums / latents.numel()).tolist()
    return mean, (square - mean * mean) ** 0.5
