"""Likeness, bleed, drift and memorisation of a checkpoint's images, from features of patches.

Likeness asks whether the parts of a concept, as the training images show it, are found anywhere in an image. Its scale
is fixed by images whose answer is known: 0 is what the base model shows for the class word, 100 how much the training
images are like each other.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from trainer.comparison.prompts import ComparePrompt, Concept
from trainer.data.compose import Composite
from trainer.data.dataset import Sample
from trainer.images.resize import fit

GridsOf = Callable[[Sequence[Image.Image]], list[torch.Tensor]]  # images to patches, each [h, w, D], of norm 1
COPIED = 50.0  # percent of the way from an unrelated image to the training image itself, from which it counts as copied


def with_error(value: float, error: float, digits: int = 1) -> str:
    """A number and how far it may be off, "78.0 ± 3.1"; the number alone if that is unknown."""
    return f"{value:z.{digits}f}" + (f" ± {error:.{digits}f}" if math.isfinite(error) else "")


@dataclass(frozen=True)
class Figure:
    """A number measured for several prompts. values: one for each prompt, in percent; at least one."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over prompts."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over prompts; NaN, unknown, for a single one or if a value is not finite."""
        if len(self.values) < 2 or not all(math.isfinite(value) for value in self.values):
            return math.nan
        return statistics.stdev(self.values)

    @property
    def error(self) -> float:
        """The standard error of the mean: how far it would be off with other prompts. NaN if unknown."""
        return self.spread / math.sqrt(len(self.values))

    def __str__(self) -> str:
        """The mean with the spread over prompts: "78.0 ± 3.1"."""
        return with_error(self.mean, self.spread)

    def minus(self, other: "Figure") -> "Figure":
        """The difference for each prompt. other: of the same prompts."""
        return Figure(tuple(mine - others for mine, others in zip(self.values, other.values, strict=True)))


@dataclass(frozen=True)
class Region:
    """An image's patches, and how much each of them shows the concept.

    patches: [n, D], of norm 1; weights: [n], with sum 1; background: [n] bool, the patches that surely do not show it.
    """

    name: str
    patches: torch.Tensor
    weights: torch.Tensor
    background: torch.Tensor


@dataclass(frozen=True)
class Reference:
    """A concept as its training images show it.

    floor, ceiling: the similarity of the base model's images for the class word, and of the training images with each
    other; between them lies the scale of likeness.
    """

    concept: Concept
    regions: tuple[Region, ...]
    floor: float
    ceiling: float

    def likeness(self, patches: torch.Tensor) -> float:
        """How much an image, given by its patches [n, D], shows the concept, in percent."""
        return 100 * (float(similarity(self.regions, patches)) - self.floor) / self.room

    @property
    def room(self) -> float:
        """The similarity between 0 and 100 percent of likeness, at least 0.001."""
        return max(self.ceiling - self.floor, 1e-3)


@dataclass(frozen=True)
class Measures:
    """What was measured of one checkpoint.

    likeness: how much each concept is shown where its prompt names it. bleed: how much more than in the base model's
    image each concept is shown where neither it nor its class word is named. class_bleed: the same where only its class
    word is named; None without such prompts. drift: how far images of prompts without a trigger are from the base
    model's of the same seed; 0 is the same image, 100 an unrelated one. memorised: how near each image is to its
    nearest training image outside of the concept, likewise. Each is a Figure over prompts.

    matrix: mean likeness by kind of prompt (as `row_of` names it) and concept. likeness_of: the likeness of each
    concept. copies: prompts whose image repeats a training image, with that image's name. agreement: SigLIP 2's cosine
    with the text, if it was measured.
    """

    likeness: Figure
    bleed: Figure
    drift: Figure
    memorised: Figure
    matrix: Mapping[str, Mapping[str, float]]
    likeness_of: Mapping[str, Figure]
    copies: Mapping[str, str] = field(default_factory=dict)
    class_bleed: Figure | None = None
    agreement: Figure | None = None


def row_of(prompt: ComparePrompt) -> str:
    """The prompt's row in the matrix of likeness: its kind and what it names, such as "tjtoy toy, alone"."""
    return ", ".join([" and ".join(prompt.shows) or "no concept", prompt.kind])


def training_image(sample: Sample) -> Image.Image:
    """A training image as training sees it: resized and cropped. Raises `Problems` if its file has changed."""
    picture = sample.picture
    pixels = picture.recipe.image() if isinstance(picture, Composite) else picture.read()
    return fit(pixels, sample.resized, sample.crop, sample.bucket, sample.interpolation)


def make_references(
    grids_of: GridsOf,
    concepts: Sequence[Concept],
    prompts: Sequence[ComparePrompt],
    base: Sequence[torch.Tensor],
) -> list[Reference]:
    """What the concepts look like, from their training images.

    grids_of: gives the patches of images; base: those of the base model's image for each prompt. A patch of a training
    image weighs as much as its best matches in the other training images exceed those in the base model's images of the
    class word: what recurs with the concept only is the concept. Where the image has a mask, patches outside it weigh
    nothing.
    """
    return [_reference(grids_of, concept, _class_images(concept, prompts, base)) for concept in concepts]


def _class_images(
    concept: Concept, prompts: Sequence[ComparePrompt], base: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    pairs = list(zip(prompts, base, strict=True))
    of_class = [patches for prompt, patches in pairs if prompt.is_of_class(concept)]
    return of_class or [patches for prompt, patches in pairs if prompt.is_plain]


def _reference(grids_of: GridsOf, concept: Concept, others: Sequence[torch.Tensor]) -> Reference:
    grids = grids_of([training_image(sample) for sample in concept.samples])
    patches = [grid.flatten(0, 1) for grid in grids]
    regions = []
    for index, (sample, grid, own) in enumerate(zip(concept.samples, grids, patches, strict=True)):
        siblings = [each for other, each in enumerate(patches) if other != index] or [own]
        recurs = torch.stack([_best(own, each) for each in siblings]).mean(0)
        elsewhere = torch.stack([_best(own, each) for each in others]).mean(0)
        weights = (recurs - elsewhere).clamp(min=0) + 1e-6
        background = weights < weights.mean()
        if sample.mask:
            inside = _mask_shares(sample, grid.shape[0], grid.shape[1]).flatten().to(grid.device)
            weights, background = weights * inside + 1e-9 * inside.sum().eq(0), inside < 0.1
        regions.append(Region(sample.picture.path.name, own, weights / weights.sum(), background))
    floor = statistics.fmean(float(similarity(regions, each)) for each in others)
    if len(regions) == 1:
        return Reference(concept, tuple(regions), floor, 1.0)
    ceiling = statistics.fmean(
        float(similarity([*regions[:index], *regions[index + 1 :]], region.patches))
        for index, region in enumerate(regions)
    )
    return Reference(concept, tuple(regions), floor, ceiling)


def _mask_shares(sample: Sample, rows: int, columns: int) -> torch.Tensor:
    """The share of each patch that is inside the sample's mask, [rows, columns]."""
    assert sample.mask
    mask = fit(sample.mask.read(), sample.resized, sample.crop, sample.bucket, sample.interpolation)
    shares = mask.resize((columns, rows), Image.Resampling.BOX)
    return torch.from_numpy(np.array(shares, np.float32)) / 255


def _best(patches: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """The cosine of each patch with the most similar one of another image: [n]."""
    return (patches @ others.T).amax(1)


def similarity(regions: Sequence[Region], patches: torch.Tensor) -> torch.Tensor:
    """How well the regions' patches are found in images, averaged over regions.

    patches: of one image, [n, D], or of several, [images, n, D]. Returns a scalar, or [images].
    """
    sought = torch.cat([region.patches for region in regions])
    weights = torch.cat([region.weights for region in regions]) / len(regions)
    return (patches @ sought.T).amax(-2) @ weights


def measure(
    references: Sequence[Reference],
    prompts: Sequence[ComparePrompt],
    base: Sequence[torch.Tensor],
    found: Sequence[torch.Tensor],
    agreement: Sequence[float] | None = None,
) -> Measures:
    """Measure a checkpoint. base, found: the patches of the base model's and the checkpoint's image for each prompt;
    agreement: of each image with its prompt, as SigLIP 2 measured it.
    """
    shown: dict[str, list[float]] = {each.concept.name: [] for each in references}
    cells: dict[str, dict[str, list[float]]] = {}
    bleed: list[float] = []
    class_bleed: list[float] = []
    for prompt, before, after in zip(prompts, base, found, strict=True):
        row = cells.setdefault(row_of(prompt), {name: [] for name in shown})
        for reference in references:
            name = reference.concept.name
            row[name].append(reference.likeness(after))
            if name in prompt.shows:
                shown[name].append(row[name][-1])
            else:
                found_in = class_bleed if prompt.is_of_class(reference.concept) else bleed
                found_in.append(max(0.0, row[name][-1] - reference.likeness(before)))
    nearest = [_nearest(references, patches, before) for patches, before in zip(found, base, strict=True)]
    return Measures(
        likeness=Figure(tuple(value for values in shown.values() for value in values)),
        bleed=Figure(tuple(bleed)),
        drift=Figure(tuple(drifts(prompts, base, found))),
        memorised=Figure(tuple(share for share, _ in nearest)),
        matrix={row: {name: statistics.fmean(v) for name, v in by.items()} for row, by in cells.items()},
        likeness_of={name: Figure(tuple(values)) for name, values in shown.items() if values},
        copies={prompt.text: name for prompt, (share, name) in zip(prompts, nearest, strict=True) if share >= COPIED},
        class_bleed=Figure(tuple(class_bleed)) if class_bleed else None,
        agreement=Figure(tuple(100 * value for value in agreement)) if agreement else None,
    )


def drifts(
    prompts: Sequence[ComparePrompt], base: Sequence[torch.Tensor], found: Sequence[torch.Tensor]
) -> list[float]:
    """Of each prompt without a trigger: the distance to the base model's image, in percent of the mean distance between
    the base model's images of different prompts."""
    plain = [index for index, prompt in enumerate(prompts) if prompt.is_plain]
    apart = [image_distance(base[one], base[other]) for one in plain for other in plain if one < other]
    usual = max(statistics.fmean(apart), 1e-6) if apart else 1.0
    return [100 * image_distance(base[index], found[index]) / usual for index in plain]


def image_distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How little two images have in common, wherever in them: 1 minus the mean cosine of best-matching patches."""
    cosines = one @ other.T
    return 1 - float(cosines.amax(0).mean() + cosines.amax(1).mean()) / 2


def _nearest(references: Sequence[Reference], patches: torch.Tensor, base: torch.Tensor) -> tuple[float, str]:
    """How near an image is to the nearest training image outside of the concept, place by place, and its name.

    0: as near as the base model's image of the same prompt and seed; 100: the training image itself.
    """
    best = (0.0, "")
    for region in (region for reference in references for region in reference.regions):
        if region.patches.shape == patches.shape and bool(region.background.any()):
            own = region.patches[region.background]
            now, before = (float((own * each[region.background]).sum(1).mean()) for each in (patches, base))
            best = max(best, (100 * (now - before) / max(1 - before, 1e-3), region.name))
    return best
