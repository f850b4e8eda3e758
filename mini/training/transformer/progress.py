"""The training loop of the stages `transformer` and `guidance`: steps, averaged weights, validations, saved state."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from mini.training.distributed import Budget, Distributed
from mini.training.journal import Journal
from trainer.common.files import write_safetensors
from trainer.optim.ema import Ema

FIRST_READING, READ_EVERY = 20, 50  # steps: reading the loss and the time limit waits for the GPU
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Progress:
    """The state of a training. peaks: the peak learning rate of each parameter group, in the groups' order."""

    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.AdamW
    ema: Ema
    peaks: tuple[float, ...]
    step: int = 0


@dataclass(frozen=True)
class Course:
    """The plan of a stage.

    rate: the share of the peak learning rate at a step, counted from 0. reports: number of validations, evenly spaced,
    the last one at the end. state: the file to resume from. gradient_norm: the norm that gradients are clipped to.
    """

    steps: int
    rate: Callable[[int], float]
    reports: int
    pictures_per_step: int
    state: Path
    journal: Journal
    budget: Budget
    distributed: Distributed
    gradient_norm: float = 1.0
    report_at: frozenset[int] = field(init=False)

    def __post_init__(self):
        steps = {math.ceil(self.steps * part / self.reports) for part in range(1, self.reports + 1)}
        object.__setattr__(self, "report_at", frozenset(steps))


def new_progress(
    groups: Mapping[float, Mapping[str, nn.Parameter]], betas: tuple[float, float], weight_decay: float, ema: float
) -> Progress:
    """A training at step 0. groups: the named parameters for each peak learning rate."""
    parameters = {name: value for group in groups.values() for name, value in group.items()}
    fused = next(iter(parameters.values())).is_cuda
    settings = [{"params": list(group.values())} for group in groups.values()]
    optimizer = torch.optim.AdamW(settings, lr=0.0, betas=betas, weight_decay=weight_decay, fused=fused)
    return Progress(parameters, optimizer, Ema(parameters, ema), tuple(groups))


def run_steps(
    course: Course,
    progress: Progress,
    loss_of: Callable[[int], Tensor],
    report: Callable[[Mapping[str, Tensor]], dict[str, float]],
) -> bool:
    """Train to the last step and return True, or stop when the time is used up and return False.

    The state is saved when it stops and at every report. loss_of: the loss of this process's batch at a step. report:
    called in the main process with the averaged weights; the journal records the numbers that it returns.
    """
    distributed, parameters = course.distributed, list(progress.parameters.values())
    first_reading, losses = progress.step + FIRST_READING, []
    course.journal.mark(progress.step)
    if progress.step >= course.steps:  # it may have been interrupted before its last report
        _pause(course, progress, report)
    while progress.step < course.steps:
        loss = loss_of(progress.step)
        loss.backward()
        losses.append(loss.detach())
        distributed.average_gradients(parameters)
        _optimizer_step(course, progress, parameters)
        reporting = progress.step in course.report_at
        if not (reporting or progress.step == first_reading or progress.step % READ_EVERY == 0):
            continue
        loss = distributed.mean(torch.stack(losses).mean()).item()
        losses.clear()
        course.journal.write(progress.step, course.pictures_per_step, loss=loss)
        over = distributed.any(course.budget.spent()) and progress.step < course.steps
        if reporting or over:
            _pause(course, progress, report if reporting else None)
        if over:
            distributed.say(f"{course.journal.file.stem}: stopped at step {progress.step} of {course.steps}")
            return False
        course.journal.mark(progress.step)
    return True


def _optimizer_step(course: Course, progress: Progress, parameters: list[nn.Parameter]) -> None:
    """Clip the gradients, take an optimizer step and update the averages."""
    nn.utils.clip_grad_norm_(parameters, course.gradient_norm, foreach=True)
    rate = course.rate(progress.step)
    for group, peak in zip(progress.optimizer.param_groups, progress.peaks, strict=True):
        group["lr"] = peak * rate
    progress.optimizer.step()
    progress.optimizer.zero_grad(set_to_none=True)
    progress.ema.update(progress.step)
    progress.step += 1


def _pause(
    course: Course, progress: Progress, report: Callable[[Mapping[str, Tensor]], dict[str, float]] | None
) -> None:
    """Save the state, and report if `report` is given; the other processes wait."""
    if course.distributed.is_main:
        save_progress(progress, course.state)
    if report and course.distributed.is_main:
        course.journal.write(progress.step, **report(progress.ema.averages))
    course.distributed.barrier()


def save_progress(progress: Progress, file: Path) -> None:
    """Save everything that the next step depends on, atomically."""
    tensors = {f"weights.{name}": value for name, value in progress.parameters.items()}
    tensors |= {f"averages.{name}": value for name, value in progress.ema.averages.items()}
    for name, parameter in progress.parameters.items():
        tensors |= {f"{moment}.{name}": progress.optimizer.state[parameter][moment] for moment in MOMENTS}
    write_safetensors(file, tensors, {"step": str(progress.step)})


@torch.no_grad()
def load_progress(progress: Progress, file: Path) -> None:
    """Restore a saved training into a new one, bit for bit; without a file it stays at step 0."""
    if not file.exists():
        return
    with safe_open(file, framework="pt") as opened:
        progress.step = int(opened.metadata()["step"])
        for name, parameter in progress.parameters.items():
            parameter.copy_(opened.get_tensor(f"weights.{name}"))
            progress.ema.averages[name].copy_(opened.get_tensor(f"averages.{name}"))
            moments = {m: torch.empty_like(parameter).copy_(opened.get_tensor(f"{m}.{name}")) for m in MOMENTS}
            done = torch.tensor(float(progress.step), device=parameter.device if parameter.is_cuda else None)
            progress.optimizer.state[parameter] = {"step": done, **moments}


def cosine_rate(step: int, steps: int, warmup: int, constant_share: float, final: float) -> float:
    """The share of the peak learning rate: linear warm-up, constant until `constant_share`, cosine decay to `final`."""
    rise = min(1.0, (step + 1) / warmup)
    part = (step / steps - constant_share) / (1 - constant_share)
    return rise * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, part)))))


def linear_rate(step: int, steps: int, warmup: int) -> float:
    """The share of the peak learning rate: linear warm-up, then linear decay to nearly 0."""
    return min(1.0, (step + 1) / warmup) * (1 - step / steps)
