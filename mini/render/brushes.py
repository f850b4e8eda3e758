"""Shapes to paint backgrounds with: large, smooth and analytically antialiased.

Coordinates are [B, pixels], colours [3, B or 1, pixels or 1]. `grain` is the width of a pixel, in the same units as the
coordinates.
"""

import torch
from torch import Tensor


def display(like: Tensor, red: float, green: float, blue: float) -> Tensor:
    """A display colour as linear RGB [3, 1, 1], on the device of `like`."""
    return torch.tensor([red, green, blue], device=like.device).view(3, 1, 1) ** 2.2


def mix(first: Tensor, second: Tensor, amount: Tensor | float) -> Tensor:
    """Interpolate from first (amount 0) to second (amount 1)."""
    return first + (second - first) * amount


def smooth(low: float, high: float, value: Tensor) -> Tensor:
    """Smoothstep: 0 below low, 1 above high."""
    share = ((value - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def edge(inside: Tensor, grain: Tensor | float) -> Tensor:
    """The share of a pixel that a shape covers. inside: distance of its centre to the edge, negative outside."""
    return (inside / grain + 0.5).clamp(0, 1)


def disc(u: Tensor, v: Tensor, radius: Tensor | float, grain: Tensor) -> Tensor:
    """A disc around the origin."""
    return edge(radius - torch.hypot(u, v), grain)


def panel(u: Tensor, v: Tensor, half_u: float, half_v: float, corner: float, grain: Tensor) -> Tensor:
    """A rectangle with round corners around the origin."""
    outside_u, outside_v = u.abs() - half_u + corner, v.abs() - half_v + corner
    inside = torch.maximum(outside_u, outside_v).clamp(max=0)
    return edge(corner - inside - torch.hypot(outside_u.clamp(min=0), outside_v.clamp(min=0)), grain)


def repeat(value: Tensor, period: float) -> tuple[Tensor, Tensor]:
    """Split a coordinate into cells: the cell's index, and the position in it, from -period / 2 to period / 2."""
    cell = (value / period).round()
    return cell, value - cell * period


def chance(cell_u: Tensor | float, cell_v: Tensor | float, phase: Tensor) -> Tensor:
    """A pseudo-random number in [0, 1) for each cell; a small factor makes devices with slightly other sines agree."""
    angle = 12.99 * cell_u + 78.23 * cell_v + 39.4 * phase
    return (angle.sin() * 437.58) % 1.0


def waves(u: Tensor, v: Tensor, phase: Tensor) -> Tensor:
    """Large soft blobs about one unit wide, in [0, 1]: a sum of sines in four directions."""
    turn = 6.2832 * phase
    first = (2.9 * u + 1.1 * v + turn).sin() + (-1.3 * u + 2.7 * v + 2.3 * turn).sin()
    second = (2.1 * u - 2.3 * v + 4.1 * turn + first).sin() + (0.9 * u + 0.7 * v + 3.0 * turn).sin()
    return (0.5 + 0.14 * (first + second)).clamp(0, 1)


def ridge(u: Tensor, phase: Tensor, width: float) -> Tensor:
    """The outline of hills about `width` wide, in [0, 1]."""
    turn = 6.2832 * phase
    outline = (3.1 / width * u + turn).sin() + 0.6 * (5.3 / width * u + 2.7 * turn).sin()
    return 0.5 + 0.3125 * outline


def clouds(u: Tensor, v: Tensor, phase: Tensor) -> Tensor:
    """The coverage of a few big soft clouds, in [0, 1]."""
    return smooth(0.5, 0.8, waves(0.55 * u, 1.5 * v, phase))
