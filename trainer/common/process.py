"""The process: signals that stop a run cleanly, logging, determinism, one run per folder."""

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
from typing import TypeVar

import torch
from tqdm import tqdm

from trainer.common.problems import Problem, Problems, redact

log = logging.getLogger(__name__)
T = TypeVar("T")


class StopRequest:
    """Remembers the first SIGINT or SIGTERM so that the loop can finish its step; a second one ends at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 128 + its number; 0 without one."""
        return 128 + self.signal if self.signal else 0

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Listen while the block runs, then put the former handlers back."""
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
        announce(f"\n{signal.Signals(number).name}: finishing this step, then saving. Once more ends at once.")


@contextmanager
def ended_by_sigterm(message: str) -> Iterator[None]:
    """Within it SIGTERM ends the program as Ctrl-C does, with status 143: files are closed, and `message` is said."""

    def end(_number: int, _frame: FrameType | None) -> None:
        announce(f"\nSIGTERM: {message}")
        sys.exit(128 + signal.SIGTERM)

    former = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def announce(text: str) -> None:
    """Print to stderr, of several processes in one."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))  # tracebacks too


def set_up_logging(is_main_process: bool = True) -> None:
    """Plain lines on stderr; other processes than the main one only warn. Tokens never appear."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Redacting("%(message)s"))
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, handlers=[handler], force=True)
    for name in ("httpx", "accelerate", "diffusers", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)


def set_up_determinism() -> None:
    """Bitwise the same run after run on the same machine; some kernels are slower so."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def progress(items: Sequence[T], what: str, quiet: bool = False) -> Iterator[T]:
    """The items, with a bar on a terminal and a line for each tenth elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, disable=quiet)
        return
    for count, item in enumerate(items, 1):
        yield item
        if not quiet and count * 10 // len(items) > (count - 1) * 10 // len(items):
            log.info("%s: %d of %d", what, count, len(items))


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Say how long a part of the preparation took."""
    start = time.perf_counter()
    yield
    log.info("%s: %.1f s", name, time.perf_counter() - start)


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder for this process. Raises `Problems` when another training holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "wait for it, or give this run another --output_name"
            raise Problems([Problem(str(run_dir), "another training is writing this run", hint)]) from None
        yield
