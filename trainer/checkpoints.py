"""When a LoRA and a state are written, what they are called, and which of them are kept."""

import re
from dataclasses import dataclass
from pathlib import Path

from trainer.config import TrainConfig
from trainer.data.dataset import Schedule
from trainer.state.files import delete_state, list_states


@dataclass(frozen=True)
class Position:
    """Where a run stands after an optimizer step. step and epoch count from 1; 0 is before the first."""

    step: int
    epoch: int
    ends_epoch: bool
    ends_run: bool


def position_after(schedule: Schedule, step: int) -> Position:
    """Where a run stands after `step` optimizer steps."""
    epoch = -(-step // schedule.steps_per_epoch)
    ends_epoch = step > 0 and step % schedule.steps_per_epoch == 0
    return Position(step, epoch, ends_epoch, step == schedule.total_steps)


def is_due(position: Position, every_epochs: int | None, every_steps: int | None) -> bool:
    """Whether something that happens every so often happens now, at the end of this step."""
    by_epoch = bool(every_epochs) and position.ends_epoch and position.epoch % (every_epochs or 1) == 0
    by_step = bool(every_steps) and position.step > 0 and position.step % (every_steps or 1) == 0
    return by_epoch or by_step


def checkpoint_name(config: TrainConfig, position: Position) -> str:
    """kohya's names without the ending: NAME at the end, NAME-000025 after an epoch, else NAME-step00000100."""
    if position.ends_run:
        return config.output_name
    due_by_epoch = is_due(position, config.save_every_n_epochs, None)
    if due_by_epoch:
        return f"{config.output_name}-{position.epoch:06d}"
    return f"{config.output_name}-step{position.step:08d}"


def lora_path(config: TrainConfig, position: Position) -> Path:
    return config.output_dir / f"{checkpoint_name(config, position)}.safetensors"


def state_path(config: TrainConfig, step: int) -> Path:
    return run_dir(config) / f"state-step{step:08d}"


def run_dir(config: TrainConfig) -> Path:
    """runs/NAME: all that a run writes apart from LoRA files."""
    return config.run_dir / config.output_name


def latest_state(folder: Path) -> Path | None:
    """The newest state in a run's folder, or the folder itself when it is a state."""
    if folder.name.startswith("state-"):
        return folder if folder.is_dir() else None
    states = sorted(list_states(folder))
    return states[-1] if states else None


def remove_outdated(config: TrainConfig, position: Position, steps_per_epoch: int) -> list[Path]:
    """Remove what `--save_last_n_*` no longer keeps of this run's own numbered files; returns what went.

    Epoch files: the last n that were due. Step files: those of the last n steps.
    """
    removed = [
        path
        for path, age_in_epochs, age_in_steps in _numbered_files(config, position, steps_per_epoch)
        if _is_outdated(path, config, age_in_epochs, age_in_steps)
    ]
    for path in removed:
        delete_state(path) if path.is_dir() else path.unlink()
    return removed


def _numbered_files(
    config: TrainConfig, position: Position, steps_per_epoch: int
) -> list[tuple[Path, int | None, int | None]]:
    """Path, age in epochs (of epoch files), age in steps (of step files) of what the run has written."""
    name = re.escape(config.output_name)
    found: list[tuple[Path, int | None, int | None]] = []
    for path in config.output_dir.glob("*.safetensors"):
        if match := re.fullmatch(rf"{name}-(\d{{6}})\.safetensors", path.name):
            found.append((path, position.epoch - int(match[1]), None))
        elif match := re.fullmatch(rf"{name}-step(\d{{8}})\.safetensors", path.name):
            found.append((path, None, position.step - int(match[1])))
    for path in list_states(run_dir(config)):
        if match := re.fullmatch(r"state-step(\d{8})", path.name):
            step = int(match[1])
            epoch, into_epoch = divmod(step, steps_per_epoch)
            found.append((path, None if into_epoch else position.epoch - epoch, position.step - step))
    return found


def _is_outdated(path: Path, config: TrainConfig, age_in_epochs: int | None, age_in_steps: int | None) -> bool:
    epochs, steps = config.save_last_n_epochs, config.save_last_n_steps
    if path.is_dir():
        epochs = config.save_last_n_epochs_state or epochs
        steps = config.save_last_n_steps_state or steps
    every = config.save_every_n_epochs
    if epochs and every and age_in_epochs is not None:
        return age_in_epochs >= epochs * every
    return bool(steps) and age_in_steps is not None and 0 < (steps or 0) < age_in_steps
