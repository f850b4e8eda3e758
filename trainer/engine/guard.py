"""Watches a run's numbers as they are logged, and says when its learning rate or its length looks wrong.

It uses what the run measures anyway, on the host, after it was logged: training itself is neither slower nor different.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.config import TrainConfig
from trainer.engine.log import RunLog
from trainer.guard.history import History
from trainer.guard.verdicts import MIN_STEPS, Kind, Verdict, verdicts

LOOKS = 50  # how often in a run the numbers are judged
NO_ALARM = "no alarm in this run"
VERDICT = "verdict"  # the kind of its events in log.jsonl


class Guard:
    """Collects a run's numbers, announces verdicts, and asks to stop if --stop_when says so.

    history: what an earlier part of the run has logged, for one that is resumed. Only the main process has a guard that
    speaks; the log is silent in the others.
    """

    def __init__(self, config: TrainConfig, log: RunLog, history: History) -> None:
        self.log, self.history = log, history
        self.stops_at_overfit = config.stop_when == "overfit"
        self.reason_to_stop: Verdict | None = None
        self._change = history.steps[-1].loss_change if history.steps else 0.0
        self._every = max(1, history.total_steps // LOOKS)
        self._current: dict[Kind, Verdict] = {}

    def see_step(self, step: int, numbers: dict[str, float]) -> None:
        """Take in a step's numbers before they are logged: "slope" becomes "loss_change", its sum over steps."""
        self._change += numbers.pop("slope")
        numbers["loss_change"] = self._change
        self.history.add_step(step, numbers)

    def see_validation(self, step: int, loss: float) -> None:
        """Take in a validation loss."""
        self.history.add_validation(step, loss)

    def see_evaluation(self, step: int, figures: Mapping[str, float]) -> None:
        """Take in the figures of an evaluation."""
        self.history.add_score(step, figures["score"], figures["error"])

    def see_explosion(self, step: int) -> None:
        """Announce that the loss or gradient of `step` is not finite, which ends the run."""
        text = "learning rate too high: the loss or its gradient is no finite number"
        self._announce(Verdict("too_high", step, text))

    def look(self, step: int) -> None:
        """After `step` was logged: announce what has changed since the last look. At the end, sum up."""
        is_last = step == self.history.total_steps
        if not self.log.active or not (is_last or step % self._every == 0):
            return
        found: dict[Kind, Verdict] = {each.kind: each for each in verdicts(self.history)}
        for kind, verdict in found.items():
            if kind not in self._current or is_last:
                self._announce(verdict)
        for kind in self._current.keys() - found.keys():
            text = f"no longer so: {kind.replace('_', ' ')}"
            self._announce(replace(self._current[kind], step=step, text=text), holds=False)
        self._current = found
        if is_last and not found:
            few = len(self.history.steps) < MIN_STEPS
            self.log.say(f"learning rate: {f'not judged in fewer than {MIN_STEPS} steps' if few else NO_ALARM}")
        if self.stops_at_overfit and not is_last:
            self.reason_to_stop = found.get("overfitting")

    def _announce(self, verdict: Verdict, holds: bool = True) -> None:
        facts: dict[str, Any] = {"verdict": verdict.kind, "holds": holds, "text": verdict.text, **verdict.evidence}
        facts |= {name: value for name in ("since", "more_steps") if (value := getattr(verdict, name)) is not None}
        self.log.record(VERDICT, verdict.step, facts)
        self.log.say(f"step {verdict.step}: {verdict.text}")
