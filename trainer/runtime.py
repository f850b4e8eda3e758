"""The process: signals that stop a run cleanly, logging, determinism, one run per folder."""

import fcntl
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from trainer.faults import Fault, Faults

SECRET = re.compile(r"\bhf_[A-Za-z0-9]{8,}\b")


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
        name = signal.Signals(number).name
        print(f"\n{name}: finishing this step, then saving. Once more ends at once.", file=sys.stderr, flush=True)


class _Redact(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.msg = SECRET.sub("[secret]", record.getMessage())
        record.args = ()
        return True


def set_up_logging(is_main_process: bool = True) -> None:
    """Plain lines on stderr; other processes than the main one only warn. Tokens never appear."""
    handler = logging.StreamHandler()
    handler.addFilter(_Redact())
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, handlers=[handler], force=True)
    for name in ("httpx", "accelerate", "diffusers", "transformers", "torch"):
        logging.getLogger(name).setLevel(logging.WARNING)


def set_up_determinism() -> None:
    """Bitwise the same run after run on the same machine; some kernels are slower so."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def run_lock(run_dir: Path) -> Iterator[None]:
    """Hold the run's folder for this process. Raises `Faults` when another training holds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            hint = "wait for it, or give this run another --output_name"
            raise Faults([Fault(str(run_dir), "another training is writing this run", hint)]) from None
        yield
