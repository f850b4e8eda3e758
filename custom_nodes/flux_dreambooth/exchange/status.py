"""The state of a job: a small JSON file next to the job, written by both programs under the queue's lock."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .files import read_file, replace_file

WAITING, RUNNING, PAUSED, STOPPED = "waiting", "running", "paused", "stopped"
INTERRUPTED, FAILED, FINISHED, CANCELLED = "interrupted", "failed", "finished", "cancelled"
PAUSE, RESUME, CANCEL, MOVE = "pause", "resume", "cancel", "move"
CAN = {
    WAITING: (PAUSE, CANCEL, MOVE),
    RUNNING: (PAUSE, CANCEL),
    **dict.fromkeys((PAUSED, STOPPED, INTERRUPTED, FAILED), (RESUME, CANCEL)),
    CANCELLED: (RESUME,),
    FINISHED: (),
}
MAX_STATUS = 2**20  # bytes
MAX_PROBLEMS = 200
_TEXT_KEYS = ("where", "what", "hint")


@dataclass(frozen=True)
class Status:
    """The state of a job and the reason for it.

    asked: "pause" or "cancel" while a running job is to stop. attempts: how often it was started. checked: whether the
    trainer has found its settings valid. submitted, started, ended: seconds since 1970. pid: of the process that runs
    it. exit_code: that process's. message: one sentence on the last change. problems: each with where, what and hint.
    """

    state: str = WAITING
    asked: str | None = None
    attempts: int = 0
    checked: bool = False
    submitted: float = 0.0
    started: float | None = None
    ended: float | None = None
    pid: int | None = None
    exit_code: int | None = None
    message: str = ""
    problems: tuple[dict[str, str], ...] = ()

    @property
    def can(self) -> tuple[str, ...]:
        """What a user may ask of the job now."""
        return () if self.asked == CANCEL else CAN[self.state]


def read_status(path: Path, submitted: float) -> Status:
    """A job's status; that of a new job if there is none yet, or if the file is damaged.

    submitted: for a job that was put there by hand.
    """
    try:
        held = json.loads(read_file(path, MAX_STATUS))
    except (OSError, ValueError, RecursionError):
        held = None
    return _valid(held, submitted) if isinstance(held, dict) else Status(submitted=submitted)


def _valid(held: Mapping[str, Any], submitted: float) -> Status:
    usual = Status(submitted=submitted)
    values: dict[str, Any] = {}
    for each in fields(Status):
        value = held.get(each.name)
        if each.name in ("started", "ended", "submitted"):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
        elif each.name in ("attempts", "pid", "exit_code"):
            fits = isinstance(value, int) and not isinstance(value, bool)
        elif each.name == "checked":
            fits = isinstance(value, bool)
        elif each.name == "problems":
            given = value if isinstance(value, list) else []
            value, fits = tuple(problem(one) for one in given[:MAX_PROBLEMS] if isinstance(one, dict)), True
        else:
            fits = isinstance(value, str)
        values[each.name] = value if fits else getattr(usual, each.name)
    if values["state"] not in CAN:
        values["state"] = usual.state
    return Status(**values)


def problem(held: Mapping[str, Any]) -> dict[str, str]:
    """A problem with where, what and hint, each a text."""
    return {key: str(held.get(key, "")) for key in _TEXT_KEYS}


def write_status(path: Path, status: Status) -> None:
    """Write a job's status atomically. Raises OSError."""
    replace_file(path, (json.dumps(asdict(status), indent=1, ensure_ascii=False) + "\n").encode(errors="replace"))
