"""A batch of scenes as ray marching needs it: the solids, the camera's frame, the light, and a bounding sphere.

Vectors of many points have their three components first, [3, ...], so that values of shape [...] broadcast.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mini.world.parts import (
    AROUND,
    CENTRE,
    FAR_BELOW,
    HALF,
    RING,
    ROTATION,
    ROUNDING,
    STRETCH,
    TAPER,
)
from mini.world.scene import INDOORS, VIEW, WALL, SceneBatch

BACKDROP = -8.0  # outdoors the floor ends at this z, in front of a painted backdrop
# A solid's row: centre 3, matrix to its own axes 9 (rows, divided by the stretch), half sizes 3, then
SOLID_ROUNDING, SOLID_AROUND, SOLID_RING, SOLID_WIDTH, SOLID_NARROWING, SOLID_SCALE, SOLID_SLACK = range(15, 22)
SOLID_FIELDS = 24  # two are spare: they keep rows at 32 bytes


@dataclass(frozen=True)
class Geometry:
    """A batch of scenes, ready for marching.

    solids: [B, P, SOLID_FIELDS], of which the first counts[b] (int32) are used. frame: [B, 12], the camera's position,
    forward, right and up. bounds: [B, 4], centre and radius of a sphere around all solids. light: [B, 3], the direction
    to the light. wall: the z of the plane at which the floor ends.
    """

    solids: Tensor
    counts: Tensor
    frame: Tensor
    bounds: Tensor
    light: Tensor
    wall: float


@dataclass(frozen=True)
class Surface:
    """What each ray hits.

    part: [B, rays] int8, the solid's row, -1 for floor and wall. normal: [B, 3, rays], only where a solid is hit.
    sunlight: [B, rays], from 0 in full shadow to 1. openness: [B, rays], ambient occlusion, 1 where nothing is near.
    """

    part: Tensor
    normal: Tensor
    sunlight: Tensor
    openness: Tensor


def geometry_of(batch: SceneBatch, device: torch.device | str) -> Geometry:
    """The geometry of a batch, on `device`."""
    parts, camera, light = (
        torch.as_tensor(array, dtype=torch.float32).to(device) for array in (batch.parts, batch.camera, batch.light)
    )
    present = parts[..., 1] > FAR_BELOW / 2
    return Geometry(
        solids=_solids(parts).contiguous(),
        counts=present.sum(1, dtype=torch.int32),
        frame=_frame(camera).contiguous(),
        bounds=_bounds(parts, present).contiguous(),
        light=_towards(light[:, 0], light[:, 1]).contiguous(),
        wall=WALL if batch.place in INDOORS else BACKDROP,
    )


def ray_directions(frame: Tensor, ray: Tensor, side: int) -> Tensor:
    """Unit directions [3, ...] of rays, numbered row by row from the upper left of a side x side grid.

    frame: [..., 12]; all axes except the last broadcast with `ray`.
    """
    forward, right, up = (frame[..., first : first + 3].movedim(-1, 0) for first in (3, 6, 9))
    across = ((ray % side) + 0.5) * (2 * VIEW / side) - VIEW
    upward = VIEW - (torch.div(ray, side, rounding_mode="floor") + 0.5) * (2 * VIEW / side)
    direction = forward + right * across + up * upward
    return direction / (direction * direction).sum(0).sqrt()


def _towards(azimuth: Tensor, elevation: Tensor) -> Tensor:
    """Unit vectors [B, 3]. Azimuth 0 is +z, towards the viewer, and increases towards +x."""
    flat = elevation.cos()
    return torch.stack([flat * azimuth.sin(), elevation.sin(), flat * azimuth.cos()], 1)


def _frame(camera: Tensor) -> Tensor:
    yaw, pitch, distance, target = camera[:, 0], camera[:, 1], camera[:, 2:3], camera[:, 3:6]
    backward = _towards(yaw, pitch)
    right = torch.stack([yaw.cos(), torch.zeros_like(yaw), -yaw.sin()], 1)
    up = torch.linalg.cross(backward, right)
    return torch.cat([target + distance * backward, -backward, right, up], 1)


def _solids(parts: Tensor) -> Tensor:
    """The table of solids, with everything precomputed that does not depend on the point."""
    stretch, half, rounding, taper = parts[..., STRETCH], parts[..., HALF], parts[..., ROUNDING], parts[..., TAPER]
    to_axes = parts[..., ROTATION].unflatten(-1, (3, 3)).transpose(-1, -2) / stretch[..., None]
    slack = torch.where(taper > 0, 0.55, 1.0)
    narrowing = taper / (2 * (half[..., 2] + rounding))
    columns = (rounding, parts[..., AROUND], parts[..., RING], 1 - taper / 2, narrowing, stretch.amin(-1), slack)
    row = torch.cat([parts[..., CENTRE], to_axes.flatten(-2), half, torch.stack(columns, -1)], -1)
    return torch.nn.functional.pad(row, (0, SOLID_FIELDS - row.shape[-1]))


def _bounds(parts: Tensor, present: Tensor) -> Tensor:
    """A bounding sphere of all parts, [B, 4]; of radius 0 and far below the floor if there are none."""
    around = parts[..., AROUND] > 0.5
    extent = parts[..., HALF] + parts[..., ROUNDING, None]
    across = torch.where(around, extent[..., 0] + parts[..., RING], extent[..., :2].norm(dim=-1))
    along = extent[..., 2] * parts[..., STRETCH.start + 2]
    radius = torch.hypot(across * parts[..., STRETCH][..., :2].amax(-1), along)[..., None]
    centre, absent = parts[..., CENTRE], ~present[..., None]
    lowest = (centre - radius).masked_fill(absent, torch.inf).amin(1)
    middle = (lowest + (centre + radius).masked_fill(absent, -torch.inf).amax(1)) / 2
    middle = torch.where(present.any(1)[:, None], middle, centre[:, 0])
    reach = (centre - middle[:, None]).norm(dim=-1) + radius[..., 0]
    return torch.cat([middle, reach.masked_fill(~present, 0).amax(1, keepdim=True)], 1)
