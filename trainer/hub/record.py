"""What was found whole, so that 34 GB need not be hashed each time, and what the hub stated of it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.common.files import write_json
from trainer.hub.api import HubFile

RECORD = Path(".download", "record.json")  # below models/


@dataclass(frozen=True)
class Record:
    """stated: the hub's files by their target below models/; seen: size and time of the file that was whole."""

    stated: Mapping[str, HubFile]
    seen: Mapping[str, tuple[int, int]]

    def knows_whole(self, models: Path, target: str, file: HubFile) -> bool:
        """Whether the file at `target` is one that was found whole and was not written since.

        A tokenizer or autoencoder that came from another repository of the family stays as it is.
        """
        known = self.stated.get(target)
        if known is None or self.seen.get(target) != _seen(models / target):
            return False
        return known.repository != file.repository or known.digest == file.digest

    def listing(self, repository: str) -> Mapping[str, HubFile]:
        """The files of a repository that the hub stated when they were downloaded, by their path there."""
        return {file.path: file for file in self.stated.values() if file.repository == repository}

    def with_whole(self, models: Path, targets: Iterable[tuple[str, HubFile]]) -> "Record":
        """The record with files that have just been found whole."""
        stated, seen = dict(self.stated), dict(self.seen)
        for target, file in targets:
            stated[target], seen[target] = file, _seen(models / target)
        return replace(self, stated=stated, seen=seen)


def load_record(models: Path) -> Record:
    """The record of a folder of models; an empty one where there is none or it cannot be read."""
    try:
        held: dict[str, Any] = json.loads((models / RECORD).read_text(encoding="utf-8"))
        stated = {target: HubFile(**entry["stated"]) for target, entry in held.items()}
        seen = {target: (int(entry["seen"][0]), int(entry["seen"][1])) for target, entry in held.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return Record({}, {})  # costs no more than hashing the files again
    return Record(stated, seen)


def save_record(models: Path, record: Record) -> None:
    """Write it atomically."""
    entries = {t: {"stated": asdict(file), "seen": record.seen[t]} for t, file in sorted(record.stated.items())}
    write_json(models / RECORD, entries)


def _seen(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
