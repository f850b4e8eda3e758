"""Whether a run can write where it wants to, and how much: walked through, with its rules, before it starts."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoint.naming import lora_path, outdated, position_after, run_dir, state_path, steps_due
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule


class Growth(NamedTuple):
    """Bytes that LoRA files and states take beyond what they take now, while something is being written."""

    loras: int
    states: int


def save_steps(config: TrainConfig, schedule: Schedule, start_step: int) -> list[int]:
    """The steps after `start_step` at whose end a LoRA file is saved; the last one always is."""
    steps = steps_due(schedule, config.save_every_n_epochs, config.save_every_n_steps, start_step)
    return steps if schedule.total_steps in steps else [*steps, schedule.total_steps]


def growth(
    config: TrainConfig, schedule: Schedule, start_step: int, lora_bytes: int, state_bytes: int
) -> tuple[Growth, ...]:
    """The run's saves one by one. A file that is replaced goes only when the new one is whole."""
    loras = _sizes(config.output_dir.glob("*.safetensors"))
    states = _sizes(folder for folder in run_dir(config).glob("state-*") if folder.is_dir())
    loras_now, states_now = sum(loras.values()), sum(states.values())
    lora_growth, state_growth, moments = 0, 0, []
    for step in save_steps(config, schedule, start_step):
        position = position_after(schedule, step)
        moments.append(Growth(lora_growth + lora_bytes, state_growth))
        loras[lora_path(config, position)] = lora_bytes
        lora_growth = sum(loras.values()) - loras_now
        if config.save_state or (position.ends_run and config.save_state_on_train_end):
            moments.append(Growth(lora_growth, state_growth + state_bytes))
            states[state_path(config, step)] = state_bytes
        for path in outdated(config, position, schedule.steps_per_epoch, loras, states):
            (loras if path in loras else states).pop(path)
        lora_growth, state_growth = sum(loras.values()) - loras_now, sum(states.values()) - states_now
    return tuple(moments)


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: _size(path) for path in paths}


def _size(path: Path) -> int:
    try:
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    except OSError:  # a file that may not be looked at, or is gone by now, makes no room either
        return 0
