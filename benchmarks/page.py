"""The page that `python -m trainer bench --report` writes: one Markdown file to send, without names or paths."""

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.conditions import driver_version
from benchmarks.report import render, table
from benchmarks.settings import by_name
from trainer.models.quantized import precision_problems

NOT_MEASURED = "not reported"
CONDITIONS = (
    ("degrees", "highest °C", 0),
    ("core_mhz", "core MHz, median", 0),
    ("core_mhz_lowest", "core MHz, lowest", 0),
    ("memory_mhz", "memory MHz", 0),
    ("watts", "highest W", 0),
)


def usual_settings() -> tuple[list[str], list[str]]:
    """What a report measures if no setting is named: rank 16 with the base in bf16, fp8 and int8.

    Returns the settings as `--setting` takes them, and for each precision that this machine refuses one line why.
    """
    settings, refused = ["rank16=rank16"], []
    if not torch.cuda.is_available():
        return settings, ["fp8, int8: no CUDA device"]
    for precision in ("fp8", "int8"):
        if problems := precision_problems(precision):
            refused += [f"{precision}: {problem.what}" for problem in problems]
        else:
            settings.append(f"{precision}=rank16 --base_precision={precision}")
    return settings, refused


def as_page(found: Mapping[str, Any], refused: Sequence[str], private: Mapping[Path, str]) -> str:
    """A measurement as a Markdown page.

    found: from `benchmarks.report.as_json`; refused: what was not run, with the reason, one line each; private: folders
    that the page must not name -> what stands in their place.
    """
    machine, versions = found["machine"], found["versions"]
    facts = {
        "device": machine["device"],
        "compute capability": machine.get("capability"),
        "memory": _gib(machine.get("device_gib")),
        "shares the host's memory": {True: "yes", False: "no"}.get(machine.get("unified")),
        "GPUs": machine.get("devices"),
        "driver": driver_version(),
        "host": f"{machine['cpus']} processors, {_gib(machine['host_gib'])}, {platform.system()} {platform.machine()}",
        **versions,
    }
    rows = [[name, NOT_MEASURED if value is None else str(value)] for name, value in facts.items()]
    lines = [
        f"# {machine['device']}: what training takes",
        "",
        f"Written by `python -m trainer bench --report`, {found['written'][:10]}. Model: {found['model']}.",
        "",
        *table(["machine", ""], rows),
        "",
        "## Time and memory",
        "",
        render(found),
        *(["", *(f"- not run: {line}" for line in refused)] if refused else []),
        "",
        "## Temperature, clocks and power while busy",
        "",
        *table(["setting", *(heading for _, heading, _ in CONDITIONS)], [_conditions(s) for s in found["settings"]]),
    ]
    for setting in found["settings"]:
        lines += ["", f"## {setting['name']}", "", f"`{_flags(setting['flags'])}`", ""]
        lines += [f"- {line.strip()}" for line in setting["said"]] or ["- nothing was logged about its choices"]
    text = "\n".join(lines) + "\n"
    for folder in sorted(private, key=lambda folder: -len(str(folder))):
        text = text.replace(str(folder), private[folder])
    return text


def _gib(number: float | None) -> str | None:
    return None if number is None else f"{number:.1f} GiB"


def _conditions(setting: Mapping[str, Any]) -> list[str]:
    read = setting["conditions"] or {}
    cells = [f"{read[name]:.{digits}f}" if name in read else NOT_MEASURED for name, _, digits in CONDITIONS]
    return [setting["name"], *cells]


def _flags(flags: Sequence[str]) -> str:
    """The flags that name no file."""
    groups = [words for words in by_name(flags).values() if not any("/" in word for word in words)]
    return " ".join(word for words in groups for word in words)
