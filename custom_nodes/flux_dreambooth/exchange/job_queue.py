"""The folder runs/queue/: jobs, their order, their states and logs. Used by the trainer, and by the page's routes.

For a job with the id NAME there are NAME.toml (what to do), NAME.status.json, NAME.log (everything that its process
has printed) and NAME.result.json (what a check has found). queue.json holds the order of waiting jobs and whether the
queue is paused; server.json says what the trainer that takes jobs is doing, which holds the lock `.server.lock`.
The folder plans/ is described in `plans`.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .files import create_file, is_locked, locked, read_file, replace_file
from .job_file import TRAIN, Unusable, id_for, is_id, job_text, name_of, read_job
from .status import (
    CANCEL,
    CANCELLED,
    INTERRUPTED,
    MOVE,
    PAUSE,
    PAUSED,
    RUNNING,
    STOPPED,
    WAITING,
    Status,
    read_status,
    write_status,
)

SERVER_LOCK, JOB_LOCK = ".server.lock", ".job.lock"
MAX_JOBS = 500  # files in the queue; those that have ended count too
MAX_WAITING = 100
MAX_SMALL = 2**20  # bytes of queue.json, server.json
MAX_RESULT = 16 * 2**20
UNDONE = (WAITING, RUNNING, PAUSED, STOPPED, INTERRUPTED)  # states of jobs whose names are taken


class NotPossible(Exception):
    """A request that does not fit the state of the queue; the text says why."""


@dataclass(frozen=True)
class Job:
    """A job as its files describe it.

    modified: when its TOML file was written last, in seconds since 1970. problem: why that cannot be read, else "".
    """

    id: str
    kind: str
    settings: Mapping[str, Any]
    status: Status
    modified: float
    problem: str = ""

    @property
    def name(self) -> str:
        """A training's output_name, or the folder or run that is worked on."""
        return name_of(self.kind, self.settings)


class JobQueue:
    """The jobs of one folder, which need not exist yet. Several threads and programs may use it at the same time."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._read: dict[str, tuple[tuple[int, ...], tuple[str, Mapping[str, Any], str]]] = {}

    def path(self, job: str, ending: str) -> Path:
        """A file of a job, such as its ".log". Raises LookupError if the id cannot be one."""
        if not is_id(job):
            raise LookupError(f"There is no job {job!r}.")
        return self.folder / f"{job}{ending}"

    def jobs(self) -> list[Job]:
        """All jobs: the running one, those that wait in the order of their turns, then the others, newest first."""
        order = {job: place for place, job in enumerate(self._state()["order"])}
        found = [job for each in self._ids() if (job := self._job(each))]

        def rank(job: Job) -> tuple[float, ...]:
            status = job.status
            if status.state == RUNNING:
                return (0,)
            if status.state == WAITING:
                return (1, order.get(job.id, len(order)), status.submitted)
            return (2, -(status.ended or status.submitted))

        return sorted(found, key=lambda job: (rank(job), job.id))

    def job(self, job: str) -> Job:
        """One job. Raises LookupError if there is none of this id."""
        found = self._job(job) if is_id(job) else None
        if found is None:
            raise LookupError(f"There is no job {job!r}.")
        return found

    def submit(self, kind: str, settings: Mapping[str, Any]) -> Job:
        """Add a job at the end of the queue.

        The caller checks whether the settings are allowed, and the trainer whether they are valid. Raises
        `NotPossible`, ValueError for a value that TOML cannot hold, and OSError.
        """
        data, name = job_text(kind, settings).encode(), name_of(kind, settings)
        with locked(self.folder):
            jobs = self.jobs()
            if len(jobs) >= MAX_JOBS or sum(job.status.state == WAITING for job in jobs) >= MAX_WAITING:
                raise NotPossible("The queue is full. Jobs that have ended can be moved out of runs/queue/ by hand.")
            rival = next((job for job in jobs if self._takes(job, kind, name)), None)
            if rival:
                raise NotPossible(f"The job {rival.id} already makes {name}. Choose another name.")
            job = id_for(name if kind == TRAIN else f"{kind}-{name}", self._ids_taken())
            # the status first: a TOML file alone is a job that waits, a status alone is nothing
            write_status(self.path(job, ".status.json"), Status(submitted=time.time()))
            create_file(self.path(job, ".toml"), data)
            order = [each.id for each in jobs if each.status.state == WAITING]
            self._write_state(self._state() | {"order": [*order, job]})
        return self.job(job)

    def act(self, job: str, action: str) -> Job:
        """Pause, resume or cancel a job. Raises `NotPossible`, LookupError, OSError.

        A running one is only asked; the trainer lets it save, and changes its state.
        """

        def change(status: Status) -> Status:
            if action not in status.can or action == MOVE:
                raise NotPossible(f"The job {job} is {status.state}, so this is not possible: {action}.")
            if status.state == RUNNING:
                return replace(status, asked=action)
            if action == PAUSE:
                return replace(status, state=PAUSED, message="")
            if action == CANCEL:
                return replace(status, state=CANCELLED, ended=time.time(), message="")
            return replace(status, state=WAITING, checked=False, message="", problems=(), ended=None, exit_code=None)

        self.update(job, change)
        return self.job(job)

    def update(self, job: str, change: Callable[[Status], Status]) -> Status:
        """Replace a job's status by what `change` makes of it, under the lock. Raises LookupError and OSError."""
        self.job(job)  # a lock would create the folder
        with locked(self.folder):
            status = change(self.job(job).status)
            write_status(self.path(job, ".status.json"), status)
            return status

    def move(self, job: str, before: str | None) -> None:
        """Put a waiting job in front of another one, or at the end. Raises `NotPossible`, LookupError, OSError."""
        self.job(job)
        with locked(self.folder):
            if self.job(job).status.state != WAITING:
                raise NotPossible(f"The job {job} does not wait for its turn.")
            order = [each.id for each in self.jobs() if each.status.state == WAITING and each.id != job]
            if before is not None and before not in order:
                raise NotPossible(f"{before!r} is no other job that waits for its turn.")
            order.insert(len(order) if before is None else order.index(before), job)
            self._write_state(self._state() | {"order": order})

    def put_first(self, job: str) -> None:
        """Put a waiting job in front of all others. Raises OSError."""
        with locked(self.folder):
            rest = [each for each in self._state()["order"] if each != job]
            self._write_state(self._state() | {"order": [job, *rest]})

    @property
    def paused(self) -> bool:
        """Whether no further job is started."""
        return self._state()["paused"]

    def pause(self, paused: bool) -> None:
        """Start no further job, or go on. Raises OSError."""
        with locked(self.folder):
            self._write_state(self._state() | {"paused": paused})

    def serving(self) -> dict[str, Any] | None:
        """What the waiting trainer last reported: since, message and gpu; None if no trainer waits."""
        if not is_locked(self.folder / SERVER_LOCK):
            return None
        held = self._small_json("server.json")
        since = held.get("since")
        texts = {key: str(held.get(key, "")) for key in ("message", "gpu")}
        return {"since": since if isinstance(since, int | float) else None, **texts}

    def say(self, since: float, message: str, gpu: str) -> None:
        """Record what the waiting trainer is doing. Raises OSError."""
        held = {"since": since, "message": message, "gpu": gpu}
        replace_file(self.folder / "server.json", json.dumps(held, ensure_ascii=False).encode())

    def log(self, job: str, start: int, limit: int) -> tuple[bytes, int]:
        """At most `limit` bytes of what a job has printed, from byte `start`, and the log's size.

        A negative start counts from the end. Nothing if it has not started yet.
        """
        path = self.path(job, ".log")
        try:
            size = path.lstat().st_size
            return read_file(path, limit, max(0, size + start) if start < 0 else start), size
        except OSError:
            return b"", 0

    def result(self, job: str) -> Any | None:
        """What a check has found, in JSON; None if there is nothing yet."""
        try:
            return json.loads(read_file(self.path(job, ".result.json"), MAX_RESULT))
        except (OSError, ValueError, RecursionError):
            return None

    def _job(self, job: str) -> Job | None:
        path = self.path(job, ".toml")
        try:
            found = path.lstat()
        except OSError:
            return None
        mark = (found.st_mtime_ns, found.st_size, found.st_ino)
        former = self._read.get(job)
        if former is None or former[0] != mark:
            try:
                read = (*read_job(path), "")
            except Unusable as error:
                read = (TRAIN, {}, str(error))
            former = self._read[job] = mark, read
        (kind, settings, problem), modified = former[1], found.st_mtime
        return Job(job, kind, settings, read_status(self.path(job, ".status.json"), modified), modified, problem)

    def left_out(self) -> list[str]:
        """The TOML files whose names cannot be a job's."""
        return [name for name in self._names() if name.endswith(".toml") and not is_id(name.removesuffix(".toml"))]

    def _ids(self) -> list[str]:
        names = (name.removesuffix(".toml") for name in self._names() if name.endswith(".toml"))
        return [name for name in names if is_id(name)]

    def _ids_taken(self) -> set[str]:
        """The ids of all files, also those that a user has moved only in part."""
        return {name.split(".")[0] for name in self._names()}

    def _names(self) -> Iterable[str]:
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.folder.iterdir() if not path.name.startswith("."))
        return ()

    def _takes(self, job: Job, kind: str, name: str) -> bool:
        same = job.kind == kind and job.name.casefold() == name.casefold()
        return same and job.status.state in UNDONE

    def _state(self) -> dict[str, Any]:
        held = self._small_json("queue.json")
        order = held.get("order")
        order = [each for each in order if isinstance(each, str)] if isinstance(order, list) else []
        return {"paused": held.get("paused") is True, "order": order}

    def _write_state(self, state: Mapping[str, Any]) -> None:
        replace_file(self.folder / "queue.json", json.dumps(state, ensure_ascii=False, indent=1).encode())

    def _small_json(self, name: str) -> dict[str, Any]:
        try:
            held = json.loads(read_file(self.folder / name, MAX_SMALL))
        except (OSError, ValueError, RecursionError):
            return {}
        return held if isinstance(held, dict) else {}
