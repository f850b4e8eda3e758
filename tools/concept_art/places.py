"""What a place is: its lights, its floor and what stands behind, all as functions of points and directions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from concept_art.paint import mix, smoothstep

Floor = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, float]]


@dataclass(frozen=True)
class Lamp:
    """A far light: direction towards it [3, 1], linear colour [3, 1], angular size (0.03 sun … 0.3 softbox)."""

    direction: Tensor
    colour: Tensor
    width: float = 0.1


@dataclass(frozen=True)
class Place:
    """`floor` maps x, z [N] to colour [3, N], slope [2, N] and roughness; `haze` maps floor points [3, N] to
    the share of the backdrop seen in front of them; `backdrop` maps directions [3, N] to light [3, N]."""

    key: Lamp
    rim: Lamp
    sky: Tensor
    ground: Tensor
    backdrop: Callable[[Tensor], Tensor]
    floor: Floor
    haze: Callable[[Tensor], Tensor]
    polished: bool = False

    def surroundings(self, directions: Tensor) -> Tensor:
        """What a mirror at the objects would see."""
        return mix(self.ground, self.backdrop(directions), smoothstep(-0.08, 0.12, directions[1]))


def unit(azimuth: float, elevation: float) -> Tensor:
    """Direction [3, 1]; degrees; azimuth 0 is the camera's side (+z), 90 its right (+x)."""
    a, e = math.radians(azimuth), math.radians(elevation)
    return torch.tensor([[math.sin(a) * math.cos(e)], [math.sin(e)], [math.cos(a) * math.cos(e)]])


def angles(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Azimuth from straight ahead (-z), right positive, and elevation; radians."""
    return torch.atan2(directions[0], -directions[2]), torch.asin(directions[1].clamp(-1, 1))


def slope_of(height: Callable[[Tensor, Tensor], Tensor], x: Tensor, z: Tensor, reach: float) -> Tensor:
    """Slope [2, N] of a floor, for light only: the floor stays flat. Fine relief fades in the distance."""
    e = 0.004
    rise = torch.stack([height(x + e, z) - height(x - e, z), height(x, z + e) - height(x, z - e)]) / (2 * e)
    return rise * torch.exp(-torch.hypot(x, z - 1.5) / reach)


def flat(x: Tensor) -> Tensor:
    return torch.zeros(2, x.shape[0])


def distance_haze(start: float, end: float) -> Callable[[Tensor], Tensor]:
    """The floor melts into the backdrop between `start` and `end` units behind the middle."""
    return lambda points: smoothstep(start, end, torch.hypot(points[0] * 0.6, points[2].clamp(max=0)))
