"""Writing files on a thread while training continues, one at a time; errors reach the main thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BackgroundWrite:
    """Runs a write on a thread. The data must be a copy that nothing changes; errors are raised in the main thread."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future[Any], Callable[[Any], None]] | None = None

    def start(self, write: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Wait for the previous write, then start `write`. Its result is passed to `then`, in the main thread."""
        self.finish()
        self._pending = self._pool.submit(write), then

    def collect(self) -> None:
        """Finish a write that has ended; does not wait for one that has not."""
        if self._pending and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the current write, and raise its error if it failed."""
        if self._pending:
            (future, then), self._pending = self._pending, None
            then(future.result())

    def close(self) -> None:
        """Finish the current write and end the thread."""
        try:
            self.finish()
        finally:
            self._pool.shutdown()
