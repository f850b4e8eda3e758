"""The stage that distils guidance into the transformer (Meng et al. 2022), as in FLUX.1-dev.

With guidance input g, the student learns the output of its teacher, the model so far, under classifier-free guidance g.
At g = 1 it stays the teacher; that is the value to fine-tune with. Images are generated at 3.5.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from mini.training.autoencoder.latents import read_latents
from mini.training.autoencoder.model import load_autoencoder
from mini.training.distributed import Budget, Distributed
from mini.training.journal import Journal
from mini.training.modules import moved
from mini.training.recipe import Recipe
from mini.training.transformer.corpus import Batch, Corpus, draw_batch, fixed_batches, make_corpus, read_held_out
from mini.training.transformer.models import (
    GUIDED,
    TRANSFORMER,
    Models,
    build_transformer,
    compute_type,
    load_models,
    save_models,
)
from mini.training.transformer.progress import Course, Progress, linear_rate, load_progress, new_progress, run_steps
from mini.training.transformer.sampling import SHEET_PROMPTS, generate, save_sheet
from trainer.models.transformer import Conditioning

GUIDANCE = 3.5  # for generation


def run_guidance(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Distil transformer.safetensors into guided.safetensors (averaged weights); the text encoders are unchanged."""
    distributed = Distributed.from_environment()
    teacher = load_models(recipe, folder, distributed.device, TRANSFORMER)
    student = student_of(teacher, recipe)
    latents = read_latents(folder, "latents", distributed).first(recipe.guidance_pictures)
    corpus = make_corpus(latents, teacher.text)
    held_out = make_corpus(read_held_out(folder, distributed), teacher.text)
    progress = begin(student, recipe)
    state = folder / "guidance.state.safetensors"
    load_progress(progress, state)
    course = Course(
        steps=recipe.guidance_steps,
        rate=partial(linear_rate, steps=recipe.guidance_steps, warmup=recipe.guidance_warmup),
        reports=1,
        pictures_per_step=recipe.guidance_batch * distributed.world,
        state=state,
        journal=Journal(folder / "guidance.jsonl", distributed),
        budget=budget,
        distributed=distributed,
        gradient_norm=recipe.transformer_gradient_norm,
    )
    write = partial(report, load_models(recipe, folder, distributed.device, TRANSFORMER), held_out, recipe, folder)
    if recipe.compile:
        student.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
        teacher.transformer.compile_repeated_blocks(fullgraph=True, dynamic=False)
    run_steps(course, progress, partial(step_loss, student, teacher, corpus, recipe, distributed.rank), write)


def student_of(teacher: Models, recipe: Recipe) -> Models:
    """A trainable copy of the transformer, with the teacher's text encoders."""
    transformer = build_transformer(recipe)
    transformer.load_state_dict(teacher.transformer.state_dict())
    return replace(teacher, transformer=moved(transformer, device=teacher.transformer.device))


def begin(student: Models, recipe: Recipe) -> Progress:
    """A new training of the transformer only."""
    learning = {name: value for name, value in student.parameters().items() if value.requires_grad}
    groups = {recipe.guidance_learning_rate: learning}
    return new_progress(groups, recipe.transformer_betas, recipe.transformer_weight_decay, recipe.guidance_ema)


def step_loss(student: Models, teacher: Models, corpus: Corpus, recipe: Recipe, rank: int, step: int) -> Tensor:
    """The student's mean squared error against its guided teacher, over the batch of a step."""
    batch = draw_batch(corpus, recipe, recipe.guidance_batch, "guidance", step, rank)
    text, target = guided_velocity(teacher, batch, corpus.empty)
    return F.mse_loss(student.velocity(batch, text), target)


@torch.no_grad()
def guided_velocity(teacher: Models, batch: Batch, empty: tuple[Tensor, Tensor]) -> tuple[Conditioning, Tensor]:
    """The captions' conditioning, and the velocity under classifier-free guidance g of the batch: vu + g (vc - vu)."""
    size = len(batch.latents)
    with compute_type(batch.latents.device):
        text = Conditioning(*teacher.text(batch.t5_ids, batch.clip_ids))
        txt, pooled = teacher.text(*empty)
        empty_text = Conditioning(txt.repeat(size, 1, 1), pooled.repeat(size, 1))
    conditional = teacher.velocity(batch, text)
    unconditional = teacher.velocity(batch, empty_text)
    return text, unconditional + batch.guidance.view(-1, 1, 1, 1) * (conditional - unconditional)


def report(
    copy: Models, held_out: Corpus, recipe: Recipe, folder: Path, averages: Mapping[str, Tensor]
) -> dict[str, float]:
    """Write guided.safetensors and a sheet: the teacher with classifier-free guidance, the student at 1 and at 3.5.

    copy: the teacher, not compiled; it becomes the student. Returns losses on held-out images against the guided
    teacher at 3.5: "held_out_loss" of the student, and "teacher_loss" of the teacher without guidance, as a baseline.
    """
    save_models(folder, averages, GUIDED)
    autoencoder = load_autoencoder(recipe, folder, held_out.latents.device)
    options = {"steps": recipe.sampling_steps, "size": recipe.size}
    batches = fixed_batches(held_out, recipe, GUIDANCE)
    targets = [guided_velocity(copy, batch, held_out.empty)[1] for batch in batches]
    teacher_loss = _mean_error(copy, batches, targets)
    rows = [generate(copy.transformer, copy.text, autoencoder, SHEET_PROMPTS, guidance=1.0, cfg=GUIDANCE, **options)]
    copy.take_over(averages)
    for guidance in (1.0, GUIDANCE):
        rows.append(generate(copy.transformer, copy.text, autoencoder, SHEET_PROMPTS, guidance=guidance, **options))
    save_sheet(folder / "guidance.png", rows)
    return {"held_out_loss": _mean_error(copy, batches, targets), "teacher_loss": teacher_loss}


@torch.no_grad()
def _mean_error(models: Models, batches: list[Batch], targets: list[Tensor]) -> float:
    pairs = zip(batches, targets, strict=True)
    errors = [F.mse_loss(models.velocity(batch), target, reduction="none").mean((1, 2, 3)) for batch, target in pairs]
    return torch.cat(errors).mean().item()
