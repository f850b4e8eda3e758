"""Checkpoints: the LoRA file of a position, and with it the state that a resume needs."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from trainer.checkpoint.naming import Position, lora_path, remove_outdated, state_path
from trainer.checkpoint.state import save_state
from trainer.engine.run import Run
from trainer.lora.file import snapshot_lora, write_lora
from trainer.lora.metadata import build_metadata

SAVE_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float": torch.float32}


def save(run: Run, position: Position, with_state: bool) -> None:
    """Save a checkpoint: write the LoRA file, and a state if `with_state` or the settings ask for one.

    position: where the run is now. Files that --save_last_n_* no longer keeps are deleted. Training pauses while the
    LoRA is copied to the host; a thread writes the copy while training continues. With a state, and at the end of the
    run, training waits until everything is on disk.
    """
    with run.pause("checkpoint"):
        if run.accelerator.is_main_process:
            _save(run, position, with_state)
        run.accelerator.wait_for_everyone()


def _save(run: Run, position: Position, with_state: bool) -> None:
    config, plan = run.config, run.plan
    with_state |= config.save_state or (position.ends_run and config.save_state_on_train_end)
    start = time.perf_counter()
    run.saving.finish()  # so that only one copy is in memory
    path = lora_path(config, position)
    tensors = run.ema.averages if run.ema else run.model.parameters
    settings = replace(plan.config, base_precision=plan.memory.choice.precision)
    metadata = build_metadata(settings, plan.data, run.progress, position, path.stem, plan.adapter.base)
    stored = snapshot_lora(path, tensors, run.model.alphas, SAVE_DTYPES[config.save_precision])
    waits = with_state or position.ends_run
    paused = None if waits else time.perf_counter() - start
    written = partial(_written, run, position, start, paused, with_state)
    run.saving.start(partial(_write_timed, path, stored, metadata), written)
    if with_state:  # too large for a copy, and the next step would change it
        _save_state(run, position.step)
    if waits:
        run.saving.finish()


def _write_timed(
    path: Path, stored: dict[str, torch.Tensor], metadata: dict[str, str]
) -> tuple[Path, tuple[str, ...], float]:
    """On the thread: write the file. Returns its path, the metadata that was left out, and when it was done."""
    left_out = write_lora(path, stored, metadata)
    return path, left_out, time.perf_counter()


def _written(
    run: Run,
    position: Position,
    start: float,
    paused: float | None,
    with_state: bool,
    written: tuple[Path, tuple[str, ...], float],
) -> None:
    """On the main thread, once the file is complete: remove outdated files and log the checkpoint.

    paused: for how many seconds training paused; None if it paused until now.
    """
    path, left_out, end = written
    run.last_checkpoint = path
    removed = remove_outdated(run.config, position, run.plan.schedule.steps_per_epoch)
    seconds = (time.perf_counter() if paused is None else end) - start
    facts = {"file": path.name, "seconds": seconds, "stopped": seconds if paused is None else paused}
    state = state_path(run.config, position.step)
    if with_state and state.is_dir():  # it is missing if the disk was full
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
