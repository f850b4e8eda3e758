"""Composites that [[datasets.compositions]] asks for, as samples: which concepts, how they stand, what they are called.

They are virtual samples: no file holds them, their pixels are made when they are encoded, and the cache finds them by
the digest of their recipes.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random

from trainer.common.problems import Problem
from trainer.common.rng import python_random
from trainer.data.compose import (
    Composite,
    CompositeMask,
    Photograph,
    Piece,
    Plain,
    Recipe,
    Source,
    solid_corners,
    touches,
)
from trainer.data.composition_file import PLAIN, BaseBackgrounds, CompositionConfig
from trainer.data.dataset_config import DatasetConfig, DatasetSection, SubsetConfig
from trainer.data.generated import Generated, Generator
from trainer.data.layout import arrange
from trainer.data.relations import Relation
from trainer.data.samples import Sample
from trainer.images.folder import read_folder
from trainer.images.inspection import Picture, inspect_images

SMALLEST = 64  # pixels of a cut-out's longer side, below which it is no photograph of a concept
MOST_ENLARGED = 2.0  # times that a cut-out may be enlarged
NARROWEST = 16  # pixels of a concept's shorter side in the composite: one token of the transformer
PLAIN_PLACE = "on a plain background"
Backdrop = tuple[Picture | Generated | None, str]  # None: plain; the words for the place


@dataclass(frozen=True)
class Concept:
    """A concept that can be cut out.

    name: its class_tokens. sources: its cut-outs, one for each usable photograph. flips: whether they may be mirrored.
    """

    name: str
    sources: tuple[Source, ...]
    flips: bool


@dataclass(frozen=True)
class Composed:
    """The composites of a dataset file as samples. problems stop the run; warnings do not."""

    samples: tuple[Sample, ...] = ()
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


def compose_samples(
    dataset_config: DatasetConfig, samples: Sequence[Sample], seed: int, generator: Generator
) -> Composed:
    """Plan the composites of every [[datasets.compositions]] of a dataset file; no pixels of them are made yet.

    samples: the images to cut concepts out of: those that are trained, none held out for validation. Their masks are
    read. generator: names the images that the base model generates. Problems are returned, not raised.
    """
    made, problems, warnings = [], [], []
    for index, section in enumerate(dataset_config.sections):
        own = [sample for sample in samples if sample.dataset_index == index]
        for number, composition in enumerate(section.compositions):
            result = _Composer(section, composition, own, (index, number), seed, generator).run()
            made += result.samples
            problems += result.problems
            warnings += result.warnings
    return Composed(tuple(made), tuple(problems), tuple(dict.fromkeys(warnings)))


class _Composer:
    """Draws the composites of one [[datasets.compositions]]."""

    def __init__(
        self,
        section: DatasetSection,
        composition: CompositionConfig,
        samples: Sequence[Sample],
        index: tuple[int, int],
        seed: int,
        generator: Generator,
    ):
        self.section, self.composition, self.samples = section, composition, samples
        self.index, self.seed, self.generator = index, seed, generator
        self.size = section.resolution
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def run(self) -> Composed:
        concepts = self._concepts()
        if not concepts:
            return Composed((), tuple(self.problems), tuple(self.warnings))
        backdrops = self._backdrops()
        samples = () if self.problems else tuple(self._draw(concepts, backdrops))
        return Composed(() if self.problems else samples, tuple(self.problems), tuple(self.warnings))

    def _concepts(self) -> list[Concept]:
        """The concepts that are asked for, else all that have masks."""
        where, asked = self.composition.where, self.composition.concepts
        by_name: dict[str, list[Sample]] = {}
        for sample in self.samples:
            if not sample.is_reg and not sample.preserves_output and sample.subset.class_tokens:
                by_name.setdefault(sample.subset.class_tokens, []).append(sample)
        unknown = [name for name in asked if name not in by_name]
        if unknown:
            hint = f"known are {', '.join(map(repr, by_name))}" if by_name else "set class_tokens in its subset"
            self.problems.append(Problem(where, f"no subset has class_tokens = {unknown[0]!r}", hint))
            return []
        names = asked or [name for name, own in by_name.items() if any(sample.mask for sample in own)]
        if not names:
            hint = "`python -m trainer mask` draws them; or remove the section"
            self.warnings.append(Problem(where, "there will be no composites: no concept has masks", hint))
            return []
        concepts = [concept for name in names if (concept := self._concept(name, by_name[name]))]
        if not self.problems and len(concepts) < max(self.composition.together):
            what = f"{len(concepts)} of the {max(self.composition.together)} concepts of an image can be cut out"
            hint = "a concept needs class_tokens and masks: NAME.mask.png, conditioning_data_dir or alpha_mask"
            self.problems.append(Problem(where, what, hint))
        return concepts

    def _concept(self, name: str, samples: Sequence[Sample]) -> Concept | None:
        sources = [source for sample in samples if (source := self._source(sample))]
        if not sources and name in self.composition.concepts:
            hint = "it needs NAME.mask.png next to its images, conditioning_data_dir or alpha_mask"
            self.problems.append(Problem(self.composition.where, f"no image of {name!r} can be cut out", hint))
        flips = all(sample.subset.flip_aug for sample in samples)
        return Concept(name, tuple(sources), flips) if sources else None

    def _source(self, sample: Sample) -> Source | None:
        """The cut-out of one image, unless it would not be worth training."""
        if sample.mask is None or not isinstance(sample.picture, Picture):
            return None
        mask = sample.mask.read()
        corners = solid_corners(mask)
        if corners is None:
            return None
        width, height = corners[2] - corners[0], corners[3] - corners[1]
        largest = 0.5 * max(self.size)  # what an arrangement makes of a concept, about
        where, out = str(sample.mask.path), "composites leave it out"
        if max(width, height) < max(SMALLEST, largest / MOST_ENLARGED):
            self.warnings.append(Problem(where, f"its cut-out is only {width}x{height} pixels", out))
            return None
        if edges := touches(mask):
            self.warnings.append(
                Problem(where, f"the concept is cut off by the image's edge ({', '.join(edges)})", out)
            )
            return None
        assert not isinstance(sample.mask, CompositeMask)
        return Source(sample.picture, sample.mask, corners, sample.subset.alpha_mask)

    def _backdrops(self) -> list[Backdrop]:
        """Every backdrop with the words for its place; None for a plain one, drawn anew for each composite."""
        found: list[Backdrop] = []
        for each in self.composition.backgrounds:
            if isinstance(each, BaseBackgrounds):
                found += self._generated_backdrops(each)
            else:
                found += [(None, PLAIN_PLACE)] if each == PLAIN else self._backdrops_of(Path(each))
        return found

    def _generated_backdrops(self, asked: BaseBackgrounds) -> Iterator[Backdrop]:
        for number in range(asked.num_images):
            place, prompt = asked.prompts[number % len(asked.prompts)]
            yield self.generator.image(f"background {number:03}", prompt, number, self.size, asked.sampler), place

    def _backdrops_of(self, path: Path) -> Iterator[Backdrop]:
        where = self.composition.where
        try:
            folder = read_folder(path, where)
        except OSError as error:
            what = f"backgrounds {path} cannot be read: {error.strerror}"
            self.problems.append(Problem(where, what, f'name a folder of images, or "{PLAIN}"'))
            return
        if not folder.images:
            self.problems.append(Problem(where, f"backgrounds {path} holds no images"))
        for found in inspect_images(folder):
            if isinstance(found, Problem):
                self.problems.append(found)
                continue
            texts = folder.captions.get(found.picture.path, ())
            yield found.picture, texts[0].read_text(encoding="utf-8").strip() if texts else ""

    def _draw(self, concepts: Sequence[Concept], backdrops: Sequence[Backdrop]) -> Iterator[Sample]:
        groups = [group for count in self.composition.together for group in combinations(concepts, count)]
        relations = _in_turn(self.composition.relations, self.composition.num_images)
        for number in range(self.composition.num_images):
            rng = python_random(self.seed, "composite", *self.index, number)
            group, relation = groups[number % len(groups)], relations[number // len(groups) % len(relations)]
            sample = self._sample(rng, number, group, relation, backdrops)
            if sample is None:
                return
            yield sample

    def _sample(
        self,
        rng: Random,
        number: int,
        group: Sequence[Concept],
        relation: Relation,
        backdrops: Sequence[Backdrop],
    ) -> Sample | None:
        group = list(group)
        if len(group) > 2:
            rng.shuffle(group)
        elif relation.both_ways and rng.random() < 0.5:
            group.reverse()
        sources = [rng.choice(concept.sources) for concept in group]
        pieces = self._pieces(rng, relation, group, sources)
        if pieces is None:
            return None
        picture, place = rng.choice(backdrops)
        recipe = Recipe(self.size, Photograph(picture) if picture else _plain(rng), pieces)
        caption = fill_template(rng.choice(self.composition.captions), [c.name for c in group], relation.name, place)
        return self._as_sample(number, recipe, caption)

    def _pieces(
        self, rng: Random, relation: Relation, group: Sequence[Concept], sources: Sequence[Source]
    ) -> tuple[Piece, ...] | None:
        width, height = self.size
        boxes = arrange(rng, relation, [source.size[0] / source.size[1] for source in sources], width / height)
        order = sorted(range(len(boxes)), key=lambda index: boxes[index].layer)
        pieces = []
        for index in order:
            box = boxes[index]
            size = max(1, round(box.width * height)), max(1, round(box.height * height))
            if min(size) < NARROWEST:
                what = f"{group[index].name!r} would be {size[0]}x{size[1]} pixels in {relation.name!r}"
                hint = f"a concept needs {NARROWEST} pixels on each side: raise resolution, or the relation's size"
                self.problems.append(Problem(self.composition.where, what, hint))
                return None
            flip = group[index].flips and rng.random() < 0.5
            pieces.append(Piece(sources[index], round(box.left * height), round(box.top * height), size, flip))
        return tuple(pieces)

    def _as_sample(self, number: int, recipe: Recipe, caption: str) -> Sample:
        digest, path = recipe.sha256, Path(f"composite {number:03}: {caption}")
        return Sample(
            key=f"{self.index[0]}.composition {self.index[1]}/{number:03}",
            picture=Composite(path, recipe, digest),
            subset=_subset(self.composition),
            dataset_index=self.index[0],
            lines=(caption,),
            bucket=self.size,
            resized=self.size,
            crop=(0, 0),
            interpolation="area",
            num_repeats=1,
            is_reg=False,
            loss_weight=1.0,
            preserves_output=False,
            mask=CompositeMask(path, recipe, digest),
            composition=self.index[1],
        )


def _subset(composition: CompositionConfig) -> SubsetConfig:
    """What stands in for the subset of a composite: its caption is taken as it is, its mask weighs as asked."""
    return SubsetConfig(
        image_dir=Path("composites"),
        where=composition.where,
        caption_dropout_rate=0.0,
        masked_loss=True,
        mask_background=composition.mask_background,
        mask_dilation=composition.mask_dilation,
    )


def _plain(rng: Random) -> Plain:
    """A backdrop in a light colour and a shade of it."""
    above = tuple(rng.randint(120, 245) for _ in range(3))
    shade = rng.randint(-40, 30)
    below = tuple(min(255, max(60, value + shade)) for value in above)
    return Plain((above[0], above[1], above[2]), (below[0], below[1], below[2]), rng.uniform(0.45, 0.7))


def _in_turn(relations: Sequence[Relation], count: int) -> list[Relation]:
    """`count` relations by weight, spread evenly: always the one that is furthest behind its share."""
    total = sum(relation.weight for relation in relations)
    used: Mapping[str, float] = {relation.name: 0.0 for relation in relations}
    order = []
    for step in range(1, count + 1):
        behind = max(relations, key=lambda each: each.weight * step / total - used[each.name])
        used = {**used, behind.name: used[behind.name] + 1}
        order.append(behind)
    return order


def fill_template(template: str, names: Sequence[str], relation: str, place: str) -> str:
    """Fill in a caption template, with white space collapsed.

    names: of the two or more concepts, for {first}, {second}. relation: such as "holding", for {relation}. place: such
    as "on a plain background", for {place}. {concepts} becomes "A holding B", or "A, B and C" for more than two.
    """
    pair = f"{names[0]} {relation} {names[1]}"
    concepts = pair if len(names) == 2 else f"{', '.join(names[:-1])} and {names[-1]}"
    text = template.format(concepts=concepts, first=names[0], second=names[1], relation=relation, place=place)
    return " ".join(text.split())
