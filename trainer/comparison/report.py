"""The report of a run: what to keep and why, figures, curves and images, in one HTML file that needs no other."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.checkpoint.naming import run_dir
from trainer.checkpoint.run_log import read_log
from trainer.common.files import write_text
from trainer.common.text import counted, duration
from trainer.comparison.compare import Comparison, Row
from trainer.comparison.measures import Figure, with_error
from trainer.comparison.page import Line, image_tag, page, plot, sheet, table
from trainer.comparison.prompts import KINDS
from trainer.config import TrainConfig, to_dict

MAX_POINTS = 300  # of a curve
OPEN_ROWS = 2  # of each kind of prompt, shown without a click
SETTINGS = (
    "pretrained_model_name_or_path", "dataset_config", "network_dim", "network_alpha", "learning_rate",
    "optimizer_type", "lr_scheduler", "gradient_accumulation_steps", "timestep_sampling", "guidance_scale", "seed",
    "mixed_precision", "base_precision", "ema_decay",
)  # fmt: skip
EXPLAINED = {
    "likeness": "how much of each concept is shown where its prompt names it: 0 is what the base model shows for the"
    " class word, 100 how much the training images are like each other",
    "bleed": "how much more than in the base model's image a concept is shown where neither it nor its class word is"
    " named",
    "class bleed": "the same where only its class word is named; not weighed, since the class word is how a concept is"
    " learned",
    "drift": "how far images of prompts without a trigger are from the base model's of the same seed: 0 is the same"
    " image, 100 an unrelated one",
    "copied": "images that repeat the background of a training image, place by place",
    "text": "SigLIP 2's cosine of image and prompt, times 100",
    "loss": "how the loss on the concepts' images changed from the base model's, at fixed noise",
    "loss drift": "the same on the base model's own images of prompts without a trigger",
}


def write_report(path: Path, comparison: Comparison, config: TrainConfig, mark: str = "") -> Path:
    """Write the report, atomically; returns its path.

    config: the run's, whose log, samples and settings are shown; mark: names the command that made the page, within it.
    """
    log = read_log(run_dir(config) / "log.jsonl")
    best, name = comparison.best, escape(config.output_name)
    parts = [
        f"<h1>{name}</h1>",
        f'<p class="quiet">{counted(len(comparison.rows), "checkpoint")} compared on'
        f" {counted(len(comparison.prompts), 'prompt')};"
        f" measured with {escape(comparison.source)}.</p>",
        f'<p class="verdict">{escape(comparison.recommendation.text)}</p>',
        f"<p>File: <code>{escape(str(best.candidate.path))}</code></p>",
        *_warnings(comparison),
        "<h2>Figures</h2>",
        _figures(comparison),
        _explanations(comparison),
        "<h2>Curves</h2>",
        f'<div class="plots">{"".join(_plots(comparison, log))}</div>',
        *_matrix(comparison),
        "<h2>Images</h2>",
        *_images(comparison),
        *_samples(log),
        "<h2>Plan and cost</h2>",
        _plan(comparison, config, log),
    ]
    write_text(path, page(f"{config.output_name}: which checkpoint to keep", parts, mark))
    return path


def _warnings(comparison: Comparison) -> list[str]:
    found = [f"Left out: {text}" for text in comparison.left_out]
    if comparison.best.measures is None:
        found.append(
            "Measured by losses alone, which are weaker: they do not tell a concept from its background."
            " sh download.sh --judges fetches DINOv2 and SigLIP 2."
        )
    elif comparison.note:
        found.append(f"{comparison.note}.")
    if not comparison.held_out:
        found.append(
            "No image was held out of the training, so the loss on images cannot show overfitting"
            " (validation_split in the dataset file holds some out)."
        )
    return [f'<p class="quiet">{escape(text)}</p>' for text in found]


def _figures(comparison: Comparison) -> str:
    measures = comparison.best.measures
    names = ["likeness", "bleed", "drift", "copied"] if measures else []
    names += ["class bleed"] if measures and measures.class_bleed else []
    names += (["text"] if measures and measures.agreement else []) + ["loss", "loss drift"]
    rows = [
        [row.candidate.name, with_error(row.standing.score(comparison.rule), row.standing.error(comparison.rule))]
        + [_cell(row, name) for name in names]
        for row in comparison.rows
    ]
    return table(["checkpoint", "score", *names], rows, comparison.recommendation.best)


def _cell(row: Row, name: str) -> str:
    if name == "loss":
        return f"{-row.losses.held_out.mean:+.1f} %"
    if name == "loss drift":
        return f"{row.losses.drift.mean:+.1f} %"
    assert row.measures
    if name == "copied":
        return f"{len(row.measures.copies)} of {len(row.images)}"
    figure: Figure | None = row.measures.agreement if name == "text" else getattr(row.measures, name.replace(" ", "_"))
    return str(figure) if figure else ""


def _explanations(comparison: Comparison) -> str:
    items = "".join(f"<li><b>{name}</b>: {escape(text)}</li>" for name, text in EXPLAINED.items())
    rule = escape(comparison.rule.text(comparison.best.measures is not None))
    return (
        f"<p>{rule}. After ± is the spread over prompts (standard deviation), for the score its standard error."
        f"</p><details><summary>What the figures mean</summary><ul>{items}</ul></details>"
    )


def _plots(comparison: Comparison, log: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        (index if row.candidate.step is None else row.candidate.step, row) for index, row in enumerate(comparison.rows)
    ]
    mark = next(x for x, row in rows if row is comparison.best)
    unit = "step" if all(row.candidate.step is not None for row in comparison.rows) else "file"

    def line(name: str) -> Line:
        figures = [(x, getattr(row.measures, name)) for x, row in rows]
        return Line(name, [(x, each.mean) for x, each in figures], [each.error for _, each in figures])

    plots = []
    several = len(rows) > 1  # one point is no curve, and its numbers are in the table
    if several and comparison.best.measures:
        plots.append(
            plot("Likeness, bleed and drift", [line(name) for name in ("likeness", "bleed", "drift")], mark, unit)
        )
        named = [
            Line(name, [(x, row.measures.likeness_of[name].mean) for x, row in rows if row.measures])
            for name in comparison.best.measures.likeness_of
        ]
        plots.append(plot("Likeness of each concept", named, mark, unit) if len(named) > 1 else "")
    losses = [
        Line("on the concepts' images", [(x, -row.losses.held_out.mean) for x, row in rows]),
        Line("without triggers", [(x, row.losses.drift.mean) for x, row in rows]),
    ]
    plots.append(plot("Loss at fixed noise against the base model, percent", losses, mark, unit) if several else "")
    steps = [(event["step"], event.get("loss_average", event["loss"])) for event in log if event.get("kind") == "step"]
    validation = [(event["step"], event["loss"]) for event in log if event.get("kind") == "validation"]
    plots.append(plot("Training loss", [Line("mean of the last 100 steps", _thinned(steps))]))
    return [*plots, plot("Validation loss", [Line("validation", validation)])]


def _thinned(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    return points[:: max(1, len(points) // MAX_POINTS)]


def _matrix(comparison: Comparison) -> list[str]:
    measures = comparison.best.measures
    if measures is None:
        return []
    names = list(measures.likeness_of)
    rows = [[row, *(f"{cells[name]:z.0f}" for name in names)] for row, cells in measures.matrix.items()]
    note = f"Likeness to each concept by what the prompt names, with {comparison.best.candidate.name}."
    return ["<h2>Where each concept appears</h2>", f"<p>{escape(note)}</p>", table(["prompts", *names], rows)]


def _images(comparison: Comparison) -> list[str]:
    head = ["base model", *(row.candidate.name for row in comparison.rows)]
    columns = [comparison.base, *(row.images for row in comparison.rows)]
    seen: dict[tuple[str, ...], int] = {}
    shown, more = [], []
    for index, prompt in enumerate(comparison.prompts):
        group = (prompt.kind, *prompt.shows)
        seen[group] = seen.get(group, 0) + 1
        cells = [image_tag(images[index], f"{name}: {prompt.text}") for name, images in zip(head, columns, strict=True)]
        (shown if seen[group] <= OPEN_ROWS else more).append((f"{prompt.text} ({KINDS[prompt.kind]})", cells))
    best = comparison.recommendation.best + 1
    parts = ["<p>Each row has one prompt and one seed.</p>", sheet(head, shown, best)]
    if more:
        parts.append(
            f"<details><summary>{counted(len(more), 'more prompt')}</summary>{sheet(head, more, best)}</details>"
        )
    return parts


def _samples(log: Sequence[Mapping[str, Any]]) -> list[str]:
    """The samples of the training itself, by step, if there are any."""
    by_prompt: dict[str, dict[int, Path]] = {}
    for event in log:
        if event.get("kind") == "sample" and (path := Path(str(event.get("file")))).is_file():
            by_prompt.setdefault(str(event.get("prompt")), {})[int(event["step"])] = path
    if not by_prompt:
        return []
    steps = sorted({step for found in by_prompt.values() for step in found})
    rows = [
        (prompt, [_file_tag(found[step], f"step {step}: {prompt}") if step in found else "" for step in steps])
        for prompt, found in by_prompt.items()
    ]
    return ["<h2>Samples of the training</h2>", sheet([f"step {step}" for step in steps], rows)]


def _file_tag(path: Path, text: str) -> str:
    with Image.open(path) as image:
        return image_tag(image, text)


def _plan(comparison: Comparison, config: TrainConfig, log: Sequence[Mapping[str, Any]]) -> str:
    values = to_dict(config)
    rows = [[name, str(values[name])] for name in SETTINGS if values.get(name) is not None]
    start = next((event for event in reversed(log) if event.get("kind") == "start"), None)
    if start:
        rows.append(["steps", f"{start.get('total_steps')} in {start.get('epochs')} epochs"])
    trained = sum(event.get("seconds", 0.0) for event in log if event.get("kind") == "step")
    if trained:
        rows.append(["time in the logged steps", duration(trained)])
    rows += [[f"comparison of {row.candidate.name}", row.cost] for row in comparison.rows]
    return table(["setting", "value"], rows)
