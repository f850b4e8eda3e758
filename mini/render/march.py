"""Sphere tracing in plain torch: the reference for the fused kernel, and the renderer on a CPU.

Sphere tracing: J. C. Hart, "Sphere tracing", 1996. Soft shadows and ambient occlusion from the distance field:
I. Quilez, "Soft shadows in raymarched SDFs".
"""

import torch
from torch import Tensor

from mini.render.geometry import (
    SOLID_AROUND,
    SOLID_NARROWING,
    SOLID_RING,
    SOLID_ROUNDING,
    SOLID_SCALE,
    SOLID_SLACK,
    SOLID_WIDTH,
    Geometry,
    Surface,
    ray_directions,
)

STEPS, STRIDE = 48, 0.95  # steps of a ray; the share of the distance that a step covers
STOP, HIT = 0.002, 0.01  # the distance at which a ray stops, and the one below which it has hit a solid
SLOPE = 0.004  # half the distance over which the gradient is measured
LIFT = 0.02  # shadow rays start this far above the surface
SHADOW_STEPS, HARDNESS, SHORTEST, LONGEST = 28, 7.0, 0.03, 0.28
PENUMBRA = 0.7  # shadow rays that pass the bounding sphere at this distance are fully lit
NARROWEST = 0.2  # where a tapered solid is narrower than this, its distance may be overestimated
TAPS = ((0.12, 0.25, 0.55), (0.35, 0.20, 0.45))  # ambient occlusion: distance, minimum openness, weight
RAYS_AT_ONCE = 1 << 15  # of one image: with 56 solids about 0.1 GB


def march(geometry: Geometry, side: int, rays_at_once: int = RAYS_AT_ONCE) -> Surface:
    """Trace side x side rays of each scene."""
    rays = torch.arange(side * side, device=geometry.solids.device)
    pictures = []
    for index in range(len(geometry.solids)):
        chunks = [_march_some(geometry, index, some, side) for some in rays.split(rays_at_once)]
        pictures.append([torch.cat(field, -1) for field in zip(*chunks, strict=True)])
    return Surface(*(torch.stack(field) for field in zip(*pictures, strict=True)))


def distances(point: Tensor, solids: Tensor) -> Tensor:
    """Distances [P, M], safe to march by, of points [3, M] to solids [P, SOLID_FIELDS]; see `mini.world.parts`."""

    def field(number: int) -> Tensor:
        return solids[:, number, None]

    a, b, c = (point[axis] - field(axis) for axis in range(3))
    x, y, z = (a * field(row) + b * field(row + 1) + c * field(row + 2) for row in (3, 6, 9))
    width = (field(SOLID_WIDTH) - z * field(SOLID_NARROWING)).clamp(0.12, 1)
    x, y = x / width, y / width
    around, ring = field(SOLID_AROUND) > 0.5, field(SOLID_RING)
    radial = (x * x + y * y + 1e-9).sqrt() - ring
    radial = torch.where(ring > 0, radial.abs(), radial)
    x = torch.where(around, radial, x.abs()) - field(12)
    y = torch.where(around, x, y.abs() - field(13))  # x twice: this does not change the maximum
    z = z.abs() - field(14)
    inside = torch.maximum(torch.maximum(x, y), z).clamp(max=0)
    y = torch.where(around, 0, y)
    outside = (x.clamp(min=0) ** 2 + y.clamp(min=0) ** 2 + z.clamp(min=0) ** 2 + 1e-12).sqrt()
    scale = torch.minimum(width.clamp(min=NARROWEST), field(SOLID_SLACK)) * field(SOLID_SCALE)
    return (outside + inside - field(SOLID_ROUNDING)) * scale


def sphere_crossing(origin: Tensor, direction: Tensor, bounds: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Distances at which rays enter and leave the sphere [4], enlarged by `margin`; both -1 for rays that miss it."""
    offset = origin - bounds[:3, None]
    along = (offset * direction).sum(0)
    root = along * along - (offset * offset).sum(0) + (bounds[3] + margin) ** 2
    half = root.clamp(min=0).sqrt()
    return torch.where(root > 0, -along - half, -1.0), torch.where(root > 0, half - along, -1.0)


def _march_some(geometry: Geometry, index: int, rays: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    solids = geometry.solids[index, : max(1, int(geometry.counts[index]))]
    bounds, light = geometry.bounds[index], geometry.light[index][:, None]
    frame = geometry.frame[index]
    origin, direction = frame[:3, None], ray_directions(frame[None], rays, side)
    plane, on_floor = plane_distance(origin, direction, geometry.wall)
    enter, leave = sphere_crossing(origin, direction, bounds, 0.0)
    limit = torch.minimum(leave, plane)
    distance = _trace(origin, direction, solids, enter.clamp(min=0.05), limit)
    gaps = torch.full_like(distance, torch.inf)
    part = torch.full_like(distance, -1, dtype=torch.int8)
    (reached,) = (distance < limit).nonzero(as_tuple=True)
    at = origin + direction[:, reached] * distance[reached]
    gaps[reached], nearest = distances(at, solids).min(0)
    hit = gaps < HIT
    part[reached] = torch.where(hit[reached], nearest, -1).to(torch.int8)
    point = origin + direction * torch.where(hit, distance, plane)
    normal = torch.stack([torch.zeros_like(plane), on_floor.float(), 1 - on_floor.float()])
    normal[:, hit] = _normals(point[:, hit], solids)
    sunlight = _sunlight(point + normal * LIFT, normal, light, solids, bounds)
    return part, normal, sunlight, _openness(point, normal, solids, bounds)


def plane_distance(origin: Tensor, direction: Tensor, wall: float) -> tuple[Tensor, Tensor]:
    """The distance to floor (y = 0) or wall (z = wall), whichever is nearer, and whether it is the floor."""
    down, away = direction[1].clamp(max=-1e-4), direction[2].clamp(max=-1e-4)
    floor, back = -origin[1] / down, (wall - origin[2]) / away
    return torch.minimum(floor, back), floor < back


def _nearest(point: Tensor, solids: Tensor) -> Tensor:
    return distances(point, solids).amin(0)


def _trace(origin: Tensor, direction: Tensor, solids: Tensor, start: Tensor, limit: Tensor) -> Tensor:
    """The distances at which rays stop: near a solid, or beyond their limit."""
    distance = start.clone()
    (running,) = (distance < limit).nonzero(as_tuple=True)
    for _ in range(STEPS):
        gap = _nearest(origin + direction[:, running] * distance[running], solids)
        go_on = (gap > STOP) & (distance[running] < limit[running])
        running = running[go_on]
        distance[running] += STRIDE * gap[go_on]
    return distance


def _normals(point: Tensor, solids: Tensor) -> Tensor:
    """Unit gradients of the distance, from four samples at the corners of a tetrahedron."""
    gradient = torch.zeros_like(point)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        tap = point.new_tensor(corner)[:, None]
        gradient += tap * _nearest(point + SLOPE * tap, solids)
    return gradient / ((gradient * gradient).sum(0).sqrt() + 1e-6)


def _sunlight(start: Tensor, normal: Tensor, light: Tensor, solids: Tensor, bounds: Tensor) -> Tensor:
    """The share of the light that reaches each point."""
    enter, leave = sphere_crossing(start, light, bounds, PENUMBRA)
    distance, lit = enter.clamp(min=SHORTEST), torch.ones_like(enter)
    (running,) = ((leave > SHORTEST) & ((normal * light).sum(0) > 0)).nonzero(as_tuple=True)
    for _ in range(SHADOW_STEPS):
        gap = _nearest(start[:, running] + light * distance[running], solids)
        lit[running] = torch.minimum(lit[running], HARDNESS * gap / distance[running])
        distance[running] += gap.clamp(SHORTEST, LONGEST)
        running = running[(distance[running] < leave[running]) & (lit[running] > 0)]
    lit = lit.clamp(min=0)
    return lit * lit * (3 - 2 * lit)


def _openness(point: Tensor, normal: Tensor, solids: Tensor, bounds: Tensor) -> Tensor:
    """Ambient occlusion, 1 in the open, from the distances at two heights above each point; includes the floor."""
    offset = point - bounds[:3, None]
    (near,) = ((offset * offset).sum(0) < (bounds[3] + 2 * TAPS[1][0]) ** 2).nonzero(as_tuple=True)
    openness = torch.zeros_like(point[0])
    for height, least, weight in TAPS:
        tap = point + normal * height
        gap = tap[1].clone()
        gap[near] = torch.minimum(gap[near], _nearest(tap[:, near], solids))
        openness += weight * (gap / height).clamp(least, 1)
    return openness
