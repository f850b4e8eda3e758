"""When LoRA files and states are written, their names, and which of them are kept."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.state_folder import delete_state, list_states
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule

log = logging.getLogger(__name__)
SAFETENSORS = ".safetensors"


@dataclass(frozen=True)
class Position:
    """How far a run is after an optimizer step.

    step: optimizer steps done; epoch: the epoch of that step, counted from 1; both are 0 before the first step.
    ends_epoch, ends_run: whether the step is the last of its epoch, or of the run.
    """

    step: int
    epoch: int
    ends_epoch: bool
    ends_run: bool


def position_after(schedule: Schedule, step: int) -> Position:
    """How far a run with this schedule is after `step` optimizer steps (0: before the first)."""
    epoch = -(-step // schedule.steps_per_epoch)
    ends_epoch = step > 0 and step % schedule.steps_per_epoch == 0
    return Position(step, epoch, ends_epoch, step == schedule.total_steps)


def is_due(position: Position, every_epochs: int | None, every_steps: int | None) -> bool:
    """Whether something done every `every_epochs` epochs or `every_steps` steps (None: never) is due at `position`."""
    by_epoch = bool(every_epochs) and position.ends_epoch and position.epoch % (every_epochs or 1) == 0
    by_step = bool(every_steps) and position.step > 0 and position.step % (every_steps or 1) == 0
    return by_epoch or by_step


def steps_due(schedule: Schedule, every_epochs: int | None, every_steps: int | None, start_step: int = 0) -> list[int]:
    """The steps after which something done every `every_epochs` epochs or `every_steps` steps (None: never) is due.

    Only steps after `start_step` are returned, in order.
    """
    steps = range(start_step + 1, schedule.total_steps + 1)
    return [step for step in steps if is_due(position_after(schedule, step), every_epochs, every_steps)]


def checkpoint_name(config: TrainConfig, position: Position) -> str:
    """The name, without extension, of the LoRA file saved at a position; the same as in kohya's scripts.

    OUTPUT_NAME at the end of the run, OUTPUT_NAME-000025 after an epoch at which --save_every_n_epochs is due, else
    OUTPUT_NAME-step00000100.
    """
    if position.ends_run:
        return config.output_name
    due_by_epoch = is_due(position, config.save_every_n_epochs, None)
    if due_by_epoch:
        return f"{config.output_name}-{position.epoch:06d}"
    return f"{config.output_name}-step{position.step:08d}"


def checkpoint_name_pattern(config: TrainConfig) -> re.Pattern[str]:
    """Matches the name, without extension, of every LoRA file that a run with this output_name can save."""
    return re.compile(rf"{re.escape(config.output_name)}(-\d{{6}}|-step\d{{8}})?")


def lora_path(config: TrainConfig, position: Position) -> Path:
    """The path of the LoRA file saved at a position, in the output folder."""
    return config.output_dir / f"{checkpoint_name(config, position)}{SAFETENSORS}"


def state_path(config: TrainConfig, step: int) -> Path:
    """The folder of the training state saved after `step` optimizer steps, such as runs/NAME/state-step00000100."""
    return run_dir(config) / f"state-step{step:08d}"


def run_dir(config: TrainConfig) -> Path:
    """The run's own folder, such as runs/NAME: for its states, samples, log and settings, but not its LoRA files."""
    return config.run_dir / config.output_name


def sample_path(config: TrainConfig, step: int, index: int) -> Path:
    """The path of a sample image generated after `step` optimizer steps. index: of its prompt, counted from 0."""
    return run_dir(config) / "samples" / f"{config.output_name}-step{step:08d}-{index:02d}.png"


def remove_leftovers(config: TrainConfig) -> None:
    """Remove partly written LoRA files with this run's name, left by a process that was killed while saving."""
    pattern = rf"\.{checkpoint_name_pattern(config).pattern}{re.escape(SAFETENSORS)}\.\w+\.tmp"
    for path in config.output_dir.glob(".*.tmp"):
        if re.fullmatch(pattern, path.name):
            path.unlink()


def remove_outdated(config: TrainConfig, position: Position, steps_per_epoch: int) -> list[Path]:
    """Delete this run's LoRA files and states that `--save_last_n_*` no longer keeps; returns the deleted paths.

    position: where the run is now. The LoRA file of the end of the run is never deleted. A state with files that are
    not ours is kept, with a warning.
    """
    loras, states = config.output_dir.glob("*.safetensors"), list_states(run_dir(config))
    return [path for path in outdated(config, position, steps_per_epoch, loras, states) if _remove(path)]


def outdated(
    config: TrainConfig, position: Position, steps_per_epoch: int, loras: Iterable[Path], states: Iterable[Path]
) -> list[Path]:
    """Those of the given LoRA files and states that `--save_last_n_*` no longer keeps once the run is at `position`.

    Only names are looked at; nothing is deleted. Of epoch files, the last n that were due are kept, not counting the
    file of the end of the run; of step files, those of the last n steps.
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
    except ValueError as error:  # the user keeps files of their own in it
        log.warning("%s", error)
        return False
    return True


class _Ages:
    """The age of a run's files, by name: in epochs for epoch files, in steps for step files.

    Ages count from the last epoch and step that were due, so that an additional save, such as the one at the end of the
    run, removes nothing too early.
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
