"""The results of trainings that differ in their seed only, in one row: the median, and all of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.concepts.variants import ConceptRun


def tabulate(folder: Path, asked: Sequence[ConceptRun]) -> str:
    """A Markdown table for each group of concepts, of what is complete. folder: with NAME.json of each run."""
    parts = []
    for concepts in dict.fromkeys(run.concepts for run in asked):
        rows: dict[str, list[Mapping[str, float]]] = {}
        for run in asked:
            file = folder / f"{run.name}.json"
            if run.concepts == concepts and file.is_file():
                columns = json.loads(file.read_text(encoding="utf-8"))["columns"]
                rows.setdefault("base model", [_figures(columns[0])])
                rows.setdefault(run.variant, []).append(_figures(columns[-1]))
        if rows:
            parts.append(_table(" + ".join(concepts), rows))
    return "\n\n".join(parts) or "no results yet"


def _figures(column: Mapping[str, Any]) -> dict[str, float]:
    relations = column.get("relations") or {}
    shares = {f"{name}, of {each['prompts']}": float(each["images"]) for name, each in relations.items()}
    return {**column["scores"], **shares}


def _table(title: str, rows: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for figures in row for name in figures))
    lines = [f"| {title} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for label, found in rows.items():
        cells = [_cell([figures[name] for figures in found if name in figures]) for name in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if len(values) < 2:
        return "".join(f"{value:.3g}" for value in values)
    return f"{median(values):.3g} ({', '.join(f'{value:.3g}' for value in values)})"
