"""What the painters of places receive and return."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Where each pixel's ray meets the floor (x, z) and the wall or backdrop (u across, v the height), [B, pixels].

    grain, depth_grain, wall_grain: a pixel's width on the floor across and in depth, and on the wall. floor: the
    share of the pixel that shows the floor. phases: [8, B, 1] numbers in [0, 1) that tell scenes of a place apart.
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
    """Linear RGB that broadcasts to [3, B, pixels]: floor and wall throw light back, the glows shine."""

    floor: Tensor
    wall: Tensor | float = 0.0
    glow: Tensor | float = 0.0
    floor_glow: Tensor | float = 0.0
