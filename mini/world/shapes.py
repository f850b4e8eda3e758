"""Functions that make parts by everyday names, with their rotations and colours."""

import math
from dataclasses import replace
from typing import TypedDict, Unpack

import numpy as np

from mini.world.parts import Part
from mini.world.scene import COLOURS

# colours of details, which captions do not name
TONES = COLOURS | {
    "skin": (0.90, 0.58, 0.38), "mint": (0.50, 0.90, 0.82), "silver": (0.68, 0.70, 0.74),
    "gold": (0.88, 0.60, 0.12), "coal": (0.09, 0.09, 0.11),
}  # fmt: skip
Point = tuple[float, float, float]
IDENTITY = np.eye(3)


class Finish(TypedDict, total=False):
    """The surface of a part; the defaults are those of `Part`."""

    gloss: float
    metal: float


def turn_x(angle: float) -> np.ndarray:
    """The rotation around x, [3, 3]; a positive angle tips +y towards +z."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]])


def turn_y(angle: float) -> np.ndarray:
    """The rotation around the vertical axis, [3, 3]; a positive angle turns +z towards +x."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def turn_z(angle: float) -> np.ndarray:
    """The rotation around the line of sight, [3, 3]; a positive angle turns +x towards +y."""
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])


# rotations that align a part's axis (z) with an axis of the world
ALONG = {"x": turn_y(math.pi / 2), "y": turn_x(-math.pi / 2), "z": IDENTITY}


def sphere(
    centre: Point, radius: float, colour: str, stretch: Point = (1, 1, 1), rotation: np.ndarray = IDENTITY,
    **finish: Unpack[Finish],
) -> Part:  # fmt: skip
    """An ellipsoid with half axes `radius` times `stretch`."""
    return Part(np.array(centre, float), TONES[colour], rotation, stretch, rounding=radius, **finish)


def box(
    centre: Point, half: Point, colour: str, rounding: float = 0.04, rotation: np.ndarray = IDENTITY,
    taper: float = 0.0, **finish: Unpack[Finish],
) -> Part:  # fmt: skip
    """A box with outer half sizes `half` and round edges; `taper` narrows it towards its +z."""
    inner = (half[0] - rounding, half[1] - rounding, half[2] - rounding)
    return Part(np.array(centre, float), TONES[colour], rotation, half=inner, rounding=rounding, taper=taper, **finish)


def cylinder(
    centre: Point, radius: float, half_length: float, colour: str, along: str | np.ndarray = "y",
    rounding: float = 0.03, taper: float = 0.0, **finish: Unpack[Finish],
) -> Part:  # fmt: skip
    """A cylinder with the given outer size; `taper` narrows it towards its +z, which points along `along`."""
    rotation = ALONG[along] if isinstance(along, str) else along
    inner = (radius - rounding, 0.0, half_length - rounding)
    return Part(
        np.array(centre, float), TONES[colour], rotation, half=inner, rounding=rounding, around=True, taper=taper,
        **finish,
    )  # fmt: skip


def cone(
    centre: Point, radius: float, half_length: float, colour: str, along: str | np.ndarray = "y",
    **finish: Unpack[Finish],
) -> Part:  # fmt: skip
    """A blunt cone with its base at the lower end of its axis."""
    return cylinder(centre, radius, half_length, colour, along, taper=0.86, **finish)


def ring(
    centre: Point, radius: float, width: float, half_length: float, colour: str, along: str | np.ndarray = "z",
    **finish: Unpack[Finish],
) -> Part:  # fmt: skip
    """A ring: its centre line has `radius`; it extends `width` to either side, and `half_length` along its axis."""
    rounding = 0.6 * min(width, half_length)
    part = cylinder(centre, width, half_length, colour, along, rounding, **finish)
    return replace(part, ring=radius)


def capsule(start: Point, end: Point, radius: float, colour: str, taper: float = 0.0, **finish: Unpack[Finish]) -> Part:
    """A rod with round ends; its axis points from `start` to `end`, so `taper` narrows it towards `end`."""
    first, last = np.array(start, float), np.array(end, float)
    length = float(np.linalg.norm(last - first))
    axis = (last - first) / length
    helper = np.array([1.0, 0, 0]) if abs(axis[0]) < 0.9 else np.array([0, 1.0, 0])
    side = np.cross(helper, axis)
    side /= np.linalg.norm(side)
    rotation = np.stack([side, np.cross(axis, side), axis], 1)
    half = (0.0, 0.0, length / 2)
    return Part((first + last) / 2, TONES[colour], rotation, half=half, rounding=radius, taper=taper, **finish)


def moved(parts: list[Part], size: float, rotation: np.ndarray, position: Point | np.ndarray) -> list[Part]:
    """All parts, scaled and rotated around the origin, then moved."""
    return [part.moved(size, rotation, np.asarray(position, float)) for part in parts]


def bounds(parts: list[Part], axes: np.ndarray = IDENTITY) -> tuple[np.ndarray, np.ndarray]:
    """The minimum and maximum coordinates [3] of the parts along `axes` (columns).

    Ellipsoids are measured exactly, tapered parts as if they were not tapered.
    """
    centres = np.array([part.centre for part in parts]) @ axes
    turns = np.einsum("ji,pjk->pik", axes, np.array([part.rotation for part in parts]))
    stretch = np.array([part.stretch for part in parts])
    half = np.array([(part.half[0] + part.ring,) * 2 + part.half[2:] if part.around else part.half for part in parts])
    rounding = np.array([part.rounding for part in parts])[:, None]
    flat = (np.abs(turns) @ (half * stretch)[..., None])[..., 0]
    round_edge = np.sqrt((turns**2) @ (stretch**2)[..., None])[..., 0] * rounding
    return (centres - flat - round_edge).min(0), (centres + flat + round_edge).max(0)
