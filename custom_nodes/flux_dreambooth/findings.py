"""What is known about a run's checkpoints: their figures, which one to keep, and the verdicts of the trainer's guard.

The figures are those of `trainer compare` (compare.json) or, without it, of evaluations during training (log.jsonl).
Both files may be missing, damaged, of an earlier run with the same name, or of an older trainer: what they do not say
is unknown here.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from .training_log import Checkpoint, TrainingLog, number, open_regular, plain_name

COMPARISON, REPORT = "compare.json", "report.html"
MAX_COMPARISON = 8 * 2**20
MAX_TEXT = 1000
FIGURES = ("likeness", "bleed", "drift")
LOSSES = ("loss_on_images", "loss_drift")  # percent; all that is measured without features
REASONS = ("copies", "little", "only", "close", "next")


@dataclass(frozen=True)
class Measured:
    """A checkpoint that was measured. name: as `trainer compare` calls it; figures: those of FIGURES or LOSSES."""

    name: str
    score: float
    error: float | None
    figures: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return {"score": self.score, "error": self.error, "figures": self.figures}


@dataclass(frozen=True)
class Comparison:
    """The content of compare.json. written: its time in seconds since 1970; measured: by the name of the LoRA file.

    Files of the same name in several folders are left out of `measured`, since either may be the run's.
    """

    written: float
    recommended: str
    text: str
    reason: str
    close: tuple[str, ...]
    measured: dict[str, Measured] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """What is known about a run. measured: by file; recommended: as the page shows it, or None."""

    measured: dict[str, Measured] = field(default_factory=dict)
    recommended: dict[str, Any] | None = None


def as_json(log: TrainingLog, folder: Path) -> dict[str, Any]:
    """What the page shows of a run's findings. report: "current", "earlier" (of a run of this name before), or None."""
    known = find(log, folder)
    return {
        "measured": {file: each.as_json() for file, each in known.measured.items() if file in log.checkpoints},
        "recommended": known.recommended,
        "verdicts": sorted(log.verdicts.values(), key=lambda each: (not each["holds"], -each["step"])),
        "report": _report(log, folder / REPORT),
    }


def find(log: TrainingLog, folder: Path) -> Known:
    """What is known about the checkpoints of a run, whose log has been read. folder: runs/NAME."""
    compared = read_comparison(folder / COMPARISON)
    if compared is None or not _is_of(compared, log):
        return _from_log(log)
    newer = [each for each in log.checkpoints.values() if not _was_there(each, compared.written)]
    if newer and log.evaluations:
        return _from_log(log)
    stale = {each.file for each in newer}
    measured = {file: each for file, each in compared.measured.items() if file not in stale}
    best = compared.measured.get(compared.recommended)
    others = [each.score for each in compared.measured.values() if each is not best]
    step = log.checkpoints[compared.recommended].step if compared.recommended in log.checkpoints else None
    recommended = {
        "file": compared.recommended,
        "step": step,
        "by": "compare",
        "of": len(compared.measured),
        "reason": compared.reason,
        "close": list(compared.close),
        "next": max(others, default=None),
        "text": compared.text,
        "newer": len(newer),
        **(best.as_json() if best else {"score": None, "error": None, "figures": {}}),
    }
    return Known(measured, recommended)


def _is_of(compared: Comparison, log: TrainingLog) -> bool:
    """Whether the comparison is of this run, not of an earlier one whose files had the same names."""
    there = {each.file for each in log.checkpoints.values() if _was_there(each, compared.written)}
    if compared.recommended in log.checkpoints:
        return compared.recommended in there and compared.recommended in compared.measured
    return not there.isdisjoint(compared.measured)


def _was_there(checkpoint: Checkpoint, time: float) -> bool:
    return checkpoint.time is None or checkpoint.time <= time


def _from_log(log: TrainingLog) -> Known:
    """The figures of evaluations during training, and the best so far; at the end, what the trainer recommends."""
    at_steps = {step: found for step, facts in log.evaluations.items() if (found := _evaluated(step, facts))}
    files = {each.step: each.file for each in log.checkpoints.values()}
    measured = {files[step]: each for step, each in at_steps.items() if step in files}
    if not at_steps:
        return Known()
    ended = log.recommended if log.recommended in at_steps else None
    step = max(at_steps, key=lambda each: at_steps[each].score) if ended is None else ended
    recommended = {
        "file": files.get(step),
        "step": step,
        "by": "end" if ended is not None else "so_far",
        "of": len(at_steps),
        "reason": None,
        "close": [],
        "next": None,
        "text": "",
        "newer": 0,
        **at_steps[step].as_json(),
    }
    return Known(measured, recommended)


def _evaluated(step: int, facts: Mapping[str, Any]) -> Measured | None:
    score = number(facts.get("score"))
    return None if score is None else Measured(f"step {step}", score, number(facts.get("error")), _figures(facts))


def _figures(facts: Mapping[str, Any]) -> dict[str, float]:
    """The figures that were measured: those of images or, without them, those of losses."""
    for names in (FIGURES, LOSSES):
        found = {name: value for name in names if (value := number(facts.get(name))) is not None}
        if len(found) == len(names):
            return found
    return {}


def read_comparison(path: Path) -> Comparison | None:
    """compare.json as it is now; None if it is missing or none. It is parsed again only if it has changed."""
    try:
        facts = path.lstat()
        return _parsed(path, facts.st_mtime_ns, facts.st_size)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=16)
def _parsed(path: Path, mtime_ns: int, size: int) -> Comparison | None:
    if size > MAX_COMPARISON:
        return None
    try:
        with open_regular(path) as file:
            held = json.loads(file.read(MAX_COMPARISON))
    except (OSError, ValueError, RecursionError):
        return None
    recommended = _file_name(held.get("recommended")) if isinstance(held, dict) else None
    rows = held.get("checkpoints") if isinstance(held, dict) else None
    if recommended is None or not isinstance(rows, list):
        return None
    found = [(file, each) for row in rows if isinstance(row, dict) and (file := _file_name(row.get("file")))
             and (each := _row(row))]  # fmt: skip
    names = Counter(_file_name(row.get("file")) for row in rows if isinstance(row, dict))
    close = held.get("close")
    return Comparison(
        written=mtime_ns / 1e9,
        recommended=recommended,
        text=str(held.get("text", ""))[:MAX_TEXT],
        reason=held["reason"] if held.get("reason") in REASONS else "",
        close=tuple(str(name)[:MAX_TEXT] for name in close[:100]) if isinstance(close, list) else (),
        measured={file: each for file, each in found if names[file] == 1},
    )


def _row(row: Mapping[str, Any]) -> Measured | None:
    score = number(row.get("score"))
    means = {name: row[name].get("mean") for name in (*FIGURES, *LOSSES) if isinstance(row.get(name), dict)}
    if score is None:
        return None
    return Measured(str(row.get("name", ""))[:MAX_TEXT], score, number(row.get("error")), _figures(means))


def _file_name(path: Any) -> str | None:
    return plain_name(re.split(r"[\\/]", path)[-1]) if isinstance(path, str) else None


def _report(log: TrainingLog, path: Path) -> str | None:
    try:
        with open_regular(path):
            written = path.lstat().st_mtime
    except OSError:
        return None
    is_of = any(_was_there(each, written) for each in log.checkpoints.values())
    return "current" if is_of else "earlier"


def find_for_files(runs: Path, run: str, listed: Iterable[str]) -> tuple[dict[str, Measured], str | None]:
    """The figures of a run's LoRA files by their names in ComfyUI's list, and the one to keep, if they are known.

    run: as `lora_files.run_of` names it. A file whose name two folders share is unknown: either may be the run's.
    """
    listed = list(listed)
    name = plain_name(re.split(r"[\\/]", run)[-1])
    folder = runs / name if name else None
    if folder is None or folder.is_symlink():
        return {}, None
    log = TrainingLog()
    try:
        log.update(folder / "log.jsonl")
    except (OSError, ValueError):
        return {}, None
    known = find(log, folder)
    names = Counter(_file_name(each) for each in listed)
    mine = {file: each for each in listed if (file := _file_name(each)) in log.checkpoints and names[file] == 1}
    measured = {mine[file]: each for file, each in known.measured.items() if file in mine}
    return measured, mine.get(known.recommended["file"]) if known.recommended else None
