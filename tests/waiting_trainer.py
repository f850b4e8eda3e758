"""The waiting trainer in a thread, with stand-ins for jobs' processes."""

import sys
import threading
import time
from collections.abc import Callable

from trainer.exchange.files import take_lock
from trainer.exchange.job_queue import JOB_LOCK, Job, JobQueue
from trainer.serving.server import Server

PATIENCE = 60.0
DONE = "import pathlib; pathlib.Path('models/loras').mkdir(parents=True, exist_ok=True); "
DONE += "pathlib.Path('models/loras/NAME.safetensors').touch()"
HANGS = "import time; print('at work', flush=True); time.sleep(300)"


class Serving:
    """A server in a thread, whose jobs run `python -c CODE`, with NAME replaced by the job's id."""

    def __init__(self, queue: JobQueue, code: Callable[[Job], str] | str, **options: object):
        self.said: list[str] = []
        code_of = code if callable(code) else lambda _: code
        command = lambda job: [sys.executable, "-c", code_of(job).replace("NAME", job.id)]  # noqa: E731
        self.server = Server(queue, command, self.said.append, **options)
        self.queue, self.thread = queue, threading.Thread(target=self.server.serve)

    def __enter__(self) -> "Serving":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.stop.set()
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()

    def wait_for(self, job: str, *states: str) -> Job:
        return wait_until(lambda: found if (found := self.queue.job(job)).status.state in states else None)


def wait_until(condition: Callable[[], object]):
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def train(queue: JobQueue, *names: str) -> None:
    for name in names:
        queue.submit("train", {"output_name": name})


def take_lock_in(queue: JobQueue) -> int:
    lock = take_lock(queue.folder / JOB_LOCK)
    assert lock is not None
    return lock
