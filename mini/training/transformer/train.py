"""The stage that trains the transformer jointly with its text encoders.

Flow matching: the model learns the velocity noise - latents at random sigmas, with some captions left empty. The
guidance input is random and has no meaning yet; this accustoms the model to every value before the stage `guidance`.
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mini.training.autoencoder.latents import read_latents
from mini.training.autoencoder.model import load_autoencoder
from mini.training.distributed import Budget, Distributed
from mini.training.journal import Journal
from mini.training.recipe import Recipe
from mini.training.transformer.corpus import Batch, Corpus, draw_batch, fixed_batches, make_corpus, read_held_out
from mini.training.transformer.models import TOKENIZERS, Models, build_models, save_models
from mini.training.transformer.progress import Course, Progress, cosine_rate, load_progress, new_progress, run_steps
from mini.training.transformer.sampling import SHEET_PROMPTS, generate, save_sheet
from mini.training.transformer.tokenizers import write_tokenizers
from trainer.models.description import FLUX1
from trainer.models.text import Tokenizers, load_tokenizers

SHEET_GUIDANCE = (1.0, 4.0)  # classifier-free guidance of each row of the sheet


def run_transformer(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Train on the latents in `folder`.

    Writes tokenizers/ and, at every validation, the averaged weights as transformer.safetensors and text.safetensors
    with a sheet of images. The number of steps may be changed before resuming.
    """
    distributed = Distributed.from_environment()
    tokenizers = ready_tokenizers(folder, distributed)
    models = build_models(recipe, tokenizers, distributed.device)
    corpus = make_corpus(read_latents(folder, "latents", distributed), models.text)
    held_out = make_corpus(read_held_out(folder, distributed), models.text)
    progress = begin(models, recipe)
    state = folder / "transformer.state.safetensors"
    load_progress(progress, state)
    distributed.say(f"transformer: {len(corpus.latents)} latents a process, from step {progress.step}")
    if recipe.compile:
        models.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
        models.text.compile(dynamic=False)
    rate = partial(
        cosine_rate,
        steps=recipe.transformer_steps,
        warmup=recipe.transformer_warmup,
        constant_share=recipe.transformer_constant_share,
        final=recipe.transformer_final_rate,
    )
    course = Course(
        steps=recipe.transformer_steps,
        rate=rate,
        reports=recipe.transformer_validations,
        pictures_per_step=recipe.transformer_batch * distributed.world,
        state=state,
        journal=Journal(folder / "transformer.jsonl", distributed),
        budget=budget,
        distributed=distributed,
        gradient_norm=recipe.transformer_gradient_norm,
    )
    loss_of = partial(step_loss, models, corpus, recipe, distributed.rank)
    copy = build_models(recipe, tokenizers, distributed.device)  # not compiled, so that it accepts other shapes
    run_steps(course, progress, loss_of, partial(report, copy, held_out, recipe, folder, progress))


def ready_tokenizers(folder: Path, distributed: Distributed) -> Tokenizers:
    """The tokenizers in `folder`; if there are none, they are made from the captions of all processes' latents."""
    target = folder / TOKENIZERS
    if distributed.is_main and not (target / FLUX1.t5.tokenizer / FLUX1.t5.tokenizer_files[0]).exists():
        files = sorted(folder.glob("latents-[0-9]*.json"))
        write_tokenizers(target, [caption for file in files for caption in json.loads(file.read_text())["captions"]])
    distributed.barrier()
    return load_tokenizers(target)


def begin(models: Models, recipe: Recipe) -> Progress:
    """A new training; the text encoders have their own learning rate."""
    groups: dict[float, dict[str, torch.nn.Parameter]] = {}
    for name, parameter in models.parameters().items():
        peak = recipe.text_learning_rate if name.startswith("text.") else recipe.transformer_learning_rate
        groups.setdefault(peak, {})[name] = parameter
    return new_progress(groups, recipe.transformer_betas, recipe.transformer_weight_decay, recipe.transformer_ema)


def step_loss(models: Models, corpus: Corpus, recipe: Recipe, rank: int, step: int) -> Tensor:
    """The mean squared error of the predicted velocity, over the batch of a step."""
    batch = draw_batch(corpus, recipe, recipe.transformer_batch, "transformer", step, rank)
    return F.mse_loss(models.velocity(batch), batch.target)


@torch.no_grad()
def validation_loss(models: Models, batches: list[Batch]) -> float:
    """The mean squared error of the predicted velocity, over all images of the batches."""
    errors = [F.mse_loss(models.velocity(batch), batch.target, reduction="none").mean((1, 2, 3)) for batch in batches]
    return torch.cat(errors).mean().item()


def report(
    copy: Models, held_out: Corpus, recipe: Recipe, folder: Path, progress: Progress, averages: Mapping[str, Tensor]
) -> dict[str, float]:
    """Write the averaged weights and a sheet of images; returns the loss on the held-out images."""
    save_models(folder, averages)
    copy.take_over(averages)
    loss = validation_loss(copy, fixed_batches(held_out, recipe, guidance=1.0))
    autoencoder = load_autoencoder(recipe, folder, held_out.latents.device)
    options = {"guidance": 1.0, "steps": recipe.sampling_steps, "size": recipe.size}
    models = (copy.transformer, copy.text, autoencoder)
    rows = [generate(*models, SHEET_PROMPTS, cfg=cfg, **options) for cfg in SHEET_GUIDANCE]
    save_sheet(folder / f"transformer-{progress.step:06d}.png", rows)
    return {"held_out_loss": loss}
