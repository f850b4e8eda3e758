"""Writing files on a thread while training continues, one at a time; errors reach the main thread."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BackgroundWrite:
    """Runs one write at a time on its own thread while the main thread continues.

    What a write reads must not change until the write has ended: give it a copy. An error of the write is raised in the
    main thread, by the first call of these methods that finds the write ended.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: tuple[Future[Any], Callable[[Any], None]] | None = None

    def start(self, write: Callable[[], Any], then: Callable[[Any], None]) -> None:
        """Wait for the previous write as `finish` does, then run `write()` on the thread.

        then: called with the result of `write()`, in the main thread, by the first later call that finds the write
        ended.
        """
        self.finish()
        self._pending = self._pool.submit(write), then

    def collect(self) -> None:
        """If the current write has ended, pass its result on or raise its error; never waits."""
        if self._pending and self._pending[0].done():
            self.finish()

    def finish(self) -> None:
        """Wait for the current write, if any, then pass its result on or raise its error."""
        if self._pending:
            (future, then), self._pending = self._pending, None
            then(future.result())

    def close(self) -> None:
        """Wait for the current write as `finish` does, and end the thread even if the write failed."""
        try:
            self.finish()
        finally:
            self._pool.shutdown()
