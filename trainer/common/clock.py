"""The time that is written into files."""

import os
import time


def now() -> float:
    """Unix time in seconds; SOURCE_DATE_EPOCH where set, so that a file can be reproduced bit for bit."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    return float(fixed) if fixed else time.time()
