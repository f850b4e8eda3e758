"""Optimizers and learning-rate schedules by kohya's names."""

import ast
import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers.optimization import (
    get_cosine_with_min_lr_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_wsd_schedule,
)

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config import TrainConfig

OPTIMIZERS = {
    "adamw": "torch.optim.AdamW",
    "prodigy": "trainer.optim.prodigy.Prodigy",
    "lion": "trainer.optim.lion.Lion",
    "adafactor": "transformers.optimization.Adafactor",
    "adamw8bit": "bitsandbytes.optim.AdamW8bit",
    "pagedadamw": "bitsandbytes.optim.PagedAdamW",
    "pagedadamw8bit": "bitsandbytes.optim.PagedAdamW8bit",
    "pagedadamw32bit": "bitsandbytes.optim.PagedAdamW32bit",
    "lion8bit": "bitsandbytes.optim.Lion8bit",
    "pagedlion8bit": "bitsandbytes.optim.PagedLion8bit",
}
# fused: one kernel, and the step count stays on the device. Adafactor: the schedule is --lr_scheduler's,
# and scaling by a parameter's size would wait for the host once per tensor and hold zeros at zero.
DEFAULT_ARGS: dict[str, dict[str, Any]] = {
    "adamw": {"fused": True},
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
}
EXTRAS = {"bitsandbytes": "pip install 'flux-dreambooth-trainer[adamw8bit]' (needs a CUDA device)"}
Groups = list[dict[str, Any]]


def build_optimizer(config: TrainConfig, groups: Groups) -> Optimizer:
    """The optimizer of `--optimizer_type` over parameter groups (`params` and, where it differs, `lr`).

    Build it after the weights are loaded: Prodigy remembers where they started. Raises Problems.
    """
    raise_if_any(optimizer_problems(config))
    cls = _optimizer_class(config.optimizer_type)
    groups = [{"lr": config.transformer_lr, **group} for group in groups]
    raise_if_any(rate_problems(config, [group["lr"] for group in groups]))
    try:
        return cls(groups, lr=config.transformer_lr, **_merged_args(config))
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise Problems([Problem("--optimizer_args", f"{config.optimizer_type} refuses them: {error}")]) from error


def optimizer_problems(config: TrainConfig) -> list[Problem]:
    """What is wrong with --optimizer_type and --optimizer_args; needs no parameters."""
    try:
        cls = _optimizer_class(config.optimizer_type)
    except Problems as found:
        return list(found.problems)
    given, problems = _parse_args(config.optimizer_args)
    accepted = _accepted_args(cls)
    for name in given:
        if accepted is not None and name not in accepted:
            hint = "use --learning_rate" if name == "lr" else f"accepted: {', '.join(accepted)}"
            problems.append(Problem("--optimizer_args", f"{config.optimizer_type} has no argument {name!r}", hint))
    if given.get("relative_step") and _lower(config) == "adafactor":
        hint = "leave it out, and choose --learning_rate and --lr_scheduler"
        problems.append(Problem("--optimizer_args", "relative_step would replace --lr_scheduler", hint))
    return problems


def optimizer_notices(config: TrainConfig) -> list[str]:
    """Settings that are allowed and seldom meant."""
    flag, rate = _transformer_rate(config)
    if _lower(config) == "prodigy" and rate < 0.1:
        return [f"Prodigy finds the step size: {flag} is usually 1, not {rate}"]
    if _lower(config) != "prodigy" and rate >= 0.1:
        return [f"{flag} {rate} is very high for {config.optimizer_type}; 1e-4 is usual"]
    return []


def build_lr_scheduler(config: TrainConfig, optimizer: Optimizer, total_steps: int) -> LambdaLR:
    """The schedule of `--lr_scheduler`; one `step()` per optimizer step of a run of `total_steps`.

    Warm-up and decay below 1 are shares of `total_steps`. Raises Problems. accelerate must not wrap it:
    with several processes it would step several times.
    """
    raise_if_any(lr_scheduler_problems(config, total_steps))
    name, warmup = config.lr_scheduler, _steps(config.lr_warmup_steps, total_steps)
    cycles, floor = config.lr_scheduler_num_cycles, config.lr_scheduler_min_lr_ratio or 0.0
    if name == "inverse_sqrt":
        return get_inverse_sqrt_schedule(optimizer, warmup, config.lr_scheduler_timescale)
    if name == "cosine_with_min_lr":
        return get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, warmup, total_steps, num_cycles=cycles / 2, min_lr_rate=floor
        )
    if name == "warmup_stable_decay":
        decay = _steps(config.lr_decay_steps, total_steps)
        return get_wsd_schedule(
            optimizer,
            warmup,
            decay,
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
        power=config.lr_scheduler_power,
    )


def lr_scheduler_problems(config: TrainConfig, total_steps: int) -> list[Problem]:
    """What is wrong with the schedule's settings for a run of `total_steps` optimizer steps."""
    name, problems = config.lr_scheduler, []
    warmup, decay = _steps(config.lr_warmup_steps, total_steps), _steps(config.lr_decay_steps, total_steps)
    if warmup + decay > total_steps:
        what = f"{warmup} warm-up and {decay} decay steps do not fit into {total_steps} optimizer steps"
        problems.append(Problem("--lr_warmup_steps", what, "a number below 1 is a share of the run, like 0.05"))
    if name == "constant" and warmup:
        problems.append(Problem("--lr_warmup_steps", "constant has no warm-up", "--lr_scheduler constant_with_warmup"))
    if name == "warmup_stable_decay" and not decay:
        problems.append(Problem("--lr_decay_steps", "warmup_stable_decay needs them", "--lr_decay_steps 0.2 is usual"))
    if name != "warmup_stable_decay" and decay:
        problems.append(Problem("--lr_decay_steps", f"{name} has none", "--lr_scheduler warmup_stable_decay"))
    flag, rate = _transformer_rate(config)
    if name == "polynomial" and rate <= 1e-7:
        problems.append(Problem(flag, "polynomial ends at 1e-7 and must start above it"))
    return problems


def _transformer_rate(config: TrainConfig) -> tuple[str, float]:
    return "--learning_rate" if config.unet_lr is None else "--unet_lr", config.transformer_lr


def rate_problems(config: TrainConfig, rates: Iterable[float]) -> list[Problem]:
    """What is wrong with the learning rates of all that is trained (0: not trained), for this optimizer."""
    different = sorted({*rates} - {0.0})
    if _lower(config) != "prodigy" or len(different) < 2:
        return []
    what = f"Prodigy has one step size for all, not {', '.join(map(str, different))}"
    hint = "set --unet_lr and --text_encoder_lr equal or 0, without loraplus ratios, or use AdamW"
    return [Problem("--optimizer_type", what, hint)]


def _lower(config: TrainConfig) -> str:
    return config.optimizer_type.lower()


def _optimizer_class(name: str) -> Callable[..., Optimizer]:
    own_name = _torch_name(name)
    path = OPTIMIZERS.get(name.lower()) or (f"torch.optim.{own_name}" if own_name else name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise Problems([Problem("--optimizer_type", f"{name!r} is not known", _nearest(name, _known_names()))])
    if "schedulefree" in path.lower():
        hint = "use Prodigy, or AdamW with --ema_decay"
        raise Problems([Problem("--optimizer_type", "schedule-free optimizers are not supported", hint)])
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        package = module.split(".")[0]
        hint = EXTRAS.get(package, f"install the package that has {package}")
        raise Problems([Problem("--optimizer_type", f"{name} needs {package}: {error}", hint)]) from error
    except AttributeError:
        raise Problems([Problem("--optimizer_type", f"{module} has no {attribute!r}")]) from None


def _torch_name(name: str) -> str | None:
    return {known.lower(): known for known in _torch_optimizers()}.get(name.lower())


def _torch_optimizers() -> list[str]:
    members = inspect.getmembers(torch.optim, inspect.isclass)
    return [name for name, cls in members if issubclass(cls, Optimizer) and cls is not Optimizer]


def _known_names() -> list[str]:
    return sorted({*OPTIMIZERS, *map(str.lower, _torch_optimizers())})


def _parse_args(given: tuple[str, ...]) -> tuple[dict[str, Any], list[Problem]]:
    """kohya's `key=value`, values as Python literals (`betas=0.9,0.99`, `decouple=True`)."""
    parsed, problems = {}, []
    for text in given:
        name, equals, value = text.partition("=")
        try:
            if not equals:
                raise ValueError
            parsed[name.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            hint = 'like weight_decay=0.01, betas=0.9,0.99 or name="text"'
            problems.append(Problem("--optimizer_args", f"{text!r} is not name=value", hint))
    return parsed, problems


def _merged_args(config: TrainConfig) -> dict[str, Any]:
    given, _ = _parse_args(config.optimizer_args)
    defaults = dict(DEFAULT_ARGS.get(_lower(config), {}))
    if {"foreach", "capturable", "differentiable"} & given.keys():
        defaults.pop("fused", None)  # torch refuses these together
    return {**defaults, **given}


def _accepted_args(cls: Callable[..., Optimizer]) -> list[str] | None:
    """Names that the class takes beside parameters and learning rate; None when it takes any."""
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return [name for name in list(parameters)[1:] if name != "lr"]


def _steps(value: int | float | None, total_steps: int) -> int:
    value = value or 0
    return int(value * total_steps) if 0 < value < 1 else int(value)


def _nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name.lower(), known, 1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}, or module.Class"
