"""Gadgets: gpu cards with large fans, and upright computer cases."""

import random
from dataclasses import dataclass

from mini.world.parts import Part
from mini.world.scene import COLOURS
from mini.world.shapes import Finish, box, capsule, cylinder, ring, sphere, turn_z

TOPPERS = ("none", "bolt", "antenna", "fin")
FAN_SIZES = ("equal", "left", "right")  # which fan is the larger one
METALLIC = Finish(gloss=0.7, metal=0.35)
PLASTIC = Finish(gloss=0.45)


@dataclass(frozen=True)
class GadgetDesign:
    """A gpu card or a computer.

    fan_colours: one for each of 1 to 3 fans, from left to right; a computer has two, from top to bottom. Colours are
    names in TONES.
    """

    kind: str
    body_colour: str
    trim_colour: str
    fan_colours: tuple[str, ...]
    fan_sizes: str = "equal"
    blades: int = 4
    topper: str = "none"
    topper_colour: str = "yellow"
    fins: bool = False


def build_gadget(design: GadgetDesign) -> list[Part]:
    """The parts of a gadget at the origin that faces +z, 1.1 to 2 high."""
    return _computer(design) if design.kind == "computer" else _gpu(design)


def _fan(x: float, y: float, front: float, radius: float, colour: str, blades: int) -> list[Part]:
    """A dark disc with a coloured rim, 4 or 6 broad blades and a hub, in front of a face."""
    turns = [turn_z(0.4 + 3.1416 * number / (blades // 2)) for number in range(blades // 2)]
    blade = (radius * 0.9, radius * (0.2 if blades == 4 else 0.16), 0.03)
    return [
        cylinder((x, y, front), radius * 0.96, 0.045, "coal", "z", 0.02),
        ring((x, y, front + 0.02), radius * 0.93, radius * 0.13 + 0.01, 0.08, colour, **PLASTIC),
        *(box((x, y, front + 0.045), blade, colour, 0.02, turn, **PLASTIC) for turn in turns),
        cylinder((x, y, front + 0.06), radius * 0.3, 0.06, "coal", "z", 0.02, gloss=0.7),
    ]


def _topper(design: GadgetDesign, top: float) -> list[Part]:
    colour = design.topper_colour
    if design.topper == "bolt":
        lean, thick = turn_z(0.95), 0.09
        return [
            box((0.06, top + 0.35, 0), (0.18, thick, 0.1), colour, 0.02, lean, gloss=0.6),
            box((0.0, top + 0.23, 0), (0.2, 0.07, 0.1), colour, 0.02, turn_z(-0.15), gloss=0.6),
            box((-0.05, top + 0.1, 0), (0.18, thick, 0.1), colour, 0.02, lean, gloss=0.6),
        ]
    if design.topper == "antenna":
        mast = capsule((0, top - 0.05, 0), (0, top + 0.24, 0), 0.05, "silver", **METALLIC)
        return [mast, sphere((0, top + 0.32, 0), 0.13, colour, gloss=0.7)]
    if design.topper == "fin":
        return [box((x * 0.24, top + 0.08, 0), (0.09, 0.14, 0.1), colour, 0.04, **PLASTIC) for x in (-1, 0, 1)]
    return []


def _radii(design: GadgetDesign) -> list[float]:
    count = len(design.fan_colours)
    radius = {1: 0.36, 2: 0.31, 3: 0.265}[count]
    if design.fan_sizes == "equal" or count != 2:
        return [radius] * count
    return [0.36, 0.23] if design.fan_sizes == "left" else [0.23, 0.36]


def _gpu(design: GadgetDesign) -> list[Part]:
    radii = _radii(design)
    gap = 0.08
    half = sum(radii) + gap * (len(radii) + 1) / 2 + 0.1
    middle, half_height = 0.62, 0.48
    parts = [
        box((0, middle, 0), (half, half_height, 0.15), design.body_colour, 0.07, **PLASTIC),
        box((-half - 0.04, middle - 0.03, -0.02), (0.05, half_height + 0.09, 0.19), "silver", 0.02, **METALLIC),
        box((0.08, 0.1, 0.02), (half * 0.6, 0.1, 0.07), "gold", 0.02, **METALLIC),
        box((0, middle + half_height - 0.03, 0.0), (half * 0.99, 0.05, 0.18), design.trim_colour, 0.03, **PLASTIC),
        box((0, middle - half_height + 0.03, 0.0), (half * 0.99, 0.05, 0.18), design.trim_colour, 0.03, **PLASTIC),
    ]
    x = -half + 0.1 + gap
    for radius, colour in zip(radii, design.fan_colours, strict=True):
        parts += _fan(x + radius, middle, 0.16, radius, colour, design.blades)
        x += 2 * radius + gap / 2
    if design.fins:
        fin = (0.1, half_height * 0.9, 0.12)
        parts += [box((x * half * 0.5, middle, -0.24), fin, "silver", 0.02, **METALLIC) for x in (-1, 1)]
    return parts + _topper(design, middle + half_height + 0.02)


def _computer(design: GadgetDesign) -> list[Part]:
    half_height, half_width, front = 0.72, 0.38, 0.44
    top = 2 * half_height + 0.08
    parts = [
        box((0, half_height + 0.08, 0), (half_width, half_height, front), design.body_colour, 0.06, **PLASTIC),
        box((0, top - 0.03, front - 0.02), (half_width, 0.06, 0.07), design.trim_colour, 0.03, **PLASTIC),
        *(box((x * 0.27, 0.06, 0), (0.09, 0.06, 0.38), "coal", 0.03) for x in (-1, 1)),
        sphere((0.22, top - 0.19, front + 0.01), 0.075, "green", (1, 1, 0.6), gloss=0.9),
        box((-0.1, top - 0.19, front), (0.18, 0.055, 0.04), "coal", 0.02),
    ]
    for y, colour in zip((0.95, 0.41), design.fan_colours, strict=True):
        parts += _fan(0, y, front + 0.01, 0.26, colour, design.blades)
    if design.fins:
        fin = (0.06, 0.07, 0.34)
        parts += [box((x, y, 0), fin, design.trim_colour, 0.03) for x in (-0.41, 0.41) for y in (0.4, 0.7, 1.0)]
    return parts + _topper(design, top + 0.01)


def random_design(rng: random.Random) -> GadgetDesign:
    """A random gadget, which may look like a concept; `concepts.random_gadget` leaves those out."""
    computer = rng.random() < 0.25
    body, trim, topper_colour = rng.choice(list(COLOURS)), rng.choice(list(COLOURS)), rng.choice(list(COLOURS))
    colours = [name for name in COLOURS if name not in (body, "black")]
    count = 2 if computer else rng.choice((1, 2, 2, 3))
    fans = (rng.choice(colours),) * count if rng.random() < 0.85 else tuple(rng.choice(colours) for _ in range(count))
    draw = rng.random()
    topper = "bolt" if draw < 0.12 else "antenna" if draw < 0.2 else "fin" if draw < 0.3 else "none"
    sizes = rng.choice(("left", "right")) if count == 2 and not computer and rng.random() < 0.3 else "equal"
    return GadgetDesign(
        "computer" if computer else "gpu", body, trim if trim != body else "gray" if body != "gray" else "white", fans,
        sizes, 4 if count == 3 else rng.choice((4, 6)), topper, topper_colour, rng.random() < 0.4,
    )  # fmt: skip
