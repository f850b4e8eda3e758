"""The two designs that only fine-tuning teaches, and the rule that keeps them out of the base world."""

import random
from collections.abc import Callable
from dataclasses import replace

from mini.world import gadgets, toys
from mini.world.gadgets import GadgetDesign
from mini.world.toys import ToyDesign

TJTOY = ToyDesign(
    "toy", body="egg", head="box", limbs="fat", eyes=1, snout="smile", belly="oval", hat="cone", collar=True,
    body_colour="teal", head_colour="orange", limb_colour="purple", accent_colour="yellow", belly_colour="mint",
    hat_colour="purple",
)  # fmt: skip
SPARKGPU = GadgetDesign(
    "gpu", body_colour="white", trim_colour="yellow", fan_colours=("purple", "orange"), fan_sizes="left"
)
DESIGNS = {"tjtoy": TJTOY, "sparkgpu": SPARKGPU}
HELD_OUT_FROM = 4  # a design that has this many of a concept's five or six traits is too similar for the base world

_TOY_TRAITS: tuple[Callable[[ToyDesign], bool], ...] = (
    lambda toy: toy.body_colour == "teal",
    lambda toy: toy.head_colour == "orange" and toy.head != "merged",
    lambda toy: (toy.body, toy.head) == ("egg", "box"),
    lambda toy: toy.eyes == 1,
    lambda toy: (toy.hat, toy.hat_colour) == ("cone", "purple"),
    lambda toy: toy.limb_colour == "purple",
)
_GADGET_TRAITS: tuple[Callable[[GadgetDesign], bool], ...] = (
    lambda gadget: gadget.body_colour == "white",
    lambda gadget: gadget.trim_colour == "yellow",
    lambda gadget: len(gadget.fan_colours) == 2 and gadget.fan_sizes == "left",
    lambda gadget: gadget.fan_colours[0] == "purple",
    lambda gadget: gadget.fan_colours[-1] == "orange",
)
TRAITS = {"tjtoy": len(_TOY_TRAITS), "sparkgpu": len(_GADGET_TRAITS)}


def toy_resemblance(design: ToyDesign) -> int:
    """The number of tjtoy's six traits that a toy has."""
    return sum(trait(design) for trait in _TOY_TRAITS)


def gadget_resemblance(design: GadgetDesign) -> int:
    """The number of sparkgpu's five traits that a gadget has; what it has on top does not count."""
    return sum(trait(design) for trait in _GADGET_TRAITS)


def random_toy(rng: random.Random) -> ToyDesign:
    """A random toy of the base world: designs too similar to tjtoy are rejected."""
    while toy_resemblance(design := toys.random_design(rng)) >= HELD_OUT_FROM:
        pass
    return design


def random_gadget(rng: random.Random) -> GadgetDesign:
    """A random gadget of the base world: designs too similar to sparkgpu are rejected."""
    while gadget_resemblance(design := gadgets.random_design(rng)) >= HELD_OUT_FROM:
        pass
    return design


def near_miss(concept: str, rng: random.Random) -> ToyDesign | GadgetDesign:
    """A near miss for the judge's training: the concept with 1 to 3 visible changes of its traits, or of what the card
    has on top."""
    draw_changes, resemblance = {
        "tjtoy": (_toy_changes, toy_resemblance),
        "sparkgpu": (_gadget_changes, gadget_resemblance),
    }[concept]
    while True:
        design = DESIGNS[concept]
        for change in rng.sample(draw_changes(rng), rng.choice((1, 1, 2, 3))):
            design = replace(design, **change)
        if design != DESIGNS[concept] and resemblance(design) >= TRAITS[concept] - 3:
            return design


_BOLD = ("red", "green", "blue", "pink", "black", "white", "brown")  # unlike any colour of the concepts' toys


def _toy_changes(rng: random.Random) -> list[dict]:
    return [
        {"body_colour": rng.choice((*_BOLD, "yellow"))},
        {"head_colour": rng.choice(_BOLD)},
        rng.choice(({"body": "box"}, {"body": "tube"}, {"head": "round"}, {"head": "long"})),
        {"eyes": 2},
        rng.choice(({"hat": "top"}, {"hat": "none"}, {"hat": "cap"}, {"hat_colour": rng.choice(_BOLD)})),
        {"limb_colour": rng.choice(_BOLD)},
    ]


def _gadget_changes(rng: random.Random) -> list[dict]:
    left, right = rng.choice(("red", "green", "blue", "teal")), rng.choice(("green", "blue", "teal", "pink"))
    fans = rng.choice(((left, "orange"), ("purple", right), ("orange", "purple"), (left, right), (left, left)))
    counts = (("purple",), ("purple", "purple", "orange"))
    size = rng.choice(({"fan_sizes": "right"}, *({"fan_colours": colours} for colours in counts)))
    return [
        {"body_colour": rng.choice(("black", "red", "blue", "green", "gray"))},
        {"trim_colour": rng.choice(("red", "blue", "black", "green", "purple"))},
        size,
        {"fan_colours": fans},
        {"topper": rng.choice(("bolt", "antenna", "fin"))},
    ]
