"""Answers the page's questions what a training would take, one at a time, also while a job runs."""

import contextlib
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.exchange.plans import Plans
from trainer.serving.outcome import last_words, signal_name

SLOWEST = 600.0  # seconds that an answer may take
TRIES = 3  # processes that may leave no answer, not even the reason
TAIL = 4096  # bytes of what a process has printed


@dataclass
class Planning:
    """The question that is being answered, and when its process was started, on the monotonic clock."""

    plan: str
    process: subprocess.Popen[bytes]
    started: float


class Planner:
    """Starts a process for each question; it writes the answer itself.

    command: the words that answer a question; the flag tells whether a job uses the GPU meanwhile.
    """

    def __init__(self, queue: Path, command: Callable[[str, bool], Sequence[str]]):
        self.plans, self.command = Plans(queue), command
        self.planning: Planning | None = None
        self.starts: Counter[str] = Counter()  # of questions that have no answer so far

    def tick(self, gpu_in_use: bool) -> None:
        """Look at the questions once. What the disk refuses is tried again, at most `TRIES` times."""
        with contextlib.suppress(OSError):
            if self.planning:
                self._watch(self.planning)
            given_up = {plan for plan, count in self.starts.items() if count == TRIES}
            if self.planning is None and (plan := self.plans.unanswered(given_up)):
                self._start(plan, gpu_in_use)

    def stop(self) -> None:
        """End the process that is answering; the next trainer answers instead."""
        if self.planning:
            self.planning.process.kill()
            self.planning.process.wait()
            self.planning = None

    def _start(self, plan: str, gpu_in_use: bool) -> None:
        self.starts[plan] += 1
        with self.plans.path(plan, ".log").open("wb") as log:
            process = subprocess.Popen(
                self.command(plan, gpu_in_use),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to the trainer alone
            )
        self.planning = Planning(plan, process, time.monotonic())

    def _watch(self, planning: Planning) -> None:
        if not self.plans.is_asked(planning.plan):  # somebody chose something else
            self.stop()
            del self.starts[planning.plan]
        elif (status := planning.process.poll()) is not None:
            self.planning = None
            self._require_answer(planning.plan, status)
        elif time.monotonic() - planning.started > SLOWEST:
            self.stop()
            self.plans.answer(planning.plan, {"message": f"It was not known after {SLOWEST:.0f} seconds."})

    def _require_answer(self, plan: str, status: int) -> None:
        """Say why there is no answer if the process has left none."""
        if self.plans.answer_to(plan) is not None:
            del self.starts[plan]
            return
        if status < 0:
            said = f"The process that counts was killed by {signal_name(-status)}."
        else:
            printed = self.plans.path(plan, ".log").read_bytes()[-TAIL:].decode("utf-8", "replace")
            said = last_words(printed) or f"The process that counts exited with status {status}."
        self.plans.answer(plan, {"message": said})
