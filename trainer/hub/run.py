"""Downloads several files at a time, in threads, and shows their progress."""

import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from tqdm import tqdm

from trainer.common.process import announce
from trainer.hub.api import Hub
from trainer.hub.errors import DownloadFailed, DownloadProblem, explain
from trainer.hub.fetch import Observer, fetch
from trainer.hub.jobs import Job
from trainer.hub.record import Record, save_record

AT_ONCE = 4  # files
LINE_EVERY_SECONDS = 15.0  # if stderr is not a terminal


def fetch_all(hub: Hub, jobs: Sequence[Job], models: Path, record: Record) -> Record:
    """Download the file of every job, several at a time, and show progress; returns the record with the files added.

    models: the models folder, where the record is saved after each file. A failure does not stop the other files;
    afterwards `DownloadFailed` is raised with all failures.
    """
    stop, problems = threading.Event(), []
    meter = Meter(jobs, hub.scrub)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        largest_first = sorted(jobs, key=lambda job: -job.file.size)
        running = {pool.submit(fetch, hub, job, stop, meter.observer(job)): job for job in largest_first}
        try:
            while running:
                done, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in done:
                    job = running.pop(future)
                    problems += _problems_of(future, hub, job)
                    if not future.exception():
                        record = record.with_verified(models, [(job.target, job.file)])
                        save_record(models, record)
                        meter.say(f"complete: {job.path}")
                meter.show()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            meter.close()
    if problems:
        raise DownloadFailed(problems)
    return record


def _problems_of(future: Future[None], hub: Hub, job: Job) -> tuple[DownloadProblem, ...]:
    error = future.exception()
    if error is None:
        return ()
    if not isinstance(error, Exception):
        raise error
    return explain(error, job.file.repository, hub.endpoint, hub.token is not None)


class Meter:
    """Shows the progress of each file and of all: bars on a terminal, a line every few seconds elsewhere.

    scrub: applied to every message, to take secrets out.
    """

    def __init__(self, jobs: Sequence[Job], scrub: Callable[[str], str]):
        self.scrub = scrub
        self.sizes = {job.target: job.file.size for job in jobs}
        self.there = {job.target: job.file.size - job.missing_bytes for job in jobs}
        self.began, self.at_first = time.monotonic(), sum(self.there.values())
        self.last_line = self.began
        self.bars = [self._bar(name, size) for name, size in self.sizes.items()] if sys.stderr.isatty() else []
        self.total = self._bar("total", sum(self.sizes.values())) if self.bars else None

    def observer(self, job: Job) -> Observer:
        """The callbacks for the thread that downloads this job's file."""

        def count(there: int) -> None:
            self.there[job.target] = there

        return Observer(count, self.say)

    def show(self) -> None:
        """Refresh the bars; without a terminal, print a line if the last one is 15 s old."""
        there = sum(self.there.values())
        if self.total is not None:
            for bar, count in zip([*self.bars, self.total], [*self.there.values(), there], strict=True):
                bar.n = count
                bar.refresh()
        elif time.monotonic() - self.last_line >= LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            announce(self.line())

    def line(self) -> str:
        """The progress as text, like "4.2 of 33.9 GB (12%), 110 MB/s: flux1-dev.safetensors 9%, …".

        Only files that have been started and are not complete are named.
        """
        there, size = sum(self.there.values()), sum(self.sizes.values())
        speed = (there - self.at_first) / max(time.monotonic() - self.began, 1e-3)
        parts = [
            f"{Path(name).name} {100 * count // self.sizes[name]}%"
            for name, count in self.there.items()
            if 0 < count < self.sizes[name]
        ]
        total = f"{there / 1e9:.1f} of {size / 1e9:.1f} GB ({100 * there // max(size, 1)}%), {speed / 1e6:.0f} MB/s"
        return f"{total}: {', '.join(parts)}" if parts else total

    def say(self, text: str) -> None:
        """Print a message on a line of its own, above the bars if there are any, with secrets taken out."""
        text = self.scrub(text)
        tqdm.write(text, file=sys.stderr) if self.bars else announce(text)

    def close(self) -> None:
        """Show the final state and close the bars."""
        self.show()
        for bar in [*self.bars, *([self.total] if self.total is not None else [])]:
            bar.close()

    def _bar(self, name: str, size: int) -> tqdm:
        return tqdm(total=size, desc=Path(name).name, unit="B", unit_scale=True, initial=self.there.get(name, 0))
