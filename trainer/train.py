"""A training run from top to bottom: plan, prepare, step after step, finish.

Start reading at `train`, then `loop`. The loss and gradient of a step are computed in `trainer.engine.step`, with the
maths of `trainer.flow`. `trainer.engine.tasks` decides what happens between two steps: logged numbers, checkpoints
(written by `trainer.engine.saving`), validation and samples.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from trainer.engine.requests import Requests, discard_requests
from trainer.engine.run import Run, prepare
from trainer.engine.samples import make_samples
from trainer.engine.step import AdaptedModel, accumulate_gradients, batch_gradient, sum_over_processes
from trainer.engine.tasks import due_tasks, record_step
from trainer.memory.first_step import out_of_memory, reserve, run_until_it_fits
from trainer.optim.foreach import gradients, with_gradient
from trainer.preflight.check import make_plan
from trainer.preflight.outputs import require_names
from trainer.preflight.plan import RunPlan

log = logging.getLogger(__name__)


def train(
    config: TrainConfig,
    accelerator: Accelerator,
    plan: RunPlan | None = None,
    on_ready: Callable[[Run], None] | None = None,
) -> int:
    """Train a LoRA. Returns the exit status: 0, or 130 or 143 if SIGINT or SIGTERM stopped the run.

    plan: the plan of this config, if the caller has made it already. on_ready: called with the prepared run before its
    first step, for whoever wants to observe it. Raises `Problems` for mistakes of the user, before any weight is read;
    and for a loss or gradient that is not finite, with the step and its images.
    """
    if config.deterministic:
        set_up_determinism()
    plan = plan or make_plan(config, accelerator.num_processes, accelerator.device)
    log.info("%s", plan.summary())
    stop = StopRequest()
    with ExitStack() as stack:
        stack.enter_context(ended_by_sigterm("stopped before the first step. Everything cached so far is intact."))
        if accelerator.is_main_process:
            stack.enter_context(own_run_dir(config))
        requests = Requests(run_dir(config), stop, accelerator)
        run = stack.enter_context(closing(prepare(config, accelerator, plan, requests)))
        if on_ready:
            on_ready(run)
        with stop.listening():
            try:
                finished = loop(run)
            except torch.OutOfMemoryError:
                raise Problems([out_of_memory(f"step {run.progress.step + 1}", run.memory)]) from None
    if finished:
        return 0
    log.info("To continue, repeat the command with --resume=%s", state_path(config, run.progress.step))
    return stop.exit_code


@contextmanager
def own_run_dir(config: TrainConfig) -> Iterator[None]:
    """In this context the run's folder is locked. Raises `Problems` if another process holds the lock.

    On entry, leftovers of a process that was killed are removed, and the settings are written to config.toml. Raises
    `Problems` also if the LoRA files' names cannot be created.
    """
    with run_lock(run_dir(config)):
        require_names(config)
        remove_leftovers(config)
        discard_requests(run_dir(config))
        write_text(run_dir(config) / "config.toml", to_toml(config))
        yield


def loop(run: Run) -> bool:
    """Train until the last step (returns True) or a requested stop (returns False); both save a checkpoint."""
    config, schedule = run.config, run.plan.schedule
    steps = range(run.progress.step + 1, schedule.total_steps + 1)
    run.log.event("start", run.progress.step, total_steps=schedule.total_steps, epochs=schedule.num_epochs)
    if config.sample_at_first and run.progress.step == 0:
        make_samples(run)
    readback = Readback(run.model.device, lambda step, numbers: record_step(run, step, numbers))
    batches = prefetch(run.maker, (draws for step in steps for draws in run.own_share(step)))

    for step in steps:
        learning_rate = float(run.scheduler.get_last_lr()[0])
        if step == steps.start:
            loss, norm = first_step(run, batches, step)
        else:
            loss = compute_gradient(run, batches, step)
            norm = update(run, loss, step)
        run.progress.step = step
        numbers = {"loss": loss, "gradient_norm": norm, **run.step_size()}
        readback.push(step, numbers, {"learning_rate": learning_rate})

        position, request = position_after(schedule, step), run.requests.poll()
        if tasks := due_tasks(run, position, request):
            readback.flush()  # stops the run if this step's numbers are not finite, before anything is saved
            for task in tasks:
                task()
            readback.start_clock()
        if request.stop and not position.ends_run:
            return False
    return True


def compute_gradient(run: Run, batches: Iterator[Batch], step: int) -> torch.Tensor:
    """Forward and backward over this process's share of a step's batches; gradients add up in `.grad`.

    batches: the run's batches in order, of which this takes the next ones. Every image has the same weight, whichever
    process it is on. Returns this process's share of the mean loss, a scalar on the device.
    """
    num_batches, num_images = len(run.own_share(step)), run.num_images(step)
    return accumulate_gradients(run.model, batches, num_batches, num_images, step, run.graphs or batch_gradient)


def update(run: Run, loss: torch.Tensor, step: int) -> torch.Tensor:
    """Take an optimizer step with the gradients in `.grad`, which are summed over processes, clipped and then cleared.

    Learning rate and moving average follow. loss: this process's share, summed over processes in place; step: the
    number of the step, from 1. Returns the gradient's norm before clipping, a scalar on the device.
    """
    sum_over_processes(run.model.parameters.values(), loss, run.accelerator)
    norm = clip_gradients(run.model, run.config.max_grad_norm)
    run.optimizer.step()
    run.scheduler.step()
    run.clear_gradients()
    if run.ema is not None:
        run.ema.update(step - 1)
    return norm


def first_step(run: Run, batches: Iterator[Batch], step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Do the first step; if memory runs out, load the model again with a smaller memory plan and repeat it.

    batches: the run's batches in order. Returns the mean loss and the gradient's norm before clipping, scalars on the
    device.
    """
    own = list(islice(batches, len(run.own_share(step))))

    def gradient_with_room() -> torch.Tensor:
        with reserve(run.optimizer_bytes_to_come, run.model.device):
            return compute_gradient(run, iter(own), step)

    return run_until_it_fits(run, gradient_with_room, lambda loss: update(run, loss, step))


def clip_gradients(model: AdaptedModel, max_norm: float) -> torch.Tensor:
    """Scale the adapter's gradients, in place, down to a norm of at most max_norm (0: leave them as they are).

    Returns the norm before, a scalar on the device.
    """
    parameters = with_gradient(model.parameters.values())
    norm = get_total_norm(gradients(parameters))
    if max_norm > 0:
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
