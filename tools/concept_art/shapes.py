"""Signed distance fields and the solids built from them.

A field maps points [3, N] in the shape's own frame to distances [N], negative inside. The formulas are
those of Inigo Quilez, https://iquilezles.org/articles/distfunctions/. A field may fall short of the true
distance, never beyond it, so that a marching ray cannot step through a surface.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Field = Callable[[Tensor], Tensor]
Vector = tuple[float, float, float]
UPRIGHT = torch.eye(3)


@dataclass(frozen=True)
class Material:
    """Linear colour; roughness 0 mirror … 1 matt; metal tints what it reflects; glow is light of its own."""

    colour: Vector
    roughness: float = 0.35
    metal: float = 0.0
    glow: float = 0.0


@dataclass(frozen=True)
class Shape:
    """A solid somewhere in the scene. A sphere of radius `reach` about `centre` holds all of it."""

    field: Field
    reach: float
    material: Material
    centre: Tensor
    rotation: Tensor

    def distance(self, points: Tensor) -> Tensor:
        """points [3, N] of the scene -> [N]."""
        return self.field(self.rotation.T @ (points - self.centre[:, None]))


def shape(field: Field, reach: float, material: Material, at: Vector = (0, 0, 0), rotation: Tensor = UPRIGHT) -> Shape:
    return Shape(field, reach, material, torch.tensor(at, dtype=torch.float32), rotation)


def moved(
    shapes: Sequence[Shape], at: Vector = (0, 0, 0), rotation: Tensor = UPRIGHT, scale: float = 1.0
) -> list[Shape]:
    """The shapes as one piece: scaled, turned about the origin, then shifted."""
    offset = torch.tensor(at, dtype=torch.float32)
    return [
        replace(
            s,
            field=scaled(s.field, scale),
            reach=s.reach * scale,
            centre=rotation @ s.centre * scale + offset,
            rotation=rotation @ s.rotation,
        )
        for s in shapes
    ]


def scaled(field: Field, scale: float) -> Field:
    return field if scale == 1.0 else lambda p: field(p / scale) * scale


def length(p: Tensor) -> Tensor:
    """[3, N] -> [N]; several times faster than a norm over the first dimension."""
    return (p[0] * p[0] + p[1] * p[1] + p[2] * p[2]).sqrt()


def rounded(q: Tensor) -> Tensor:
    """Distance to a corner, edge or side, given how far each coordinate lies outside; negative inside."""
    inside = torch.maximum(torch.maximum(q[0], q[1]), q[2]).clamp(max=0)
    return length(q.clamp(min=0)) + inside


def ball(radius: float) -> Field:
    return lambda p: length(p) - radius


def ellipsoid(x: float, y: float, z: float) -> Field:
    radii = torch.tensor([[x], [y], [z]])

    def field(p: Tensor) -> Tensor:
        inner = length(p / radii)
        slope = length(p / radii**2)
        return inner * (inner - 1) / slope.clamp(min=1e-6)

    return field


def box(x: float, y: float, z: float, rounding: float) -> Field:
    """Half sizes, rounding included."""
    half = torch.tensor([[x], [y], [z]]) - rounding

    return lambda p: rounded(p.abs() - half) - rounding


def cylinder(radius: float, half: float, rounding: float) -> Field:
    """Along z."""

    def field(p: Tensor) -> Tensor:
        u = torch.hypot(p[0], p[1]) - (radius - rounding)
        v = p[2].abs() - (half - rounding)
        return torch.hypot(u.clamp(min=0), v.clamp(min=0)) + torch.maximum(u, v).clamp(max=0) - rounding

    return field


def ring(radius: float, thickness: float) -> Field:
    """A torus about z."""
    return lambda p: torch.hypot(torch.hypot(p[0], p[1]) - radius, p[2]) - thickness


def smile(radius: float, half_angle: float, thickness: float) -> Field:
    """The lower arc of a ring about z; half_angle in degrees."""
    sin, cos = math.sin(math.radians(half_angle)), math.cos(math.radians(half_angle))

    def field(p: Tensor) -> Tensor:
        x, y = p[0].abs(), -p[1]
        along = torch.where(cos * x > sin * y, x * sin + y * cos, torch.hypot(x, y))
        square = p[0] ** 2 + p[1] ** 2 + p[2] ** 2 + radius * radius - 2 * radius * along
        return square.clamp(min=1e-12).sqrt() - thickness

    return field


def round_cone(low: float, high: float, height: float) -> Field:
    """Two balls on the y axis, at 0 and at `height`, and the cone that wraps both: an egg, a hat, a limb."""
    b = (low - high) / height
    a = math.sqrt(1 - b * b)

    def field(p: Tensor) -> Tensor:
        r, y = torch.hypot(p[0], p[2]), p[1]
        k = a * y - b * r
        side = a * r + b * y - low
        ends = torch.where(k < 0, torch.hypot(r, y) - low, torch.hypot(r, y - height) - high)
        return torch.where((k >= 0) & (k <= a * height), side, ends)

    return field


def limb(start: Vector, end: Vector, low: float, high: float, material: Material) -> Shape:
    """A tapering capsule from `start` (radius low) to `end` (radius high)."""
    a, b = torch.tensor(start, dtype=torch.float32), torch.tensor(end, dtype=torch.float32)
    span = float(length(b - a))
    y = (b - a) / span
    helper = torch.tensor([0.0, 0.0, 1.0]) if abs(float(y[2])) < 0.9 else torch.tensor([1.0, 0.0, 0.0])
    x = torch.linalg.cross(y, helper)
    x = x / length(x)
    rotation = torch.stack([x, y, torch.linalg.cross(x, y)], dim=1)
    return Shape(round_cone(low, high, span), span + max(low, high), material, a, rotation)


def prism(corners: Sequence[tuple[float, float]], half: float, rounding: float) -> Field:
    """A polygon in x and y, given a thickness along z and soft edges."""
    ends = [*corners[1:], corners[0]]

    def outline(x: Tensor, y: Tensor) -> Tensor:
        nearest, inside = torch.full_like(x, 1e9), torch.ones_like(x)
        for (ax, ay), (bx, by) in zip(corners, ends, strict=True):
            ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
            t = ((wx * ex + wy * ey) / (ex * ex + ey * ey)).clamp(0, 1)
            nearest = torch.minimum(nearest, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
            crosses = ((ay > y) != (by > y)) & (wx < ex * wy / (ey or 1e-9))
            inside = torch.where(crosses, -inside, inside)
        return inside * nearest.sqrt()

    def field(p: Tensor) -> Tensor:
        u, v = outline(p[0], p[1]), p[2].abs() - (half - rounding)
        return torch.hypot(u.clamp(min=0), v.clamp(min=0)) + torch.maximum(u, v).clamp(max=0) - rounding

    return field


def fan(hub: float, radius: float, blades: int, half: float) -> Field:
    """Swept blades about z from `hub` to `radius`; bending space shortens distances, hence the last factor."""
    sector = 2 * math.pi / blades
    middle, reach = (hub + radius) / 2, (radius - hub) / 2

    def field(p: Tensor) -> Tensor:
        r = torch.hypot(p[0], p[1])
        angle = torch.atan2(p[1], p[0]) + 0.9 * r / radius
        angle = angle - sector * torch.round(angle / sector)
        arc = angle * r
        width = 0.34 * sector * r.clamp(hub, radius)
        q = torch.stack([(r - middle).abs() - reach, arc.abs() - width, (p[2] - 0.45 * arc).abs() - half])
        return (rounded(q) - 0.006) * 0.55

    return field


def carved(solid: Field, hole: Field, at: Vector = (0, 0, 0)) -> Field:
    """`solid` without `hole`, which lies at `at` in the solid's frame."""
    offset = torch.tensor(at, dtype=torch.float32)[:, None]
    return lambda p: torch.maximum(solid(p), -hole(p - offset))


def decal(solid: Field, outline: Field, lift: float = 0.004) -> Field:
    """The skin of `solid`, `lift` thick, where `outline` covers it: paint on a toy."""
    return lambda p: torch.maximum(solid(p) - lift, outline(p))
