"""The progress of a stage: JSON lines in a file, and a short form on the console."""

import json
import math
import time
from pathlib import Path

from mini.training.distributed import Distributed
from trainer.common.problems import Problem, Problems


class Journal:
    """Appends lines to `file` and measures the speed between them; only the main process writes.

    `seconds` counts from the start of this process; its first line also names the machine.
    """

    def __init__(self, file: Path, distributed: Distributed):
        self.file = file
        self.distributed = distributed
        self._start = self._last = time.monotonic()
        self._step: int | None = None
        self._machine = distributed.machine

    def mark(self, step: int) -> None:
        """Start measuring the speed, just before step number `step` (from 0)."""
        self._last, self._step = time.monotonic(), step

    def write(self, step: int, pictures_per_step: int = 0, /, **numbers: float) -> None:
        """Write one line after `step` steps, with the speed since the last mark if `pictures_per_step` is given.

        Raises `Problems` if a number is not finite.
        """
        line: dict[str, float] = {"step": step, **numbers}
        if pictures_per_step and self._step is not None:
            rate = (step - self._step) / max(time.monotonic() - self._last, 1e-9)
            line |= {"steps_per_second": round(rate, 2), "pictures_per_second": round(rate * pictures_per_step, 1)}
        line["seconds"] = round(time.monotonic() - self._start, 1)
        if self.distributed.is_main:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | self._machine) + "\n")
            self._machine = {}
        summary = ", ".join(f"{name.replace('_', ' ')} {value:.6g}" for name, value in line.items())
        self.distributed.say(f"{self.file.stem}: {summary}")
        if not all(math.isfinite(value) for value in line.values()):
            hint = "run the stage again: it resumes from its last state; if it happens again, lower the learning rate"
            raise Problems([Problem(f"{self.file.stem}, step {step}", "a number is not finite", hint)])
