"""What a training would take: questions of the page and the waiting trainer's answers, in runs/queue/plans/.

A question is ID.toml, the settings of a training, and ID.dataset.toml if its dataset file is not written yet. The
answer is ID.json. The id is a digest of everything that the answer depends on, so that two browsers share an answer.
All of these files are temporary, and the oldest are removed.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .files import create_file, read_file, replace_file
from .job_file import settings_text

FOLDER = "plans"  # in the queue's folder
MAX_PLANS = 20
MAX_ANSWER = 2**20  # bytes
_ID = re.compile(r"[0-9a-f]{24}")


class Plans:
    """The questions and answers of one queue. Several threads and programs may use it at the same time."""

    def __init__(self, queue: Path):
        self.folder = queue / FOLDER

    def path(self, plan: str, ending: str) -> Path:
        """A file of a question, such as its ".toml". Raises LookupError if the id cannot be one."""
        if not _ID.fullmatch(plan):
            raise LookupError(f"There is no plan {plan!r}.")
        return self.folder / f"{plan}{ending}"

    def id_of(self, settings: Mapping[str, Any], dataset: str | None, mark: str) -> str:
        """The id of a question. mark: stands for the images and for what earlier jobs have left.

        Raises ValueError for a value that TOML cannot hold.
        """
        parts = (settings_text(settings), dataset or "", mark)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def ask(self, settings: Mapping[str, Any], dataset: str | None, mark: str) -> str:
        """Write a question, unless it is there already; returns its id. Raises OSError, and ValueError as `id_of`.

        dataset: the content of a dataset file that is not written yet; else `settings` name the file.
        """
        plan = self.id_of(settings, dataset, mark)
        if not self.path(plan, ".toml").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._remove_oldest()
            if dataset is not None:
                create_file(self.path(plan, ".dataset.toml"), dataset.encode())
            create_file(self.path(plan, ".toml"), settings_text(settings).encode())
        return plan

    def withdraw(self, plan: str) -> None:
        """Remove a question that has no answer yet. Raises LookupError if the id cannot be one."""
        if not self.path(plan, ".json").exists():
            self._remove(plan)

    def unanswered(self, without: Collection[str] = ()) -> str | None:
        """The newest question that has no answer, apart from those in `without`."""
        open_ = (plan for plan in self._newest() if plan not in without and not self.path(plan, ".json").exists())
        return next(open_, None)

    def is_asked(self, plan: str) -> bool:
        """Whether the question is still there."""
        return self.path(plan, ".toml").exists()

    def answer(self, plan: str, held: Mapping[str, Any]) -> None:
        """Write the answer, unless the question was withdrawn. Raises OSError."""
        if self.is_asked(plan):
            replace_file(self.path(plan, ".json"), json.dumps(held, ensure_ascii=False).encode(errors="replace"))

    def answer_to(self, plan: str) -> dict[str, Any] | None:
        """The answer, or None if there is none yet. Raises LookupError if the id cannot be one."""
        try:
            held = json.loads(read_file(self.path(plan, ".json"), MAX_ANSWER))
        except (OSError, ValueError, RecursionError):
            return None
        return held if isinstance(held, dict) else None

    def _newest(self) -> list[str]:
        found = []
        with contextlib.suppress(OSError):
            for path in self.folder.glob("*.toml"):
                if _ID.fullmatch(path.stem):
                    with contextlib.suppress(OSError):  # it was withdrawn just now
                        found.append((path.lstat().st_mtime_ns, path.stem))
        return [plan for _, plan in sorted(found, reverse=True)]

    def _remove_oldest(self) -> None:
        for plan in self._newest()[MAX_PLANS - 1 :]:
            self._remove(plan)

    def _remove(self, plan: str) -> None:
        for ending in (".toml", ".dataset.toml", ".json", ".log"):
            with contextlib.suppress(OSError):
                self.path(plan, ending).unlink()
