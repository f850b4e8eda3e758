"""Composites that [[datasets.compositions]] asks for, as samples: which concepts, how they stand, what they are called.

They are virtual samples: no file holds them, their pixels are made when they are encoded, and the cache finds them by
the digest of their recipes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from random import Random

from trainer.common.problems import Problem
from trainer.common.rng import python_random
from trainer.data.backdrops import Backdrop, backdrops_of
from trainer.data.captions import WILDCARD, contains_phrase, same_phrase
from trainer.data.class_words import class_word_of, with_article
from trainer.data.companions import CompanionRecipe, Thing, things_of
from trainer.data.compose import (
    NARROWEST,
    CompositeMask,
    Photograph,
    Piece,
    Recipe,
    Source,
    TooSmall,
    has_specks,
    place_pieces,
    solid_corners,
    touches,
)
from trainer.data.composite_sample import composite_sample, fill_template, in_turn, plain_backdrop
from trainer.data.composition_file import CompositionConfig
from trainer.data.dataset_config import DatasetConfig, DatasetSection
from trainer.data.generated import Generator
from trainer.data.relations import RELATIONS, Relation
from trainer.data.samples import Sample
from trainer.images.folder import some
from trainer.images.inspection import Picture

SMALLEST = 64  # pixels of a cut-out's longer side, below which it is no photograph of a concept
MOST_ENLARGED = 2.0  # times that a cut-out may be enlarged


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
        found = backdrops_of(self.composition, self.size, self.generator)
        if not concepts and not self.problems:  # no masks yet: a warning, and the run goes on without composites
            return Composed((), (), (*self.warnings, *found.problems))
        self.problems += found.problems
        self.warnings += [*found.warnings, *self._shown_behind(found.found)]
        backdrops = found.found
        things = self._things(concepts)
        samples = (
            () if self.problems else (*self._draw(concepts, backdrops), *self._beside(concepts, things, backdrops))
        )
        return Composed(() if self.problems else samples, tuple(self.problems), tuple(self.warnings))

    def _concepts(self) -> list[Concept]:
        """The concepts that are asked for, else all that have masks; without those that are unknown or have no mask."""
        where, asked = self.composition.where, self.composition.concepts
        by_name: dict[str, list[Sample]] = {}
        spelled: dict[str, str] = {}  # as the first subset writes it, by what other spellings have in common
        for sample in self.samples:
            if not sample.is_reg and not sample.preserves_output and (tokens := sample.subset.class_tokens):
                by_name.setdefault(spelled.setdefault(same_phrase(tokens), tokens.strip()), []).append(sample)
        unknown = [name for name in asked if same_phrase(name) not in spelled]
        hint = f"known are {', '.join(map(repr, by_name))}" if by_name else "set class_tokens in its subset"
        self.problems += [Problem(where, f"no subset has class_tokens = {name!r}", hint) for name in unknown]
        asked = tuple(spelled[same_phrase(name)] for name in asked if name not in unknown)
        if repeated := sorted({name for name in asked if asked.count(name) > 1}):
            hint = "a composite shows each concept once: name it once"
            self.problems.append(Problem(where, f"concepts names {repeated[0]!r} twice", hint))
        names = (
            list(dict.fromkeys(asked))
            if self.composition.concepts
            else [name for name, own in by_name.items() if any(sample.mask for sample in own)]
        )
        if not names and not unknown:
            hint = "`python -m trainer mask` creates them; or remove the section"
            self.warnings.append(Problem(where, "there will be no composites: no concept has masks", hint))
            return []
        concepts = [concept for name in names if (concept := self._concept(name, by_name[name]))]
        if not self.problems and len(concepts) < max(self.composition.together):
            what = f"{len(concepts)} of the {max(self.composition.together)} concepts of an image can be cut out"
            hint = "a concept needs class_tokens and masks: NAME.mask.png, conditioning_data_dir or alpha_mask"
            if unusable := [name for name in names if name not in {concept.name for concept in concepts}]:
                hint = f"no mask of {', '.join(map(repr, unusable))} can be used: the warnings say why"
            if len(by_name) == 1:
                hint = "for a single concept set together = 1 and companions, other things to stand next to it"
            self.problems.append(Problem(where, what, hint))
        return concepts

    def _concept(self, name: str, samples: Sequence[Sample]) -> Concept | None:
        if any(sample.subset.enable_wildcard for sample in samples) and WILDCARD.search(name):
            hint = "captions of composites need one name: write the choice into caption files instead"
            self.problems.append(Problem(self.composition.where, f"class_tokens {name!r} is a choice of names", hint))
        sources = [source for sample in samples if (source := self._source(sample))]
        if not sources:
            hint = "it needs NAME.mask.png next to its images, conditioning_data_dir or alpha_mask"
            if any(sample.mask for sample in samples):
                hint = "the warnings say why its masks cannot be used: add a photograph that shows all of it, and large"
            found = self.problems if self.composition.concepts else self.warnings
            found.append(Problem(self.composition.where, f"no image of {name!r} can be cut out", hint))
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
        if has_specks(mask):
            hint = "composites leave them out; paint them black if they are a slip of the brush"
            self.warnings.append(Problem(where, "there are specks apart from the concept", hint))
        assert not isinstance(sample.mask, CompositeMask)
        return Source(sample.picture, sample.mask, corners, sample.subset.alpha_mask)

    def _shown_behind(self, backdrops: Sequence[Backdrop]) -> list[Problem]:
        """A warning if backgrounds show what is trained: there, no mask and no caption would say so."""
        trained = {sample.picture.sha256 for sample in self.samples}
        paths = [picture.path for picture, _ in backdrops if isinstance(picture, Picture) and picture.sha256 in trained]
        if not paths:
            return []
        what = f"backgrounds that are images of this dataset too: {some(paths)}"
        return [Problem(self.composition.where, what, "use images without the concepts")]

    def _draw(self, concepts: Sequence[Concept], backdrops: Sequence[Backdrop]) -> Iterator[Sample]:
        if self.composition.together == (1,):
            return
        groups = [group for count in self.composition.together for group in combinations(concepts, count)]
        relations = in_turn(self.composition.relations, self.composition.num_images)
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
        recipe = Recipe(self.size, Photograph(picture) if picture else plain_backdrop(rng), pieces)
        caption = fill_template(rng.choice(self.composition.captions), [c.name for c in group], relation.name, place)
        return composite_sample(self.composition, self.index, number, recipe, caption)

    def _pieces(
        self, rng: Random, relation: Relation, group: Sequence[Concept], sources: Sequence[Source]
    ) -> tuple[Piece, ...] | None:
        try:
            return place_pieces(rng, relation, sources, [concept.flips for concept in group], self.size)
        except TooSmall as small:
            name, size = group[small.index].name, f"{small.size[0]}x{small.size[1]} pixels"
            hint = f"a concept needs {NARROWEST} pixels on each side: raise resolution, or the relation's size"
            self.problems.append(
                Problem(self.composition.where, f"{name!r} would be {size} in {relation.name!r}", hint)
            )
            return None

    def _things(self, concepts: Sequence[Concept]) -> list[Thing]:
        """The companions, without those of which no image can be cut out, as far as that is known yet."""
        asked, where = self.composition.companions, self.composition.where
        if asked is None:
            return []
        known = [concept.name for concept in concepts]
        if own := [word for word in asked.words if any(_names(word, name) for name in known)]:
            hint = 'the base model does not know it: companions are other things, such as "red ball"'
            self.problems.append(Problem(where, f"companion {own[0]!r} is a concept of this dataset", hint))
            return []
        words = [word for name in known if (word := class_word_of(name))]
        things = things_of(asked, words, self.generator, self.size)
        left = [thing for thing in things if not thing.is_decided or thing.kept()]
        for thing in things:
            if thing not in left:
                what = f"none of the {len(thing.candidates)} images of companion {thing.name!r} can be cut out"
                self.warnings.append(Problem(where, what, "it is left out; raise candidates, or use other words"))
        if not left:
            hint = "look at generated.jpg, then use other words or another prompt"
            self.problems.append(Problem(where, "no image of any companion can be cut out", hint))
        return left

    def _beside(
        self, concepts: Sequence[Concept], things: Sequence[Thing], backdrops: Sequence[Backdrop]
    ) -> Iterator[Sample]:
        """The composites of one concept with one companion, every pair of them in turn."""
        asked = self.composition.companions
        if asked is None:
            return
        pairs = [(concept, thing) for thing in things for concept in concepts]
        for number in range(asked.num_images):
            turn, at = divmod(number, len(pairs))
            concept, thing = pairs[at]
            rng = python_random(self.seed, "companion", *self.index, number)
            leads = concept is concepts[0]
            possible = [each for each in self.composition.relations if leads or each.layout != "attached"]
            relations = in_turn(possible or [RELATIONS["next to"]], asked.num_images // len(pairs) + 1)
            relation = relations[turn]
            companion_first = rng.random() < 0.5 if relation.both_ways else not leads
            picture, place = rng.choice(backdrops)
            recipe = CompanionRecipe(
                size=self.size,
                backdrop=Photograph(picture) if picture else plain_backdrop(rng),
                source=rng.choice(concept.sources),
                flips=concept.flips,
                thing=thing,
                pick=turn,
                companion_first=companion_first,
                relation=relation,
                seed=rng.getrandbits(63),
            )
            names = [concept.name, with_article(thing.name)]
            names = names[::-1] if companion_first else names
            caption = fill_template(rng.choice(self.composition.captions), names, relation.name, place)
            yield composite_sample(self.composition, self.index, number, recipe, caption, thing.name)


def _names(companion: str, concept: str) -> bool:
    """Whether a companion is a concept, by its class_tokens or by the trigger in front of them."""
    trigger = concept.split()[0] if class_word_of(concept) else concept
    return contains_phrase(companion, concept) or same_phrase(companion) == same_phrase(trigger)
