"""How well a model follows prompts: images of fixed prompts and seeds, scored by a judge, in a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from trainer.common.problems import Problem, Problems
from trainer.common.process import progress
from trainer.models.transformer import Conditioning
from trainer.sampling.judge import Classes, Judge, Verdicts, judge_pictures
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import decode_pixels, denoise, start_noise

USUAL = SamplePrompt("", width=256, height=256, steps=20, guidance=3.5)
BASE, BOTH = "base", "both"
OBJECTS, COLOURS, PLACES = "objects", "colours", "places"
PRIOR = (OBJECTS, COLOURS, PLACES)  # what a LoRA must not damage; measured on the base prompts
TITLES = {OBJECTS: "right object", COLOURS: "right colour", PLACES: "right place", BOTH: "both in one image"}


@dataclass(frozen=True)
class ScenePrompt:
    """A prompt and what its image must show: the kind and colour of each object, and the place."""

    prompt: str
    objects: tuple[tuple[str, str], ...]
    place: str


@dataclass(frozen=True)
class PromptSets:
    """The prompts of an evaluation: of the base model's world, of each concept, of all concepts in one image."""

    base: tuple[ScenePrompt, ...]
    concepts: Mapping[str, tuple[str, ...]]
    both: tuple[str, ...]

    def texts(self) -> dict[str, tuple[str, ...]]:
        """The prompts of every set that is not empty, by its name."""
        every = {BASE: tuple(scene.prompt for scene in self.base), **self.concepts, BOTH: self.both}
        return {name: texts for name, texts in every.items() if texts}

    def some(self, limit: int | None = None, base: bool = True, concepts: bool = True) -> "PromptSets":
        """The first `limit` prompts of each set (None: all). base, concepts: whether to keep these sets."""
        of_concepts = limit if concepts else 0
        return PromptSets(
            base=self.base[: limit if base else 0],
            concepts={name: texts[:of_concepts] for name, texts in self.concepts.items()},
            both=self.both[:of_concepts],
        )


def load_prompts(path: Path, classes: Classes) -> PromptSets:
    """Read the prompts file: {"base": [{"prompt", "objects": [[kind, colour], …], "place"}, …], CONCEPT: [text, …] for
    each of the judge's concepts, "both": [text, …]}.

    Raises `Problems` if it cannot be read or names something that the judge does not know.
    """
    try:
        sets = json.loads(path.read_text(encoding="utf-8"))
        base = tuple(_scene_prompt(entry) for entry in sets[BASE])
        concepts = {name: _texts(sets[name]) for name in classes.concepts}
        both = _texts(sets[BOTH])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problems([Problem(str(path), f"cannot be read as prompts of an evaluation: {error!r}")]) from error
    unknown = {kind for scene in base for kind, _ in scene.objects} - set(classes.kinds)
    unknown |= {colour for scene in base for _, colour in scene.objects} - set(classes.colours)
    unknown |= {scene.place for scene in base} - set(classes.places)
    if unknown:
        raise Problems([Problem(str(path), f"names what the judge does not know: {', '.join(sorted(unknown))}")])
    return PromptSets(base, concepts, both)


def _scene_prompt(entry: Mapping[str, Any]) -> ScenePrompt:
    objects = tuple((str(kind), str(colour)) for kind, colour in entry["objects"])
    if not objects:
        raise ValueError(f"{entry['prompt']!r} names no object")
    return ScenePrompt(str(entry["prompt"]), objects, str(entry["place"]))


def _texts(entries: Sequence[Any]) -> tuple[str, ...]:
    texts = [entry["prompt"] if isinstance(entry, Mapping) else entry for entry in entries]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError("a concept's prompts are not texts")
    return tuple(texts)


def draw_prompts(
    transformer: FluxTransformer2DModel,
    vae: AutoencoderKL,
    texts: Sequence[Conditioning],
    settings: SamplePrompt = USUAL,
    first_seed: int = 0,
    batch: int = 8,
    what: str = "draw",
) -> torch.Tensor:
    """Generate an image for each encoded text ([1, L, D] each): uint8 [n, 3, H, W] on the host. Shows progress.

    Image i has seed first_seed + i, so that two models start from the same noise, whatever the batch size.
    """
    pictures = []
    for start in progress(range(0, len(texts), batch), what):
        together = _joined(texts[start : start + batch]).to(transformer.device, transformer.dtype)
        seeds = range(first_seed + start, first_seed + start + len(together.txt))
        noise = start_noise(transformer, settings, seeds)
        latents = denoise(transformer, noise, settings, together, None)
        pictures.append(decode_pixels(vae, latents).cpu())
    return torch.cat(pictures)


def _joined(texts: Sequence[Conditioning]) -> Conditioning:
    masks = [text.txt_mask for text in texts if text.txt_mask is not None]
    assert len(masks) in (0, len(texts)), "masked and unmasked texts in one batch"
    txt, pooled = torch.cat([text.txt for text in texts]), torch.cat([text.pooled for text in texts])
    return Conditioning(txt, pooled, torch.cat(masks) if masks else None)


@dataclass(frozen=True)
class BaseScore:
    """Percentages over the base prompts: objects and colours of all objects named, places of all prompts."""

    objects: float
    colours: float
    places: float


def score_base(verdicts: Verdicts, prompts: Sequence[ScenePrompt], classes: Classes) -> BaseScore:
    """The share of what the prompts name that the judge has found.

    An object is found if the probability of its kind is above 0.5. Its colour is right if the object is found and that
    colour is the most probable one of its kind, or has a probability above 0.5 (two objects of a kind may differ).
    """
    found, coloured, total = 0, 0, 0
    for index, scene in enumerate(prompts):
        for kind_name, colour_name in scene.objects:
            kind, colour = classes.kinds.index(kind_name), classes.colours.index(colour_name)
            colours = verdicts.colours[index, kind]
            there = bool(verdicts.kinds[index, kind] > 0.5)
            found += there
            coloured += there and bool(colours[colour] > 0.5 or colours.argmax() == colour)
            total += 1
    wanted = torch.tensor([classes.places.index(scene.place) for scene in prompts])
    in_place = (verdicts.places.argmax(1) == wanted).double().mean().item()
    return BaseScore(100 * found / total, 100 * coloured / total, 100 * in_place)


def score_concept(verdicts: Verdicts, concept: str, classes: Classes) -> float:
    """The mean probability that the concept is in the image, in percent."""
    return 100 * verdicts.concepts[:, classes.concepts.index(concept)].double().mean().item()


def score_both(verdicts: Verdicts) -> float:
    """The percentage of images in which every concept has a probability above 0.5."""
    return 100 * (verdicts.concepts > 0.5).all(1).double().mean().item()


def score_pictures(judge: Judge, prompts: PromptSets, pictures: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Every percentage for which there are images, by name: PRIOR, the concepts' names, BOTH.

    pictures: for each set of `prompts.texts()`, uint8 [n, 3, H, W] in the prompts' order.
    """
    scores: dict[str, float] = {}
    for name, drawn in pictures.items():
        verdicts = judge_pictures(judge, drawn)
        if name == BASE:
            base = score_base(verdicts, prompts.base, judge.classes)
            scores |= {OBJECTS: base.objects, COLOURS: base.colours, PLACES: base.places}
        else:
            scores[name] = score_both(verdicts) if name == BOTH else score_concept(verdicts, name, judge.classes)
    return scores


@dataclass(frozen=True)
class Column:
    """One model's percentages by name."""

    name: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Models side by side, the base model first. counts: the number of prompts of each percentage, by its name."""

    columns: tuple[Column, ...]
    counts: Mapping[str, int]

    def change(self, column: Column, name: str) -> float:
        """Percentage points above the base model."""
        return column.scores[name] - self.columns[0].scores[name]

    def text(self) -> str:
        """The table as text: a row per percentage; later columns also show the difference to the first, in points."""
        first, *others = self.columns
        rows = [["", first.name, *(column.name for column in others)]]
        for name in first.scores:
            title = TITLES.get(name, f"{name}, mean probability")
            cells = [f"{column.scores[name]:.1f} ({self.change(column, name):+.1f})" for column in others]
            rows.append([f"{title} ({self.counts[name]} prompts)", f"{first.scores[name]:.1f}", *cells])
        widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
        lines = ("  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]) for cells in rows)
        note = "percent" + ("; in brackets the difference to the first column, in points" if others else "")
        return "\n".join([*lines, note])

    def as_json(self) -> dict[str, Any]:
        """{"prompts": counts, "columns": [{"name", "scores", "changes"}, …]}."""
        columns = []
        for column in self.columns:
            changes = {name: self.change(column, name) for name in column.scores}
            columns.append({"name": column.name, "scores": dict(column.scores), "changes": changes})
        return {"prompts": dict(self.counts), "columns": columns}


def count_prompts(prompts: PromptSets) -> dict[str, int]:
    """The number of prompts of each percentage of `score_pictures`."""
    counts = {name: len(texts) for name, texts in prompts.texts().items()}
    of_base = counts.pop(BASE, 0)
    return (dict.fromkeys(PRIOR, of_base) if of_base else {}) | counts
