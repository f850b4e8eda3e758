"""The numbers of a run so far, as the verdicts need them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """An optimizer step. loss: of its images, before the update; loss_change: estimated change of the loss since the
    start of the run, to first order; alignment: the cosine between its gradient and the update before; rate: the
    learning rate."""

    step: int
    loss: float
    loss_change: float
    alignment: float
    rate: float


@dataclass(frozen=True)
class Score:
    """An evaluation's score in points, with its standard error."""

    step: int
    score: float
    error: float


@dataclass
class History:
    """What has been measured in a run of `total_steps` optimizer steps.

    holds_out: whether validation uses images that are held out of training. finds_rate: whether the optimizer finds its
    step size itself, as Prodigy does. validations: (step, loss).
    """

    total_steps: int
    holds_out: bool = False
    finds_rate: bool = False
    steps: list[Step] = field(default_factory=list)
    validations: list[tuple[int, float]] = field(default_factory=list)
    scores: list[Score] = field(default_factory=list)

    def add_step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add a step, unless its loss is no finite number. numbers: those of a step in log.jsonl."""
        change, alignment = numbers.get("loss_change", 0.0), numbers.get("alignment", 0.0)
        if not (math.isfinite(numbers["loss"]) and math.isfinite(change)):
            return
        self.finds_rate |= "prodigy_d" in numbers
        rate = numbers["learning_rate"] * numbers.get("prodigy_d", 1.0)
        self.steps.append(Step(step, numbers["loss"], change, alignment, rate))

    def add_event(self, event: Mapping[str, Any]) -> None:
        """Add a line of log.jsonl, if it is one that counts."""
        kind, step = event.get("kind"), int(event.get("step", 0))
        if kind == "step":
            self.add_step(step, event)
        elif kind == "validation":
            self.add_validation(step, float(event["loss"]))
        elif kind == "evaluation":
            self.add_score(step, float(event["score"]), float(event["error"]))

    def add_validation(self, step: int, loss: float) -> None:
        """Add a validation, unless its loss is not finite."""
        if math.isfinite(loss):
            self.validations.append((step, loss))

    def add_score(self, step: int, score: float, error: float) -> None:
        """Add an evaluation, unless its score or standard error is not finite."""
        if math.isfinite(score) and math.isfinite(error):
            self.scores.append(Score(step, score, error))


def read_history(
    events: Iterable[Mapping[str, Any]], total_steps: int, holds_out: bool = False, until: int | None = None
) -> History:
    """The history in the lines of a log.jsonl. until: the last step to read, for a run that is resumed from there.

    A run that was resumed before has repeated steps; what came after the state is left out.
    """
    history = History(total_steps, holds_out)
    for event in events:
        step = int(event.get("step", 0))
        if event.get("kind") == "start":
            _forget_after(history, step)
        if until is None or step <= until:
            history.add_event(event)
    return history


def _forget_after(history: History, step: int) -> None:
    history.steps = [each for each in history.steps if each.step <= step]
    history.validations = [each for each in history.validations if each[0] <= step]
    history.scores = [each for each in history.scores if each.step <= step]
