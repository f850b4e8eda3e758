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
    """A run's measured speed and memory.

    seconds_per_picture: the median over the first steps. peak_gib, planned_gib: the measured and the expected peak of
    allocated device memory. date: the day in ISO format.
    """

    seconds_per_picture: float
    peak_gib: float
    planned_gib: float
    date: str


def record_key(*facts: Any) -> str:
    """A short hash of everything that a run's speed and memory depend on; it is made of the facts' `repr`."""
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def find_measured(folder: Path, key: str) -> Measured | None:
    """The entry under `key` in the folder's measured.json; None if there is none or the file cannot be used.

    key: from `record_key`.
    """
    try:
        return Measured(**json.loads((folder / FILE).read_text(encoding="utf-8"))[key])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep_measured(folder: Path, key: str, measured: Measured) -> None:
    """Write a run's measured speed and memory to measured.json in this folder, replacing an entry under the same key.

    key: from `record_key`.
    """
    try:
        known = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    known = known if isinstance(known, dict) else {}
    write_text(folder / FILE, json.dumps({**known, key: asdict(measured)}, indent=1, sort_keys=True) + "\n")


@dataclass
class Measuring:
    """Measures the first steps after a start, then writes measured.json and logs how good the memory plan was.

    folder: where measured.json is. key: the run's, from `record_key`. planned_bytes: the expected peak.
    """

    folder: Path
    key: str
    planned_bytes: int
    seconds: list[float] = field(default_factory=list)
    seen: int = 0

    def step(self, seconds_per_picture: float, peak_gib: float) -> None:
        """Call once after each step; the tenth call writes measured.json, with the median time of steps 4 to 10.

        peak_gib: the highest allocation on the device so far, in GiB.
        """
        self.seen += 1
        if FIRST <= self.seen <= LAST:
            self.seconds.append(seconds_per_picture)
        if self.seen != LAST:
            return
        planned, median = self.planned_bytes / 2**30, statistics.median(self.seconds)
        keep_measured(self.folder, self.key, Measured(median, peak_gib, planned, f"{datetime.now():%Y-%m-%d}"))
        log.info("memory: planned %.1f GiB, took %.1f; %s s per picture", planned, peak_gib, in_seconds(median))
