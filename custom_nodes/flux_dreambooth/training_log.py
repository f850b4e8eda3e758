"""A run's log.jsonl, read as it grows: only what was added since the last call, and robust to any content.

Lines are the trainer's: {"kind": "step", "step": 12, "loss": …}, and "start", "checkpoint", "sample", "validation",
"evaluation", "recommendation", "verdict".
"""

import itertools
import json
import math
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

MAX_LINE = 64 * 2**10
MAX_BYTES = 256 * 2**20  # of a log that is read for the first time, counted from its end
CHUNK = 2**20
MAX_STEPS = 20_000  # of a curve; beyond that, every second one is dropped
MAX_EVENTS = 2_000
PLAIN_NAME = re.compile(r"[^/\\\x00-\x1f]{1,255}")


@dataclass(frozen=True)
class Start:
    """Preparation is finished; steps start after `step`, above 0 in a resumed run. total: the run's steps in all."""

    step: int
    total: int
    epochs: int | None


@dataclass(frozen=True)
class Step:
    """One optimizer step's line; values that it lacks are None. seconds: the step's duration."""

    step: int
    loss: float | None
    average: float | None
    learning_rate: float | None
    seconds: float | None
    seconds_per_picture: float | None
    peak_gib: float | None
    epoch: int | None


@dataclass(frozen=True)
class Checkpoint:
    """A LoRA file that was written. with_state: the run can be resumed from it; time: in seconds since 1970."""

    file: str
    step: int
    with_state: bool
    time: float | None = None


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; raises OSError for links, pipes and devices."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(f"{path.name} is not a file")
    return os.fdopen(handle, "rb")


class TrainingLog:
    """The content of one log so far. `update` continues reading; a replaced or truncated log is read from its start."""

    def __init__(self) -> None:
        self.file_id: tuple[int, int] | None = None
        self.offset = 0
        self._forget()

    def _forget(self) -> None:
        self.rest = b""
        self.skipping = False  # inside a line that is too long
        self.num_broken = 0
        self.steps: list[Step] = []
        self.validation: list[tuple[int, float]] = []
        self.checkpoints: dict[str, Checkpoint] = {}
        self.prompts: dict[str, str] = {}  # of sample images, by file name
        self.evaluations: dict[int, dict[str, float]] = {}  # what each has measured, by step
        self.recommended: int | None = None  # the step that the trainer recommends at the run's end
        self.verdicts: dict[str, dict[str, Any]] = {}  # the latest of each kind; the guard repeats them after a start
        self.start: Start | None = None
        self.last: Start | Step | Checkpoint | None = None

    @property
    def step(self) -> int:
        """How far the run has come; not every step has a line."""
        return max(self.start.step if self.start else 0, self.steps[-1].step if self.steps else 0)

    def update(self, path: Path) -> None:
        """Read what was added. Raises OSError if the log does not exist or cannot be read."""
        with open_regular(path) as file:
            facts = os.fstat(file.fileno())
            file_id = (facts.st_dev, facts.st_ino)
            if file_id != self.file_id or facts.st_size < self.offset:
                self._forget()
                self.file_id, self.offset = file_id, max(0, facts.st_size - MAX_BYTES)
                self.skipping = self.offset > 0
            file.seek(self.offset)
            left = min(MAX_BYTES, facts.st_size - self.offset)
            while left > 0 and (data := file.read(min(CHUNK, left))):
                self.offset += len(data)
                left -= len(data)
                self._take(data)

    def _take(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            if self.skipping:
                self.skipping = False
            elif len(line) > MAX_LINE:
                self.num_broken += 1
            elif line.strip():
                self._read(line)
        if len(self.rest) > MAX_LINE:
            self.num_broken += not self.skipping
            self.rest, self.skipping = b"", True

    def _read(self, line: bytes) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or (step := count(record.get("step"))) is None:
            self.num_broken += 1
            return
        kind = record.get("kind")
        note = _NOTES.get(kind) if isinstance(kind, str) else None
        if note and not note(self, step, record):
            self.num_broken += 1

    def _note_start(self, step: int, record: dict[str, Any]) -> bool:
        if not (total := count(record.get("total_steps"))):
            return False
        self._go_back_to(step)
        self.recommended, self.verdicts = None, {}
        self.last = self.start = Start(step, total, count(record.get("epochs")) or None)
        return True

    def _go_back_to(self, step: int) -> None:
        """Forget the steps that a run resumed from an earlier state repeats."""
        if self.steps and step < self.steps[-1].step:
            self.steps = [earlier for earlier in self.steps if earlier.step <= step]
            self.validation = [earlier for earlier in self.validation if earlier[0] <= step]

    def _note_step(self, step: int, record: dict[str, Any]) -> bool:
        self._go_back_to(step - 1)
        if len(self.steps) >= MAX_STEPS:
            self.steps = self.steps[::2]
        numbers = {name: number(record.get(key)) for name, key in STEP_KEYS.items()}
        self.last = Step(step=step, epoch=count(record.get("epoch")), **numbers)
        self.steps.append(self.last)
        return True

    def _note_validation(self, step: int, record: dict[str, Any]) -> bool:
        loss = number(record.get("loss"))
        if loss is not None:
            self.validation = [*self.validation[-MAX_EVENTS:], (step, loss)]
        return loss is not None

    def _note_checkpoint(self, step: int, record: dict[str, Any]) -> bool:
        file = plain_name(record.get("file"))
        if file is None:
            return False
        for removed in str(record.get("removed", "")).split(", "):
            self.checkpoints.pop(removed, None)
        self.checkpoints.pop(file, None)
        self.last = self.checkpoints[file] = Checkpoint(file, step, "state" in record, number(record.get("time")))
        _keep_newest(self.checkpoints)
        return True

    def _note_sample(self, _step: int, record: dict[str, Any]) -> bool:
        file = plain_name(re.split(r"[\\/]", str(record.get("file", "")))[-1])
        if file is None:
            return False
        self.prompts[file] = str(record.get("prompt", ""))[:1000]
        _keep_newest(self.prompts)
        return True

    def _note_evaluation(self, step: int, record: dict[str, Any]) -> bool:
        numbers = {key: found for key, value in record.items() if (found := number(value)) is not None}
        if "score" not in numbers:
            return False
        self.evaluations[step] = numbers
        _keep_newest(self.evaluations)
        return True

    def _note_recommendation(self, _step: int, record: dict[str, Any]) -> bool:
        self.recommended = count(record.get("best_step"))
        return self.recommended is not None

    def _note_verdict(self, step: int, record: dict[str, Any]) -> bool:
        kind, text, holds = record.get("verdict"), record.get("text"), record.get("holds")
        if not isinstance(kind, str) or not isinstance(text, str) or not isinstance(holds, bool):
            return False
        numbers = {key: found for key, value in record.items() if (found := number(value)) is not None}
        facts = {key: found for key, found in numbers.items() if key not in ("time", "step")}
        self.verdicts.pop(kind, None)
        self.verdicts[kind] = {"kind": kind, "step": step, "holds": holds, "text": text[:1000], "facts": facts}
        _keep_newest(self.verdicts)
        return True


STEP_KEYS = {  # a step's numbers, and their names in the log
    "loss": "loss",
    "average": "loss_average",
    "learning_rate": "learning_rate",
    "seconds": "seconds",
    "seconds_per_picture": "seconds_per_picture",
    "peak_gib": "peak_gib",
}
_NOTES = {
    "start": TrainingLog._note_start,
    "step": TrainingLog._note_step,
    "validation": TrainingLog._note_validation,
    "checkpoint": TrainingLog._note_checkpoint,
    "sample": TrainingLog._note_sample,
    "evaluation": TrainingLog._note_evaluation,
    "recommendation": TrainingLog._note_recommendation,
    "verdict": TrainingLog._note_verdict,
}


def _keep_newest(events: dict[Any, Any]) -> None:
    while len(events) > MAX_EVENTS:
        del events[next(iter(events))]


def number(value: Any) -> float | None:
    """A finite number unchanged, else None: Python writes NaN into JSON, which a browser cannot parse."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return float(value) if is_number and math.isfinite(value) else None


def count(value: Any) -> int | None:
    """A count that a run can reach, else None."""
    found = number(value)
    return int(found) if found is not None and 0 <= found < 1e9 else None


def plain_name(value: Any) -> str | None:
    """A file's name without a folder, else None."""
    is_plain = isinstance(value, str) and PLAIN_NAME.fullmatch(value) and not value.startswith(".")
    return value if is_plain else None


def curve(steps: Sequence[Step], most: int = 300) -> list[list[float | None]]:
    """[step, loss, average, learning rate] of at most this many points, each the mean of a range of steps."""
    stretches = min(most, len(steps))
    edges = [index * len(steps) // stretches for index in range(stretches + 1)] if stretches else []
    return [_mean_point(steps[first:last]) for first, last in itertools.pairwise(edges)]


def _mean_point(steps: Sequence[Step]) -> list[float | None]:
    last = steps[-1]
    losses, averages = [s.loss for s in steps], [s.average for s in steps]
    return [last.step, _mean(losses), _mean(averages), last.learning_rate]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def steps_per_epoch(steps: Sequence[Step]) -> int | None:
    """The steps of an epoch, once only one number fits all lines: epoch = ceil(step / number); else None."""
    least, most = 1, None
    for entry in steps:
        if entry.epoch:
            least = max(least, -(-entry.step // entry.epoch))
            if entry.epoch > 1:
                bound = (entry.step - 1) // (entry.epoch - 1)
                most = bound if most is None else min(most, bound)
    return least if least == most else None
