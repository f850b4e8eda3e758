"""The log of a run: lines on the console, log.jsonl, and trackers (TensorBoard, wandb)."""

import importlib.util
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from accelerate import Accelerator, InitProcessGroupKwargs
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer.checkpoint.naming import run_dir
from trainer.common.problems import Problem, Problems
from trainer.common.text import in_seconds
from trainer.config import TrainConfig, to_dict
from trainer.engine.eta import Estimate

log = logging.getLogger(__name__)
PATIENCE = timedelta(hours=6)  # how long other processes wait while the main one saves or generates samples
PLAIN_EVERY = 10  # steps between two lines if the output is not a terminal


def accelerator_arguments(config: TrainConfig) -> dict[str, Any]:
    """Keyword arguments for `Accelerator`: trackers, their folder, and how long processes wait for each other.

    Raises `Problems` if --log_with names a tracker that is not installed.
    """
    names = {"all": ["tensorboard", "wandb"], "none": []}.get(config.log_with, [config.log_with])
    if "wandb" in names and importlib.util.find_spec("wandb") is None:
        raise Problems([Problem("--log_with", "wandb is not installed", "pip install wandb, or remove --log_with")])
    waiting = InitProcessGroupKwargs(timeout=PATIENCE)
    project_dir = config.logging_dir or run_dir(config) / "tensorboard"
    return {"log_with": names or None, "project_dir": project_dir, "kwargs_handlers": [waiting]}


def _start_trackers(config: TrainConfig, accelerator: Accelerator) -> None:
    settings = {key: value for key, value in to_dict(config).items() if isinstance(value, int | float | str | bool)}
    wandb = {"name": config.wandb_run_name or config.output_name, "dir": run_dir(config)}
    accelerator.init_trackers(config.output_name, config=settings, init_kwargs={"wandb": wandb})


class RunLog:
    """Writes a run's log.jsonl, the trackers' files and the console, in the main process only."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        run_dir: Path,
        total_steps: int,
        step: int,
        pauses: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        """Open the log and start the trackers; log.jsonl is appended to if step > 0, else started anew.

        total_steps: of the run; step: steps that are done already; pauses: kind of pause ("checkpoint", "sample",
        "validation") → the steps after which it will happen.
        """
        self.active = accelerator.is_main_process
        self.accelerator = accelerator
        self.every = config.log_every
        self.recent: deque[float] = deque(maxlen=100)
        self.estimate = Estimate(total_steps, pauses or {})
        self.first, self.last = step + 1, step
        _start_trackers(config, accelerator)
        if not self.active:
            return
        file = run_dir / "log.jsonl"
        if step == 0:
            _move_aside(file)
        self.file = file.open("a", encoding="utf-8")
        on_terminal = sys.stderr.isatty()
        self.bar = tqdm(total=total_steps, initial=step, unit="step", disable=not on_terminal, dynamic_ncols=True)
        self.plain = not on_terminal
        self.redirect = logging_redirect_tqdm()
        self.redirect.__enter__()

    def step(self, step: int, values: dict[str, float], is_warming_up: bool = False) -> None:
        """Log an optimizer step, on the console and, every --log_every steps, in log.jsonl and the trackers.

        values: numbers by name: "loss", "epoch", "seconds", "seconds_per_picture" and whatever else was measured.
        is_warming_up: whether later steps will be faster.
        """
        if not self.active:
            return
        self.recent.append(values["loss"])
        self.last = step
        self.estimate.add_step(values["seconds"], values["seconds_per_picture"], is_warming_up)
        average = sum(self.recent) / len(self.recent)
        self.bar.update(1)
        self.bar.set_postfix_str(_postfix(average, values))
        if step % self.every == 0 or step == self.bar.total:
            self._write("step", step, {**values, "loss_average": average})
            self.accelerator.log({f"train/{key}": value for key, value in values.items()}, step=step)
        if self.plain and (step % max(self.every, PLAIN_EVERY) == 0 or step in (self.first, self.bar.total)):
            left = _duration(self.estimate.seconds_left(step))
            log.info("step %d/%d  %s, %s left", step, self.bar.total, _postfix(average, values), left)
        if self.estimate.is_due(step):
            log.info("%s", self.estimate.make_forecast(step, time.time()))
            self._write_estimate(step)

    def paused(self, kind: str, step: int, seconds: float) -> None:
        """Record for how many seconds training paused after `step`. kind: "checkpoint", "sample" or "validation"."""
        if not self.active:
            return
        first = kind not in self.estimate.paused
        self.estimate.add_pause(kind, seconds)
        if first and self.estimate.forecast and step < self.estimate.total_steps:
            self._write_estimate(step)

    def event(self, kind: str, step: int, **values: Any) -> None:
        """Log an event other than a step. kind: "start", "checkpoint", "sample" or "validation".

        values: what to log of it, by name; the trackers get only the floats.
        """
        if not self.active:
            return
        self._write(kind, step, values)
        numbers = {f"{kind}/{key}": v for key, v in values.items() if isinstance(v, float)}
        if numbers:
            self.accelerator.log(numbers, step=step)
        log.info("%s at step %d: %s", kind, step, ", ".join(f"{key} {_short(v)}" for key, v in values.items()))

    def record(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Write an event to log.jsonl alone. values: as of `event`."""
        if self.active:
            self._write(kind, step, values)

    def say(self, text: str) -> None:
        """Log a line for the user, on the console only."""
        if self.active:
            log.info("%s", text)

    def close(self) -> None:
        """Log how good the forecast was, and close the progress bar, log.jsonl and the trackers."""
        if self.active:
            self._review_forecast()
            self.bar.close()
            self.redirect.__exit__(None, None, None)
            self.file.close()
        self.accelerator.end_training()

    def _write_estimate(self, step: int) -> None:
        left = self.estimate.seconds_left(step)
        self._write("estimate", step, {"seconds_left": round(left, 1), "finish": round(time.time() + left, 1)})

    def _review_forecast(self) -> None:
        forecast, now = self.estimate.forecast, time.time()
        if forecast and self.last == self.estimate.total_steps:
            log.info("%s", self.estimate.review(now))
            late = now - forecast.finish
            self._write("finish", self.last, {"promised": round(forecast.finish, 1), "seconds_late": late})

    def _write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        record = {"kind": kind, "time": round(time.time(), 3), "step": step, **values}
        self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self.file.flush()


def _postfix(average: float, values: dict[str, float]) -> str:
    speed = f"{in_seconds(values['seconds_per_picture'])} s/image"
    parts = [f"epoch {values['epoch']:.0f}", f"loss {average:.4f}", speed]
    if "peak_gib" in values:
        parts.append(f"{values['peak_gib']:.1f} GiB")
    return ", ".join(parts)


def _move_aside(file: Path) -> None:
    """Rename the log of an earlier run with the same name after the time of its last line."""
    if file.exists():
        written = datetime.fromtimestamp(file.stat().st_mtime)
        file.rename(file.with_name(f"log-{written:%Y%m%d-%H%M%S}.jsonl"))


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
