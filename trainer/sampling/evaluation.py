"""How well a model follows prompts: images of fixed prompts and seeds, scored by a judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel

from trainer.common.process import progress
from trainer.models.transformer import Conditioning
from trainer.sampling.judge import Classes, Judge, Verdicts, judge_pictures
from trainer.sampling.prompt_sets import BASE, BOTH, PromptSets, ScenePrompt
from trainer.sampling.prompts import SamplePrompt
from trainer.sampling.sampler import decode_pixels, denoise, start_noise

USUAL = SamplePrompt("", width=256, height=256, steps=20, guidance=3.5)
OBJECTS, COLOURS, PLACES = "objects", "colours", "places"
PRIOR = (OBJECTS, COLOURS, PLACES)  # what a LoRA must not damage; measured on the base prompts
COMPANION = "companion of "  # and a concept's name: the percentage of `score_companions`
Relations = dict[str, tuple[int, int]]  # by `ScenePrompt.relation`: images with all their concepts, of how many


def draw_prompts(
    transformer: FluxTransformer2DModel,
    vae: AutoencoderKL,
    texts: Sequence[Conditioning],
    settings: SamplePrompt = USUAL,
    first_seed: int = 0,
    batch: int = 8,
    what: str = "draw",
    sample: Callable[[torch.Tensor, Conditioning, slice], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Generate an image for each encoded text: uint8 [n, 3, H, W] on the host.

    texts: each of one prompt, [1, L, D]; settings: size, steps and guidance of all images (its texts and seed are not
    used); batch: images generated at once; what: the label of the progress display. Image i has seed first_seed + i, so
    that two models start from the same noise, whatever the batch size. sample: gives the latents of a batch from its
    noise, its texts and their place in `texts`; None for `denoise`.
    """
    pictures = []
    for start in progress(range(0, len(texts), batch), what):
        together = Conditioning.joined(texts[start : start + batch]).to(transformer.device, transformer.dtype)
        seeds = range(first_seed + start, first_seed + start + len(together.txt))
        noise = start_noise(transformer, settings, seeds)
        rows = slice(start, start + len(together.txt))
        latents = sample(noise, together, rows) if sample else denoise(transformer, noise, settings, together, None)
        pictures.append(decode_pixels(vae, latents).cpu())
    return torch.cat(pictures)


@dataclass(frozen=True)
class BaseScore:
    """What the judge recognised in the images of the base prompts, in percent.

    objects, colours: of all objects that the prompts name; places: of all prompts.
    """

    objects: float
    colours: float
    places: float


@dataclass(frozen=True)
class Scores:
    """What the judge recognised in the images of all prompts.

    percentages: by their names: "objects", "colours", "places", each concept's name, "companion of CONCEPT", "both".
    relations: the images behind "both", by how their prompts relate the concepts.
    """

    percentages: dict[str, float]
    relations: Relations = field(default_factory=dict)


def score_base(verdicts: Verdicts, prompts: Sequence[ScenePrompt], classes: Classes) -> BaseScore:
    """The percentages of the objects, colours and places named by the prompts that the judge recognised.

    verdicts: probabilities for the prompts' images, in their order; classes: the judge's. An object is found if the
    probability of its kind is above 0.5. Its colour is right if the object is found and that colour is the most
    probable one of its kind, or has a probability above 0.5 (two objects of a kind may differ). A place is right if it
    is the most probable one.
    """
    found, coloured = _objects_found(verdicts, prompts, classes)
    wanted = torch.tensor([classes.places.index(scene.place) for scene in prompts])
    in_place = (verdicts.places.argmax(1) == wanted).double().mean().item()
    return BaseScore(_percent(found), _percent(coloured), 100 * in_place)


def score_companions(verdicts: Verdicts, prompts: Sequence[ScenePrompt], classes: Classes) -> float | None:
    """The percentage of the things named next to a concept whose kind and colour are right; None if there are none.

    They are right as in `score_base`, whether or not the concept itself is in the image, which `score_concept` tells.
    """
    _, coloured = _objects_found(verdicts, prompts, classes)
    return _percent(coloured) if coloured else None


def _objects_found(
    verdicts: Verdicts, prompts: Sequence[ScenePrompt], classes: Classes
) -> tuple[list[bool], list[bool]]:
    """For each object of each prompt: whether its kind is in the image, and whether it also has its colour."""
    found, coloured = [], []
    for index, scene in enumerate(prompts):
        for kind_name, colour_name in scene.objects:
            kind, colour = classes.kinds.index(kind_name), classes.colours.index(colour_name)
            colours = verdicts.colours[index, kind]
            found.append(bool(verdicts.kinds[index, kind] > 0.5))
            coloured.append(found[-1] and bool(colours[colour] > 0.5 or colours.argmax() == colour))
    return found, coloured


def _percent(hits: Sequence[bool]) -> float:
    return 100 * sum(hits) / len(hits)


def score_concept(verdicts: Verdicts, concept: str, classes: Classes) -> float:
    """The mean probability that a concept is in the image, in percent. concept: its name among the judge's classes."""
    return 100 * verdicts.concepts[:, classes.concepts.index(concept)].double().mean().item()


def score_relations(verdicts: Verdicts, prompts: Sequence[ScenePrompt], classes: Classes) -> Relations:
    """How many images show all concepts of their prompts, each with a probability above 0.5, by the prompts' relation.

    The values are (images with all concepts, images).
    """
    counts: Relations = {}
    for index, scene in enumerate(prompts):
        there = all(verdicts.concepts[index, classes.concepts.index(name)] > 0.5 for name in scene.concepts)
        together, total = counts.get(scene.relation, (0, 0))
        counts[scene.relation] = together + there, total + 1
    return counts


def score_pictures(judge: Judge, prompts: PromptSets, pictures: Mapping[str, torch.Tensor]) -> Scores:
    """Judge images. Percentages of sets without images, or about objects that no prompt names, are left out.

    pictures: images by the name of their set in `prompts.sets()`, uint8 [n, 3, H, W] in the prompts' order.
    """
    classes, sets, scores = judge.classes, prompts.sets(), Scores({})
    percentages = scores.percentages
    for name, drawn in pictures.items():
        verdicts = judge_pictures(judge, drawn)
        if name == BASE:
            base = score_base(verdicts, sets[name], classes)
            percentages |= {OBJECTS: base.objects, COLOURS: base.colours, PLACES: base.places}
        elif name == BOTH:
            scores.relations.update(score_relations(verdicts, sets[name], classes))
            together, images = (sum(counts) for counts in zip(*scores.relations.values(), strict=True))
            percentages[BOTH] = 100 * together / images
        else:
            percentages[name] = score_concept(verdicts, name, classes)
            if (right := score_companions(verdicts, sets[name], classes)) is not None:
                percentages[COMPANION + name] = right
    return scores


def count_prompts(prompts: PromptSets) -> dict[str, int]:
    """The number of prompts behind each percentage that `score_pictures` returns, by the percentage's name."""
    counts = {}
    for name, scenes in prompts.sets().items():
        counts |= dict.fromkeys(PRIOR, len(scenes)) if name == BASE else {name: len(scenes)}
        if name not in (BASE, BOTH) and (with_company := sum(bool(scene.objects) for scene in scenes)):
            counts[COMPANION + name] = with_company
    return counts
