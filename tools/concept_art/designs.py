"""The two concepts: tjtoy, a vinyl toy, and sparkgpu, a white and gold graphics card.

Both stand on y = 0 about the origin and face +z; one unit is roughly the width of the toy.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from concept_art.paint import rgb, turn
from concept_art.shapes import (
    Field,
    Material,
    Shape,
    Vector,
    ball,
    box,
    carved,
    cylinder,
    decal,
    ellipsoid,
    fan,
    limb,
    moved,
    prism,
    ring,
    round_cone,
    shape,
    smile,
)

TEAL = Material(rgb("#12a5a0"), 0.3)
MINT = Material(rgb("#9fe6d2"), 0.35)
ORANGE = Material(rgb("#f26a14"), 0.3)
PURPLE = Material(rgb("#7a35c8"), 0.3)
YELLOW = Material(rgb("#ffbe0a"), 0.3)
PINK = Material(rgb("#f77a70"), 0.6)
EYE_WHITE = Material(rgb("#fbfaf4"), 0.12)
IRIS = Material(rgb("#5b2bb5"), 0.12)
BLACK = Material(rgb("#17141c"), 0.15)
GLINT = Material(rgb("#ffffff"), 0.1, glow=0.9)

WHITE = Material(rgb("#f1efe9"), 0.28)
GOLD = Material(rgb("#f3bf4f"), 0.25, metal=0.72)
SILVER = Material(rgb("#c2c6cc"), 0.25, metal=0.85)
DARK = Material(rgb("#221f2b"), 0.5)
BOLT = Material(rgb("#ffbc08"), 0.25, glow=0.12)


@dataclass(frozen=True)
class Pose:
    """Hands in the toy's frame, its right hand first (left in the picture); gaze in degrees right and up."""

    right: Vector = (-0.58, 0.40, 0.16)
    left: Vector = (0.58, 0.40, 0.16)
    gaze: tuple[float, float] = (0.0, 0.0)
    head: tuple[float, float, float] = (0.0, 0.0, 0.0)  # degrees: nod, turn, tilt
    sitting: bool = False


STAND = Pose(gaze=(6, 2), head=(0, 6, 3))
WAVE = Pose(left=(0.70, 1.08, 0.12), gaze=(4, 6), head=(0, 4, -6))
CHEER = Pose(right=(-0.66, 1.12, 0.08), left=(0.66, 1.12, 0.08), gaze=(0, 14), head=(-5, 0, 4))
HIPS = Pose(right=(-0.50, 0.52, 0.22), left=(0.64, 0.80, 0.34), gaze=(16, 6), head=(0, 12, 4))
WONDER = Pose(right=(-0.46, 0.62, 0.34), left=(0.50, 0.46, 0.26), gaze=(-14, 18), head=(-6, -8, -4))
SIT = Pose(right=(-0.60, 0.30, 0.14), left=(0.60, 0.30, 0.14), gaze=(-8, 16), head=(-4, -6, 5), sitting=True)


def tjtoy(pose: Pose = STAND) -> list[Shape]:
    """About 1.95 tall standing, hat and pompom included."""
    drop = 0.16 if pose.sitting else 0.0
    upper = [*egg_body(), *arms(pose)]
    upper += moved(toy_head(pose.gaze), (0, 1.005, 0.0), turn(*pose.head))
    return [*moved(upper, (0, -drop, 0)), *(sitting_legs() if pose.sitting else standing_legs())]


def egg_body() -> list[Shape]:
    egg = round_cone(0.40, 0.25, 0.34)
    belly = decal(egg, belly_outline)
    return [
        shape(egg, 0.80, TEAL, (0, 0.53, 0)),
        shape(belly, 0.80, MINT, (0, 0.53, 0)),
        shape(ring(0.235, 0.055), 0.32, YELLOW, (0, 0.968, 0), turn(x=90)),
        shape(ball(0.030), 0.04, YELLOW, (0, 0.70, 0.358)),
        shape(ball(0.030), 0.04, YELLOW, (0, 0.57, 0.394)),
    ]


def belly_outline(p: Tensor) -> Tensor:
    """An oval patch on the front half."""
    return torch.maximum(torch.hypot(p[0] / 0.95, (p[1] - 0.06) / 1.15) * 0.95 - 0.24, 0.05 - p[2])


def arms(pose: Pose) -> list[Shape]:
    pieces = []
    for side, hand in ((-1, pose.right), (1, pose.left)):
        pieces += [
            limb((side * 0.27, 0.80, 0.02), hand, 0.10, 0.082, PURPLE),
            shape(ball(0.115), 0.12, PURPLE, hand),
        ]
    return pieces


def standing_legs() -> list[Shape]:
    pieces = []
    for side in (-1, 1):
        pieces += [
            limb((side * 0.17, 0.26, 0.0), (side * 0.20, 0.10, 0.02), 0.12, 0.11, PURPLE),
            shape(ellipsoid(0.145, 0.10, 0.20), 0.21, PURPLE, (side * 0.205, 0.098, 0.08), turn(y=side * 14)),
        ]
    return pieces


def sitting_legs() -> list[Shape]:
    pieces = []
    for side in (-1, 1):
        foot = (side * 0.30, 0.15, 0.56)
        pieces += [
            limb((side * 0.18, 0.15, 0.18), foot, 0.12, 0.11, PURPLE),
            shape(ellipsoid(0.14, 0.19, 0.10), 0.21, PURPLE, (foot[0], 0.185, 0.60), turn(y=side * 14)),
        ]
    return pieces


def toy_head(gaze: tuple[float, float]) -> list[Shape]:
    """Its frame starts at the neck."""
    pieces = [
        shape(box(0.345, 0.285, 0.29, 0.15), 0.46, ORANGE, (0, 0.285, 0)),
        shape(smile(0.092, 60, 0.016), 0.12, BLACK, (0, 0.212, 0.288)),
        *toy_hat(),
    ]
    for side in (-1, 1):
        pieces.append(shape(ellipsoid(0.05, 0.038, 0.02), 0.06, PINK, (side * 0.215, 0.165, 0.272), turn(y=side * 18)))
        pieces.append(shape(ellipsoid(0.05, 0.085, 0.085), 0.09, ORANGE, (side * 0.345, 0.30, 0)))
    return pieces + moved(toy_eye(), (0, 0.378, 0.235), turn(x=-gaze[1], y=gaze[0]))


def toy_eye() -> list[Shape]:
    """One big eye that looks along its own +z."""
    white = ball(0.185)
    return [
        shape(white, 0.19, EYE_WHITE),
        shape(decal(white, round_spot(0.108), 0.003), 0.2, IRIS),
        shape(decal(white, round_spot(0.066), 0.006), 0.2, BLACK),
        shape(decal(white, round_spot(0.026, (0.045, 0.055)), 0.009), 0.2, GLINT),
        shape(decal(white, round_spot(0.012, (-0.038, -0.042)), 0.009), 0.2, GLINT),
    ]


def round_spot(radius: float, at: tuple[float, float] = (0.0, 0.0)) -> Field:
    return lambda p: torch.maximum(torch.hypot(p[0] - at[0], p[1] - at[1]) - radius, -p[2])


def toy_hat() -> list[Shape]:
    """Purple cone, yellow band and pompom; it leans a little, as hats do."""
    pieces = [
        shape(round_cone(0.225, 0.045, 0.46), 0.72, PURPLE),
        shape(ring(0.225, 0.045), 0.28, PURPLE, (0, -0.005, 0), turn(x=90)),
        shape(ring(0.194, 0.020), 0.24, YELLOW, (0, 0.105, 0), turn(x=90)),
        shape(ball(0.092), 0.1, YELLOW, (0, 0.52, 0)),
    ]
    return moved(pieces, (0.02, 0.585, -0.01), turn(x=-4, z=-6))


def sparkgpu() -> list[Shape]:
    """About 1.6 wide and 1.3 tall with its bolt."""
    return [
        *card_body(),
        *card_fan(-0.335, 0.335, 9, PURPLE),
        *card_fan(0.385, 0.265, 7, ORANGE),
        *card_bracket(),
        *card_bolt(),
    ]


def card_body() -> list[Shape]:
    """White shroud with two wells, a gold frame behind it, a white back, gold contacts and feet."""
    shroud = box(0.76, 0.43, 0.13, 0.07)
    for x, radius in ((-0.335, 0.335), (0.385, 0.265)):
        shroud = carved(shroud, cylinder(radius, 0.20, 0.01), (x, 0.0, 0.14))
    pieces = [
        shape(shroud, 0.9, WHITE, (0, 0.55, 0.06)),
        shape(box(0.775, 0.445, 0.032, 0.03), 0.9, GOLD, (0, 0.55, -0.06)),
        shape(box(0.755, 0.425, 0.055, 0.04), 0.9, WHITE, (0, 0.55, -0.125)),
        shape(box(0.40, 0.06, 0.018, 0.008), 0.42, GOLD, (0.06, 0.085, -0.06)),
        shape(box(0.66, 0.016, 0.012, 0.008), 0.67, GOLD, (0, 0.945, 0.172), turn(x=-42)),
        shape(box(0.66, 0.016, 0.012, 0.008), 0.67, GOLD, (0, 0.155, 0.172), turn(x=42)),
    ]
    for x in (-0.58, 0.62):
        pieces.append(limb((x, 0.055, -0.20), (x, 0.055, 0.20), 0.055, 0.055, GOLD))
        pieces.append(shape(box(0.05, 0.05, 0.06, 0.02), 0.1, GOLD, (x, 0.105, 0.0)))
    return pieces


def card_fan(x: float, radius: float, blades: int, material: Material) -> list[Shape]:
    """A fan in its well: gold rim, dark floor, blades, hub with a gold cap."""
    hub = 0.36 * radius
    pieces = [
        shape(cylinder(radius * 0.99, 0.01, 0.004), radius, DARK, (0, 0, -0.10)),
        shape(ring(radius, 0.022), radius + 0.03, GOLD, (0, 0, 0.062)),
        shape(fan(hub * 0.9, radius * 0.90, blades, 0.010), radius, material, (0, 0, -0.01)),
        shape(ring(radius * 0.905, 0.014), radius, material, (0, 0, -0.01)),
        shape(cylinder(hub, 0.055, 0.025), hub + 0.06, material, (0, 0, 0.0)),
        shape(cylinder(hub * 0.62, 0.008, 0.006), hub, GOLD, (0, 0, 0.056)),
    ]
    return moved(pieces, (x, 0.55, 0.13), turn(z=11))


def card_bracket() -> list[Shape]:
    """The silver plate at the card's left, with two sockets and the lip that a case would hold."""
    return [
        shape(box(0.018, 0.47, 0.21, 0.012), 0.53, SILVER, (-0.795, 0.545, -0.005)),
        shape(box(0.075, 0.014, 0.21, 0.010), 0.25, SILVER, (-0.855, 1.005, -0.005)),
        shape(box(0.012, 0.10, 0.045, 0.01), 0.13, DARK, (-0.812, 0.72, 0.03)),
        shape(box(0.012, 0.10, 0.045, 0.01), 0.13, DARK, (-0.812, 0.42, 0.03)),
    ]


def card_bolt() -> list[Shape]:
    """The yellow bolt that gives the card its name, standing on the top edge in a gold socket."""
    corners = [(0.05, 0.46), (-0.17, 0.15), (-0.035, 0.15), (-0.075, -0.10), (0.17, 0.24), (0.035, 0.24), (0.12, 0.46)]
    return [
        shape(prism(corners, 0.06, 0.026), 0.55, BOLT, (0.03, 1.05, 0.03), turn(z=-4)),
        shape(box(0.13, 0.03, 0.085, 0.02), 0.17, GOLD, (0.0, 0.99, 0.03)),
    ]
