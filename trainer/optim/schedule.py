"""Learning-rate schedules by kohya's names; the curves are those of diffusers and transformers."""

from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from trainer.common.problems import Problem, raise_if_any

POLYNOMIAL_END = 1e-7  # the learning rate at which diffusers' polynomial schedule ends


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings:
    """The settings of a learning-rate schedule, by their own names.

    lr_warmup_steps, lr_decay_steps: optimizer steps, or below 1 a fraction of the run. transformer_lr: the learning
    rate of the transformer's LoRA. transformer_lr_setting: the name of the setting that it comes from, for messages.
    """

    lr_scheduler: str
    lr_warmup_steps: int | float
    lr_decay_steps: int | float
    lr_scheduler_num_cycles: int
    lr_scheduler_power: float
    lr_scheduler_min_lr_ratio: float | None
    lr_scheduler_timescale: int | None
    transformer_lr: float
    transformer_lr_setting: str


def build_lr_scheduler(settings: ScheduleSettings, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The schedule of a run of `total_steps` optimizer steps; call its `step()` once after each of them.

    Raises `Problems` if the settings do not fit together or the run. Do not let accelerate wrap it: with several
    processes it would step several times.
    """
    from diffusers.optimization import get_scheduler  # slow to import, and a check needs none of it
    from transformers.optimization import (
        get_cosine_with_min_lr_schedule_with_warmup,
        get_inverse_sqrt_schedule,
        get_wsd_schedule,
    )

    raise_if_any(lr_scheduler_problems(settings, total_steps))
    name, warmup = settings.lr_scheduler, _steps(settings.lr_warmup_steps, total_steps)
    cycles, floor = settings.lr_scheduler_num_cycles, settings.lr_scheduler_min_lr_ratio or 0.0
    if name == "inverse_sqrt":
        return get_inverse_sqrt_schedule(optimizer, warmup, settings.lr_scheduler_timescale)
    if name == "cosine_with_min_lr":
        return get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup, total_steps, num_cycles=cycles / 2, min_lr_rate=floor
        )
    if name == "warmup_stable_decay":
        return get_wsd_schedule(
            optimizer,
            warmup,
            _steps(settings.lr_decay_steps, total_steps),
            num_training_steps=total_steps,
            min_lr_ratio=floor,
            num_cycles=cycles / 2,
        )
    return get_scheduler(
        name,
        optimizer,
        num_warmup_steps=warmup,
        num_training_steps=total_steps,
        num_cycles=cycles,
        power=settings.lr_scheduler_power,
    )


def lr_scheduler_problems(settings: ScheduleSettings, total_steps: int) -> list[Problem]:
    """What is wrong with the settings for a run of `total_steps` optimizer steps; [] if nothing is."""
    name, problems = settings.lr_scheduler, []
    warmup, decay = _steps(settings.lr_warmup_steps, total_steps), _steps(settings.lr_decay_steps, total_steps)
    if warmup + decay > total_steps:
        what = f"{warmup} warm-up and {decay} decay steps do not fit into {total_steps} optimizer steps"
        problems.append(Problem("--lr_warmup_steps", what, "a number below 1 is a fraction of the run, like 0.05"))
    if name == "constant" and warmup:
        hint = "use --lr_scheduler constant_with_warmup"
        problems.append(Problem("--lr_warmup_steps", "the constant schedule has no warm-up", hint))
    if name == "warmup_stable_decay" and not decay:
        hint = "set --lr_decay_steps; 0.2 is usual"
        problems.append(Problem("--lr_decay_steps", "warmup_stable_decay needs decay steps", hint))
    if name != "warmup_stable_decay" and decay:
        hint = "use --lr_scheduler warmup_stable_decay"
        problems.append(Problem("--lr_decay_steps", f"the {name} schedule has no decay steps", hint))
    if name == "polynomial" and settings.transformer_lr <= POLYNOMIAL_END:
        what = f"the polynomial schedule ends at {POLYNOMIAL_END:g} and must start above it"
        problems.append(Problem(f"--{settings.transformer_lr_setting}", what, "raise it"))
    return problems


def _steps(value: int | float | None, total_steps: int) -> int:
    value = value or 0
    return int(value * total_steps) if 0 < value < 1 else int(value)
