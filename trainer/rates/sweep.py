"""Trains a few steps at each learning rate, always from the same adapter and on the same batches.

Each step's images, timesteps and noise are the same at every rate. The difference between two losses of one step
therefore comes from the weights alone, and a few steps show what a curve of the loss could not show in hundreds.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile

import torch
from accelerate import Accelerator

from trainer.checkpoint.naming import run_dir
from trainer.common.process import StopRequest
from trainer.config import TrainConfig
from trainer.data.batches import Batch, prefetch
from trainer.engine.build import parameter_groups
from trainer.engine.metrics import Readback
from trainer.engine.requests import Requests
from trainer.engine.run import prepare
from trainer.engine.step import sum_over_processes
from trainer.memory.first_step import reserve, run_until_it_fits
from trainer.optim.build import OptimizerSettings, build_optimizer
from trainer.optim.schedule import ScheduleSettings, build_lr_scheduler
from trainer.preflight.plan import RunPlan
from trainer.rates.advice import RateLosses
from trainer.train import compute_gradient, update

SUFFIX = "_find_rate"  # of the run's name, so that no file of the run itself is touched
DIVERGED = 3.0  # times the loss without training, after which a rate's steps are cut short
PRODIGY = "prodigy"


def sweep_config(config: TrainConfig) -> TrainConfig:
    """The settings of the sweep: those of the run, under another name and without what happens between steps."""
    return replace(
        config,
        output_name=config.output_name + SUFFIX,
        log_with="none",
        lr_scheduler="constant",
        lr_warmup_steps=0,
        lr_decay_steps=0,
        ema_decay=None,
        resume=None,
        sample_prompts=None,
        sample_at_first=False,
        sample_every_n_epochs=None,
        sample_every_n_steps=None,
        evaluate_every_n_epochs=None,
    )


def at_rate(config: TrainConfig, rate: float) -> TrainConfig:
    """The settings with another learning rate of the transformer; CLIP's, if it is trained, stays in proportion.

    For Prodigy, which estimates its step size, `rate` is the step size at which it is held.
    """
    if config.optimizer_type.lower() == PRODIGY:
        kept = [word for word in config.optimizer_args if word.split("=")[0].strip() not in ("d0", "growth_rate")]
        return replace(config, optimizer_args=(*kept, f"d0={rate!r}", "growth_rate=1.0"))
    clip = config.text_encoder_lr * rate / config.transformer_lr
    return replace(config, unet_lr=rate, text_encoder_lr=clip)


class Sweep:
    """A prepared model on which rates are tried, one after the other. Close it when done.

    config: of `sweep_config`; steps: optimizer steps at each rate.
    """

    def __init__(self, config: TrainConfig, accelerator: Accelerator, plan: RunPlan, steps: int) -> None:
        self.config, self.steps = config, steps
        self.run = prepare(config, accelerator, plan, Requests(run_dir(config), StopRequest(), accelerator))
        self._start: dict[str, torch.Tensor] = {}

    def close(self) -> None:
        """Close the log."""
        self.run.close()

    def base(self, on_step: Callable[[int], None]) -> tuple[float, ...]:
        """The loss of each step with the adapter as it starts. on_step: called after each.

        The first step settles how much memory is needed, as in a training. Raises `Problems` if nothing fits.
        """
        return self._losses(self._leave, on_step, math.inf)

    def losses(self, rate: float, base: Sequence[float], on_step: Callable[[int], None]) -> RateLosses:
        """Train at one rate, after `base`, of which `base` is the result. on_step: called after each step.

        Ends early if the loss is no number or over three times that without training, which the result says. Where that
        is 0, since all images are only preserved, any number will do.
        """
        run, config = self.run, at_rate(self.config, rate)
        self._reset()
        run.optimizer = build_optimizer(config.select(OptimizerSettings), parameter_groups(config, run.model, run.plan))
        steps = run.plan.schedule.total_steps
        run.scheduler = build_lr_scheduler(config.select(ScheduleSettings), run.optimizer, steps)
        limit = DIVERGED * sum(base) / len(base) or sys.float_info.max
        found = self._losses(lambda loss, step: update(run, loss, step), on_step, limit)
        kept = tuple(takewhile(lambda loss: loss <= limit, found))
        return RateLosses(rate, kept, diverged=len(kept) < self.steps)

    def _leave(self, loss: torch.Tensor, _step: int) -> None:
        sum_over_processes(self.run.model.parameters.values(), loss, self.run.accelerator)
        self.run.clear_gradients()

    def _losses(
        self, act: Callable[[torch.Tensor, int], object], on_step: Callable[[int], None], limit: float
    ) -> tuple[float, ...]:
        """The loss of each step. act: called with it when the gradients are complete; limit: ends early above it."""
        run, found = self.run, list[float]()
        readback = Readback(run.model.device, lambda _step, numbers: found.append(numbers["loss"]))
        steps = range(1, self.steps + 1)
        batches = prefetch(run.maker, (draws for step in steps for draws in run.own_share(step)))
        for step in steps:
            is_first = not self._start
            loss = self._first_gradient(batches) if is_first else compute_gradient(run, batches, step)
            act(loss, step)
            readback.push(step, {"loss": loss})
            on_step(step)
            if found and not found[-1] <= limit:
                break
        readback.flush()
        return tuple(found)

    def _first_gradient(self, batches: Iterator[Batch]) -> torch.Tensor:
        run = self.run
        own = list(islice(batches, len(run.own_share(1))))

        def with_room() -> torch.Tensor:
            with reserve(run.optimizer_bytes_to_come, run.model.device):
                return compute_gradient(run, iter(own), 1)

        loss, _ = run_until_it_fits(run, with_room, lambda loss: loss)
        self._start = {name: each.detach().cpu().clone() for name, each in run.model.parameters.items()}
        return loss

    @torch.no_grad()
    def _reset(self) -> None:
        for name, parameter in self.run.model.parameters.items():
            parameter.copy_(self._start[name])
