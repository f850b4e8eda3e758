"""Disk space over a run: every save is gone through before the run starts, with the rules for removing files."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoint.naming import lora_path, outdated, position_after, run_dir, state_path, steps_due
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule


class Growth(NamedTuple):
    """Extra disk space in bytes that LoRA files and states take during a save, compared with now."""

    loras: int
    states: int


def save_steps(config: TrainConfig, schedule: Schedule, start_step: int) -> list[int]:
    """The optimizer steps after `start_step` after which a LoRA file is saved; the run's last step always is one."""
    steps = steps_due(schedule, config.save_every_n_epochs, config.save_every_n_steps, start_step)
    return steps if schedule.total_steps in steps else [*steps, schedule.total_steps]


def growth(
    config: TrainConfig, schedule: Schedule, start_step: int, lora_bytes: int, state_bytes: int
) -> tuple[Growth, ...]:
    """The extra disk space at each save of the run, in order; a state counts as a save of its own.

    lora_bytes, state_bytes: the size of one LoRA file and of one state. A file that is replaced or no longer kept is
    counted until the new one is complete.
    """
    loras = _sizes(config.output_dir.glob("*.safetensors"))
    states = _sizes(folder for folder in run_dir(config).glob("state-*") if folder.is_dir())
    loras_now, states_now = sum(loras.values()), sum(states.values())
    lora_growth, state_growth, at_saves = 0, 0, []
    for step in save_steps(config, schedule, start_step):
        position = position_after(schedule, step)
        at_saves.append(Growth(lora_growth + lora_bytes, state_growth))
        loras[lora_path(config, position)] = lora_bytes
        lora_growth = sum(loras.values()) - loras_now
        if config.save_state or (position.ends_run and config.save_state_on_train_end):
            at_saves.append(Growth(lora_growth, state_growth + state_bytes))
            states[state_path(config, step)] = state_bytes
        for path in outdated(config, position, schedule.steps_per_epoch, loras, states):
            (loras if path in loras else states).pop(path)
        lora_growth, state_growth = sum(loras.values()) - loras_now, sum(states.values()) - states_now
    return tuple(at_saves)


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: _size(path) for path in paths}


def _size(path: Path) -> int:
    try:
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    except OSError:  # a file that cannot be looked at, or is gone by now, frees no space either
        return 0
