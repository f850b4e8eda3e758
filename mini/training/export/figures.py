"""What the stages have written down, as figures for the model card: nothing here is typed by hand."""

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
    """The lines of a stage's journal, the oldest first."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def stage_figures(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The last word of a journal on each number, its steps, its seconds over all parts, its middling speed, and the
    machines that it ran on with the number of processes on the last of them."""
    lines = list(lines)
    figures: dict[str, Any] = {name: value for line in lines for name, value in line.items() if name not in PROGRESS}
    starts = [line for line in lines if line.keys() >= MACHINE]
    if starts:
        told = (f"{line['processes']} x {line['device']}, torch {line['torch']}" for line in starts)
        figures |= {"machines": list(dict.fromkeys(told)), "processes": starts[-1]["processes"]}
    rates = sorted(line["pictures_per_second"] for line in lines if "pictures_per_second" in line)
    if rates:
        figures["pictures_per_second"] = rates[len(rates) // 2]
    return figures | {"steps": max(line["step"] for line in lines), "seconds": _seconds(lines)}


def _seconds(lines: list[Mapping[str, Any]]) -> float:
    """A stage's seconds begin again at 0 when it goes on after a stop, with a line that names the machine."""
    following = [*lines[1:], {"seconds": 0.0}]
    ends = (
        line["seconds"]
        for line, after in zip(lines, following, strict=True)
        if after["seconds"] < line["seconds"] or after.keys() >= MACHINE
    )
    return round(sum(ends), 1)


def journal_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """By stage, for those that have a journal."""
    files = {name: folder / f"{name}.jsonl" for name in JOURNALS}
    return {name: stage_figures(read_journal(file)) for name, file in files.items() if file.exists()}


def file_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Bytes, SHA-256 and number of parameters of each safetensors file."""
    figures = {}
    for file in sorted(folder.glob("*.safetensors")):
        shapes = [info.shape for info in read_header(file).tensors.values()]
        parameters = sum(int(torch.tensor(shape).prod()) for shape in shapes)
        figures[file.name] = {"bytes": file.stat().st_size, "parameters": parameters, "sha256": sha256_file(file)}
    return figures
