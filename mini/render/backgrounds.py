"""The background of an image: which pixels show floor, wall or backdrop, and their colours."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mini.render import indoors, outdoors
from mini.render.brushes import edge
from mini.render.canvas import Canvas, Painted
from mini.render.geometry import Geometry, ray_directions
from mini.world.scene import VIEW

PAINTERS = {
    "datacenter": indoors.datacenter,
    "desk": indoors.desk,
    "studio": indoors.studio,
    "kitchen": indoors.kitchen,
    "beach": outdoors.beach,
    "snow": outdoors.snow,
    "forest": outdoors.forest,
    "meadow": outdoors.meadow,
    "desert": outdoors.desert,
    "moon": outdoors.moon,
}
FARTHEST = 60.0  # the floor is not painted beyond it


@dataclass(frozen=True)
class Backdrop:
    """The background without solids, two linear [3, B, pixels]: albedo and emitted light."""

    albedo: Tensor
    glow: Tensor


def paint(place: str, geometry: Geometry, phases: Tensor, size: int) -> Backdrop:
    """The background of a place at size x size pixels. phases: [B, 8], see `Scene`."""
    canvas = _canvas(geometry, phases, size)
    painted: Painted = PAINTERS[place](canvas)
    floor, wall = canvas.floor, 1 - canvas.floor
    black = torch.zeros(3, *canvas.x.shape, device=phases.device)
    return Backdrop(
        black + painted.floor * floor + painted.wall * wall, black + painted.floor_glow * floor + painted.glow * wall
    )


def _canvas(geometry: Geometry, phases: Tensor, size: int) -> Canvas:
    rays = torch.arange(size * size, device=phases.device)
    direction = ray_directions(geometry.frame[:, None], rays, size)
    origin = geometry.frame[:, :3].T[:, :, None]
    down, away = direction[1].clamp(max=-1e-4), direction[2].clamp(max=-1e-4)
    to_floor = (-origin[1] / down).clamp(max=FARTHEST)
    to_wall = ((geometry.wall - origin[2]) / away).clamp(max=FARTHEST)
    pixel = 2 * VIEW / size
    height = origin[1] + to_wall * direction[1]
    return Canvas(
        x=origin[0] + to_floor * direction[0],
        z=origin[2] + to_floor * direction[2],
        grain=to_floor * pixel,
        depth_grain=to_floor * pixel / down.abs().clamp(min=0.05),
        u=origin[0] + to_wall * direction[0],
        v=height,
        wall_grain=to_wall * pixel,
        floor=edge(-height, to_wall * pixel),
        phases=phases.T[:, :, None],
    )
