"""When a run will be done: said once after ten steps, kept up to date, and compared with the truth at the end.

Steps count from where the run has its full speed: on a GPU, where batches are recorded.
"""

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from trainer.checkpoint.naming import steps_due
from trainer.common.text import duration, in_seconds
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule
from trainer.preflight.disk import due_steps

AFTER_STEPS = 10
OUTLIER = 3  # a step that takes this many times the median was compiling, and will not come again


def due_tasks(config: TrainConfig, schedule: Schedule) -> dict[str, list[int]]:
    """After which steps training stops for what, as `Estimate` wants it."""
    return {
        "checkpoint": due_steps(config, schedule, start_step=0),
        "sample": steps_due(schedule, config.sample_every_n_epochs, config.sample_every_n_steps),
        "validation": steps_due(schedule, config.validate_every_n_epochs, config.validate_every_n_steps),
    }


@dataclass(frozen=True)
class Promise:
    """What was said: at which time, when the run would be done. Unix seconds."""

    made: float
    finish: float


@dataclass
class Estimate:
    """Measured times of steps and of what happens between them, and how much of either is still to come.

    due: kind of task ("checkpoint", "sample", "validation") → the steps, in order, after which it happens.
    """

    total_steps: int
    due: Mapping[str, Sequence[int]]
    steps: list[float] = field(default_factory=list)
    pictures: list[float] = field(default_factory=list)
    tasks: dict[str, list[float]] = field(default_factory=dict)
    promise: Promise | None = None
    is_warming_up: bool = False

    def note_step(self, seconds: float, seconds_per_picture: float, is_warming_up: bool = False) -> None:
        """One more step was done; is_warming_up: those to come will be faster."""
        if self.is_warming_up and not is_warming_up:
            self.steps.clear()
            self.pictures.clear()
        self.is_warming_up = is_warming_up
        self.steps.append(seconds)
        self.pictures.append(seconds_per_picture)
        del self.steps[:-100], self.pictures[:-100]

    def note_task(self, kind: str, seconds: float) -> None:
        """Training stopped so long for a checkpoint, pictures or a validation."""
        self.tasks.setdefault(kind, []).append(seconds)

    @property
    def seconds_per_picture(self) -> float:
        """Of steps like those to come."""
        return _usual(self.pictures)

    def seconds_left(self, step: int) -> float:
        """From the end of `step` to the end of the run, tasks included whose time is known."""
        waiting = sum(
            statistics.fmean(self.tasks[kind]) * n for kind, n in self._left(step).items() if kind in self.tasks
        )
        return (self.total_steps - step) * _usual(self.steps) + waiting

    def unknown(self, step: int) -> dict[str, int]:
        """What is still to come and was never measured: how many of each kind."""
        return {kind: number for kind, number in self._left(step).items() if kind not in self.tasks}

    def is_due(self, step: int) -> bool:
        """Whether to make the promise now."""
        has_seen_enough = not self.is_warming_up and len(self.steps) >= AFTER_STEPS
        return self.promise is None and has_seen_enough and step < self.total_steps

    def make_promise(self, step: int, now: float) -> str:
        """Make it, and say it in words."""
        left = self.seconds_left(step)
        self.promise = Promise(now, now + left)
        unknown = [f"{number} x {kind}" for kind, number in self.unknown(step).items()]
        return (
            f"about {duration(left)} for the remaining {self.total_steps - step:,} steps,"
            f" done at {_clock(self.promise.finish, now)} ({in_seconds(self.seconds_per_picture)} s a picture)"
            + (f"; not yet measured, so not in it: {', '.join(unknown)}" if unknown else "")
        )

    def verdict(self, now: float) -> str | None:
        """How far off the promise was; None when none was made."""
        if self.promise is None:
            return None
        promised, taken = self.promise.finish - self.promise.made, now - self.promise.made
        off = (taken - promised) / max(promised, 1e-9)
        how = "to the minute" if abs(off) < 0.0005 else f"{abs(off):.1%} {'later' if off > 0 else 'earlier'}"
        return f"promised {_clock(self.promise.finish, now)}, done {_clock(now, now)}, {how}"

    def _left(self, step: int) -> dict[str, int]:
        counts = {kind: len(steps) - bisect_right(steps, step) for kind, steps in self.due.items()}
        return {kind: number for kind, number in counts.items() if number}


def _usual(values: Sequence[float]) -> float:
    median = statistics.median(values)
    return statistics.fmean(value for value in values if value <= OUTLIER * median)


def _clock(moment: float, now: float) -> str:
    """The local time of day, with the date when it is another day's."""
    then, today = datetime.fromtimestamp(moment), datetime.fromtimestamp(now)
    return f"{then:%H:%M}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"
