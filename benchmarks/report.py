"""Measurements as tables and as JSON, and comparisons of two measurements."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.kernels import CLASSES
from benchmarks.kinds import PLAIN
from benchmarks.measure import Result
from trainer.common.files import write_json
from trainer.common.problems import Problem, Problems

SCHEMA = 1
# heading, figure, digits; lower is better for all of them
COLUMNS = (
    ("s per image", "seconds_per_picture", 3),
    ("processor, s per image", "processor", 3),
    ("first step, s", "first_step", 1),
    ("optimizer, s", "optimizer_step", 3),
    ("save: stopped, s", "checkpoint", 2),
    ("save: written, s", "checkpoint_written", 2),
    ("torch GiB", "torch_allocated_gib", 2),
    ("reserved GiB", "torch_reserved_gib", 2),
    ("device GiB", "device_gib", 2),
    ("host GiB", "host_gib", 2),
)
SPEED = "seconds_per_picture"


def as_json(described: Mapping[str, Any], model: str, results: Sequence[Result]) -> dict[str, Any]:
    """A measurement as JSON. described: from `benchmarks.machine.describe`."""
    written = datetime.now().astimezone().isoformat(timespec="seconds")
    settings = [result.as_json() for result in results]
    return {"schema": SCHEMA, "written": written, "model": model, **described, "settings": settings}


def save(path: Path, found: Mapping[str, Any]) -> None:
    """Write a measurement to a file."""
    write_json(path, found)


def load(path: Path) -> dict[str, Any]:
    """Read a measurement. Raises `Problems`."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Problems(
            [Problem(str(path), f"cannot be read: {error}", "give a file written by bench --output")]
        ) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        what = "is not a measurement of this version of the bench"
        raise Problems([Problem(str(path), what, "measure again with python -m trainer bench --output FILE")])
    return found


def render(found: Mapping[str, Any]) -> str:
    """A measurement as tables in Markdown."""
    done = [setting for setting in found["settings"] if setting["figures"]]
    failed = [setting for setting in found["settings"] if not setting["figures"]]
    lines = [_machine_line(found), "", *_figures_table(done)]
    if any(setting["breakdown"] for setting in done):
        lines += ["", "Milliseconds per image by class of kernel, from the steps after the timed ones:", ""]
        lines += _breakdown_table([setting for setting in done if setting["breakdown"]])
    if any(setting["figures"].get("by_kind") for setting in done):
        lines += ["", "Time by kind of batch:", "", *_kinds_table(done)]
    for setting in done:
        lines += _host_lines(setting)
    for setting in failed:
        lines += ["", f"{setting['name']} failed:", *(f"    {line}" for line in setting["failure"].splitlines())]
    return "\n".join(lines)


def _machine_line(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    peaks = ", ".join(f"{name} {peak['tflops']:.3g} TFLOP/s" for name, peak in found["peaks"].items())
    memory = f" of {machine['device_gib']:.0f} GiB" if "device_gib" in machine else f", {machine['threads']} thread(s)"
    return f"{machine['device']}{memory}, torch {versions['torch']}, model {found['model']}; large products: {peaks}"


def _figures_table(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = [column for column in COLUMNS if any(_figure(setting, column[1]) is not None for setting in settings)]
    headings = [columns[0][0] + " (lowest-highest)", "TFLOP", "TFLOP/s", "of peak"] if columns else []
    rows = []
    for setting in settings:
        figures = setting["figures"]
        share = (
            "" if figures["share_of_peak"] is None else f"{figures['share_of_peak']:.0%} {figures['peak_precision']}"
        )
        speed = f"{figures[SPEED]:.3f} ({figures['lowest']:.3f}-{figures['highest']:.3f})"
        again = f" + {figures['tflop_recomputed']:.3g}" if figures["tflop_recomputed"] else ""
        work = [f"{figures['tflop_per_picture']:.3g}{again}", f"{figures['tflops']:.3g}", share]
        rest = [_number(_figure(setting, name), digits) for _, name, digits in columns[1:]]
        rows.append([setting["name"], speed, *work, *rest, _in_words(figures["chosen"])])
    return table(["setting", *headings, *(heading for heading, *_ in columns[1:]), "plan"], rows)


def _in_words(chosen: Mapping[str, Any]) -> str:
    counted = ((chosen["checkpointed"], "recomputed"), (chosen["swapped"], "swapped"))
    parts = [f"{count} blocks {done}" for count, done in counted if count]
    return ", ".join([*([f"base {chosen['base']}"] if chosen["base"] != "bf16" else []), *parts]) or "all kept"


def _kinds_table(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = []
    for setting in settings:
        kinds = setting["figures"].get("by_kind") or {}
        plain = kinds.get(PLAIN) or next((found for kind, found in kinds.items() if kind.startswith(PLAIN)), None)
        for kind, (median, lowest, highest, steps) in kinds.items():
            ratio = f"{median / plain[0]:.2f}" if plain else ""
            rows.append([setting["name"], kind, f"{median:.3f} ({lowest:.3f}-{highest:.3f})", ratio, f"{steps:.0f}"])
    return table(["setting", "batches", "s per image (lowest-highest)", "times plain", "steps"], rows)


def _host_lines(setting: Mapping[str, Any]) -> list[str]:
    """Whether timed steps were replayed as CUDA graphs, and where the host had to wait; nothing on a CPU."""
    waits = setting["figures"].get("synchronizations")
    if waits is None:
        return []
    places = ", ".join(f"{place} {count} times" for place, count in waits.items()) or "nowhere"
    return [
        "",
        f"{setting['name']}: CUDA graphs: {setting['figures']['launches']}; the host waited for the GPU: {places}",
    ]


def _breakdown_table(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    present = [kind for kind in CLASSES if any(kind in setting["breakdown"]["seconds"] for setting in settings)]
    rows = []
    for setting in settings:
        found = setting["breakdown"]
        parts = [1000 * found["seconds"].get(kind, 0.0) for kind in present]
        numbers = [*(f"{part:.1f}" for part in parts), f"{1000 * found['idle']:.1f}", f"{found['launches']:.0f}"]
        rows.append([setting["name"], *numbers])
    return table(["setting", *present, "idle", "kernels"], rows)


def compare(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> tuple[str, list[str]]:
    """A table that compares two measurements, and the names of settings that became slower by more than `tolerance`."""
    olds = {setting["name"]: setting for setting in before["settings"] if setting["figures"]}
    news = {setting["name"]: setting for setting in after["settings"] if setting["figures"]}
    rows, slower = [], []
    for name in (name for name in olds if name in news):
        for heading, figure, digits in COLUMNS:
            old, new = _figure(olds[name], figure), _figure(news[name], figure)
            if old is None or new is None:
                continue
            ratio = new / old if old else float("inf")
            rows.append([name, heading, _number(old, digits), _number(new, digits), f"{ratio:.3f}"])
            if figure == SPEED and ratio > 1 + tolerance:
                slower.append(name)
    lines = _differences(before, after, olds, news)
    return "\n".join([*lines, *table(["setting", "", "before", "after", "after / before"], rows)]), slower


def _differences(before: Mapping, after: Mapping, olds: Mapping, news: Mapping) -> list[str]:
    """The differences that make two measurements not comparable."""
    pairs = [
        (key, before["machine"].get(key), after["machine"].get(key)) for key in ("device", "device_gib", "threads")
    ]
    pairs += [(key, before["versions"].get(key), after["versions"].get(key)) for key in ("torch", "cuda")]
    pairs.append(("model", before["model"], after["model"]))
    lines = [f"{key}: {old} before, {new} after" for key, old, new in pairs if old != new]
    lines += [f"{name}: only before" for name in olds if name not in news]
    lines += [f"{name}: only after" for name in news if name not in olds]
    changed = [name for name in olds if name in news and olds[name]["flags"] != news[name]["flags"]]
    lines += [f"{name}: the flags differ" for name in changed]
    return [*lines, ""] if lines else []


def _figure(setting: Mapping[str, Any], name: str) -> float | None:
    return setting["figures"].get(name)


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]
