"""What happens around a run's steps: their numbers, checkpoints, validation, sample pictures."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Concatenate, ParamSpec

import torch

from trainer.checkpoint.naming import (
    Position,
    is_due,
    lora_path,
    position_after,
    remove_outdated,
    run_dir,
    state_path,
)
from trainer.checkpoint.state import save_state
from trainer.common.devices import free_memory
from trainer.common.problems import Problem, Problems
from trainer.data.dataset import Draw
from trainer.engine.compilation import compile_report
from trainer.engine.metrics import Numbers
from trainer.engine.requests import Wish
from trainer.engine.run import Run
from trainer.engine.validation import validation_loss
from trainer.lora.file import snapshot_lora, write_lora
from trainer.lora.metadata import build_metadata
from trainer.models.load import load_autoencoder
from trainer.models.text import clip_ids
from trainer.models.transformer import Conditioning
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import decode_picture, sample_latents, save_picture

log = logging.getLogger(__name__)
SAVE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float": torch.float32}
MAX_PICTURES_NAMED = 8
Arguments = ParamSpec("Arguments")


def _stops(
    kind: str,
) -> Callable[[Callable[Concatenate[Run, Arguments], None]], Callable[Concatenate[Run, Arguments], None]]:
    """Training stops for what is decorated so: count the time it takes, for the estimate of the rest."""

    def around(task: Callable[Concatenate[Run, Arguments], None]) -> Callable[Concatenate[Run, Arguments], None]:
        @wraps(task)
        def timed(run: Run, *args: Arguments.args, **more: Arguments.kwargs) -> None:
            start = time.perf_counter()
            task(run, *args, **more)
            run.log.stopped(kind, run.progress.step, time.perf_counter() - start)

        return timed

    return around


def after_step(run: Run, step: int, numbers: Numbers) -> None:
    """Take note of a step whose numbers have arrived, and of a checkpoint that is written by now.

    Raises `Problems` when loss or gradient is not finite.
    """
    run.saving.collect()
    if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["gradient_norm"])):
        raise Problems([_not_finite(run, step, numbers)])
    run.progress.seconds += numbers["seconds"]
    numbers["seconds_per_picture"] = numbers["seconds"] / run.num_pictures(step)
    numbers["epoch"] = position_after(run.plan.schedule, step).epoch
    if run.model.device.type == "cuda":
        numbers["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if run.measuring and not run.is_warming_up:
            run.measuring.step(numbers["seconds_per_picture"], numbers["peak_gib"])
    run.log.step(step, numbers, run.is_warming_up)
    if step == run.log.first and run.config.torch_compile and (report := compile_report()):
        log.info("first step in %.1f s: %s", numbers["seconds"], report)


def _not_finite(run: Run, step: int, numbers: Numbers) -> Problem:
    names = list(dict.fromkeys(draw.sample.picture.path.name for draws in run.plan.group(step) for draw in draws))
    named = ", ".join(names[:MAX_PICTURES_NAMED]) + (" …" if len(names) > MAX_PICTURES_NAMED else "")
    what = f"loss {numbers['loss']:g}, gradient norm {numbers['gradient_norm']:g} with the pictures {named}"
    run.saving.finish()
    kept = f"the last good checkpoint is {run.last_checkpoint}; " if run.last_checkpoint else ""
    return Problem(f"step {step}", what, kept + "a lower --learning_rate is the usual remedy")


def due_tasks(run: Run, position: Position, wish: Wish) -> list[Callable[[], None]]:
    """What is to be done at the end of this step: by the schedule, at the end of the run, or because it was asked."""
    config = run.config
    stopping = wish.stop and not position.ends_run
    saves = is_due(position, config.save_every_n_epochs, config.save_every_n_steps)
    tasks = []
    if saves or wish.save or stopping or position.ends_run:
        tasks.append(partial(save, run, position, with_state=wish.save or stopping))
    if is_due(position, config.validate_every_n_epochs, config.validate_every_n_steps):
        tasks.append(partial(validate, run))
    if is_due(position, config.sample_every_n_epochs, config.sample_every_n_steps):
        tasks.append(partial(make_samples, run))
    return tasks


@_stops("checkpoint")
def save(run: Run, position: Position, with_state: bool) -> None:
    """Write the LoRA of this position, a state where one is due or asked for, and drop outdated ones.

    Training stops while the LoRA is copied to the host; the copy is written while it goes on. With a
    state, and at the end, it waits until all is on disk.
    """
    config, accelerator = run.config, run.accelerator
    with_state |= config.save_state or (position.ends_run and config.save_state_on_train_end)
    if accelerator.is_main_process:
        start = time.perf_counter()
        run.saving.finish()  # the copy before this one leaves the memory first
        path = lora_path(config, position)
        tensors = run.ema.averages if run.ema else run.model.parameters
        plan = run.plan
        settings = replace(plan.config, base_precision=plan.memory.choice.precision)
        metadata = build_metadata(settings, plan.data, run.progress, position, path.stem, plan.adapter.base)
        stored = snapshot_lora(path, tensors, run.model.alphas, SAVE_DTYPES[config.save_precision])
        waits = with_state or position.ends_run
        stopped = None if waits else time.perf_counter() - start
        written = partial(_checkpoint_written, run, position, start, stopped, with_state)
        run.saving.start(partial(_write_timed, path, stored, metadata), written)
        if with_state:  # too large for a copy, and the next step changes it
            _save_state(run, position.step)
        if waits:
            run.saving.finish()
    accelerator.wait_for_everyone()


def _write_timed(
    path: Path, stored: dict[str, torch.Tensor], metadata: dict[str, str]
) -> tuple[Path, tuple[str, ...], float]:
    """On the thread: the file, what was left out of it, and when it was there."""
    left_out = write_lora(path, stored, metadata)
    return path, left_out, time.perf_counter()


def _checkpoint_written(
    run: Run,
    position: Position,
    start: float,
    stopped: float | None,
    with_state: bool,
    written: tuple[Path, tuple[str, ...], float],
) -> None:
    """Once the file is there: older ones go, and the log says so. stopped: seconds, or None for all the time."""
    path, left_out, end = written
    run.last_checkpoint = path
    removed = remove_outdated(run.config, position, run.plan.schedule.steps_per_epoch)
    seconds = (time.perf_counter() if stopped is None else end) - start
    facts = {"file": path.name, "seconds": seconds, "stopped": seconds if stopped is None else stopped}
    state = state_path(run.config, position.step)
    if with_state and state.is_dir():  # not when the disk is full
        facts["state"] = str(state)
    if left_out:
        facts["metadata_left_out"] = ", ".join(left_out)
    if removed:
        facts["removed"] = ", ".join(path.name for path in removed)
    run.log.event("checkpoint", position.step, **facts)


def _save_state(run: Run, step: int) -> None:
    save_state(
        state_path(run.config, step),
        tensors=run.model.parameters,
        optimizer=run.optimizer,
        scheduler=run.scheduler,
        ema=run.ema,
        progress=run.progress.record(run.config, run.plan),
    )


@contextmanager
def _as_saved(run: Run) -> Iterator[None]:
    """The adapter as it would be saved: its average where there is one, no dropout, nothing compiled anew."""
    run.make_room()
    run.model.train(False)
    try:
        with run.ema.swapped() if run.ema else nullcontext(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        run.model.train(True)


@_stops("validation")
def validate(run: Run) -> None:
    """The loss at fixed timesteps and noise, over held-out pictures or, without any, the training ones."""
    if run.accelerator.is_main_process:
        draws = _evenly(run.plan.data.validation_draws(), run.config.max_validation_steps)
        with _as_saved(run):
            losses = validation_loss(draws, run.maker, lambda batch: run.model.losses(batch.to(run.model.device)))
        run.log.event("validation", run.progress.step, **losses)
    run.accelerator.wait_for_everyone()


def _evenly(draws: Sequence[Draw], most: int | None) -> list[Draw]:
    """At most so many, from all concepts alike."""
    count = min(len(draws), most or len(draws))
    return [draws[index * len(draws) // count] for index in range(count)]


@_stops("sample")
def make_samples(run: Run) -> None:
    """Draw the pictures of --sample_prompts into runs/NAME/samples."""
    if run.accelerator.is_main_process:
        with _as_saved(run):
            latents = [_latents(run, index, prompt) for index, prompt in enumerate(run.plan.sample_prompts)]
        assert run.config.ae
        vae = load_autoencoder(run.config.ae, run.model.device, run.model.dtype)
        for index, (prompt, sampled) in enumerate(zip(run.plan.sample_prompts, latents, strict=True)):
            _save_sample(run, index, prompt, decode_picture(vae, sampled))
        del vae
        free_memory(run.model.device)
    run.accelerator.wait_for_everyone()


def _latents(run: Run, index: int, prompt: SamplePrompt) -> torch.Tensor:
    positive, *negative = (_conditioning(run, text) for text in prompt.texts())
    return sample_latents(
        run.model.transformer, prompt, _seed(run, index, prompt), positive, negative[0] if negative else None
    )


def _seed(run: Run, index: int, prompt: SamplePrompt) -> int:
    return run.config.seed + index if prompt.seed is None else prompt.seed


def _conditioning(run: Run, text: str) -> Conditioning:
    txt, mask, pooled = run.maker.encoded.text(text)
    txt_mask = mask[None] if run.config.apply_t5_attn_mask else None
    return run.model.conditioning(txt[None], pooled[None], txt_mask, clip_ids(run.maker.tokenizers.clip, [text]))


def _save_sample(run: Run, index: int, prompt: SamplePrompt, picture) -> None:
    step, seed = run.progress.step, _seed(run, index, prompt)
    path = run_dir(run.config) / "samples" / f"{run.config.output_name}-step{step:08d}-{index:02d}.png"
    facts = {"prompt": prompt.prompt, "seed": seed, "step": step, "steps": prompt.steps, "guidance": prompt.guidance}
    save_picture(path, picture, facts)
    run.log.event("sample", step, file=str(path), prompt=prompt.prompt)
