"""The outcome of a job, judged by its process's exit status and the files that it left."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.checkpoint.run_log import read_log
from trainer.checkpoint.state_folder import MANIFEST, latest_state
from trainer.common.text import counted
from trainer.exchange.allowed import is_output_name
from trainer.exchange.job_file import CHECK, COMPARE, TRAIN
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

RUNS = "runs"
SIGNALLED = 128  # added to a signal's number by programs that pass on how another one ended
STOPS = {-signal.SIGINT, -signal.SIGTERM, SIGNALLED + signal.SIGINT, SIGNALLED + signal.SIGTERM}
ROUNDED = 1.0  # seconds by which a file system may round a time
SAID = {
    CANCELLED: "It was cancelled.",
    PAUSED: "It was paused.",
    STOPPED: "It was stopped.",
    WAITING: "The trainer was stopped; the job continues when a trainer waits again.",
}
TOO_LATE = {
    CANCELLED: "It had finished before it could be cancelled.",
    PAUSED: "It had finished before it could be paused.",
}


@dataclass(frozen=True)
class Left:
    """What a job has left on the disk.

    is_done: whether its result was written since its process was started. saved: the sentence that says where a
    training can continue, "" for other jobs. reason: why a training has ended itself early, "" if it has not.
    """

    is_done: bool = False
    saved: str = ""
    reason: str = ""

    @classmethod
    def by(cls, job: Job, result: Path) -> "Left":
        """What this job has left. result: where a check puts what it has found."""
        is_done = any(_is_newer(path, (job.status.started or 0) - ROUNDED) for path in _results(job, result))
        if job.kind != TRAIN:
            return cls(is_done)
        return cls(is_done, _saved(job), _reason(job))


def judge(job: Job, exit_code: int | None, server_stops: bool, tail: str, left: Left) -> Callable[[Status], Status]:
    """The change to make to a job's status once its process has ended.

    exit_code: negative for a signal, None if the trainer that started it was killed too. server_stops: whether the
    trainer asked it to stop because it ends itself. tail: the end of what it printed. left: on the disk.
    """
    state, message = _verdict(job, exit_code, server_stops, tail, left)

    def change(status: Status) -> Status:
        # a job that continues by itself has not ended
        ended = None if state == WAITING else time.time()
        return replace(
            status, state=state, message=message, ended=ended, exit_code=exit_code, pid=None, asked=None, checked=False
        )

    return change


def _verdict(job: Job, exit_code: int | None, server_stops: bool, tail: str, left: Left) -> tuple[str, str]:
    asked = (CANCELLED if job.status.asked == CANCEL else PAUSED) if job.status.asked else ""
    is_stopped = exit_code in STOPS or exit_code in (0, None)
    # a request that comes after the last step ends the process, but there is nothing left to do
    if is_stopped and (left.is_done or (exit_code == 0 and job.kind != TRAIN)):
        return FINISHED, TOO_LATE.get(asked, "")
    if exit_code is None and job.status.problems:
        return FAILED, ""
    if exit_code is None and not asked:
        return WAITING, _sentences("The trainer was killed while the job ran.", left.saved)
    if is_stopped:
        state = asked or (WAITING if server_stops else STOPPED)
        return state, _sentences(SAID[state], left.reason if state == STOPPED else "", left.saved)
    assert exit_code is not None
    done = "Its result is complete, and only what follows it may be missing." if left.is_done else ""
    number = -exit_code if exit_code < 0 else exit_code - SIGNALLED
    if 0 < number < signal.NSIG:
        name = signal_name(number)
        cause = "The system does that when memory runs out." if number == signal.SIGKILL else ""
        killed = f"Its process was killed by {name}."
        return (FINISHED, _sentences(killed, done)) if done else (INTERRUPTED, _sentences(killed, cause, left.saved))
    if count := len(job.status.problems):
        return FAILED, _sentences(f"{counted(count, 'problem was', 'problems were')} found.", done)
    return FAILED, _sentences(last_words(tail) or f"Its process exited with status {exit_code}.", done)


def _sentences(*sentences: str) -> str:
    return " ".join(filter(None, sentences))


def signal_name(number: int) -> str:
    """The name of a signal, such as "SIGKILL"; "signal 40" for one without a name."""
    return signal.Signals(number).name if number in {*signal.Signals} else f"signal {number}"


def saved_state(job: Job) -> Path | None:
    """The newest state that a training has saved since it was submitted; None if it has saved none."""
    state = latest_state(Path(RUNS, job.name)) if is_output_name(job.name) else None
    return state if state and _is_newer(state / MANIFEST, job.status.submitted) else None


def _results(job: Job, result: Path) -> list[Path]:
    """The file that a job writes last. Captions and masks are several, and need no other sign than status 0."""
    if job.kind == TRAIN:
        return [Path(str(job.settings.get("output_dir", "models/loras")), f"{job.name}.safetensors")]
    return {CHECK: [result], COMPARE: [Path(RUNS, job.name, "report.html")]}.get(job.kind, [])


def _is_newer(path: Path, than: float) -> bool:
    try:
        return path.stat().st_mtime >= than
    except OSError:
        return False


def _saved(job: Job) -> str:
    state = saved_state(job)
    if state is None:
        return "No step is saved: it would start from the beginning."
    step = state.name.removeprefix("state-step")
    return f"It can continue from step {int(step)}." if step.isdecimal() else f"It can continue from {state.name}."


def _reason(job: Job) -> str:
    """Why a training with --stop_when has ended itself: the last verdict in its log."""
    if not job.settings.get("stop_when"):
        return ""
    try:
        events = read_log(Path(RUNS, job.name, "log.jsonl"))
    except (OSError, UnicodeDecodeError):
        return ""
    last = next((event for event in reversed(events) if event.get("verdict")), {})
    text = str(last.get("text", "")) if last.get("holds") else ""
    return f"The reason: {text}." if text else ""


def last_words(tail: str) -> str:
    """The last line that a process has printed, without what a progress bar left."""
    lines = [line.strip() for line in tail.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
