"""Companions: other things next to a concept in composites, generated and cut out before training.

What a companion looks like is not known when a run is planned. So a composite with one is known by the digests of what
it is made from, and its pieces are placed when it is made: the sizes of a cut-out decide where it goes.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image

from trainer.common.problems import Problem, Problems
from trainer.data.class_words import with_article
from trainer.data.compose import (
    VERSION,
    Photograph,
    Piece,
    Plain,
    Recipe,
    Source,
    TooSmall,
    backdrop_identity,
    place_pieces,
    solid_corners,
)
from trainer.data.composition_file import Companions
from trainer.data.generated import Generated, Generator
from trainer.data.relations import Relation
from trainer.images.decode import NotReadable, Size, decode

SIGMAS = (0.5, 0.7, 0.85)  # noise levels at which a companion's prompt is compared with those of other things
CUT_VERSION = "3"  # part of every digest: raise it when the same image would be cut out differently
RIVALS = 2  # other things whose prompts must explain a companion's image worse than its own


@dataclass(frozen=True, kw_only=True)
class Companion(Generated):
    """An image of one thing on a plain background, from which it is cut out.

    thing: what it is, such as "red ball". rivals: prompts of other things; the model has to explain the image better
    with its own prompt than with any of them.
    """

    thing: str
    rivals: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """A digest of everything that the pixels depend on, and of whether the cut-out is kept."""
        return hashlib.sha256(repr((CUT_VERSION, super().sha256, self.thing, self.rivals)).encode()).hexdigest()

    @property
    def mask_file(self) -> Path:
        """The mask of the cut-out, black if the image is not kept. It exists once that is decided."""
        return self.file.with_suffix(".mask.png")

    @property
    def forward_passes(self) -> int:
        return self.steps + len(SIGMAS) * (1 + len(self.rivals))

    @property
    def is_complete(self) -> bool:
        return super().is_complete and self.mask_file.exists()

    def read_mask(self) -> Image.Image:
        """The mask: mode L, the size of the image. Raises `Problems` if it cannot be read."""
        try:
            mask = decode(self.mask_file.read_bytes()).to_mask()
            assert mask is not None
            return mask
        except (NotReadable, OSError) as error:
            hint = "delete it and start again: the image is cut out again"
            raise Problems([Problem(str(self.mask_file), f"cannot be read: {error}", hint)]) from error


@dataclass(frozen=True)
class CutOut:
    """The mask of a companion, in place of a mask file in a `Source`."""

    companion: Companion
    from_alpha: bool = False

    @property
    def sha256(self) -> str:
        return self.companion.sha256

    @property
    def path(self) -> Path:
        return self.companion.path

    def read(self) -> Image.Image:
        """The mask, mode L."""
        return self.companion.read_mask()


@dataclass(frozen=True)
class Thing:
    """A companion and the images of it from which cut-outs are kept. name: such as "red ball"."""

    name: str
    candidates: tuple[Companion, ...]

    @property
    def is_decided(self) -> bool:
        """Whether all of its images are there, so that it is known which of them are kept."""
        return all(candidate.is_complete for candidate in self.candidates)

    def kept(self) -> list[Source]:
        """Its cut-outs. All of its images must be there."""
        corners = ((candidate, solid_corners(candidate.read_mask())) for candidate in self.candidates)
        return [Source(each, CutOut(each), box, False) for each, box in corners if box]


def things_of(asked: Companions, class_words: Sequence[str], generator: Generator, size: Size) -> list[Thing]:
    """The companions that a composition asks for. class_words: of its concepts, to compare a single companion with."""
    prompts = [asked.prompt_of(word) for word in asked.words]
    others = prompts if len(prompts) > 1 else [asked.prompt_of(word) for word in class_words]
    things = []
    for index, (word, prompt) in enumerate(zip(asked.words, prompts, strict=True)):
        at = (index + 1, index + len(others) // 2, index + 2)
        rivals = dict.fromkeys(others[each % len(others)] for each in at) if others else {}
        chosen = tuple(rival for rival in rivals if rival != prompt)[:RIVALS]
        plain = (
            generator.image(f"companion {word}", prompt, index * asked.candidates + number, size, asked.sampler)
            for number in range(asked.candidates)
        )
        things.append(Thing(word, tuple(Companion(**vars(each), thing=word, rivals=chosen) for each in plain)))
    return things


@dataclass(frozen=True)
class CompanionRecipe:
    """How to make a composite of a concept and a companion.

    source: the concept's cut-out. flips: whether it may be mirrored. thing, pick: the companion, and which of its kept
    cut-outs is used. companion_first: whether the relation is "companion RELATION concept". seed: of sizes and places.
    """

    size: Size
    backdrop: Plain | Photograph
    source: Source
    flips: bool
    thing: Thing
    pick: int
    companion_first: bool
    relation: Relation
    seed: int

    @property
    def sha256(self) -> str:
        """A digest of everything that the pixels depend on."""
        candidates = tuple(candidate.sha256 for candidate in self.thing.candidates)
        placing = (self.pick, self.companion_first, self.relation, self.seed, self.flips)
        parts = (VERSION, self.size, backdrop_identity(self.backdrop), self.source.identity(), candidates, placing)
        return hashlib.sha256(repr(("companion", *parts)).encode()).hexdigest()

    @property
    def generated_images(self) -> tuple[Generated, ...]:
        """The images that it needs from the base model."""
        behind = self.backdrop.picture if isinstance(self.backdrop, Photograph) else None
        return (*((behind,) if isinstance(behind, Generated) else ()), *self.thing.candidates)

    def image(self) -> Image.Image:
        """Make the composite, mode RGB. Raises `Problems` if one of its files has changed or does not exist."""
        return self._placed().image()

    def mask(self) -> Image.Image:
        """Make the composite's mask: mode L, 255 where the concept or the companion is, with soft edges."""
        return self._placed().mask()

    def _placed(self) -> Recipe:
        return Recipe(self.size, self.backdrop, self._pieces())

    def _pieces(self) -> tuple[Piece, ...]:
        kept = self.thing.kept()
        name, where = with_article(self.thing.name), f"companion {self.thing.name!r}"
        if not kept:
            raise Problems([Problem(where, f"no image of {name} can be cut out", "remove it from companions")])
        sources, flips = (self.source, kept[self.pick % len(kept)]), (self.flips, True)
        if self.companion_first:
            sources, flips = sources[::-1], flips[::-1]
        try:
            return place_pieces(Random(self.seed), self.relation, sources, flips, self.size)
        except TooSmall as small:
            what = f"a part of the composite would be {small.size[0]}x{small.size[1]} pixels"
            raise Problems([Problem(where, what, "raise resolution, or remove the companion")]) from None
