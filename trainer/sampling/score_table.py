"""The scores of an evaluation: models side by side, as text and as values for JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.common.text import counted
from trainer.sampling.evaluation import COLOURS, COMPANION, OBJECTS, PLACES, Relations
from trainer.sampling.prompt_sets import BOTH

TITLES = {OBJECTS: "right object", COLOURS: "right colour", PLACES: "right place", BOTH: "both in one image"}


@dataclass(frozen=True)
class Column:
    """One model's column in a `Table`. name: the heading; the others are those of `Scores`."""

    name: str
    scores: Mapping[str, float]
    relations: Relations = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Models side by side, the first of which the others are compared with.

    counts: the number of prompts that each percentage is about, by the percentage's name.
    """

    columns: tuple[Column, ...]
    counts: Mapping[str, int]

    def change(self, column: Column, name: str) -> float:
        """How far a column's percentage `name` is above the first column's, in percentage points."""
        return column.scores[name] - self.columns[0].scores[name]

    def text(self) -> str:
        """The table as text: a row per percentage and per relation of concepts.

        Later columns also show the percentage's difference to the first column, in points.
        """
        first, *others = self.columns
        rows = [["", first.name, *(column.name for column in others)]]
        for name in first.scores:
            cells = [f"{column.scores[name]:.1f} ({self.change(column, name):+.1f})" for column in others]
            rows.append(
                [f"{_title(name)} ({counted(self.counts[name], 'prompt')})", f"{first.scores[name]:.1f}", *cells]
            )
        for relation in first.relations:
            cells = ["{} of {}".format(*column.relations[relation]) for column in self.columns]
            rows.append([f"both, {relation}: images", *cells])
        note = "percent" + ("; in brackets the difference to the first column, in points" if others else "")
        return "\n".join([*_aligned(rows), note])

    def as_json(self) -> dict[str, Any]:
        """The table for JSON: {"prompts": counts, "columns": [{"name", "scores", "changes", "relations"}, …]}.

        changes: the differences to the first column in percentage points, by the percentage's name. relations: the
        images behind "both", {RELATION: {"images": with all concepts, "prompts": of how many}}.
        """
        columns = []
        for column in self.columns:
            changes = {name: self.change(column, name) for name in column.scores}
            relations = {name: {"images": n, "prompts": total} for name, (n, total) in column.relations.items()}
            columns.append(
                {"name": column.name, "scores": dict(column.scores), "changes": changes, "relations": relations}
            )
        return {"prompts": dict(self.counts), "columns": columns}


def _title(name: str) -> str:
    if name.startswith(COMPANION):
        return f"right thing next to {name.removeprefix(COMPANION)}"
    return TITLES.get(name, f"{name}, mean probability")


def _aligned(rows: list[list[str]]) -> Iterable[str]:
    """The rows as lines: the first column flush left, the others flush right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    return ("  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows)
