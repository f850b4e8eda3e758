"""A file written on a thread while training goes on: at most one at a time, and nothing about it forgotten."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BackgroundWrite:
    """What it writes must be a copy that nothing changes. What goes wrong there is raised here, in the main thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future[Any], Callable[[Any], None]] | None = None

    def start(self, write: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Begin `write`, after the one before has ended; `then` gets what it returned, in the main thread."""
        self.finish()
        self._pending = self._pool.submit(write), then

    def collect(self) -> None:
        """Take note of a write that has ended; never waits."""
        if self._pending and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written. Raises what it raised."""
        if self._pending:
            (future, then), self._pending = self._pending, None
            then(future.result())

    def close(self) -> None:
        """Wait, then let the thread go."""
        try:
            self.finish()
        finally:
            self._pool.shutdown()
