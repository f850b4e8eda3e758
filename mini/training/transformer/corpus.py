"""The transformer's training data: latents and token ids on the GPU, and the random batch of a step."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from mini.training.autoencoder.latents import Latents, read_latents
from mini.training.distributed import Distributed
from mini.training.recipe import Recipe
from mini.training.transformer.text import TextEncoders
from trainer.common.rng import derive_seed
from trainer.flow import add_noise, velocity_target

CAPTIONS_AT_ONCE = 4_096


@dataclass(frozen=True)
class Corpus:
    """One process's n images and m distinct captions.

    latents: bfloat16 [n, 16, h, w]. t5_ids: int64 [m, text_length]. clip_ids: int64 [m, 77]. caption: int64 [n], the
    index of each image's caption. empty: T5's and CLIP's ids of the empty caption, [1, length] each.
    """

    latents: Tensor
    t5_ids: Tensor
    clip_ids: Tensor
    caption: Tensor
    empty: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Batch:
    """The batch of one step, float32 except the ids. latents, noise: [B, 16, h, w]; sigmas, guidance: [B]."""

    latents: Tensor
    noise: Tensor
    sigmas: Tensor
    guidance: Tensor
    t5_ids: Tensor
    clip_ids: Tensor

    @cached_property
    def noisy(self) -> Tensor:
        """The transformer's input: latents with noise added."""
        return add_noise(self.latents, self.noise, self.sigmas)

    @cached_property
    def target(self) -> Tensor:
        """The velocity that the transformer should predict."""
        return velocity_target(self.latents, self.noise)


def make_corpus(latents: Latents, text: TextEncoders) -> Corpus:
    """Tokenize each distinct caption once. Everything is on the device of the latents."""
    device = latents.values.device
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(latents.captions))}
    captions = list(numbers)
    starts = range(0, len(captions), CAPTIONS_AT_ONCE)
    parts = [text.tokenize(captions[start : start + CAPTIONS_AT_ONCE]) for start in starts]
    t5_ids, clip_ids = (torch.cat(ids).to(device) for ids in zip(*parts, strict=True))
    caption = torch.tensor([numbers[caption] for caption in latents.captions], device=device)
    caption = caption.repeat(len(latents.values) // len(caption))  # mirror images have the same captions
    empty_t5, empty_clip = (ids.to(device) for ids in text.tokenize([""]))
    return Corpus(latents.values, t5_ids, clip_ids, caption, (empty_t5, empty_clip))


def read_held_out(folder: Path, distributed: Distributed) -> Latents:
    """The held-out latents of all processes."""
    return read_latents(folder, "held-out-latents", Distributed(device=distributed.device))


def draw_batch(corpus: Corpus, recipe: Recipe, size: int, stage: str, step: int, rank: int) -> Batch:
    """The batch of a step: a pure function of the recipe's seed, the stage, the step and the rank.

    Random numbers are generated on the device, to keep the host from waiting; another kind of device gives others.
    """
    device = corpus.latents.device
    generator = torch.Generator(device).manual_seed(derive_seed(recipe.seed, stage, step, rank))
    rows = torch.randint(len(corpus.latents), (size,), device=device, generator=generator)
    latents = corpus.latents[rows].float()
    noise = torch.randn(latents.shape, device=device, generator=generator)
    sigmas = sample_sigmas(size, recipe, generator)
    low, high = recipe.guidance_range
    guidance = low + (high - low) * torch.rand(size, device=device, generator=generator)
    kept = torch.rand(size, 1, device=device, generator=generator) >= recipe.caption_dropout
    captions = corpus.caption[rows]
    t5_ids = torch.where(kept, corpus.t5_ids[captions], corpus.empty[0])
    clip_ids = torch.where(kept, corpus.clip_ids[captions], corpus.empty[1])
    return Batch(latents, noise, sigmas, guidance, t5_ids, clip_ids)


def sample_sigmas(count: int, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Sigmas [count]: logit-normal with the median moved towards noise, and a share of uniform ones."""
    device = generator.device
    normal = torch.randn(count, device=device, generator=generator)
    uniform, kind = torch.rand(2, count, device=device, generator=generator)
    return torch.where(kind < recipe.uniform_sigmas, uniform, torch.sigmoid(normal + recipe.sigma_shift))


def fixed_batches(corpus: Corpus, recipe: Recipe, guidance: float) -> list[Batch]:
    """All images of a held-out corpus as validation batches, each image with fixed noise and a fixed sigma.

    The n sigmas are the midpoints of n equal parts of [0, 1], in random order.
    """
    device, count = corpus.latents.device, len(corpus.latents)
    generator = torch.Generator().manual_seed(derive_seed(recipe.seed, "validation"))
    noise = torch.randn(corpus.latents.shape, generator=generator).to(device)
    sigmas = ((torch.randperm(count, generator=generator) + 0.5) / count).to(device)
    values = torch.full((count,), guidance, device=device)
    t5_ids, clip_ids = corpus.t5_ids[corpus.caption], corpus.clip_ids[corpus.caption]
    everything = (corpus.latents.float(), noise, sigmas, values, t5_ids, clip_ids)
    return [Batch(*parts) for parts in zip(*(t.split(recipe.validation_batch) for t in everything), strict=True)]
