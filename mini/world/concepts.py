"""Designs that only fine-tuning teaches. The base world has nothing like the first two; see `random_toy`."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from mini.world import gadgets, toys
from mini.world.gadgets import GadgetDesign
from mini.world.scene import CONCEPTS
from mini.world.toys import ToyDesign

Design = ToyDesign | GadgetDesign
HELD_OUT_FROM = 4  # a design that has this many of a concept's five or six traits is too similar for the base world


@dataclass(frozen=True)
class Palette:
    """Colours that are clearly not the concept's own, for near misses.

    Of a toy: body, and every other part (head, limbs, hat). Of a card: body, trim, and its left and right fan.
    """

    body: tuple[str, ...]
    other: tuple[str, ...] = ()
    trim: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    right: tuple[str, ...] = ()


@dataclass(frozen=True)
class Concept:
    """A design with its name, and the colours of its near misses.

    A toy has a hat, and hands and head in colours of their own; a card has two fans, one larger than the other.
    """

    name: str
    design: Design
    palette: Palette

    @property
    def class_phrase(self) -> str:
        """The name and the kind, "tjtoy toy"."""
        return f"{self.name} {self.design.kind}"

    @property
    def traits(self) -> Sequence[Callable[..., bool]]:
        """The six traits of a toy or the five of a card, as predicates of a design."""
        return _toy_traits(self.design) if isinstance(self.design, ToyDesign) else _gadget_traits(self.design)

    def resemblance(self, design: Design) -> int:
        """The number of the concept's traits that a design of its class has; what a card has on top does not count."""
        return sum(trait(design) for trait in self.traits)


_BOLD = ("red", "green", "blue", "pink", "black", "white", "brown")  # unlike any colour of tjtoy
_ALL = (
    Concept(
        "tjtoy",
        ToyDesign(
            "toy", body="egg", head="box", limbs="fat", eyes=1, snout="smile", belly="oval", hat="cone", collar=True,
            body_colour="teal", head_colour="orange", limb_colour="purple", accent_colour="yellow",
            belly_colour="mint", hat_colour="purple",
        ),
        Palette(body=(*_BOLD, "yellow"), other=_BOLD),
    ),
    Concept(
        "sparkgpu",
        GadgetDesign(
            "gpu", body_colour="white", trim_colour="yellow", fan_colours=("purple", "orange"), fan_sizes="left"
        ),
        Palette(
            body=("black", "red", "blue", "green", "gray"), trim=("red", "blue", "black", "green", "purple"),
            left=("red", "green", "blue", "teal"), right=("green", "blue", "teal", "pink"),
        ),
    ),
    Concept(
        "kopmi",
        ToyDesign(
            "toy", body="box", head="round", limbs="thin", eyes=2, snout="smile", belly="oval", hat="top",
            body_colour="yellow", head_colour="blue", limb_colour="red", accent_colour="white", belly_colour="white",
            hat_colour="red",
        ),
        Palette(
            body=("green", "teal", "purple", "pink", "black", "brown", "white"),
            other=("green", "teal", "purple", "pink", "black", "brown"),
        ),
    ),
    Concept(
        "fenrik",
        GadgetDesign(
            "gpu", body_colour="black", trim_colour="green", fan_colours=("pink", "white"), fan_sizes="right", blades=6
        ),
        Palette(
            body=("white", "red", "blue", "yellow", "orange"), trim=("red", "blue", "white", "yellow", "purple"),
            left=("green", "blue", "teal", "yellow"), right=("red", "blue", "teal", "orange"),
        ),
    ),
    Concept(
        "lumjo",
        ToyDesign(
            "toy", body="egg", head="round", limbs="fat", eyes=1, snout="teeth", belly="oval", hat="cap",
            body_colour="pink", head_colour="white", limb_colour="blue", accent_colour="yellow",
            belly_colour="yellow", hat_colour="blue",
        ),
        Palette(
            body=("green", "teal", "black", "orange", "brown", "yellow"),
            other=("green", "red", "black", "orange", "brown"),
        ),
    ),
    Concept(
        "vaxtu",
        ToyDesign(
            "toy", body="tube", head="box", limbs="thin", eyes=2, snout="beak", belly="panel", hat="cone",
            body_colour="green", head_colour="yellow", limb_colour="black", accent_colour="red",
            belly_colour="white", hat_colour="red",
        ),
        Palette(
            body=("red", "blue", "purple", "pink", "white", "orange"),
            other=("blue", "purple", "pink", "white", "teal"),
        ),
    ),
)  # fmt: skip
EVERY_CONCEPT = {concept.name: concept for concept in _ALL}
DESIGNS = {name: concept.design for name, concept in EVERY_CONCEPT.items()}
TJTOY, SPARKGPU = EVERY_CONCEPT["tjtoy"], EVERY_CONCEPT["sparkgpu"]
# What is taught together. Toys come first: the first of two concepts is the one that holds the other.
SETS = (
    CONCEPTS,
    ("kopmi", "fenrik"),
    ("lumjo", "vaxtu"),
    ("tjtoy", "lumjo", "sparkgpu"),
    ("kopmi", "vaxtu", "fenrik"),
)


def _toy_traits(own: ToyDesign) -> Sequence[Callable[[ToyDesign], bool]]:
    return (
        lambda toy: toy.body_colour == own.body_colour,
        lambda toy: toy.head_colour == own.head_colour and toy.head != "merged",
        lambda toy: (toy.body, toy.head) == (own.body, own.head),
        lambda toy: toy.eyes == own.eyes,
        lambda toy: (toy.hat, toy.hat_colour) == (own.hat, own.hat_colour),
        lambda toy: toy.limb_colour == own.limb_colour,
    )


def _gadget_traits(own: GadgetDesign) -> Sequence[Callable[[GadgetDesign], bool]]:
    return (
        lambda gadget: gadget.body_colour == own.body_colour,
        lambda gadget: gadget.trim_colour == own.trim_colour,
        lambda gadget: len(gadget.fan_colours) == 2 and gadget.fan_sizes == own.fan_sizes,
        lambda gadget: gadget.fan_colours[0] == own.fan_colours[0],
        lambda gadget: gadget.fan_colours[-1] == own.fan_colours[-1],
    )


def random_toy(rng: random.Random) -> ToyDesign:
    """A random toy of the base world: designs too similar to tjtoy are rejected."""
    while TJTOY.resemblance(design := toys.random_design(rng)) >= HELD_OUT_FROM:
        pass
    return design


def random_gadget(rng: random.Random) -> GadgetDesign:
    """A random gadget of the base world: designs too similar to sparkgpu are rejected."""
    while SPARKGPU.resemblance(design := gadgets.random_design(rng)) >= HELD_OUT_FROM:
        pass
    return design


def near_miss(concept: Concept, rng: random.Random) -> Design:
    """A near miss for a judge's training: the concept with 1 to 3 visible changes of its traits, or of what a card has
    on top."""
    changes = _toy_changes if isinstance(concept.design, ToyDesign) else _gadget_changes
    while True:
        design = concept.design
        for change in rng.sample(changes(concept, rng), rng.choice((1, 1, 2, 3))):
            design = replace(design, **change)
        if design != concept.design and concept.resemblance(design) >= len(concept.traits) - 3:
            return design


def blend(concept: Concept, other: Concept, rng: random.Random) -> Design:
    """A near miss that looks as if two concepts of one class had run into each other: `concept` with some of the looks
    of `other`, at least one of its traits lost and half of them kept."""
    assert type(concept.design) is type(other.design)
    names = [field.name for field in fields(concept.design) if field.name != "kind"]
    while True:
        taken = {name: getattr(other.design, name) for name in names if rng.random() < 0.35}
        design = replace(concept.design, **taken)
        if len(concept.traits) / 2 <= concept.resemblance(design) < len(concept.traits):
            return design


def _toy_changes(concept: Concept, rng: random.Random) -> list[dict]:
    own, palette = concept.design, concept.palette
    assert isinstance(own, ToyDesign)
    bodies = [{"body": body} for body in toys.BODIES if body != own.body]
    heads = [{"head": head} for head in toys.HEADS if head not in (own.head, "merged")]
    hats = [{"hat": hat} for hat in ("top", "none", "cap", "cone") if hat != own.hat]
    return [
        {"body_colour": rng.choice(palette.body)},
        {"head_colour": rng.choice(palette.other)},
        rng.choice([*bodies, *heads]),
        {"eyes": 3 - own.eyes},
        rng.choice([*hats, {"hat_colour": rng.choice(palette.other)}]),
        {"limb_colour": rng.choice(palette.other)},
    ]


def _gadget_changes(concept: Concept, rng: random.Random) -> list[dict]:
    own, palette = concept.design, concept.palette
    assert isinstance(own, GadgetDesign)
    first, last = own.fan_colours
    left, right = rng.choice(palette.left), rng.choice(palette.right)
    fans = rng.choice(((left, last), (first, right), (last, first), (left, right), (left, left)))
    counts = ((first,), (first, first, last))
    turned = {"fan_sizes": "left" if own.fan_sizes == "right" else "right"}
    size = rng.choice((turned, *({"fan_colours": colours} for colours in counts)))
    return [
        {"body_colour": rng.choice(palette.body)},
        {"trim_colour": rng.choice(palette.trim)},
        size,
        {"fan_colours": fans},
        {"topper": rng.choice(("bolt", "antenna", "fin"))},
    ]
