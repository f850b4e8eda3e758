"""The figures of the model card, read from the journals and files of the stages."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from trainer.common.files import sha256_file
from trainer.models.weights import read_header

JOURNALS = ("autoencoder", "transformer", "guidance", "judge")
MACHINE = {"device", "processes", "torch"}
PROGRESS = {"step", "seconds", "steps_per_second", "pictures_per_second", *MACHINE}


def read_journal(file: Path) -> list[dict[str, Any]]:
    """The lines of a stage's journal, oldest first."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def stage_figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The last value of each number in a journal, with totals.

    "steps" and "seconds" cover all starts of the stage. "pictures_per_second" is the median speed, "machines" lists
    what it ran on, and "processes" is the number of processes of the last start.
    """
    lines = list(lines)
    figures: dict[str, Any] = {name: value for line in lines for name, value in line.items() if name not in PROGRESS}
    starts = [line for line in lines if line.keys() >= MACHINE]
    if starts:
        machines = (f"{line['processes']} x {line['device']}, torch {line['torch']}" for line in starts)
        figures |= {"machines": list(dict.fromkeys(machines)), "processes": starts[-1]["processes"]}
    rates = sorted(line["pictures_per_second"] for line in lines if "pictures_per_second" in line)
    if rates:
        figures["pictures_per_second"] = rates[len(rates) // 2]
    return figures | {"steps": max(line["step"] for line in lines), "seconds": _seconds(lines)}


def _seconds(lines: list[Mapping[str, Any]]) -> float:
    """The total time. When a stage resumes, "seconds" starts again at 0, in a line that names the machine."""
    following = [*lines[1:], {"seconds": 0.0}]
    ends = (
        line["seconds"]
        for line, after in zip(lines, following, strict=True)
        if after["seconds"] < line["seconds"] or after.keys() >= MACHINE
    )
    return round(sum(ends), 1)


def journal_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures of each stage that has a journal."""
    files = {name: folder / f"{name}.jsonl" for name in JOURNALS}
    return {name: stage_figures(read_journal(file)) for name, file in files.items() if file.exists()}


def file_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes, SHA-256 and number of parameters of each safetensors file."""
    figures = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes = [info.shape for info in read_header(file).tensors.values()]
        parameters = sum(int(torch.tensor(shape).prod()) for shape in shapes)
        figures[file.name] = {"bytes": file.stat().st_size, "parameters": parameters, "sha256": sha256_file(file)}
    return figures
