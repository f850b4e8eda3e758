"""`mini.render.march` as one Triton kernel: a program marches a square tile of rays until all of them have stopped.

Each step is the same as in `march.py`, and so are the names. The loops have fixed lengths with an `if` inside, because
Triton's layout pass fails on a `while` that depends on data.
"""

import torch
import triton
import triton.language as tl

from mini.render import march as reference
from mini.render.geometry import SOLID_FIELDS, Geometry, Surface
from mini.world.scene import VIEW as VIEW_FLOAT

TILE = 16  # rays across and down
FIELDS = tl.constexpr(SOLID_FIELDS)
VIEW = tl.constexpr(VIEW_FLOAT)
STEPS, STRIDE = tl.constexpr(reference.STEPS), tl.constexpr(reference.STRIDE)
STOP, HIT, SLOPE = tl.constexpr(reference.STOP), tl.constexpr(reference.HIT), tl.constexpr(reference.SLOPE)
LIFT, PENUMBRA = tl.constexpr(reference.LIFT), tl.constexpr(reference.PENUMBRA)
NARROWEST = tl.constexpr(reference.NARROWEST)
SHADOW_STEPS, HARDNESS = tl.constexpr(reference.SHADOW_STEPS), tl.constexpr(reference.HARDNESS)
SHORTEST, LONGEST = tl.constexpr(reference.SHORTEST), tl.constexpr(reference.LONGEST)
LOW_TAP, LOW_LEAST, LOW_WEIGHT = (tl.constexpr(number) for number in reference.TAPS[0])
HIGH_TAP, HIGH_LEAST, HIGH_WEIGHT = (tl.constexpr(number) for number in reference.TAPS[1])


def march_fused(geometry: Geometry, side: int) -> Surface:
    """Trace side x side rays of each scene; the geometry must be on a CUDA device."""
    scenes, device = len(geometry.solids), geometry.solids.device
    part = torch.empty(scenes, side * side, dtype=torch.int8, device=device)
    normal = torch.empty(scenes, 3, side * side, device=device)
    sunlight, openness = (torch.empty(scenes, side * side, device=device) for _ in range(2))
    tiles = triton.cdiv(side, TILE)
    with torch.cuda.device_of(part):  # a kernel runs on the current device, whichever its tensors are on
        _march_tile[(tiles * tiles, scenes)](
            geometry.solids, geometry.counts, geometry.frame, geometry.bounds, geometry.light,
            part, normal, sunlight, openness, geometry.wall, geometry.solids.shape[1], side, tile=TILE, num_warps=4,
        )  # fmt: skip
    return Surface(part, normal, sunlight, openness)


@triton.jit
def _nearest(px, py, pz, solids, count):
    """The distance to the nearest solid, and its row; see `march.distances`."""
    best = px * 0.0 + 1e9
    row_of_best = (px * 0.0).to(tl.int32)
    for row in range(count):
        solid = solids + row * FIELDS
        a = px - tl.load(solid)
        b = py - tl.load(solid + 1)
        c = pz - tl.load(solid + 2)
        x = a * tl.load(solid + 3) + b * tl.load(solid + 4) + c * tl.load(solid + 5)
        y = a * tl.load(solid + 6) + b * tl.load(solid + 7) + c * tl.load(solid + 8)
        z = a * tl.load(solid + 9) + b * tl.load(solid + 10) + c * tl.load(solid + 11)
        width = tl.minimum(tl.maximum(tl.load(solid + 18) - z * tl.load(solid + 19), 0.12), 1.0)
        widening = 1.0 / width
        x = x * widening
        y = y * widening
        around = tl.load(solid + 16) > 0.5
        ring = tl.load(solid + 17)
        radial = tl.sqrt(x * x + y * y + 1e-9) - ring
        radial = tl.where(ring > 0.0, tl.abs(radial), radial)
        x = tl.where(around, radial, tl.abs(x)) - tl.load(solid + 12)
        y = tl.where(around, x, tl.abs(y) - tl.load(solid + 13))
        z = tl.abs(z) - tl.load(solid + 14)
        inside = tl.minimum(tl.maximum(tl.maximum(x, y), z), 0.0)
        x = tl.maximum(x, 0.0)
        y = tl.where(around, 0.0, tl.maximum(y, 0.0))
        z = tl.maximum(z, 0.0)
        gap = tl.sqrt(x * x + y * y + z * z + 1e-12) + inside - tl.load(solid + 15)
        gap = gap * tl.minimum(tl.maximum(width, NARROWEST), tl.load(solid + 21)) * tl.load(solid + 20)
        row_of_best = tl.where(gap < best, row, row_of_best)
        best = tl.minimum(best, gap)
    return best, row_of_best


@triton.jit
def _crossing(x, y, z, dx, dy, dz, bounds, margin):
    """Where rays enter and leave the sphere; see `march.sphere_crossing`."""
    x = x - tl.load(bounds)
    y = y - tl.load(bounds + 1)
    z = z - tl.load(bounds + 2)
    radius = tl.load(bounds + 3) + margin
    along = x * dx + y * dy + z * dz
    root = along * along - (x * x + y * y + z * z) + radius * radius
    half = tl.sqrt(tl.maximum(root, 0.0))
    return tl.where(root > 0.0, -along - half, -1.0), tl.where(root > 0.0, half - along, -1.0)


@triton.jit
def _direction(column, row, frame, side):
    """Unit directions; see `geometry.ray_directions`."""
    across = (column + 0.5) * (2.0 * VIEW / side) - VIEW
    upward = VIEW - (row + 0.5) * (2.0 * VIEW / side)
    dx = tl.load(frame + 3) + tl.load(frame + 6) * across + tl.load(frame + 9) * upward
    dy = tl.load(frame + 4) + tl.load(frame + 7) * across + tl.load(frame + 10) * upward
    dz = tl.load(frame + 5) + tl.load(frame + 8) * across + tl.load(frame + 11) * upward
    length = tl.sqrt(dx * dx + dy * dy + dz * dz)
    return dx / length, dy / length, dz / length


@triton.jit
def _trace(ox, oy, oz, dx, dy, dz, distance, limit, solids, count):
    """The distances at which rays stop; see `march._trace`."""
    active = tl.sum((distance < limit).to(tl.int32))
    for _ in range(STEPS):
        if active > 0:
            gap, _row = _nearest(ox + dx * distance, oy + dy * distance, oz + dz * distance, solids, count)
            running = (gap > STOP) & (distance < limit)
            distance = tl.where(running, distance + STRIDE * gap, distance)
            active = tl.sum(running.to(tl.int32))
    return distance


@triton.jit
def _normals(x, y, z, solids, count):
    """Unit gradients from four taps; see `march._normals`."""
    g0, _row = _nearest(x + SLOPE, y - SLOPE, z - SLOPE, solids, count)
    g1, _row = _nearest(x - SLOPE, y - SLOPE, z + SLOPE, solids, count)
    g2, _row = _nearest(x - SLOPE, y + SLOPE, z - SLOPE, solids, count)
    g3, _row = _nearest(x + SLOPE, y + SLOPE, z + SLOPE, solids, count)
    nx = g0 - g1 - g2 + g3
    ny = g2 + g3 - g0 - g1
    nz = g1 - g0 - g2 + g3
    length = tl.sqrt(nx * nx + ny * ny + nz * nz) + 1e-6
    return nx / length, ny / length, nz / length


@triton.jit
def _sunlight(x, y, z, nx, ny, nz, light, bounds, solids, count):
    """The share of the light that reaches points; see `march._sunlight`."""
    lx, ly, lz = tl.load(light), tl.load(light + 1), tl.load(light + 2)
    enter, leave = _crossing(x, y, z, lx, ly, lz, bounds, PENUMBRA)
    distance = tl.maximum(enter, SHORTEST)
    lit = distance * 0.0 + 1.0
    running = (leave > SHORTEST) & (nx * lx + ny * ly + nz * lz > 0.0)
    active = tl.sum(running.to(tl.int32))
    for _ in range(SHADOW_STEPS):
        if active > 0:
            gap, _row = _nearest(x + lx * distance, y + ly * distance, z + lz * distance, solids, count)
            lit = tl.where(running, tl.minimum(lit, HARDNESS * gap / distance), lit)
            further = distance + tl.minimum(tl.maximum(gap, SHORTEST), LONGEST)
            distance = tl.where(running, further, distance)
            running = running & (distance < leave) & (lit > 0.0)
            active = tl.sum(running.to(tl.int32))
    lit = tl.maximum(lit, 0.0)
    return lit * lit * (3.0 - 2.0 * lit)


@triton.jit
def _openness(x, y, z, nx, ny, nz, bounds, solids, count):
    """Ambient occlusion; see `march._openness`."""
    low = y + ny * LOW_TAP
    high = y + ny * HIGH_TAP
    ox, oy, oz = x - tl.load(bounds), y - tl.load(bounds + 1), z - tl.load(bounds + 2)
    reach = tl.load(bounds + 3) + 2.0 * HIGH_TAP
    near = ox * ox + oy * oy + oz * oz < reach * reach
    if tl.sum(near.to(tl.int32)) > 0:
        gap, _row = _nearest(x + nx * LOW_TAP, low, z + nz * LOW_TAP, solids, count)
        low = tl.where(near, tl.minimum(low, gap), low)
        gap, _row = _nearest(x + nx * HIGH_TAP, high, z + nz * HIGH_TAP, solids, count)
        high = tl.where(near, tl.minimum(high, gap), high)
    low = tl.minimum(tl.maximum(low / LOW_TAP, LOW_LEAST), 1.0)
    high = tl.minimum(tl.maximum(high / HIGH_TAP, HIGH_LEAST), 1.0)
    return LOW_WEIGHT * low + HIGH_WEIGHT * high


@triton.jit
def _march_tile(
    solids, counts, frames, bounds, lights, parts, normals, sunlights, opennesses, wall, most_solids, side,
    tile: tl.constexpr,
):  # fmt: skip
    """One tile: rays, hits, normals, shadows, ambient occlusion; see `march._march_some`."""
    scene = tl.program_id(1)
    tiles = tl.cdiv(side, tile)
    lane = tl.arange(0, tile * tile)
    column = (tl.program_id(0) % tiles) * tile + lane % tile
    row = (tl.program_id(0) // tiles) * tile + lane // tile
    solids += scene * most_solids * FIELDS
    count = tl.load(counts + scene)
    frame, bounds, light = frames + scene * 12, bounds + scene * 4, lights + scene * 3
    ox, oy, oz = tl.load(frame), tl.load(frame + 1), tl.load(frame + 2)
    dx, dy, dz = _direction(column.to(tl.float32), row.to(tl.float32), frame, side)
    floor = -oy / tl.minimum(dy, -1e-4)
    back = (wall - oz) / tl.minimum(dz, -1e-4)
    plane = tl.minimum(floor, back)
    enter, leave = _crossing(ox, oy, oz, dx, dy, dz, bounds, 0.0)
    limit = tl.minimum(leave, plane)
    distance = _trace(ox, oy, oz, dx, dy, dz, tl.maximum(enter, 0.05), limit, solids, count)
    reached = distance < limit
    hit = reached
    part = (distance * 0.0).to(tl.int32) - 1
    if tl.sum(reached.to(tl.int32)) > 0:
        gap, nearest = _nearest(ox + dx * distance, oy + dy * distance, oz + dz * distance, solids, count)
        hit = reached & (gap < HIT)
        part = tl.where(hit, nearest, -1)
    distance = tl.where(hit, distance, plane)
    x, y, z = ox + dx * distance, oy + dy * distance, oz + dz * distance
    nx = distance * 0.0
    ny = tl.where(floor < back, 1.0, nx)
    nz = 1.0 - ny
    if tl.sum(hit.to(tl.int32)) > 0:
        gx, gy, gz = _normals(x, y, z, solids, count)
        nx, ny, nz = tl.where(hit, gx, nx), tl.where(hit, gy, ny), tl.where(hit, gz, nz)
    sunlight = _sunlight(x + nx * LIFT, y + ny * LIFT, z + nz * LIFT, nx, ny, nz, light, bounds, solids, count)
    openness = _openness(x, y, z, nx, ny, nz, bounds, solids, count)
    inside = (column < side) & (row < side)
    rays = side * side
    at = row * side + column
    first = scene.to(tl.int64) * rays
    tl.store(parts + first + at, part.to(tl.int8), inside)
    tl.store(sunlights + first + at, sunlight, inside)
    tl.store(opennesses + first + at, openness, inside)
    tl.store(normals + 3 * first + at, nx, inside)
    tl.store(normals + 3 * first + rays + at, ny, inside)
    tl.store(normals + 3 * first + 2 * rays + at, nz, inside)
