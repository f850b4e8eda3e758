"""Download of one file: into a hidden partial file next to its final name, verified, then moved into place."""

import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import httpx2

from trainer.common.files import atomic_write
from trainer.common.problems import Problems
from trainer.hub.api import Hub
from trainer.hub.errors import DownloadFailed, DownloadProblem, NotTheHub, Status
from trainer.hub.jobs import DIFFERENT, Job, digest_of
from trainer.hub.patience import patiently

ROUNDS = 2  # a file that arrives with wrong bytes is downloaded once more from the start


class Stopped(Exception):
    """Raised in a downloading thread when its `stop` event is set."""


@dataclass(frozen=True)
class Observer:
    """Callbacks of a download, called in its thread.

    count: called with the number of the file's bytes on disk, those of earlier runs included; say: with a message.
    """

    count: Callable[[int], object]
    say: Callable[[str], object]


def fetch(hub: Hub, job: Job, stop: threading.Event, observer: Observer) -> None:
    """Download one file, continuing from what an earlier run left, verify it and move it to `job.path`.

    stop: an event that another thread sets to end the download. An existing file is replaced only if `job.state` is
    DIFFERENT. Raises `DownloadFailed`, `Stopped`, `NotTheHub`, OSError and the errors of huggingface_hub and httpx2.
    The partial file then stays for the next run, unless its content is wrong.
    """
    job.part.parent.mkdir(parents=True, exist_ok=True)
    with _open_part(job) as part:
        for _ in range(ROUNDS):
            _receive_rest(hub, job, part, stop, observer)
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
            what, hint = "was created during the download", "move it away and run this again"
            raise DownloadFailed([DownloadProblem(str(job.path), what, hint, status=Status.IN_THE_WAY)])
        atomic_write(job.path, lambda temporary: os.replace(job.part, temporary))


def _receive_rest(hub: Hub, job: Job, part: BinaryIO, stop: threading.Event, observer: Observer) -> None:
    def size() -> int:
        return os.fstat(part.fileno()).st_size

    def wait(seconds: float) -> None:
        if stop.wait(seconds):
            raise Stopped

    def receive() -> None:
        with hub.bytes_of(job.file, size()) as (start, chunks):
            part.truncate(start)
            observer.count(start)
            for chunk in chunks:
                if stop.is_set():
                    raise Stopped
                start += len(chunk)
                if start > job.file.size:
                    part.truncate(0)
                    raise NotTheHub(f"more than {job.file.size:,} bytes for {job.file.path}")
                _write_all(part, chunk)
                observer.count(start)
        if start < job.file.size:
            raise httpx2.ReadError(f"{job.file.path} ended after {start:,} of {job.file.size:,} bytes")

    if size() > job.file.size:
        part.truncate(0)
    if size() < job.file.size:
        patiently(receive, job.path.name, observer.say, wait, progress=size)
    observer.count(job.file.size)


def _write_all(part: BinaryIO, chunk: bytes) -> None:
    left = memoryview(chunk)
    while left:  # an unbuffered file may write less than it is given
        left = left[part.write(left) :]


@contextmanager
def _open_part(job: Job) -> Iterator[BinaryIO]:
    """The partial file, opened for appending and locked by this process."""
    with job.part.open("ab", buffering=0) as part:
        try:
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            what, hint = "another process is downloading it", "wait for that one"
            problem = DownloadProblem(str(job.path), what, hint, status=Status.ANOTHER_DOWNLOAD)
            raise DownloadFailed([problem]) from None
        try:
            yield part  # type: ignore[misc]
        except OSError as error:
            error.filename = error.filename or str(job.path)
            raise


def _wrong_bytes(job: Job) -> DownloadFailed:
    what = f"arrived {ROUNDS} times with other bytes than the Hub lists: its digest is not {job.file.digest}"
    hint = "a proxy or a mirror changes the bytes: try another network, or unset HF_ENDPOINT"
    return DownloadFailed([DownloadProblem(str(job.path), what, hint, status=Status.WRONG_BYTES)])


def _check_lora(job: Job) -> None:
    """A file is a LoRA if `python -m trainer info` can describe it."""
    from trainer.lora.info import describe

    try:
        describe(job.part)
    except Problems as found:
        job.part.unlink()
        where, what = f"{job.file.repository}/{job.file.path}", f"is not a usable LoRA: {found.problems[0].what}"
        problem = DownloadProblem(where, what, "choose another file", status=Status.NOT_A_LORA)
        raise DownloadFailed([problem]) from found
