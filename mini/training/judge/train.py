"""The stage that trains the judge on labelled renders; half of each batch is reconstructed by the autoencoder.

The judge only measures. It has no influence on the model's training.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from mini.training.autoencoder.model import load_autoencoder
from mini.training.distributed import Budget, Distributed
from mini.training.images.pictures import Pictures, read_pictures
from mini.training.journal import Journal
from mini.training.judge.data import Targets, augment, classes_of, reconstruct, targets_of
from mini.training.judge.report import accuracies
from mini.training.modules import moved
from mini.training.recipe import Recipe
from mini.world.scene import CONCEPTS
from trainer.checkpoint.tree import TreeWriter, decode
from trainer.common.files import write_json, write_safetensors
from trainer.common.rng import derive_seed, torch_generator
from trainer.sampling.judge import Classes, Judge, Verdicts, save_judge, to_unit_range

REPORT_EVERY = 50  # steps between two readings of the loss, each of which waits for the GPU
CHECK_TIME_EVERY = 20  # steps
CONCEPT_WEIGHT = 2.0  # weight of the concepts' loss, the finest distinction
GRADIENT_NORM = 5.0  # gradients are clipped to it


@dataclass(frozen=True)
class Material:
    """A process's training data.

    pixels: uint8 [n, 3, size, size]. redrawn: uint8 [m, 3, size, size], the first m of them as the autoencoder
    reconstructs them. targets: the labels of all n.
    """

    pixels: Tensor
    redrawn: Tensor
    targets: Targets


@dataclass
class Training:
    """The judge in training. step: number of completed steps."""

    judge: Judge
    optimizer: torch.optim.AdamW
    step: int = 0


def run_judge(recipe: Recipe, folder: Path, budget: Budget) -> None:
    """Train on the judge's images in `folder`; write judge.safetensors and its accuracy, judge.json, there.

    If the time is used up first, the state is saved instead.
    """
    device = Distributed.from_environment().device
    train_judge(recipe, folder, budget, CONCEPTS, lambda: load_autoencoder(recipe, folder, device))


def train_judge(
    recipe: Recipe,
    folder: Path,
    budget: Budget,
    concepts: tuple[str, ...],
    load: Callable[[], AutoencoderKL],
) -> None:
    """`run_judge` for any concepts. load: loads the autoencoder, on this process's device."""
    distributed = Distributed.from_environment()
    result, state = folder / "judge.safetensors", folder / "judge.state.safetensors"
    if result.exists():
        distributed.say("judge: already trained")
        return
    classes, autoencoder = classes_of(concepts), load()
    material = read_material(recipe, folder, classes, autoencoder, distributed)
    held_out = read_held_out(recipe, folder, autoencoder, distributed) if distributed.is_main else {}
    training = begin(recipe, classes, distributed.device)
    if state.exists():
        load_state(training, state)
    journal = Journal(folder / "judge.jsonl", distributed)
    if not train(training, material, held_out, recipe, distributed, budget, journal, state):
        distributed.say(f"judge: stopped at step {training.step} of {recipe.judge_steps}")
        return
    if distributed.is_main:
        report = {name: accuracies(training.judge, each) for name, each in held_out.items()}
        write_json(folder / "judge.json", {"pictures": recipe.judge_held_out_pictures, **report})
        distributed.say(f"judge: {json.dumps(report)}")
        save_judge(result, training.judge)
        state.unlink(missing_ok=True)
    distributed.barrier()


def read_material(
    recipe: Recipe, folder: Path, classes: Classes, autoencoder: AutoencoderKL, distributed: Distributed
) -> Material:
    """This process's share of the images; the first of them also as reconstructed by the autoencoder."""
    pictures = read_pictures(folder, "judge", distributed)
    count = max(1, round(recipe.judge_redrawn_share * len(pictures.pixels)))
    seed = derive_seed(recipe.seed, "judge", "redrawn", distributed.rank)
    redrawn = reconstruct(autoencoder, pictures.pixels[:count], recipe.judge_latent_noise, seed)
    distributed.say(f"judge: {len(pictures.pixels)} pictures a process, {count} redrawn")
    return Material(pictures.pixels, redrawn, targets_of(pictures.labels, classes, distributed.device))


def read_held_out(
    recipe: Recipe, folder: Path, autoencoder: AutoencoderKL, distributed: Distributed
) -> dict[str, Pictures]:
    """All held-out images in three versions: rendered, reconstructed, and reconstructed from noisy latents."""
    pictures = read_pictures(folder, "held-out-judge", Distributed(device=distributed.device))
    seed = derive_seed(recipe.seed, "judge", "redrawn", "held out")
    views = {
        "renders": pictures.pixels,
        "autoencoded": reconstruct(autoencoder, pictures.pixels, 0.0, seed),
        "noisy_latents": reconstruct(autoencoder, pictures.pixels, recipe.judge_latent_noise, seed),
    }
    return {name: replace(pictures, pixels=pixels) for name, pixels in views.items()}


def begin(recipe: Recipe, classes: Classes, device: torch.device) -> Training:
    """A new judge; the initial weights are the same in every process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(recipe.seed, "judge", "weights"))
        judge = Judge(classes)
    judge = moved(judge, device=device, memory_format=torch.channels_last)
    rate, decay = recipe.judge_learning_rate, recipe.judge_weight_decay
    return Training(judge, torch.optim.AdamW(judge.parameters(), lr=rate, weight_decay=decay))


def train(
    training: Training,
    material: Material,
    held_out: dict[str, Pictures],
    recipe: Recipe,
    distributed: Distributed,
    budget: Budget,
    journal: Journal,
    state: Path,
) -> bool:
    """Train to the last step and return True, or save the state when the time is used up and return False."""
    first, steps = training.step, recipe.judge_steps
    losses: list[Tensor] = []
    journal.mark(first)
    while training.step < steps:
        losses.append(train_step(training, material, recipe, distributed))
        if training.step % REPORT_EVERY == 0 or training.step == steps:
            loss = distributed.mean(torch.stack(losses).mean()).item()
            journal.write(training.step, distributed.world * recipe.judge_batch, loss=loss)
            losses.clear()
            journal.mark(training.step)
        if is_validation_step(training.step, recipe) and distributed.is_main:
            journal.write(training.step, 0, **accuracies(training.judge, held_out["renders"]))
            save_state(training, state)
            journal.mark(training.step)
        if training.step < steps and training.step % CHECK_TIME_EVERY == 0 and distributed.any(budget.spent()):
            if distributed.is_main:
                save_state(training, state)
            distributed.barrier()
            return False
    return True


def is_validation_step(step: int, recipe: Recipe) -> bool:
    """Whether one of the evenly spaced validations comes after `step` steps."""
    marks = recipe.judge_validations
    return step * marks // recipe.judge_steps > (step - 1) * marks // recipe.judge_steps


def train_step(training: Training, material: Material, recipe: Recipe, distributed: Distributed) -> Tensor:
    """Take one step on this process's images; returns the loss as a scalar on the device."""
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate(training.step, recipe)
    pictures, targets = draw_batch(material, recipe, training.step, distributed.rank)
    training.judge.train()
    with torch.autocast(pictures.device.type, torch.bfloat16, enabled=pictures.is_cuda):
        logits = training.judge(pictures)
    loss = judge_loss(logits, targets)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = list(training.judge.parameters())
    distributed.average_gradients(parameters)
    nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
    training.optimizer.step()
    training.step += 1
    return loss.detach()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then cosine decay to 0."""
    warmup = min(1.0, (step + 1) / recipe.judge_warmup)
    return recipe.judge_learning_rate * warmup * (0.5 + 0.5 * math.cos(math.pi * step / recipe.judge_steps))


def draw_batch(material: Material, recipe: Recipe, step: int, rank: int) -> tuple[Tensor, Targets]:
    """The augmented batch of a step, half of it reconstructed images: float32 in [-1, 1], channels last."""
    device = material.pixels.device
    generator = torch_generator(recipe.seed, "judge", "batch", step, rank)
    redrawn = torch.randint(len(material.redrawn), (recipe.judge_batch // 2,), generator=generator)
    plain = torch.randint(len(material.pixels), (recipe.judge_batch - len(redrawn),), generator=generator)
    plain, redrawn = (index.to(device, non_blocking=True) for index in (plain, redrawn))
    pictures = to_unit_range(torch.cat([material.pixels[plain], material.redrawn[redrawn]]))
    changes = torch.Generator(device).manual_seed(derive_seed(recipe.seed, "judge", "changes", step, rank))
    pictures = augment(pictures, changes).contiguous(memory_format=torch.channels_last)
    return pictures, material.targets.at(torch.cat([plain, redrawn]))


def judge_loss(logits: Verdicts, targets: Targets) -> Tensor:
    """Sum of cross entropies, averaged over images. Colours count only for the kinds that are in the image."""
    kinds = F.binary_cross_entropy_with_logits(logits.kinds.float(), targets.kinds, reduction="sum")
    concepts = F.binary_cross_entropy_with_logits(logits.concepts.float(), targets.concepts, reduction="sum")
    colours = F.binary_cross_entropy_with_logits(logits.colours.float(), targets.colours, reduction="none").sum(2)
    of_present = (colours * targets.kinds).sum() / targets.kinds.sum().clamp_min(1)
    places = F.cross_entropy(logits.places.float(), targets.places)
    return (kinds + CONCEPT_WEIGHT * concepts) / len(targets.places) + of_present + places


def save_state(training: Training, file: Path) -> None:
    """Save everything that the next step depends on, exactly."""
    writer = TreeWriter()
    judge, optimizer = training.judge.state_dict(), training.optimizer.state_dict()
    tree = writer.encode({"step": training.step, "judge": dict(judge), "optimizer": optimizer}, "training")
    write_safetensors(file, writer.tensors, {"tree": json.dumps(tree)})


def load_state(training: Training, file: Path) -> None:
    """Restore what `save_state` wrote."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        tree = decode(json.loads(opened.metadata()["tree"]), tensors)
    training.judge.load_state_dict(tree["judge"])
    training.optimizer.load_state_dict(tree["optimizer"])
    training.step = tree["step"]
