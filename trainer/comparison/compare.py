"""A comparison from top to bottom: images of each checkpoint, their measures, and one recommendation."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from trainer.comparison.features import FluxFeatures
from trainer.comparison.judges import Judges
from trainer.comparison.losses import Losses, LossItem, fixed_noise_losses, loss_items, relative_losses
from trainer.comparison.measures import (
    Figure,
    Measures,
    Reference,
    make_references,
    measure,
    training_image,
)
from trainer.comparison.pictures import Candidate, Source
from trainer.comparison.prompts import ComparePrompt, Concept
from trainer.comparison.recommend import Recommendation, Rule, Standing, recommend, standing_of
from trainer.data.captions import plain_caption
from trainer.data.dataset import Sample, TrainingData

MAX_HELD_OUT = 16  # images whose loss is measured


@dataclass(frozen=True)
class Row:
    """A checkpoint and what was measured of it.

    images: one for each prompt. measures: None without features. seconds: what each stage took: "images" (0 if they
    were cached), "losses", "features", and "text" if text agreement was measured.
    """

    candidate: Candidate
    images: tuple[Image.Image, ...]
    measures: Measures | None
    losses: Losses
    seconds: dict[str, float]

    @property
    def standing(self) -> Standing:
        """What the rule weighs of it."""
        name, step = self.candidate.name, self.candidate.step
        if self.measures is None:
            return Standing(name, self.losses.held_out, None, self.losses.drift, step=step)
        return standing_of(name, self.measures, step)

    @property
    def cost(self) -> str:
        """What each stage took, in words."""
        return ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.seconds.items())


@dataclass(frozen=True)
class Comparison:
    """Checkpoints side by side.

    base: the base model's image for each prompt. source: what the figures are from. held_out: whether losses are over
    images held out of the training, else over training images. left_out: files that could not be compared, and why.
    note: which model was missing, "" if none.
    """

    concepts: tuple[Concept, ...]
    prompts: tuple[ComparePrompt, ...]
    base: tuple[Image.Image, ...]
    rows: tuple[Row, ...]
    rule: Rule
    source: str
    held_out: bool
    left_out: tuple[str, ...] = ()
    note: str = ""

    @property
    def recommendation(self) -> Recommendation:
        """The best of the rows by the rule, and why."""
        return recommend([row.standing for row in self.rows], self.rule)

    @property
    def best(self) -> Row:
        """The recommended row."""
        return self.rows[self.recommendation.best]


class Comparer:
    """Measures checkpoints of one dataset against the same references, one after the other."""

    def __init__(
        self,
        source: Source,
        data: TrainingData,
        concepts: Sequence[Concept],
        prompts: Sequence[ComparePrompt],
        judges: Judges,
    ):
        """Generates the base model's images, and learns from the training images what the concepts look like."""
        self.source, self.concepts, self.prompts = source, tuple(concepts), tuple(prompts)
        samples, self.held_out = _held_out(data, concepts), bool(data.held_out)
        source.texts(["", *(prompt.text for prompt in prompts), *map(_caption, samples)])  # encoders are loaded once
        self.base = tuple(source.images(None, prompts))
        self.judges = judges
        self.references: list[Reference] = []
        if judges.uses_features:
            self.base_patches = self._patches(self.base)
            self.references = make_references(self._grids, self.concepts, self.prompts, self.base_patches)
        self.items = _sample_items(samples, source), _plain_items(self.prompts, self.base, source)
        self.base_losses = self._losses(None)

    def row(self, candidate: Candidate) -> Row:
        """Generate and measure a checkpoint's images. Raises `Problems` if its file cannot be read or does not fit."""
        seconds: dict[str, float] = {}
        with _timed(seconds, "images"):
            images = self.source.images(candidate, self.prompts)
        with _timed(seconds, "losses"):
            losses = relative_losses(self.base_losses, self._losses(candidate))
        if not self.judges.uses_features:
            return Row(candidate, tuple(images), None, losses, seconds)
        agreement = None
        if self.judges.siglip2:
            with _timed(seconds, "text"):
                agreement = self.judges.siglip2(images, [prompt.text for prompt in self.prompts])
        with _timed(seconds, "features"):
            measures = measure(self.references, self.prompts, self.base_patches, self._patches(images), agreement)
        return Row(candidate, tuple(images), measures, losses, seconds)

    def _grids(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        if self.judges.dinov2:
            return [self.judges.dinov2(image) for image in images]
        source = self.source
        no_text, side = source.texts([""])[""], source.settings.width
        with source.applied(None) as transformer:
            features = FluxFeatures(transformer, source.vae, no_text, side)
            return [at_depths[0] for at_depths in features(images)]

    def _patches(self, images: Sequence[Image.Image]) -> list[torch.Tensor]:
        return [grid.flatten(0, 1) for grid in self._grids(images)]

    def _losses(self, candidate: Candidate | None) -> tuple[list[float], list[float]]:
        texts = self.source.texts([item.text for items in self.items for item in items], candidate)
        guidance = self.source.config.guidance_scale
        with self.source.applied(candidate) as transformer:
            images, plain = (fixed_noise_losses(transformer, items, texts, guidance) for items in self.items)
        return images, plain


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start


def _held_out(data: TrainingData, concepts: Sequence[Concept]) -> list[Sample]:
    """The images held out of the training, else the concepts' training images; at most 16, evenly spaced."""
    samples = list(data.held_out) or [sample for concept in concepts for sample in concept.samples]
    count = min(len(samples), MAX_HELD_OUT)
    return [samples[index * len(samples) // count] for index in range(count)]


def _caption(sample: Sample) -> str:
    return plain_caption(sample.subset, sample.lines, 0, sample.key)


def _sample_items(samples: Sequence[Sample], source: Source) -> list[LossItem]:
    captions = [_caption(sample) for sample in samples]
    return loss_items([training_image(sample) for sample in samples], captions, source.vae, "held out")


def _plain_items(prompts: Sequence[ComparePrompt], base: Sequence[Image.Image], source: Source) -> list[LossItem]:
    plain = [(image, prompt.text) for image, prompt in zip(base, prompts, strict=True) if prompt.is_plain]
    return loss_items([image for image, _ in plain], [text for _, text in plain], source.vae, "plain")


def compare(
    comparer: Comparer, candidates: Sequence[Candidate], rule: Rule, report: Callable[[Row], object]
) -> Comparison:
    """Measure the candidates in order; report: called with each row once it is measured."""
    rows = []
    for candidate in candidates:
        rows.append(comparer.row(candidate))
        report(rows[-1])
    return Comparison(
        comparer.concepts,
        comparer.prompts,
        comparer.base,
        tuple(rows),
        rule,
        comparer.judges.source,
        comparer.held_out,
        note=comparer.judges.note,
    )


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Every number of a comparison, and the recommendation, as values for JSON."""
    recommendation, rule = comparison.recommendation, comparison.rule
    return {
        "recommended": str(comparison.best.candidate.path),
        "text": recommendation.text,
        "reason": recommendation.reason,
        "close": list(recommendation.close),
        "rule": {"bleed": rule.bleed, "drift": rule.drift},
        "source": comparison.source,
        "held_out": comparison.held_out,
        "left_out": list(comparison.left_out),
        "prompts": [
            {"prompt": each.text, "kind": each.kind, "shows": list(each.shows), "seed": each.seed}
            for each in comparison.prompts
        ],
        "checkpoints": [_row_json(row, rule) for row in comparison.rows],
    }


def _row_json(row: Row, rule: Rule) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "loss_on_images": _figure_json(row.losses.held_out),
        "loss_drift": _figure_json(row.losses.drift),
    }
    if row.measures:
        names = ("likeness", "bleed", "class_bleed", "drift", "memorised", "agreement")
        found = {name: getattr(row.measures, name) for name in names}
        figures |= {name: _figure_json(figure) for name, figure in found.items() if figure}
        figures["likeness_of"] = {name: _figure_json(each) for name, each in row.measures.likeness_of.items()}
        matrix = row.measures.matrix.items()
        figures["matrix"] = {name: {of: _finite(value) for of, value in cells.items()} for name, cells in matrix}
        figures["copies"] = row.measures.copies
    candidate, standing = row.candidate, row.standing
    return {
        "name": candidate.name,
        "file": str(candidate.path),
        "step": candidate.step,
        "score": _finite(standing.score(rule)),
        "error": _finite(standing.error(rule)),
        **figures,
        "seconds": row.seconds,
    }


def _figure_json(figure: Figure) -> dict[str, Any]:
    return {"mean": _finite(figure.mean), "spread": _finite(figure.spread), "values": [*map(_finite, figure.values)]}


def _finite(value: float) -> float | None:
    """The number, or None, which JSON has, in place of NaN and infinity, which it has not."""
    return value if math.isfinite(value) else None
