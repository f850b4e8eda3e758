"""Caption edits from the browser: atomic, refused if the caption has changed meanwhile, and reversible.

Every edit is recorded before it is made, in flux_data/.captions/CONCEPT.edits.jsonl, so that it can be undone.
"""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .answers import Conflict
from .exchange.caption_record import record_folder
from .exchange.files import locked, read_file, replace_file
from .folder_entries import MAX_CAPTION, entries, read_caption

MAX_EDITS = 8 * 2**20  # bytes of the record that are read, from its end
MAX_FIND = 500
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True)
class Change:
    """One caption file. before, after: its text without white space at the end; None if there was no file."""

    file: str
    caption_file: str
    before: str | None
    after: str

    @property
    def as_json(self) -> dict[str, Any]:
        return {"file": self.file, "before": self.before, "after": self.after}


def write(folder: Path, file: str, text: str, was: str | None) -> dict[str, Any]:
    """Change one image's caption, if it still is `was` (None: there is none).

    file: the image's name. Raises `Conflict`, LookupError, ValueError and OSError.
    """
    text = checked(text)
    with locked(record_folder(folder)):
        change = _change(folder, file, text)
        if change.before != (was if was is None else was.rstrip()):
            raise Conflict("The caption was changed meanwhile.", caption=change.before)
        _apply(folder, [change] if change.after != change.before else [])
        return {"file": file, "caption": text, "can_undo": can_undo(folder)}


def replace_all(folder: Path, find: str, replacement: str, only_preview: bool) -> dict[str, Any]:
    """Replace a text in all captions of a folder; with only_preview, nothing is written. Raises ValueError."""
    if not find or len(find) > MAX_FIND or len(replacement) > MAX_CAPTION:
        raise ValueError(f"find must have 1 to {MAX_FIND} characters.")
    with locked(record_folder(folder)):
        found = entries(folder)
        changes = []
        for file, caption_file in found.captions.items():
            before = read_caption(folder / caption_file)
            if find in before:
                changes.append(Change(file, caption_file, before, checked(before.replace(find, replacement))))
        if not only_preview:
            _apply(folder, changes)
        return {"changes": [change.as_json for change in changes], "can_undo": can_undo(folder)}


def undo(folder: Path) -> dict[str, Any]:
    """Take back the last edit that was not taken back yet. Raises `Conflict` if there is none, or a caption changed.

    A caption file that an edit created is left, empty.
    """
    with locked(record_folder(folder)):
        edits = _standing(folder)
        if not edits:
            raise Conflict("There is no edit to take back.")
        number, changes = edits[-1]
        back = []
        for change in changes:
            now = _read(folder / change.caption_file)
            if now not in (change.after, change.before):
                raise Conflict(f"The caption of {change.file} was changed meanwhile.", caption=now)
            if now == change.after != change.before:
                back.append(Change(change.file, change.caption_file, now, change.before or ""))
        for change in back:
            replace_file(folder / change.caption_file, _content(change.after))
        _write_down(folder, [{"undo": number}])
        return {"changes": [change.as_json for change in back], "can_undo": can_undo(folder)}


def can_undo(folder: Path) -> bool:
    """Whether there is an edit that was not taken back."""
    return bool(_standing(folder))


def checked(text: str) -> str:
    """A caption as it is stored, without white space at its end. Raises ValueError."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").rstrip()
    if len(text) > MAX_CAPTION:
        raise ValueError(f"A caption has at most {MAX_CAPTION:,} characters.")
    if _CONTROL.search(text):
        raise ValueError("The caption has control characters.")
    return text


def _change(folder: Path, file: str, text: str) -> Change:
    found = entries(folder)
    if file not in found.images:
        raise LookupError(f"There is no image {file!r}.")
    caption_file = found.captions.get(file) or f"{Path(file).stem}.txt"
    if file not in found.captions and os.path.lexists(folder / caption_file):
        raise Conflict(f"{caption_file} is in the way of the caption.")
    return Change(file, caption_file, _read(folder / caption_file), text)


def _read(path: Path) -> str | None:
    return read_caption(path) if os.path.lexists(path) else None


def _content(text: str) -> bytes:
    return f"{text}\n".encode() if text else b""


def _apply(folder: Path, changes: Sequence[Change]) -> None:
    if not changes:
        return
    number = 1 + max((number for number, _ in _all(folder)), default=0)
    _write_down(folder, [{"edit": number, **change.__dict__} for change in changes])
    for change in changes:
        replace_file(folder / change.caption_file, _content(change.after))


def _path(folder: Path) -> Path:
    return record_folder(folder) / f"{folder.name}.edits.jsonl"


def _write_down(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines to the record. A line that a kill has cut is ended first, and then counts as nothing."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    with _path(folder).open("ab") as file:
        start = file.tell()
        try:
            file.write(b"\n" + text.encode())
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), start)  # a full disk has taken a part of it
            raise


def _all(folder: Path) -> list[tuple[int, list[Change]]]:
    """All edits in order, those that were taken back with no changes left."""
    edits: dict[int, list[Change]] = {}
    for line in _lines(folder):
        if isinstance(number := line.get("undo"), int):
            edits[number] = []
        elif isinstance(number := line.get("edit"), int) and (change := _valid(line)):
            edits.setdefault(number, []).append(change)
    return list(edits.items())


def _standing(folder: Path) -> list[tuple[int, list[Change]]]:
    return [(number, changes) for number, changes in _all(folder) if changes]


def _lines(folder: Path) -> list[dict[str, Any]]:
    path = _path(folder)
    try:
        size = path.lstat().st_size
        text = read_file(path, MAX_EDITS, max(0, size - MAX_EDITS)).decode("utf-8", "replace")
    except OSError:
        return []
    found = []
    for line in text.split("\n"):
        try:
            held = json.loads(line)
        except (ValueError, RecursionError):
            continue
        found += [held] if isinstance(held, dict) else []
    return found


def _valid(line: Mapping[str, Any]) -> Change | None:
    file, caption_file, before, after = (line.get(key) for key in ("file", "caption_file", "before", "after"))
    plain = all(isinstance(name, str) and not re.search(r"[/\\\x00]|^\.", name) for name in (file, caption_file))
    fits = plain and isinstance(after, str) and (before is None or isinstance(before, str))
    return Change(str(file), str(caption_file), before, str(after)) if fits else None
