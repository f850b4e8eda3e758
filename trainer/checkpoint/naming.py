"""When a LoRA and a state are written, what they are called, and which of them are kept."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.state_folder import MANIFEST, delete_state, list_states, recover
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule

log = logging.getLogger(__name__)


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


def steps_due(schedule: Schedule, every_epochs: int | None, every_steps: int | None, start_step: int = 0) -> list[int]:
    """The steps after `start_step` at whose end something that happens every so often happens."""
    steps = range(start_step + 1, schedule.total_steps + 1)
    return [step for step in steps if is_due(position_after(schedule, step), every_epochs, every_steps)]


def checkpoint_name(config: TrainConfig, position: Position) -> str:
    """kohya's names without the ending: NAME at the end, NAME-000025 after an epoch, else NAME-step00000100."""
    if position.ends_run:
        return config.output_name
    due_by_epoch = is_due(position, config.save_every_n_epochs, None)
    if due_by_epoch:
        return f"{config.output_name}-{position.epoch:06d}"
    return f"{config.output_name}-step{position.step:08d}"


def lora_path(config: TrainConfig, position: Position) -> Path:
    """The LoRA file of a position."""
    return config.output_dir / f"{checkpoint_name(config, position)}.safetensors"


def state_path(config: TrainConfig, step: int) -> Path:
    """The state folder of a step."""
    return run_dir(config) / f"state-step{step:08d}"


def run_dir(config: TrainConfig) -> Path:
    """runs/NAME: everything that a run writes except LoRA files."""
    return config.run_dir / config.output_name


def sample_path(config: TrainConfig, step: int, index: int) -> Path:
    """The image of a sample prompt after a step; index: which of the prompts, from 0."""
    return run_dir(config) / "samples" / f"{config.output_name}-step{step:08d}-{index:02d}.png"


def remove_leftovers(config: TrainConfig) -> None:
    """Remove half-written LoRA files of this run's name, left by a process that was killed while saving."""
    pattern = rf"\.{re.escape(config.output_name)}(-\d{{6}}|-step\d{{8}})?\.safetensors\.\w+\.tmp"
    for path in config.output_dir.glob(".*.tmp"):
        if re.fullmatch(pattern, path.name):
            path.unlink()


def latest_state(folder: Path) -> Path | None:
    """The state that was written last into a run's folder, or the folder itself when it is a state."""
    recover(folder.parent)
    if (folder / MANIFEST).is_file():
        return folder
    return max(list_states(folder), key=lambda state: (state / MANIFEST).stat().st_mtime, default=None)


def remove_outdated(config: TrainConfig, position: Position, steps_per_epoch: int) -> list[Path]:
    """Remove what `--save_last_n_*` no longer keeps of this run's own numbered files; returns what went."""
    loras, states = config.output_dir.glob("*.safetensors"), list_states(run_dir(config))
    return [path for path in outdated(config, position, steps_per_epoch, loras, states) if _remove(path)]


def outdated(
    config: TrainConfig, position: Position, steps_per_epoch: int, loras: Iterable[Path], states: Iterable[Path]
) -> list[Path]:
    """Which of these files and states `--save_last_n_*` no longer keeps after this position, by their names.

    Epoch files: the last n that were due, the final file not counted. Step files: those of the last n steps.
    """
    epochs, steps = config.save_last_n_epochs, config.save_last_n_steps
    state_epochs = config.save_last_n_epochs_state or epochs
    state_steps = config.save_last_n_steps_state or steps
    ages = _Ages(config, position, steps_per_epoch)
    return [
        *(path for path in loras if _is_outdated(config, epochs, steps, *ages.of_lora(path.name))),
        *(path for path in states if _is_outdated(config, state_epochs, state_steps, *ages.of_state(path.name))),
    ]


def _remove(path: Path) -> bool:
    if not path.is_dir():
        path.unlink()
        return True
    try:
        delete_state(path)
    except ValueError as error:  # somebody keeps files of their own in it
        log.warning("%s", error)
        return False
    return True


class _Ages:
    """Age in epochs (of epoch files) and in steps (of step files) of what a run has written, by name.

    Ages count from the last epoch and step that were due, so that a save out of turn, as at the end
    of the run, removes nothing too early.
    """

    def __init__(self, config: TrainConfig, position: Position, steps_per_epoch: int):
        self.name = re.escape(config.output_name)
        self.steps_per_epoch = steps_per_epoch
        self.last_step = position.step - position.step % (config.save_every_n_steps or 1)
        self.completed = (position.step - position.ends_run) // steps_per_epoch

    def of_lora(self, file_name: str) -> tuple[int | None, int | None]:
        if match := re.fullmatch(rf"{self.name}-(\d{{6}})\.safetensors", file_name):
            return self.completed - int(match[1]), None
        match = re.fullmatch(rf"{self.name}-step(\d{{8}})\.safetensors", file_name)
        return None, self.last_step - int(match[1]) if match else None

    def of_state(self, folder_name: str) -> tuple[int | None, int | None]:
        match = re.fullmatch(r"state-step(\d{8})", folder_name)
        if not match:
            return None, None
        epoch, into_epoch = divmod(int(match[1]), self.steps_per_epoch)
        return None if into_epoch else self.completed - epoch, self.last_step - int(match[1])


def _is_outdated(
    config: TrainConfig, epochs: int | None, steps: int | None, age_in_epochs: int | None, age_in_steps: int | None
) -> bool:
    every = config.save_every_n_epochs
    if epochs and every and age_in_epochs is not None:
        return age_in_epochs >= epochs * every
    return bool(steps) and age_in_steps is not None and 0 < (steps or 0) < age_in_steps
