"""Optimizers by kohya's names, and the check of their arguments."""

import ast
import importlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from trainer.common.problems import Problem, Problems, raise_if_any
from trainer.config.fields import Invalid, Schema, Spec, nearest, read_pairs, shown

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
# fused: one kernel, and the step count stays on the device. Adafactor: --lr_scheduler is the schedule, and scaling by
# parameter size would synchronize with the host once per tensor and never move a parameter that starts at zero.
DEFAULT_ARGS: dict[str, dict[str, Any]] = {
    "adamw": {"fused": True},
    "adafactor": {"relative_step": False, "scale_parameter": False, "warmup_init": False},
}
EXTRAS = {"bitsandbytes": "pip install 'flux-dreambooth-trainer[adamw8bit]' (needs a CUDA device)"}
NOT_WITH_FUSED = {"foreach", "capturable", "differentiable"}  # torch refuses fused together with these
REFUSALS = (TypeError, ValueError, RuntimeError, AssertionError)  # how optimizers reject their arguments
Groups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The settings that choose an optimizer.

    optimizer_type: a name from `OPTIMIZERS` or torch.optim, case ignored, or module.Class. optimizer_args: `key=value`
    words. transformer_lr: the learning rate of the transformer's LoRA. transformer_lr_setting: the name of the setting
    that it comes from, for messages.
    """

    optimizer_type: str
    optimizer_args: tuple[str, ...]
    transformer_lr: float
    transformer_lr_setting: str

    @property
    def name(self) -> str:
        """optimizer_type in lower case."""
        return self.optimizer_type.lower()


def build_optimizer(settings: OptimizerSettings, groups: Groups) -> Optimizer:
    """The optimizer that the settings name, over parameter groups with `params` and, where it differs, `lr`.

    Build it after the weights are loaded: Prodigy remembers where they started. Raises `Problems` for a wrong
    optimizer, argument or learning rate.
    """
    raise_if_any(optimizer_problems(settings))
    groups = [{"lr": settings.transformer_lr, **group} for group in groups]
    raise_if_any(rate_problems(settings, [group["lr"] for group in groups]))
    arguments, _ = _read_args(settings, _optimizer_class(settings.optimizer_type))
    return _construct(settings, groups, arguments)


def optimizer_problems(settings: OptimizerSettings) -> list[Problem]:
    """What is wrong with --optimizer_type and --optimizer_args, found without a model's parameters, or []."""
    try:
        cls = _optimizer_class(settings.optimizer_type)
    except Problems as found:
        return list(found.problems)
    arguments, problems = _read_args(settings, cls)
    if arguments.get("relative_step") and settings.name == "adafactor":
        hint = "leave it out, and choose --learning_rate and --lr_scheduler"
        problems.append(Problem("--optimizer_args", "relative_step would replace --lr_scheduler", hint))
    by_default = settings.name in OPTIMIZERS and not arguments  # needs no trial, which would import torch's compiler
    if not problems and not by_default and not cls.__module__.startswith("bitsandbytes"):  # may need a GPU
        try:
            _construct(settings, [{"params": [torch.nn.Parameter(torch.zeros(1, 1))]}], arguments)
        except Problems as found:
            problems += found.problems
    return problems


def optimizer_notices(settings: OptimizerSettings) -> list[str]:
    """Warnings for learning rates that are valid but probably unintended."""
    flag, rate = f"--{settings.transformer_lr_setting}", settings.transformer_lr
    if settings.name == "prodigy" and rate < 0.1:
        return [f"Prodigy estimates the step size itself: {flag} is usually 1, not {rate}"]
    if settings.name != "prodigy" and rate >= 0.1:
        return [f"{flag} {rate} is very high for {settings.optimizer_type}; 1e-4 is usual"]
    return []


def rate_problems(settings: OptimizerSettings, rates: Iterable[float]) -> list[Problem]:
    """What is wrong with these learning rates for the optimizer; [] if nothing is.

    rates: of everything that is trained; 0: not trained.
    """
    different = sorted({*rates} - {0.0})
    if settings.name != "prodigy" or len(different) < 2:
        return []
    what = f"Prodigy has one step size for all parameters, not {', '.join(map(str, different))}"
    hint = "set --unet_lr and --text_encoder_lr to the same value or 0, without loraplus ratios, or use AdamW"
    return [Problem("--optimizer_type", what, hint)]


def _construct(settings: OptimizerSettings, groups: Groups, arguments: dict[str, Any]) -> Optimizer:
    defaults = dict(DEFAULT_ARGS.get(settings.name, {}))
    if NOT_WITH_FUSED & arguments.keys():
        defaults.pop("fused", None)
    try:
        cls = _optimizer_class(settings.optimizer_type)
        return cls(groups, lr=settings.transformer_lr, **{**defaults, **arguments})
    except REFUSALS as error:
        what = f"{settings.optimizer_type} rejects its arguments: {error}"
        raise Problems([Problem("--optimizer_args", what)]) from error


def _optimizer_class(name: str) -> Callable[..., Optimizer]:
    own_name = _torch_name(name)
    path = OPTIMIZERS.get(name.lower()) or (f"torch.optim.{own_name}" if own_name else name)
    module, _, attribute = path.rpartition(".")
    if not module:
        hint = nearest(name, _known_names()) or f"use one of {', '.join(_known_names())}, or module.Class"
        raise Problems([Problem("--optimizer_type", f"{shown(name)} is not an optimizer", hint)])
    if "schedulefree" in path.lower():
        hint = "use Prodigy, or AdamW with --ema_decay"
        raise Problems([Problem("--optimizer_type", "schedule-free optimizers are not supported", hint)])
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        package = module.split(".")[0]
        hint = EXTRAS.get(package, f"install the package that provides {package}")
        raise Problems([Problem("--optimizer_type", f"{name} needs {package}: {error}", hint)]) from error
    except AttributeError:
        raise Problems([Problem("--optimizer_type", f"{module} has no {shown(attribute)}")]) from None


def _torch_name(name: str) -> str | None:
    return {known.lower(): known for known in _torch_optimizers()}.get(name.lower())


def _torch_optimizers() -> list[str]:
    members = inspect.getmembers(torch.optim, inspect.isclass)
    return [name for name, cls in members if issubclass(cls, Optimizer) and cls is not Optimizer]


def _known_names() -> list[str]:
    return sorted({*OPTIMIZERS, *map(str.lower, _torch_optimizers())})


def _read_args(settings: OptimizerSettings, cls: Callable[..., Optimizer]) -> tuple[dict[str, Any], list[Problem]]:
    """--optimizer_args by name, values as Python literals (`betas=0.9,0.99`, `decouple=True`)."""
    given, problems = read_pairs(settings.optimizer_args, "--optimizer_args")
    accepted = _accepted_args(cls)
    if accepted is None:
        accepted = [each.name for each in given if each.name != "lr"]
    schema = Schema(
        specs=dict.fromkeys(accepted, Spec(parse=_literal)),
        noun=f"an argument of {settings.optimizer_type}",
        elsewhere={"lr": "use --learning_rate"},
        listing=f"accepted: {', '.join(accepted)}",
    )
    read = schema.read(given)
    return read.values, problems + read.problems


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        hint = 'write it like weight_decay=0.01, betas=0.9,0.99, decouple=True or name="text"'
        raise Invalid(f"is {shown(text)}, not a Python literal", hint) from None


def _accepted_args(cls: Callable[..., Optimizer]) -> list[str] | None:
    """Names that the class takes besides parameters and learning rate; None if it takes any."""
    parameters = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return None
    return [name for name in list(parameters)[1:] if name != "lr"]
