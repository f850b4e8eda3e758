"""Counts images and the time that they take, for commands that work through a list of them."""

import time

from trainer.common.text import duration, in_seconds


class Pace:
    """Counts images and how long they take. total: how many there are. written: how many have got a file."""

    def __init__(self, total: int):
        self.total, self.done, self.written = total, 0, 0
        self.began = self.last = time.monotonic()

    def count(self, is_written: bool) -> tuple[str, str]:
        """Count one more image; returns the time it took, in seconds, and "3 of 8, about 2 min left"."""
        now = time.monotonic()
        self.done, self.written = self.done + 1, self.written + is_written
        took, self.last = in_seconds(now - self.last), now
        left = (now - self.began) / self.done * (self.total - self.done)
        until = f", about {duration(left)} left" if self.done < self.total else ""
        return took, f"{self.done} of {self.total}{until}"

    def mean(self) -> str:
        """The seconds that an image took on average."""
        return in_seconds((self.last - self.began) / self.total)
