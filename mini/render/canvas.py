"""The input and output of the functions that paint places."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Where each pixel's ray hits the floor (x, z) and the wall or backdrop (u across, v up), [B, pixels] each.

    grain, depth_grain, wall_grain: the width of a pixel on the floor, across and in depth, and on the wall. floor: the
    share of the pixel that shows the floor. phases: [8, B, 1], numbers in [0, 1) that vary the scenes of a place.
    """

    x: Tensor
    z: Tensor
    grain: Tensor
    depth_grain: Tensor
    u: Tensor
    v: Tensor
    wall_grain: Tensor
    floor: Tensor
    phases: Tensor


@dataclass(frozen=True)
class Painted:
    """Linear RGB that broadcasts to [3, B, pixels]: albedo of floor and wall, and light that they emit (glow)."""

    floor: Tensor
    wall: Tensor | float = 0.0
    glow: Tensor | float = 0.0
    floor_glow: Tensor | float = 0.0
