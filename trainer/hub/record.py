"""Which files were verified, so that 34 GB are not hashed on every run, and what the Hub listed for them."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.common.files import write_json
from trainer.hub.api import HubFile

RECORD = Path(".download", "record.json")  # in models/


@dataclass(frozen=True)
class Record:
    """The files that were verified, by their path in the models folder.

    stated: as the Hub listed them; seen: size in bytes and mtime in ns when last verified.
    """

    stated: Mapping[str, HubFile]
    seen: Mapping[str, tuple[int, int]]

    def is_verified(self, models: Path, target: str, file: HubFile) -> bool:
        """Whether the file at `models / target` was verified as `file` and has not been written since.

        A tokenizer or an autoencoder from another repository of the family counts too: either serves all of them.
        """
        known = self.stated.get(target)
        if known is None or self.seen.get(target) != _seen(models / target):
            return False
        return known.repository != file.repository or known.digest == file.digest

    def listing(self, repository: str) -> Mapping[str, HubFile]:
        """The recorded files of a repository, as the Hub listed them at download, by their path in the repository."""
        return {file.path: file for file in self.stated.values() if file.repository == repository}

    def with_verified(self, models: Path, targets: Iterable[tuple[str, HubFile]]) -> "Record":
        """A new record with files added that have just been verified.

        models: the models folder; targets: for each file, its path in that folder and what the Hub lists for it.
        """
        stated, seen = dict(self.stated), dict(self.seen)
        for target, file in targets:
            stated[target], seen[target] = file, _seen(models / target)
        return replace(self, stated=stated, seen=seen)


def load_record(models: Path) -> Record:
    """Read the record in the models folder; returns an empty one if there is none or it cannot be read."""
    try:
        held: dict[str, Any] = json.loads((models / RECORD).read_text(encoding="utf-8"))
        stated = {target: HubFile(**entry["stated"]) for target, entry in held.items()}
        seen = {target: (int(entry["seen"][0]), int(entry["seen"][1])) for target, entry in held.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError):
        return Record({}, {})  # the files are hashed again, nothing worse
    return Record(stated, seen)


def save_record(models: Path, record: Record) -> None:
    """Write the record to `.download/record.json` in the models folder, atomically."""
    entries = {t: {"stated": asdict(file), "seen": record.seen[t]} for t, file in sorted(record.stated.items())}
    write_json(models / RECORD, entries)


def _seen(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns
