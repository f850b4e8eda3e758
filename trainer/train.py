"""The training run, top to bottom: plan, cache, load, loop, finish."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import torch
from accelerate import Accelerator
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from trainer.checkpoint.naming import position_after, remove_leftovers, run_dir, state_path
from trainer.common.files import write_text
from trainer.common.problems import Problems
from trainer.common.process import StopRequest, ended_by_sigterm, run_lock, set_up_determinism
from trainer.config import TrainConfig, to_toml
from trainer.data.batches import Batch, prefetch
from trainer.engine.metrics import Readback
from trainer.engine.requests import Control, forget_wishes
from trainer.engine.run import Run, prepare
from trainer.engine.step import AdaptedModel, accumulate_gradients, batch_gradient, sum_over_processes
from trainer.engine.tasks import after_step, due_tasks, make_samples
from trainer.memory.first_step import out_of_memory, room_for, until_it_fits
from trainer.optim.foreach import gradients, with_gradient
from trainer.preflight.check import make_plan
from trainer.preflight.plan import Plan

log = logging.getLogger(__name__)


def train(config: TrainConfig, accelerator: Accelerator, plan: Plan | None = None) -> int:
    """Train a LoRA; returns the exit status: 0, or 130 and 143 after SIGINT and SIGTERM.

    plan: of this config, where the caller has made it already. Raises `Problems` for what the user has
    to mend: before any weight is read, or with the step and pictures at which the loss or the gradient
    stopped being finite.
    """
    if config.deterministic:
        set_up_determinism()
    plan = plan or make_plan(config, accelerator.num_processes, accelerator.device)
    log.info("%s", plan.summary())
    with ended_by_sigterm("stopped before the training began. What was cached is whole."), ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(run_lock(run_dir(config)))
            remove_leftovers(config)
            forget_wishes(run_dir(config))
            write_text(run_dir(config) / "config.toml", to_toml(config))
        stop = StopRequest()
        run = prepare(config, accelerator, plan, Control(run_dir(config), stop, accelerator))
        stack.callback(run.log.close)
        stack.callback(run.saving.close)
        with stop.listening():
            try:
                finished = loop(run)
            except torch.OutOfMemoryError:
                raise Problems([out_of_memory(f"step {run.progress.step + 1}", run.memory)]) from None
    if finished:
        return 0
    log.info("To go on, repeat the command with --resume=%s", state_path(config, run.progress.step))
    return stop.exit_code


def loop(run: Run) -> bool:
    """Steps until the end (True) or until asked to stop (False), with a checkpoint at either."""
    config, schedule = run.config, run.plan.schedule
    run.log.event("start", run.progress.step, total_steps=schedule.total_steps, epochs=schedule.num_epochs)
    if config.sample_at_first and run.progress.step == 0:
        make_samples(run)
    readback = Readback(run.model.device, lambda step, numbers: after_step(run, step, numbers))
    steps = range(run.progress.step + 1, schedule.total_steps + 1)
    batches = prefetch(run.maker, (draws for step in steps for draws in run.own_share(step)))

    for step in steps:
        rate = float(run.scheduler.get_last_lr()[0])
        if step == steps.start:
            loss, norm = first_step(run, batches, step)
        else:
            loss = gradient(run, batches, step)
            norm = update(run, loss, step)
        run.progress.step = step
        readback.push(step, {"loss": loss, "gradient_norm": norm, **run.step_size()}, {"learning_rate": rate})

        # once in a while, and never before the step's numbers have been found finite
        position, wish = position_after(schedule, step), run.control.poll()
        if tasks := due_tasks(run, position, wish):
            readback.flush()
            for task in tasks:
                task()
            readback.start_clock()
        if wish.stop and not position.ends_run:
            return False
    return True


def gradient(run: Run, batches: Iterator[Batch], step: int) -> torch.Tensor:
    """This process's share of the group's gradient and loss: every picture weighs the same, whoever saw it."""
    own, pictures = len(run.own_share(step)), run.num_pictures(step)
    return accumulate_gradients(run.model, batches, own, pictures, step, run.graphs or batch_gradient)


def update(run: Run, loss: torch.Tensor, step: int) -> torch.Tensor:
    """Add up over processes, in `loss` too, and take the step; returns the gradient's norm."""
    sum_over_processes(run.model.parameters.values(), loss, run.accelerator)
    norm = clip_gradients(run.model, run.config.max_grad_norm)
    run.optimizer.step()
    run.scheduler.step()
    run.clear_gradients()
    if run.ema is not None:
        run.ema.update(step - 1)
    return norm


def first_step(run: Run, batches: Iterator[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and norm of the first step, taken with a smaller memory plan where the chosen one does not fit."""
    own = list(islice(batches, len(run.own_share(step))))

    def with_room() -> torch.Tensor:
        with room_for(run.optimizer_bytes_to_come, run.model.device):
            return gradient(run, iter(own), step)

    return until_it_fits(run, with_room, lambda loss: update(run, loss, step))


def clip_gradients(model: AdaptedModel, max_norm: float) -> torch.Tensor:
    """Scale the gradients to at most max_norm (0: leave them); returns their norm, a scalar on the device."""
    parameters = with_gradient(model.parameters.values())
    norm = get_total_norm(gradients(parameters))
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
