"""Pieces of an offline HTML page: its frame and style, tables, images as data, line plots as inline SVG."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

THUMBNAIL = 176  # pixels of the longer side of an image on the page
WIDTH, HEIGHT = 560, 220  # of a plot, in units of its own; it is as wide as its place
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
TICKS = 4
COLOURS = ("var(--a)", "var(--b)", "var(--c)", "var(--d)")
STYLE = """
:root { color-scheme: light dark; --ink: #18181b; --quiet: #5b5b66; --paper: #fff; --card: #f6f6f8; --line: #dcdce2;
  --a: #1d63d8; --b: #b4530a; --c: #0f7b52; --d: #8b3fb0; --mark: #e8f0fe; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececf1; --quiet: #a3a3b0; --paper: #131317; --card: #1e1e25;
  --line: #363640; --a: #7fb0ff; --b: #f0a35e; --c: #59cf9c; --d: #cf93ee; --mark: #1d2b45; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 8px; }
p { margin: 6px 0; max-width: 80ch; }
.quiet { color: var(--quiet); } .verdict { background: var(--mark); border-left: 4px solid var(--a); padding: 12px 16px;
  margin: 18px 0; border-radius: 4px; font-size: 17px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px 5px 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { font-weight: 600; } th:first-child, td:first-child { text-align: left; } tr.best td { background: var(--mark); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border-radius: 6px; padding: 12px; } figcaption { font-weight: 600; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
.key { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: 13px; } .key i { display: inline-block; width: 18px;
  height: 3px; vertical-align: middle; margin-right: 6px; }
.sheet td, .sheet th { padding: 3px; border: 0; text-align: center; vertical-align: top; font-size: 13px; }
.sheet td:first-child, .sheet th:first-child { text-align: left; white-space: normal; min-width: 130px;
  max-width: 170px; position: sticky; left: 0; background: var(--paper); }
.sheet img { display: block; border-radius: 3px; width: 132px; height: auto; } .sheet .best { color: var(--a); }
details { margin: 10px 0; } summary { cursor: pointer; } code { font-size: 13px; }
"""


def page(title: str, parts: Sequence[str], generator: str = "") -> str:
    """A complete HTML document that needs no other file. parts: HTML of its body; generator: what made it."""
    made_by = f'<meta name="generator" content="{escape(generator, quote=True)}">' if generator else ""
    head = f'<meta charset="utf-8">{made_by}<meta name="viewport" content="width=device-width, initial-scale=1">'
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body>{''.join(parts)}</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], best: int | None = None) -> str:
    """A table of texts. best: the index of the row to highlight."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(f"<tr{' class=best' if index == best else ''}>{cells}</tr>")
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def image_tag(image: Image.Image, text: str) -> str:
    """An image, made smaller, as data in the page. text: what a screen reader says."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img loading="lazy" alt="{escape(text, quote=True)}" src="data:image/jpeg;base64,{data}">'


def sheet(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], best: int | None = None) -> str:
    """Images in rows with a label. head: of each column; rows: label, and the HTML of each cell; best: a column."""
    top = "".join(f"<th{' class=best' if index == best else ''}>{escape(cell)}</th>" for index, cell in enumerate(head))
    body = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for label, cells in rows
    )
    return f'<div class="wide"><table class="sheet"><tr><th></th>{top}</tr>{body}</table></div>'


@dataclass(frozen=True)
class Line:
    """A curve of a plot. points: (x, y) in order; spreads: half the length of a bar at each point, or none."""

    name: str
    points: Sequence[tuple[float, float]]
    spreads: Sequence[float] = ()


def plot(title: str, lines: Sequence[Line], mark: float | None = None, unit: str = "step") -> str:
    """A line plot. mark: the x of a vertical line; unit: what x counts. Empty if no line has a point.

    Points whose y is not finite are left out.
    """
    lines = [line for line in map(_finite, lines) if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    low, high = min(ys), max(ys)
    low, high = (low - 1, high + 1) if low == high else (low - 0.05 * (high - low), high + 0.05 * (high - low))
    first, last = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        from_left = LEFT + (x - first) / (last - first) * (WIDTH - LEFT - RIGHT)
        return from_left, TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = []
    across = max(1, min(TICKS, int(last - first)))
    for tick in range(TICKS + 1):
        value = low + (high - low) * tick / TICKS
        _, y = place(first, value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_short(value, high - low)}</text>')
    for tick in range(across + 1):
        x, _ = place(value := first + (last - first) * tick / across, low)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:.0f}</text>')
    if mark is not None:
        x, _ = place(mark, low)
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="var(--ink)"'
            f' stroke-dasharray="4 3"><title>recommended: {unit} {mark:g}</title></line>'
        )
    for colour, line in zip(COLOURS, lines, strict=False):
        parts.append(
            _curve(line, colour, [place(x, y) for x, y in line.points], (HEIGHT - TOP - BOTTOM) / (high - low))
        )
    key = "".join(
        f'<span><i style="background:{colour}"></i>{escape(line.name)}</span>'
        for colour, line in zip(COLOURS, lines, strict=False)
    )
    label = escape(f"{title}, by {unit}", quote=True)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    return f'<figure><figcaption>{escape(title)}</figcaption>{svg}<div class="key">{key}</div></figure>'


def _finite(line: Line) -> Line:
    kept = [index for index, (_, y) in enumerate(line.points) if math.isfinite(y)]
    spreads = [line.spreads[index] for index in kept] if line.spreads else []
    return Line(line.name, [line.points[index] for index in kept], spreads)


def _curve(line: Line, colour: str, places: Sequence[tuple[float, float]], unit: float) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
    if len(places) <= 40:  # more would hide the curve
        for (x, y), (at, value) in zip(places, line.points, strict=True):
            title = f"<title>{escape(line.name)} at {at:g}: {value:.4g}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}">{title}</circle>')
    for (x, y), spread in zip(places, line.spreads, strict=False):
        if not math.isfinite(spread):
            continue
        top, bottom = max(TOP, y - spread * unit), min(HEIGHT - BOTTOM, y + spread * unit)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top:.1f}" y2="{bottom:.1f}" stroke="{colour}"/>')
    return "".join(parts)


def _short(value: float, extent: float) -> str:
    return f"{value:.0f}" if extent >= 8 else f"{value:.3g}"
