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
    """A prompt and what its image must show. objects: (kind, colour) of each; all are names of the judge's classes."""

    prompt: str
    objects: tuple[tuple[str, str], ...]
    place: str


@dataclass(frozen=True)
class PromptSets:
    """The prompts of an evaluation.

    base: what the base model must still be able to show; concepts: for each concept, by its name; both: of all concepts
    in one image.
    """

    base: tuple[ScenePrompt, ...]
    concepts: Mapping[str, tuple[str, ...]]
    both: tuple[str, ...]

    def texts(self) -> dict[str, tuple[str, ...]]:
        """The prompts of every set that is not empty, by its name: "base", each concept's name, "both"."""
        every = {BASE: tuple(scene.prompt for scene in self.base), **self.concepts, BOTH: self.both}
        return {name: texts for name, texts in every.items() if texts}

    def some(self, limit: int | None = None, base: bool = True, concepts: bool = True) -> "PromptSets":
        """A copy with the first `limit` prompts of each set, or with all if None.

        base: whether to keep that set; concepts: whether to keep the sets of concepts, and with them `both`.
        """
        of_concepts = limit if concepts else 0
        return PromptSets(
            base=self.base[: limit if base else 0],
            concepts={name: texts[:of_concepts] for name, texts in self.concepts.items()},
            both=self.both[:of_concepts],
        )


def load_prompts(path: Path, classes: Classes) -> PromptSets:
    """Read the prompts file: {"base": [{"prompt", "objects": [[kind, colour], …], "place"}, …], CONCEPT: [text, …] for
    each of the judge's concepts, "both": [text, …]}.

    classes: the judge's. Raises `Problems` if the file cannot be read or names something that the judge does not know.
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
    """Generate an image for each encoded text: uint8 [n, 3, H, W] on the host.

    texts: each of one prompt, [1, L, D]; settings: size, steps and guidance of all images (its texts and seed are not
    used); batch: images generated at once; what: the label of the progress display. Image i has seed first_seed + i, so
    that two models start from the same noise, whatever the batch size.
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
    """What the judge recognised in the images of the base prompts, in percent.

    objects, colours: of all objects that the prompts name; places: of all prompts.
    """

    objects: float
    colours: float
    places: float


def score_base(verdicts: Verdicts, prompts: Sequence[ScenePrompt], classes: Classes) -> BaseScore:
    """The percentages of the objects, colours and places named by the prompts that the judge recognised.

    verdicts: probabilities for the prompts' images, in their order; classes: the judge's. An object is found if the
    probability of its kind is above 0.5. Its colour is right if the object is found and that colour is the most
    probable one of its kind, or has a probability above 0.5 (two objects of a kind may differ). A place is right if it
    is the most probable one.
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
    """The mean probability that a concept is in the image, in percent. concept: its name among the judge's classes."""
    return 100 * verdicts.concepts[:, classes.concepts.index(concept)].double().mean().item()


def score_both(verdicts: Verdicts) -> float:
    """The percentage of images in which each of the judge's concepts has a probability above 0.5."""
    return 100 * (verdicts.concepts > 0.5).all(1).double().mean().item()


def score_pictures(judge: Judge, prompts: PromptSets, pictures: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Judge images; returns a percentage by its name: "objects", "colours", "places", each concept's name, "both".

    pictures: images by the name of their set in `prompts.texts()`, uint8 [n, 3, H, W] in the prompts' order.
    Percentages of sets without images are left out.
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
    """One model's column in a `Table`. name: the heading; scores: percentages by name, as from `score_pictures`."""

    name: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Table:
    """Models side by side, the first of which the others are compared with.

    counts: the number of prompts that each percentage is about, by the percentage's name.
    """

    columns: tuple[Column, ...]
    counts: Mapping[str, int]

    def change(self, column: Column, name: str) -> float:
        """How far a column's percentage `name` is above the first column's, in percentage points."""
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
        """The table as values for JSON: {"prompts": counts, "columns": [{"name", "scores", "changes"}, …]}.

        changes: the differences to the first column in percentage points, by the percentage's name.
        """
        columns = []
        for column in self.columns:
            changes = {name: self.change(column, name) for name in column.scores}
            columns.append({"name": column.name, "scores": dict(column.scores), "changes": changes})
        return {"prompts": dict(self.counts), "columns": columns}


def count_prompts(prompts: PromptSets) -> dict[str, int]:
    """The number of prompts behind each percentage that `score_pictures` returns, by the percentage's name."""
    counts = {name: len(texts) for name, texts in prompts.texts().items()}
    of_base = counts.pop(BASE, 0)
    return (dict.fromkeys(PRIOR, of_base) if of_base else {}) | counts
