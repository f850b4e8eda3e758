"""Retries: a failure that may be temporary is retried and reported, any other is raised at once."""

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError

from trainer.hub.errors import is_transient, reason

WAITS = (1.0, 2.0, 4.0, 8.0, 15.0)  # seconds before each retry
MAX_WAIT = 300.0  # seconds, whatever the Hub asks for
T = TypeVar("T")


def patiently(
    call: Callable[[], T],
    what: str,
    say: Callable[[str], object],
    wait: Callable[[float], object] = time.sleep,
    progress: Callable[[], int] = lambda: 0,
) -> T:
    """Call `call` and return its result; after a temporary error, wait and retry, at most 5 times in a row.

    what: what the call is for, named in the message about a retry; say: called with that message; wait: called with the
    number of seconds to wait; progress: returns a number that grows if a failed attempt has achieved something, after
    which the retries are counted from the start. Raises the last error, or at once one that is not temporary.
    """
    failures = 0
    while True:
        before, began = progress(), time.monotonic()
        try:
            return call()
        except Exception as error:
            failures = 1 if progress() > before else failures + 1
            if not is_transient(error) or failures > len(WAITS):
                raise
            asked = _asked_for(error)
            seconds = max(WAITS[failures - 1], asked)
            left = _seconds_left(failures, asked, time.monotonic() - began)
            number = f"retry {failures} of {len(WAITS)} in {seconds:.0f} s"
            say(f"{what}: {reason(error)}; {number}, giving up in about {left:.0f} s")
            wait(seconds)


def _seconds_left(failures: int, asked: float, attempt: float) -> float:
    """How long the remaining retries take if each waits as long and fails as slowly as the last one."""
    waits = WAITS[failures - 1 :]
    return sum(max(seconds, asked) for seconds in waits) + attempt * len(waits)


def _asked_for(error: Exception) -> float:
    """The seconds in a Retry-After header; 0 without one."""
    if not isinstance(error, HfHubHTTPError):
        return 0
    text = error.response.headers.get("retry-after", "")
    return min(float(text), MAX_WAIT) if text.isdigit() else 0
