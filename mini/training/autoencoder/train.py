"""The stage that trains the autoencoder: on crops, then on full images, and finally only the decoder.

At `autoencoder_fold_share` of the steps, the mean and standard deviation of the latents are measured and folded into
the weights, so that FLUX.1's constants fit. From then on the encoder is frozen and only the decoder is trained.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from mini.training.autoencoder import state as autoencoder_state
from mini.training.autoencoder.model import (
    SCALE,
    SHIFT,
    build_autoencoder,
    fold_latent_scale,
    latent_distribution,
    mean_divergence,
    reconstruction_loss,
    signal_to_noise,
    to_unit_range,
)
from mini.training.autoencoder.state import Training
from mini.training.distributed import Budget, Distributed
from mini.training.images.pictures import read_pictures
from mini.training.journal import Journal
from mini.training.modules import moved
from mini.training.recipe import Recipe
from trainer.common.files import write_safetensors
from trainer.common.rng import derive_seed, torch_generator

REPORT_EVERY = 50  # steps between two readings of the loss, each of which waits for the GPU
FIRST_REPORT = 10  # steps, after which kernels are compiled and the speed is meaningful
CHECK_TIME_EVERY = 20  # steps
VALIDATION_BATCH = 32


@dataclass(frozen=True)
class Passes:
    """Encoder and decoder as training calls them, compiled or not."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    @classmethod
    def of(cls, autoencoder: AutoencoderKL, recipe: Recipe) -> "Passes":
        """Those of an autoencoder; compiled for fixed shapes if the recipe says so."""
        if not recipe.compile:
            return cls(autoencoder.encoder, autoencoder.decoder)
        encode = torch.compile(autoencoder.encoder, fullgraph=True, dynamic=False)
        return cls(encode, torch.compile(autoencoder.decoder, fullgraph=True, dynamic=False))


def run_autoencoder(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Train on the base images in `folder` and write autoencoder.safetensors there: diffusers' names, float32."""
    distributed = Distributed.from_environment()
    result, state = folder / "autoencoder.safetensors", folder / "autoencoder.state.safetensors"
    if result.exists():
        distributed.say("autoencoder: already trained")
        return
    pixels = read_pictures(folder, "base", distributed).pixels
    held_out = read_pictures(folder, "held-out-base", distributed).pixels
    training = begin(recipe, distributed.device)
    if state.exists():
        autoencoder_state.load(training, recipe, state)
    journal = Journal(folder / "autoencoder.jsonl", distributed)
    if not train(training, pixels, held_out, recipe, distributed, budget, journal, state):
        distributed.say(f"autoencoder: stopped at step {training.step} of {recipe.autoencoder_steps}")
        return
    distributed.barrier()
    if distributed.is_main:
        with training.ema.swapped():
            write_safetensors(result, training.autoencoder.state_dict())
        state.unlink(missing_ok=True)
    distributed.barrier()


def begin(recipe: Recipe, device: torch.device) -> Training:
    """Fresh weights, the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "autoencoder", "weights"))
        autoencoder = moved(build_autoencoder(recipe), device=device)
    return autoencoder_state.start(autoencoder, recipe)


def train(
    training: Training,
    pixels: Tensor,
    held_out: Tensor,
    recipe: Recipe,
    distributed: Distributed,
    budget: Budget,
    journal: Journal,
    state: Path,
) -> bool:
    """Train to the last step and return True, or save the state when the time is used up and return False."""
    passes = Passes.of(training.autoencoder, recipe)
    first, steps = training.step, recipe.autoencoder_steps
    losses: list[Tensor] = []
    journal.mark(first)
    while training.step < steps:
        if training.step >= fold_step(recipe) and not training.folded:
            mean, deviation = fold(training, pixels, recipe, distributed)
            journal.write(training.step, folded_mean=mean, folded_deviation=deviation)
            journal.mark(training.step)
        losses.append(train_step(training, passes, pixels, recipe, distributed))
        if training.step % REPORT_EVERY == 0 or training.step in (first + FIRST_REPORT, steps):
            loss = distributed.mean(torch.stack(losses).mean()).item()
            journal.write(training.step, distributed.world * batch_shape(recipe, training.step - 1)[0], loss=loss)
            losses.clear()
            journal.mark(training.step)
        if is_validation_step(training.step, recipe):
            journal.write(training.step, **validate(training, held_out, distributed))
            _save(training, state, distributed)
            journal.mark(training.step)
        if training.step < steps and training.step % CHECK_TIME_EVERY == 0 and distributed.any(budget.spent()):
            _save(training, state, distributed)
            return False
    return True


def train_step(training: Training, passes: Passes, pixels: Tensor, recipe: Recipe, distributed: Distributed) -> Tensor:
    """Take one step on this process's images; returns the loss as a scalar on the device."""
    set_learning_rate(training, recipe)
    pictures = draw_batch(pixels, recipe, training.step, distributed.rank)
    loss = step_loss(training, passes, pictures, recipe, distributed.rank)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = training.parameters()
    distributed.average_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, 1.0)
    training.optimizer.step()
    training.ema.update(training.step - training.phase_start)
    training.step += 1
    return loss.detach()


def step_loss(training: Training, passes: Passes, pictures: Tensor, recipe: Recipe, rank: int) -> Tensor:
    """The loss of one batch, with latents sampled from their distribution."""
    autocast = torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda)
    with autocast, torch.set_grad_enabled(not training.folded):
        # after the fold the encoder runs without gradients, which is too little work to be worth another compilation
        encode = training.autoencoder.encoder if training.folded else passes.encode
        mean, log_variance = latent_distribution(encode(pictures))
        generator = torch.Generator(pictures.device)
        generator.manual_seed(derive_seed(recipe.seed, "autoencoder", "noise", training.step, rank))
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        latents = (mean + (0.5 * log_variance).exp() * noise).contiguous(memory_format=torch.channels_last)
    if training.folded:
        latents.requires_grad_()  # so that the decoder need not be compiled again
    with autocast:
        decoded = passes.decode(latents)
    if training.folded:
        return reconstruction_loss(decoded, pictures, recipe.decoder_loss)
    loss = reconstruction_loss(decoded, pictures, recipe.autoencoder_loss)
    return loss + recipe.autoencoder_kl * mean_divergence(mean, log_variance)


def draw_batch(pixels: Tensor, recipe: Recipe, step: int, rank: int) -> Tensor:
    """The batch of a step: random images, randomly cropped in the first part of training, half of them mirrored."""
    count, size = batch_shape(recipe, step)
    generator = torch_generator(recipe.seed, "autoencoder", "batch", step, rank)
    rows, columns = (
        torch.randint(recipe.size - size + 1, (count, 1), generator=generator) + torch.arange(size) for _ in range(2)
    )
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.randint(len(pixels), (count,), generator=generator)
    index, rows, columns = (draw.to(pixels.device, non_blocking=True) for draw in (index, rows, columns))
    channels = torch.arange(3, device=pixels.device).view(1, 3, 1, 1)
    return to_unit_range(pixels[index.view(-1, 1, 1, 1), channels, rows[:, None, :, None], columns[:, None, None, :]])


def batch_shape(recipe: Recipe, step: int) -> tuple[int, int]:
    """The number of images in a process's batch, and their height and width."""
    if step < round(recipe.autoencoder_crop_share * recipe.autoencoder_steps):
        return recipe.autoencoder_crop_batch, recipe.autoencoder_crop
    return recipe.autoencoder_picture_batch, recipe.size


def fold_step(recipe: Recipe) -> int:
    """The number of steps after which the latents' scale is folded into the weights."""
    return round(recipe.autoencoder_fold_share * recipe.autoencoder_steps)


def is_validation_step(step: int, recipe: Recipe) -> bool:
    """Whether one of the evenly spaced validations comes after `step` steps."""
    marks = recipe.autoencoder_validations
    return step * marks // recipe.autoencoder_steps > (step - 1) * marks // recipe.autoencoder_steps


def set_learning_rate(training: Training, recipe: Recipe) -> None:
    """Warm-up, then cosine decay: to a tenth at the fold, then again for the decoder, to 0 at the end."""
    start = training.phase_start
    end = recipe.autoencoder_steps if training.folded else fold_step(recipe)
    highest, lowest = (
        (recipe.decoder_learning_rate, 0.0) if training.folded else (recipe.autoencoder_learning_rate, 0.1)
    )
    done = training.step - start
    cosine = 0.5 + 0.5 * math.cos(math.pi * done / max(end - start, 1))
    warmup = min(1.0, (done + 1) / recipe.autoencoder_warmup)
    for group in training.optimizer.param_groups:
        group["lr"] = highest * warmup * (lowest + (1 - lowest) * cosine)


def fold(training: Training, pixels: Tensor, recipe: Recipe, distributed: Distributed) -> tuple[float, float]:
    """Continue from the averaged weights, fold the latents' scale into them, and freeze the encoder.

    Returns the mean and the standard deviation that the latents had before.
    """
    training.take_over_averages()
    spread = torch.linspace(0, len(pixels) - 1, min(recipe.latent_moment_pictures, len(pixels))).long()
    mean, deviation = latent_moments(training.autoencoder, pixels[spread.to(pixels.device)], distributed)
    fold_latent_scale(training.autoencoder, mean, deviation)
    training.freeze_encoder(recipe)
    return mean, deviation


@torch.no_grad()
def latent_moments(autoencoder: AutoencoderKL, pixels: Tensor, distributed: Distributed) -> tuple[float, float]:
    """Mean and standard deviation of the images' unscaled latents, over all processes."""
    means = [encode_means(autoencoder, part).double() for part in pixels.split(VALIDATION_BATCH)]
    sums = torch.stack([torch.cat(means).mean(), torch.cat(means).square().mean()])
    mean, square = distributed.mean(sums).tolist()
    return mean, math.sqrt(square - mean * mean)


@torch.no_grad()
def validate(training: Training, held_out: Tensor, distributed: Distributed) -> dict[str, float]:
    """With the averaged weights: PSNR in dB on held-out images, and the scaled latents' mean and standard deviation."""
    autoencoder = training.autoencoder
    with training.ema.swapped():
        found = []
        for part in held_out.split(VALIDATION_BATCH):
            latents = encode_means(autoencoder, part)
            with torch.autocast(part.device.type, torch.bfloat16, enabled=part.is_cuda):
                decoded = autoencoder.decoder(latents.contiguous(memory_format=torch.channels_last))
            found.append(signal_to_noise(decoded, to_unit_range(part)))
        mean, deviation = latent_moments(autoencoder, held_out, distributed)
    psnr = distributed.mean(torch.cat(found).mean()).item()
    return {"psnr": psnr, "latent_mean": (mean - SHIFT) * SCALE, "latent_deviation": deviation * SCALE}


def encode_means(autoencoder: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The unscaled latents [n, 16, h, w] of uint8 images, float32, computed in bfloat16 on a GPU."""
    with torch.autocast(pixels.device.type, torch.bfloat16, enabled=pixels.is_cuda):
        return latent_distribution(autoencoder.encoder(to_unit_range(pixels)))[0]


def _save(training: Training, file: Path, distributed: Distributed) -> None:
    if distributed.is_main:
        autoencoder_state.save(training, file)
    distributed.barrier()
