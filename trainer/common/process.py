"""The process: signals that stop a run cleanly, logging, determinism, one process per run folder."""

import fcntl
import logging
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, TypeVar

from trainer.common.problems import Problem, Problems, redact

log = logging.getLogger(__name__)
T = TypeVar("T")
LOCK_TRIES, LOCK_AGAIN = 3, 0.1  # seconds between two tries


class StopRequest:
    """Remembers the first SIGINT or SIGTERM, so that the loop can finish its step; a second one ends the process.

    True in a condition once a signal has arrived. Signals are received only within `listening`.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """The status to exit with: 128 + the number of the signal that arrived, or 0 if none did."""
        return 128 + self.signal if self.signal else 0

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """While the block runs, receive SIGINT and SIGTERM; afterwards restore the previous handlers. Yields self."""
        former = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number
        announce(f"\n{signal.Signals(number).name}: saving after this step. Repeat to quit without saving.")


@contextmanager
def ended_by_sigterm(message: str) -> Iterator[None]:
    """While the block runs, SIGTERM prints `message` and raises SystemExit with status 143, so that files are closed.

    The previous handler is restored afterwards.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        announce(f"\nSIGTERM: {message}")
        sys.exit(128 + signal.SIGTERM)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def announce(text: str) -> None:
    """Print text to stderr; of the processes of a distributed run, only the one with RANK 0 prints."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))  # tracebacks too


def set_up_logging(is_main_process: bool = True) -> None:
    """Log plain messages to stderr, without access tokens. Processes other than the main one log only warnings."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(message)s"))
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, handlers=[handler], force=True)
    for name in ("httpx", "accelerate", "diffusers", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)


def set_up_determinism() -> None:
    """Make this process use PyTorch's deterministic algorithms, some of which are slower.

    Runs on the same machine are then bitwise repeatable. Call it before CUDA is first used.
    """
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def progress(items: Sequence[T], what: str, quiet: bool = False) -> Iterator[T]:
    """Yield the items, with a progress bar on a terminal, otherwise with a log line after each tenth of them.

    what: the label of the bar or line; quiet: show neither.
    """
    if sys.stderr.isatty():
        from tqdm import tqdm

        yield from tqdm(items, desc=what, disable=quiet)
        return
    for count, item in enumerate(items, 1):
        yield item
        if not quiet and count * 10 // len(items) > (count - 1) * 10 // len(items):
            log.info("%s: %d of %d", what, count, len(items))


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log `name` and the seconds that the block took; nothing is logged if the block raises."""
    start = time.perf_counter()
    yield
    log.info("%s: %.1f s", name, time.perf_counter() - start)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Create a run's folder if needed, and lock it while the block runs.

    Raises `Problems` if another process has locked it. ComfyUI's Training tab shares the lock for an instant to see
    whether the run goes on, so that a lock is tried more than once.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as file:
        if not any(_locked(file) or time.sleep(LOCK_AGAIN) for _ in range(LOCK_TRIES)):
            hint = "wait for it to finish, or choose another --output_name"
            raise Problems([Problem(str(run_dir), "another training is writing to this folder", hint)])
        yield


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
