"""What happens after a step: its numbers are recorded, and checkpoints, validation and samples are due."""

import logging
import math
from collections.abc import Callable
from functools import partial

import torch

from trainer.checkpoint.naming import Position, is_due, position_after
from trainer.common.problems import Problem, Problems
from trainer.engine.compilation import compile_report
from trainer.engine.evaluation import evaluate
from trainer.engine.metrics import Numbers
from trainer.engine.requests import Request
from trainer.engine.run import Run
from trainer.engine.samples import make_samples
from trainer.engine.saving import save
from trainer.engine.validation import validate

log = logging.getLogger(__name__)
MAX_IMAGES_NAMED = 8


def record_step(run: Run, step: int, numbers: Numbers) -> None:
    """Log the numbers of a step once they have arrived from the device.

    numbers: "loss", "gradient_norm", "seconds" (its time) and others; epoch, seconds per image and, on a GPU, peak
    memory are added to it in place. Also finishes a checkpoint that was written in the background meanwhile. Raises
    `Problems` if loss or gradient norm is not finite.
    """
    run.saving.collect()
    if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
        raise Problems([_not_finite(run, step, numbers)])
    run.progress.seconds += numbers["seconds"]
    numbers["seconds_per_picture"] = numbers["seconds"] / run.num_images(step)
    numbers["epoch"] = position_after(run.plan.schedule, step).epoch
    if run.model.device.type == "cuda":
        numbers["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if run.measuring and not run.is_warming_up:
            run.measuring.step(numbers["seconds_per_picture"], numbers["peak_gib"])
    run.guard.see_step(step, numbers)
    run.log.step(step, numbers, run.is_warming_up)
    run.guard.look(step)
    if run.guard.reason_to_stop:
        run.requests.ask_to_stop()
    if step == run.log.first and run.config.torch_compile and (report := compile_report()):
        log.info("first step in %.1f s: %s", numbers["seconds"], report)


def _not_finite(run: Run, step: int, numbers: Numbers) -> Problem:
    names = list(dict.fromkeys(draw.sample.picture.path.name for draws in run.plan.group(step) for draw in draws))
    named = ", ".join(names[:MAX_IMAGES_NAMED]) + (" …" if len(names) > MAX_IMAGES_NAMED else "")
    what = f"loss {numbers['loss']:g}, gradient norm {numbers['gradient_norm']:g} with the images {named}"
    run.guard.see_explosion(step)
    run.saving.finish()
    kept = f"the last good checkpoint is {run.last_checkpoint}; " if run.last_checkpoint else ""
    return Problem(f"step {step}", what, kept + "a lower --learning_rate usually helps")


def due_tasks(run: Run, position: Position, request: Request) -> list[Callable[[], None]]:
    """The functions to call after the step at `position`, in order: save, validate, generate samples, evaluate.

    They are due by the schedule, on request, or because the run ends; the list is often empty.
    """
    config = run.config
    stopping = request.stop and not position.ends_run
    saves = is_due(position, config.save_every_n_epochs, config.save_every_n_steps)
    tasks = []
    if saves or request.save or stopping or position.ends_run:
        tasks.append(partial(save, run, position, with_state=request.save or stopping))
    if is_due(position, config.validate_every_n_epochs, config.validate_every_n_steps):
        tasks.append(partial(validate, run))
    if is_due(position, config.sample_every_n_epochs, config.sample_every_n_steps):
        tasks.append(partial(make_samples, run))
    if is_due(position, config.evaluate_every_n_epochs, None):
        tasks.append(partial(evaluate, run))
    return tasks
