"""Time and memory of runs on this machine, kept next to the cache and quoted by the next plan."""

import hashlib
import json
import logging
import statistics
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from trainer.common.files import write_text
from trainer.common.text import in_seconds

log = logging.getLogger(__name__)
FILE = "measured.json"
FIRST, LAST = 4, 10  # steps after a start that are measured; earlier ones compile and allocate


@dataclass(frozen=True)
class Measured:
    """A run's figures. date: the day in ISO format. planned_gib: the expected peak."""

    seconds_per_picture: float
    peak_gib: float
    planned_gib: float
    date: str


def record_key(*facts: Any) -> str:
    """A short hash of everything that a run's speed and memory depend on."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def find_measured(folder: Path, key: str) -> Measured | None:
    """The figures under this key; None if there are none or the file is not ours."""
    try:
        return Measured(**json.loads((folder / FILE).read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_measured(folder: Path, key: str, measured: Measured) -> None:
    """Add figures, replacing earlier ones under the same key."""
    try:
        known = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    write_text(folder / FILE, json.dumps({**known, key: asdict(measured)}, indent=1, sort_keys=True) + "\n")


@dataclass
class Measuring:
    """Measures the first steps after a start, then writes the record and logs how good the plan was."""

    folder: Path
    key: str
    planned_bytes: int
    seconds: list[float] = field(default_factory=list)
    seen: int = 0

    def step(self, seconds_per_picture: float, peak_gib: float) -> None:
        """Take one step's figures."""
        self.seen += 1
        if FIRST <= self.seen <= LAST:
            self.seconds.append(seconds_per_picture)
        if self.seen != LAST:
            return
        planned, median = self.planned_bytes / 2**30, statistics.median(self.seconds)
        keep_measured(self.folder, self.key, Measured(median, peak_gib, planned, f"{datetime.now():%Y-%m-%d}"))
        log.info("memory: planned %.1f GiB, took %.1f; %s s per picture", planned, peak_gib, in_seconds(median))
