"""One file: received into a hidden part beside its final name, checked, then moved into place."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import httpx2

from trainer.common.files import atomic_write
from trainer.common.problems import Problem, Problems
from trainer.hub.api import Hub
from trainer.hub.errors import DownloadFailed, DownloadProblem, NotTheHub, Status
from trainer.hub.jobs import DIFFERENT, Job, digest_of
from trainer.hub.patience import patiently

ROUNDS = 2  # a file that arrives with wrong bytes is fetched once more from its start


class Stopped(Exception):
    """Raised in a thread that has been asked to end."""


def fetch(hub: Hub, job: Job, stop: threading.Event, report: Callable[[int], object]) -> None:
    """Bring one file, going on from what an earlier run left of it.

    report: is told how many bytes are there. Raises `DownloadFailed`, `Stopped`, the library's errors and OSError; the
    part stays for the next run.
    """
    job.part.parent.mkdir(parents=True, exist_ok=True)
    with _open_part(job) as part:
        for _ in range(ROUNDS):
            _receive_rest(hub, job, part, stop, report)
            os.fsync(part.fileno())
            if digest_of(job.part, job.file) == job.file.digest:
                break
            part.truncate(0)
        else:
            job.part.unlink()
            raise _wrong_bytes(job)
        if job.key == "lora":
            _check_lora(job)
        if job.state != DIFFERENT and job.path.exists():
            hint = "move it away and run this again"
            raise DownloadFailed(
                [DownloadProblem(Status.IN_THE_WAY, Problem(str(job.path), "appeared in the meantime", hint))]
            )
        atomic_write(job.path, lambda temporary: os.replace(job.part, temporary))


def _receive_rest(hub: Hub, job: Job, part: BinaryIO, stop: threading.Event, report: Callable[[int], object]) -> None:
    def size() -> int:
        return os.fstat(part.fileno()).st_size

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    def receive() -> None:
        with hub.bytes_of(job.file, size()) as (start, chunks):
            part.truncate(start)
            report(start)
            for chunk in chunks:
                if stop.is_set():
                    raise Stopped
                start += len(chunk)
                if start > job.file.size:
                    part.truncate(0)
                    raise NotTheHub(f"more than {job.file.size:,} bytes for {job.file.path}")
                _write_all(part, chunk)
                report(start)
        if start < job.file.size:
            raise httpx2.ReadError(f"{job.file.path} ended after {start:,} of {job.file.size:,} bytes")

    if size() > job.file.size:
        part.truncate(0)
    if size() < job.file.size:
        patiently(receive, wait, progress=size)
    report(job.file.size)


def _write_all(part: BinaryIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:  # an unbuffered file may take less than it is given
        left = left[part.write(left) :]


@contextmanager
def _open_part(job: Job) -> Iterator[BinaryIO]:
    """The part, opened at its end, for this process alone."""
    with job.part.open("ab", buffering=0) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            problem = Problem(str(job.path), "another download is fetching it", "wait for that one")
            raise DownloadFailed([DownloadProblem(Status.ANOTHER_DOWNLOAD, problem)]) from None
        try:
            yield part  # type: ignore[misc]
        except OSError as error:
            error.filename = error.filename or str(job.path)
            raise


def _wrong_bytes(job: Job) -> DownloadFailed:
    what = f"what arrived, {ROUNDS} times, is not what the hub states: its digest is not {job.file.digest}"
    hint = "a proxy or a mirror changes the bytes: try another network, or without HF_ENDPOINT"
    return DownloadFailed([DownloadProblem(Status.WRONG_BYTES, Problem(str(job.path), what, hint))])


def _check_lora(job: Job) -> None:
    """What `python -m trainer info` finds in it is what makes it a LoRA."""
    from trainer.lora.info import describe  # brings peft and transformers, which take seconds to load

    try:
        describe(job.part)
    except Problems as found:
        job.part.unlink()
        what = f"is not a LoRA that can be used: {found.problems[0].what}"
        where = f"{job.file.repository}/{job.file.path}"
        raise DownloadFailed([DownloadProblem(Status.NOT_A_LORA, Problem(where, what, "name another one"))]) from found
