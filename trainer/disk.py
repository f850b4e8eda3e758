"""Whether a run can write where it wants to, and how much: walked through, with its rules, before it starts."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from trainer.checkpoints import lora_path, outdated, position_after, run_dir, state_path, steps_due
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule
from trainer.faults import Fault
from trainer.files import free_bytes, nearest_existing


class Growth(NamedTuple):
    """Bytes that LoRA files and states take beyond what they take now, while something is being written."""

    loras: int
    states: int


class Share(NamedTuple):
    """What goes into one folder."""

    folder: Path
    what: str
    size: int


def due_steps(config: TrainConfig, schedule: Schedule, start_step: int) -> list[int]:
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
    for step in due_steps(config, schedule, start_step):
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


def shortage(moments: Iterable[Sequence[Share]]) -> list[str]:
    """One line for each disk on which, at its fullest moment, all that goes there does not fit.

    moments: what has been written by then, the same folders in each.
    """
    by_disk: dict[int, list[list[Share]]] = {}
    for shares in moments:
        here: dict[int, list[Share]] = {}
        for share in shares:
            here.setdefault(nearest_existing(share.folder).stat().st_dev, []).append(share)
        for disk, parts in here.items():
            by_disk.setdefault(disk, []).append(parts)
    fullest = (max(each, key=_total) for each in by_disk.values())
    return [line for parts in fullest if (line := _shortage(parts))]


def _total(parts: Sequence[Share]) -> int:
    return sum(part.size for part in parts)


def _shortage(parts: Sequence[Share]) -> str | None:
    total, free = _total(parts), free_bytes(parts[0].folder)
    if total <= free:
        return None
    listed = "; ".join(f"{part.what} in {part.folder}: {part.size / 1e9:.2f} GB" for part in parts)
    return f"{total / 1e9:.2f} GB are needed and {free / 1e9:.2f} GB are free ({listed})"


def write_faults(folders: Iterable[tuple[str, Path]]) -> list[Fault]:
    """Folders, each with its flag, that cannot be made or written into."""
    faults = []
    for flag, folder in folders:
        there = nearest_existing(folder)
        if not there.is_dir():
            faults.append(Fault(f"{flag}={folder}", f"{there} is not a folder", "name another one"))
        elif not os.access(there, os.W_OK | os.X_OK):
            what = f"{there} may not be written into"
            faults.append(Fault(f"{flag}={folder}", what, "give this user the right to, or name another folder"))
    return faults


def _sizes(paths: Iterable[Path]) -> dict[Path, int]:
    return {path: _size(path) for path in paths}


def _size(path: Path) -> int:
    try:
        return sum(map(_size, path.iterdir())) if path.is_dir() else path.stat().st_size
    except OSError:  # a file that may not be looked at, or is gone by now, makes no room either
        return 0
