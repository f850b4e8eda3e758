"""The outcome of a job, judged by its process's exit status and the files that it left."""

import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from trainer.common.text import counted
from trainer.exchange.job_file import TRAIN
from trainer.exchange.job_queue import Job
from trainer.exchange.status import (
    CANCEL,
    CANCELLED,
    FAILED,
    FINISHED,
    INTERRUPTED,
    PAUSED,
    STOPPED,
    WAITING,
    Status,
)

SIGNALLED = 128  # added to a signal's number by programs that pass on how another one ended
STOPS = {-signal.SIGINT, -signal.SIGTERM, SIGNALLED + signal.SIGINT, SIGNALLED + signal.SIGTERM}
SAID = {
    CANCELLED: "It was cancelled.",
    PAUSED: "It was paused.",
    STOPPED: "It was stopped.",
    WAITING: "The trainer was stopped; the job continues when a trainer waits again.",
}


def judge(job: Job, exit_code: int | None, server_stops: bool, tail: str) -> Callable[[Status], Status]:
    """The change to make to a job's status once its process has ended.

    exit_code: negative for a signal, None if the trainer that started it was killed too. server_stops: whether the
    trainer asked it to stop because it ends itself. tail: the end of what it printed.
    """
    state, message = _verdict(job, exit_code, server_stops, tail)

    def change(status: Status) -> Status:
        # a job that continues by itself has not ended
        ended = None if state == WAITING else time.time()
        return replace(
            status, state=state, message=message, ended=ended, exit_code=exit_code, pid=None, asked=None, checked=False
        )

    return change


def _verdict(job: Job, exit_code: int | None, server_stops: bool, tail: str) -> tuple[str, str]:
    is_done = exit_code == 0 and job.kind != TRAIN
    if is_done or (exit_code in (0, None) and _has_result(job)):
        return FINISHED, ""
    stopped = exit_code in STOPS or exit_code == 0
    if exit_code is None and job.status.problems:
        return FAILED, ""
    if exit_code is None and not job.status.asked:
        return WAITING, "The trainer was killed while it ran; the job continues from its last saved state."
    if stopped or exit_code is None:
        asked = {CANCEL: CANCELLED}.get(job.status.asked or "", PAUSED) if job.status.asked else ""
        state = asked or (WAITING if server_stops else STOPPED)
        return state, SAID[state]
    number = -exit_code if exit_code < 0 else exit_code - SIGNALLED
    if 0 < number < signal.NSIG:
        name = signal_name(number)
        cause = " The system does that when memory runs out." if number == signal.SIGKILL else ""
        return INTERRUPTED, f"Its process was killed by {name}.{cause}"
    if count := len(job.status.problems):
        return FAILED, f"{counted(count, 'problem was', 'problems were')} found."
    return FAILED, last_words(tail) or f"Its process exited with status {exit_code}."


def signal_name(number: int) -> str:
    """The name of a signal, such as "SIGKILL"; "signal 40" for one without a name."""
    return signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"


def _has_result(job: Job) -> bool:
    """Whether a training has written its final LoRA file since it was started."""
    if job.kind != TRAIN:
        return False
    lora = Path(str(job.settings.get("output_dir", "models/loras")), f"{job.name}.safetensors")
    try:
        return lora.stat().st_mtime >= (job.status.started or 0) - 1  # file systems round times
    except OSError:
        return False


def last_words(tail: str) -> str:
    """The last line that a process has printed, without what a progress bar left."""
    lines = [line.strip() for line in tail.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
