"""The time as files record it."""

import os
import time


def now() -> float:
    """Unix time in seconds; SOURCE_DATE_EPOCH where set, so that files can be made again bit for bit."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return float(fixed) if fixed else time.time()
