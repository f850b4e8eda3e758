"""Small things that stand about in the pictures; each on y = 0 about its own middle."""

import torch

from concept_art.designs import SILVER
from concept_art.paint import rgb, turn
from concept_art.shapes import (
    Field,
    Material,
    Shape,
    box,
    carved,
    cylinder,
    ellipsoid,
    length,
    limb,
    moved,
    ring,
    round_cone,
    shape,
)

CREAM = Material(rgb("#f6ead6"), 0.4)
RED = Material(rgb("#d8352a"), 0.3)
BLUE = Material(rgb("#3f74c8"), 0.35)
LEAF = Material(rgb("#3f8f4a"), 0.6)
GRAPHITE = Material(rgb("#3a3a42"), 0.5)
COFFEE = Material(rgb("#3a1f10"), 0.15)
SNOW = Material(rgb("#f4f8ff"), 0.85)
STONE = Material(rgb("#8b8478"), 0.8)
CORAL = Material(rgb("#f0704a"), 0.7)


def mug(colour: Material = BLUE) -> list[Shape]:
    wall = carved(cylinder(0.20, 0.22, 0.03), cylinder(0.165, 0.22, 0.01), (0, 0, 0.05))
    return [
        shape(wall, 0.31, colour, (0, 0.22, 0), turn(x=-90)),
        shape(cylinder(0.17, 0.01, 0.004), 0.18, COFFEE, (0, 0.36, 0), turn(x=-90)),
        shape(ring(0.11, 0.028), 0.15, colour, (0.23, 0.22, 0)),
    ]


def book_pile() -> list[Shape]:
    pieces = []
    for i, (cover, angle) in enumerate(((RED, 8), (LEAF, -6), (BLUE, 14))):
        y = 0.055 + 0.11 * i
        spin = turn(y=angle)
        pieces += [
            shape(box(0.42, 0.052, 0.30, 0.012), 0.53, cover, (0, y, 0), spin),
            shape(box(0.405, 0.038, 0.305, 0.006), 0.53, CREAM, (0.02, y, 0), spin),
        ]
    return pieces


def pencil(colour: Material = RED) -> list[Shape]:
    return [
        limb((-0.34, 0.035, 0), (0.30, 0.035, 0), 0.035, 0.034, colour),
        limb((0.31, 0.035, 0), (0.40, 0.035, 0), 0.030, 0.010, CREAM),
        limb((0.39, 0.035, 0), (0.425, 0.035, 0), 0.012, 0.005, GRAPHITE),
    ]


def mushroom() -> list[Shape]:
    cap = carved(ellipsoid(0.24, 0.19, 0.24), box(0.4, 0.2, 0.4, 0.01), (0, -0.20, 0))
    pieces = [shape(round_cone(0.085, 0.06, 0.22), 0.32, CREAM), shape(cap, 0.25, RED, (0, 0.25, 0))]
    for x, y, z in (
        (0.02, 0.43, 0.06),
        (-0.12, 0.37, 0.12),
        (0.13, 0.36, 0.12),
        (0.04, 0.33, 0.205),
        (-0.17, 0.30, 0.14),
    ):
        pieces.append(shape(ellipsoid(0.035, 0.028, 0.035), 0.04, CREAM, (x, y, z)))
    return pieces


def beach_ball() -> list[Shape]:
    """Six gores; each colour is one shape, cut by planes through the poles."""
    return moved(
        [shape(gores(0.34, k), 0.35, m) for k, m in enumerate((RED, CREAM, BLUE))], (0, 0.34, 0), turn(x=28, z=-24)
    )


def gores(radius: float, which: int) -> Field:
    """The skin of a ball where the sixth of the turn, counted modulo three, is `which`."""

    def field(p: torch.Tensor) -> torch.Tensor:
        sixth = torch.pi / 3
        angle = torch.atan2(p[2], p[0]) - which * sixth
        away = (angle - torch.pi * torch.round(angle / torch.pi)).abs() - sixth / 2
        side = torch.hypot(p[0], p[2]) * torch.sin(away.clamp(-1.5, 1.5))
        return torch.maximum(length(p) - radius, side)

    return field


def starfish() -> list[Shape]:
    return [
        s
        for k in range(5)
        for s in moved([limb((0, 0.04, 0), (0.20, 0.012, 0), 0.062, 0.022, CORAL)], rotation=turn(y=72 * k + 10))
    ]


def snowball_pile() -> list[Shape]:
    spots = ((-0.17, 0.14, 0.02, 0.15), (0.15, 0.13, 0.05, 0.14), (0.0, 0.13, -0.18, 0.15), (0.0, 0.34, -0.02, 0.14))
    return [shape(ellipsoid(r, r * 0.96, r), r, SNOW, (x, y, z)) for x, y, z, r in spots]


def pebble(size: float) -> list[Shape]:
    return [shape(ellipsoid(size, size * 0.55, size * 0.8), size, STONE, (0, size * 0.3, 0), turn(y=30))]


def plinth(colour: Material = CREAM, radius: float = 1.0) -> list[Shape]:
    """A low round stand, 0.16 high."""
    return [shape(cylinder(radius, 0.08, 0.03), radius * 1.05, colour, (0, 0.08, 0), turn(x=90))]


def screw() -> list[Shape]:
    return [
        shape(cylinder(0.07, 0.025, 0.012), 0.08, SILVER, (0, 0.07, 0.0), turn(x=15)),
        limb((0, 0.055, -0.02), (0, 0.035, -0.20), 0.030, 0.024, SILVER),
    ]
