"""A report on a LoRA file, as text and as an image. The text needs no torch, the image only Pillow."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .lora_file.concepts import Concept
from .lora_file.keys import Survey
from .lora_file.metadata import OURS, json_value
from .lora_file.module_names import block_of
from .lora_file.numbers import block_norms

WIDTH, MARGIN, CHART_HEIGHT = 1024, 32, 170
INK, PALE, GRID, BACKGROUND = (32, 38, 46), (110, 118, 130), (222, 226, 232), (250, 251, 252)
COLOURS = {"double": (45, 110, 190), "single": (20, 145, 120), "CLIP": (205, 120, 30), "T5": (150, 80, 180)}
TITLES = {"double": "double blocks", "single": "single blocks", "CLIP": "CLIP layers", "T5": "T5 layers"}
SAME_SCALE = {"double": ("double", "single"), "single": ("double", "single")}  # text encoders' norms are far smaller
SETTINGS = (
    "learning_rate", "unet_lr", "text_encoder_lr", "optimizer", "lr_scheduler", "network_dim", "network_alpha",
    "resolution", "timestep_sampling", "guidance_scale", "seed", "num_epochs", "max_train_steps", "mixed_precision",
)  # fmt: skip


@dataclass(frozen=True)
class Report:
    """What is reported on a file. norms: block -> norm of its weight change; fit: lines on how it fits the model."""

    file: str
    num_bytes: int
    layout: str
    dtypes: tuple[str, ...]
    ranks: tuple[int, ...]
    scales: tuple[float, ...]
    kinds: dict[str, int]
    norms: dict[str, float]
    not_finite: tuple[str, ...]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    facts: dict[str, str]
    concepts: tuple[Concept, ...]
    fit: tuple[str, ...] = ()


def facts_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """What a file's metadata says about its base and training, by the report's labels."""
    named = {
        "title": ("modelspec.title",),
        "base": ("modelspec.architecture", "ss_base_model_version"),
        "base file": ("ss_sd_model_name",),
        "steps": ("ss_steps",),
        "epoch": ("ss_epoch",),
        "date": ("modelspec.date",),
        "resized from": ("modelspec.resized_from",),
        "merged from": ("modelspec.merged_from",),
    }
    found = {
        label: metadata[key]
        for label, keys in named.items()
        for key in reversed(keys)
        if metadata.get(key, "None") != "None"
    }
    if settings := _settings(metadata):
        found["settings"] = ", ".join(f"{name} {value}" for name, value in settings.items())
    return {label: value[:500] for label, value in found.items()}


def _settings(metadata: Mapping[str, str]) -> dict[str, Any]:
    ours = json_value(metadata.get(OURS), dict) or {}
    config = ours.get("config")
    config = config if isinstance(config, dict) else {}
    found = {name: config.get(name, metadata.get(f"ss_{name}")) for name in SETTINGS}
    return {name: value for name, value in found.items() if value not in (None, "None", "", [])}


def norms_by_block(survey: Survey, norms: Mapping[str, float]) -> dict[str, float]:
    """The norm of each block's weight change, from those of its modules, in the model's order."""
    found = block_norms(norms, [block_of(survey.modules[name].target) for name in norms])
    return {block: found[block] for block in sorted(found, key=_order)}


def _order(block: str) -> tuple[int, int]:
    kind, _, number = block.partition(" ")
    return [*COLOURS, "other"].index(kind), int(number or 0)


def size_text(num_bytes: int) -> str:
    """A file's size, in MB or, below one, in KB."""
    return f"{num_bytes / 1e6:,.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:,.1f} KB"


def as_text(report: Report) -> str:
    """The complete report as lines of text."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterable[str]:
    yield f"{report.file}  {size_text(report.num_bytes)}, {'/'.join(report.dtypes)}, {report.layout} layout"
    for label, value in report.facts.items():
        yield f"  {label:<14}{value}"
    for concept in report.concepts:
        pictures = f"  ({concept.pictures} images)" if concept.pictures else ""
        yield f"  {'concept':<14}{concept.trigger}{pictures}"
    yield f"  {'modules':<14}{', '.join(f'{count} {kind}' for kind, count in report.kinds.items())}"
    yield f"  {'rank':<14}{several(report.ranks)}  (alpha / rank {several(report.scales)})"
    for line in report.fit:
        yield f"  {'model':<14}{line}"
    if report.not_finite:
        yield f"  NOT FINITE    {len(report.not_finite)} modules, first {report.not_finite[0]}: images turn black"
    if report.unknown:
        yield f"  {'not known':<14}{len(report.unknown)} keys, first {', '.join(report.unknown[:3])}"
    for note in report.notes:
        yield f"  {'note':<14}{note}"
    if not report.norms:
        yield "  norms are shown for LoRA only"
        return
    yield "  norm of the weight change, by block"
    largest = max((norm for norm in report.norms.values() if math.isfinite(norm)), default=0.0) or 1.0
    for block, norm in report.norms.items():
        bar = "█" * round(24 * norm / largest) if math.isfinite(norm) else "not finite"
        yield f"    {block:<10}{norm:>12.4g}  {bar}".rstrip()


def several(values: Sequence[float]) -> str:
    """A few numbers, or the range of many."""
    if len(values) > 6:
        return f"{min(values):g}-{max(values):g}, {len(values)} different ones"
    return ", ".join(f"{value:g}" for value in values) or "-"


def as_picture(report: Report) -> Any:
    """A PIL image, RGB, 1024 pixels wide: the facts, and a bar chart for each kind of block."""
    from PIL import Image, ImageDraw

    charts = {kind: _chart(report.norms, kind) for kind in COLOURS}
    charts = {kind: bars for kind, bars in charts.items() if bars}
    heading = _heading(report)
    height = 2 * MARGIN + 40 + 26 * len(heading) + (CHART_HEIGHT + 52) * len(charts)
    picture = Image.new("RGB", (WIDTH, height), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, MARGIN - 6), _fitting(draw, report.file, 26), INK, _font(26))
    top = MARGIN + 38
    for line, is_bad in heading:
        draw.text((MARGIN, top), _fitting(draw, line, 17), (190, 40, 40) if is_bad else PALE, _font(17))
        top += 26
    for kind, bars in charts.items():
        _draw_chart(draw, top + 14, kind, bars, _largest(charts, SAME_SCALE.get(kind, (kind,))))
        top += CHART_HEIGHT + 52
    return picture


def _heading(report: Report) -> list[tuple[str, bool]]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in report.kinds.items())
    lines = [
        (f"{size_text(report.num_bytes)}   {report.layout}   {kinds}", False),
        (f"rank {several(report.ranks)}   alpha / rank {several(report.scales)}   {'/'.join(report.dtypes)}", False),
    ]
    trained = [f"{label} {report.facts[label]}" for label in ("base", "steps", "epoch") if label in report.facts]
    lines += [("   ".join(trained), False)] if trained else []
    lines += [("concepts: " + ", ".join(concept.trigger for concept in report.concepts), False)] * bool(report.concepts)
    lines += [(line, not line.startswith("all ")) for line in report.fit]
    lines += [(note, True) for note in report.notes]
    if report.not_finite:
        lines.append((f"{len(report.not_finite)} modules hold numbers that are not finite", True))
    return lines


def _chart(norms: Mapping[str, float], kind: str) -> list[tuple[str, float]]:
    return [(block.split()[1], norm) for block, norm in norms.items() if block.startswith(f"{kind} ")]


def _largest(charts: Mapping[str, list[tuple[str, float]]], kinds: Iterable[str]) -> float:
    norms = [norm for kind in kinds for _, norm in charts.get(kind, []) if math.isfinite(norm)]
    return max(norms, default=0.0) or 1.0


def _draw_chart(draw: Any, top: int, kind: str, bars: Sequence[tuple[str, float]], largest: float) -> None:
    left, right, base = MARGIN + 64, WIDTH - MARGIN, top + 24 + CHART_HEIGHT - 20
    draw.text((MARGIN, top - 4), f"{TITLES[kind]}: norm of the weight change", INK, _font(17))
    for share in (0.5, 1.0):
        y = base - round(share * (CHART_HEIGHT - 30))
        draw.line((left, y, right, y), GRID)
        draw.text((left - 8, y), f"{share * largest:.3g}", PALE, _font(13), anchor="rm")
    draw.line((left, base, right, base), PALE)
    step = min(64.0, (right - left) / len(bars))
    for place, (number, norm) in enumerate(bars):
        x = left + place * step
        finite = math.isfinite(norm)
        tall = round((norm / largest if finite else 1.0) * (CHART_HEIGHT - 30))
        colour = COLOURS[kind] if finite else (190, 40, 40)
        draw.rectangle((x + step * 0.14, base - max(tall, 1), x + step * 0.86, base), colour)
        if step >= 20 or place % 2 == 0:
            draw.text((x + step / 2, base + 4), number, PALE, _font(12), anchor="mt")


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _fitting(draw: Any, text: str, size: int) -> str:
    """The text cut where the picture ends."""
    if draw.textlength(text, _font(size)) <= WIDTH - 2 * MARGIN:
        return text
    while text and draw.textlength(text + "…", _font(size)) > WIDTH - 2 * MARGIN:
        text = text[:-1]
    return text + "…"
