"""Trying again: what may pass by itself is given some time, what will not is told at once."""

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError

from trainer.hub.errors import is_transient

WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each further try
LONGEST_WAIT = 300.0  # however long the hub asks for
T = TypeVar("T")


def patiently(
    call: Callable[[], T],
    wait: Callable[[float], object] = time.sleep,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """The call's result, tried again after errors that may pass; raises the last one.

    wait: how to wait that many seconds; progress: a number that grows when a failed try has brought something,
    after which the tries are counted anew.
    """
    failures = 0
    while True:
        before = progress()
        try:
            return call()
        except Exception as error:
            failures = 1 if progress() > before else failures + 1
            if not is_transient(error) or failures > len(WAITS):
                raise
            wait(max(WAITS[failures - 1], _asked_for(error)))


def _asked_for(error: Exception) -> float:
    """What a Retry-After header says, in seconds; 0 without one."""
    if not isinstance(error, HfHubHTTPError):
        return 0
    text = error.response.headers.get("retry-after", "")
    return min(float(text), LONGEST_WAIT) if text.isdigit() else 0
