"""What is known about a run's checkpoints: their figures, which one to keep, and the verdicts of the trainer's guard.

The figures are those of `trainer compare` (compare.json) or, without it, of evaluations during training (log.jsonl).
Both files may be missing, damaged, of an earlier run with the same name, or of an older trainer: what they do not say
is unknown here.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
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
    """A checkpoint that was measured. error: of the score, None if unknown; figures: those of FIGURES or LOSSES."""

    score: float
    error: float | None
    figures: dict[str, float]


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
class Recommended:
    """The checkpoint to keep.

    file: None if none was saved at `step`. by: "compare", "end" (the trainer, at the run's end) or "so_far". of: how
    many were measured. measured: None for a file that is not the run's. The rest is of a comparison only: reason (one
    of REASONS, or empty), close, text, next: the second best score, newer: how many checkpoints it does not know.
    """

    file: str | None
    step: int | None
    by: str
    of: int
    measured: Measured | None
    reason: str = ""
    close: tuple[str, ...] = ()
    next: float | None = None
    text: str = ""
    newer: int = 0


@dataclass(frozen=True)
class Known:
    """What is known about a run. measured: by file."""

    measured: dict[str, Measured] = field(default_factory=dict)
    recommended: Recommended | None = None


def as_json(log: TrainingLog, folder: Path) -> dict[str, Any]:
    """What the page shows of a run's findings. report: "current", "earlier" (of a run of this name before), or None."""
    known = find(log, folder)
    return {
        "measured": {file: asdict(each) for file, each in known.measured.items() if file in log.checkpoints},
        "recommended": known.recommended and asdict(known.recommended),
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
    chosen = log.checkpoints.get(compared.recommended)
    recommended = Recommended(
        file=compared.recommended,
        step=chosen and chosen.step,
        by="compare",
        of=len(compared.measured),
        measured=best,
        reason=compared.reason,
        close=compared.close,
        next=max(others, default=None),
        text=compared.text,
        newer=len(newer),
    )
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
    at_steps = {step: _evaluated(facts) for step, facts in log.evaluations.items()}
    if not at_steps:
        return Known()
    files = {each.step: each.file for each in log.checkpoints.values()}
    measured = {files[step]: each for step, each in at_steps.items() if step in files}
    if log.recommended in at_steps:
        step, by = log.recommended, "end"
    else:
        step, by = max(at_steps, key=lambda each: at_steps[each].score), "so_far"
    return Known(measured, Recommended(files.get(step), step, by, len(at_steps), at_steps[step]))


def _evaluated(facts: Mapping[str, float]) -> Measured:
    return Measured(facts["score"], facts.get("error"), _figures(facts))


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
    if not isinstance(held, dict):
        return None
    recommended, rows = _file_name(held.get("recommended")), held.get("checkpoints")
    if recommended is None or not isinstance(rows, list):
        return None
    rows = [(file, row) for row in rows if isinstance(row, dict) and (file := _file_name(row.get("file")))]
    times = Counter(file for file, _ in rows)
    close = held.get("close")
    return Comparison(
        written=mtime_ns / 1e9,
        recommended=recommended,
        text=str(held.get("text", ""))[:MAX_TEXT],
        reason=held["reason"] if held.get("reason") in REASONS else "",
        close=tuple(str(name)[:MAX_TEXT] for name in close[:100]) if isinstance(close, list) else (),
        measured={file: each for file, row in rows if times[file] == 1 and (each := _row(row))},
    )


def _row(row: Mapping[str, Any]) -> Measured | None:
    score = number(row.get("score"))
    means = {name: row[name].get("mean") for name in (*FIGURES, *LOSSES) if isinstance(row.get(name), dict)}
    if score is None:
        return None
    return Measured(score, number(row.get("error")), _figures(means))


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
    return measured, mine.get(known.recommended.file or "") if known.recommended else None
