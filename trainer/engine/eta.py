"""When a run will end: estimated after ten steps, kept up to date, and compared with the actual time at the end.

On a GPU the ten steps are counted once batches are recorded as CUDA graphs, since the steps before are slower.
"""

import statistics
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from trainer.checkpoint.naming import steps_due
from trainer.common.text import counted, duration, in_seconds
from trainer.config import TrainConfig
from trainer.data.dataset import Schedule
from trainer.preflight.disk import save_steps

AFTER_STEPS = 10
OUTLIER = 3  # a step that takes this many times the median was compiling, which does not happen again


def pause_steps(config: TrainConfig, schedule: Schedule) -> dict[str, list[int]]:
    """The steps after which training pauses, in order, by kind of pause: "checkpoint", "sample", "validation",
    "evaluation"."""
    return {
        "checkpoint": save_steps(config, schedule, start_step=0),
        "sample": steps_due(schedule, config.sample_every_n_epochs, config.sample_every_n_steps),
        "validation": steps_due(schedule, config.validate_every_n_epochs, config.validate_every_n_steps),
        "evaluation": steps_due(schedule, config.evaluate_every_n_epochs, None),
    }


@dataclass(frozen=True)
class Forecast:
    """The announced end of a run. made: when it was announced; finish: when the run will end. Unix seconds."""

    made: float
    finish: float


@dataclass
class Estimate:
    """Estimates when a run will end, from the measured times of its steps and pauses.

    pauses: kind of pause ("checkpoint", "sample", "validation") → the steps, in order, after which it happens. steps,
    images: seconds per step and per image of the last 100 steps; paused: the measured seconds of each kind of pause;
    is_warming_up: whether later steps will be faster.
    """

    total_steps: int
    pauses: Mapping[str, Sequence[int]]
    steps: list[float] = field(default_factory=list)
    images: list[float] = field(default_factory=list)
    paused: dict[str, list[float]] = field(default_factory=dict)
    forecast: Forecast | None = None
    is_warming_up: bool = False

    def add_step(self, seconds: float, seconds_per_image: float, is_warming_up: bool = False) -> None:
        """Record the time of a step. is_warming_up: whether later steps will be faster.

        The first step that is not a warm-up step discards the times recorded before.
        """
        if self.is_warming_up and not is_warming_up:
            self.steps.clear()
            self.images.clear()
        self.is_warming_up = is_warming_up
        self.steps.append(seconds)
        self.images.append(seconds_per_image)
        del self.steps[:-100], self.images[:-100]

    def add_pause(self, kind: str, seconds: float) -> None:
        """Record for how many seconds training paused. kind: "checkpoint", "sample" or "validation"."""
        self.paused.setdefault(kind, []).append(seconds)

    @property
    def seconds_per_image(self) -> float:
        """The mean over the last 100 steps, without those that took over three times the median."""
        return _typical(self.images)

    def seconds_left(self, step: int) -> float:
        """Estimated seconds from the end of step `step` to the end of the run.

        Pauses to come count if their kind was measured before.
        """
        pauses = sum(
            statistics.fmean(self.paused[kind]) * n for kind, n in self._left(step).items() if kind in self.paused
        )
        return (self.total_steps - step) * _typical(self.steps) + pauses

    def unmeasured(self, step: int) -> dict[str, int]:
        """How many pauses are still to come after `step`, by kind, of kinds that were never measured."""
        return {kind: number for kind, number in self._left(step).items() if kind not in self.paused}

    def is_due(self, step: int) -> bool:
        """Whether to make the forecast after `step`: none was made yet, and enough steps have been measured."""
        has_seen_enough = not self.is_warming_up and len(self.steps) >= AFTER_STEPS
        return self.forecast is None and has_seen_enough and step < self.total_steps

    def make_forecast(self, step: int, now: float) -> str:
        """Forecast when the run will end, and keep it in `forecast` for `review`; returns it in words, for the log.

        step: optimizer steps done so far; now: the current time in Unix seconds.
        """
        left = self.seconds_left(step)
        self.forecast = Forecast(now, now + left)
        unmeasured = [f"{number} x {kind}" for kind, number in self.unmeasured(step).items()]
        return (
            f"{counted(self.total_steps - step, 'step')} left: about {duration(left)},"
            f" until {_clock(self.forecast.finish, now)} ({in_seconds(self.seconds_per_image)} s per image)"
            + (f"; not included, because not measured yet: {', '.join(unmeasured)}" if unmeasured else "")
        )

    def review(self, now: float) -> str | None:
        """The forecast compared with the actual end of the run, in words; None if no forecast was made.

        now: the time of the end in Unix seconds.
        """
        if self.forecast is None:
            return None
        expected, taken = self.forecast.finish - self.forecast.made, now - self.forecast.made
        off = (taken - expected) / max(expected, 1e-9)
        how = "as estimated" if abs(off) < 0.0005 else f"{abs(off):.1%} {'later' if off > 0 else 'earlier'}"
        return f"finished at {_clock(now, now)}, estimated {_clock(self.forecast.finish, now)}: {how}"

    def _left(self, step: int) -> dict[str, int]:
        counts = {kind: len(steps) - bisect_right(steps, step) for kind, steps in self.pauses.items()}
        return {kind: number for kind, number in counts.items() if number}


def _typical(values: Sequence[float]) -> float:
    median = statistics.median(values)
    return statistics.fmean(value for value in values if value <= OUTLIER * median)


def _clock(time: float, now: float) -> str:
    """The local time of day, with the date if it is not today's."""
    then, today = datetime.fromtimestamp(time), datetime.fromtimestamp(now)
    return f"{then:%H:%M}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M}"
