"""From shapes, a place and a camera to a picture.

Each ray is marched to the nearest surface and shaded there: a key light with soft shadow, a sky and a
ground light darkened in corners, a rim light, and reflections of the place. Edges get many rays, the
rest one. Rays go tile by tile, so that each tile marches only through the shapes its rays can meet.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from concept_art.paint import filmic, mix, smoothstep
from concept_art.places import Place
from concept_art.shapes import Shape, Vector, length

TILE = 96  # pixels a side
FAR = 60.0
NEAR_OBJECTS = 2.6  # floor further than this from the middle mirrors no objects
EDGE = 0.07  # display contrast to a neighbour at which a pixel gets more rays


@dataclass(frozen=True)
class Camera:
    """`lens` is the focal length over half the picture's longer side: 4 is a portrait lens."""

    eye: Vector
    target: Vector
    lens: float = 3.6

    def directions(self, x: Tensor, y: Tensor, width: int, height: int) -> Tensor:
        """Unit directions [3, N] through the points x, y [N] of the picture, in pixels."""
        eye, target = torch.tensor(self.eye), torch.tensor(self.target)
        ahead = torch.nn.functional.normalize(target - eye, dim=0)
        right = torch.nn.functional.normalize(torch.linalg.cross(ahead, torch.tensor([0.0, 1.0, 0.0])), dim=0)
        up = torch.linalg.cross(right, ahead)
        half = max(width, height) / 2
        u, v = (x - width / 2) / half, (height / 2 - y) / half
        rays = ahead[:, None] * self.lens + right[:, None] * u + up[:, None] * v
        return rays / length(rays)


@dataclass(frozen=True)
class Scene:
    shapes: Sequence[Shape]
    place: Place
    camera: Camera


def dot(a: Tensor, b: Tensor) -> Tensor:
    """[3, N] with [3, N] or [3, 1] -> [N]."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def distance(shapes: Sequence[Shape], points: Tensor) -> Tensor:
    """To the nearest of the shapes; [N]."""
    nearest = torch.full((points.shape[1],), 1e3)
    for s in shapes:
        nearest = torch.minimum(nearest, s.distance(points))
    return nearest


def within(
    shapes: Sequence[Shape], origins: Tensor, directions: Tensor, margin: float, spread: float = 0.0
) -> list[Shape]:
    """The shapes that at least one ray meets, or passes by less than `margin` + `spread` times its length."""

    def met(s: Shape) -> bool:
        to = s.centre[:, None] - origins
        along = dot(to, directions).clamp(min=0)
        off = length(to - directions * along)
        return bool((off - spread * along).amin() < s.reach + margin)

    return [s for s in shapes if origins.shape[1] and met(s)]


def march(shapes: Sequence[Shape], origins: Tensor, directions: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
    """Length [N] of each ray up to its first surface, and whether it met one before `far`."""
    travel, hit = torch.zeros_like(far), torch.zeros_like(far, dtype=torch.bool)
    alive = torch.arange(far.shape[0]) if shapes else torch.empty(0, dtype=torch.long)
    for _ in range(140):
        if not len(alive):
            break
        step = distance(shapes, origins[:, alive] + directions[:, alive] * travel[alive])
        travel[alive] += step
        met = step < 4e-4
        hit[alive[met]] = True
        alive = alive[~met & (travel[alive] < far[alive])]
    return travel, hit & (travel < far)


def normals(shapes: Sequence[Shape], points: Tensor) -> Tensor:
    """The gradient of the distance, from four samples at the corners of a tetrahedron."""
    total = torch.zeros_like(points)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        k = torch.tensor(corner, dtype=torch.float32)[:, None]
        total += k * distance(shapes, points + k * 9e-4)
    return total / length(total).clamp(min=1e-9)


def soft_shadow(shapes: Sequence[Shape], points: Tensor, light: Tensor, width: float) -> Tensor:
    """1 in full light … 0; the narrowest miss on the way to a light of angular size `width` decides."""
    n = points.shape[1]
    shapes = within(shapes, points, light.expand(3, n), 0.0, width)
    share, travel = torch.ones(n), torch.full((n,), 0.012)
    alive = torch.arange(n) if shapes else torch.empty(0, dtype=torch.long)
    for _ in range(70):
        if not len(alive):
            break
        gap = distance(shapes, points[:, alive] + light * travel[alive])
        share[alive] = torch.minimum(share[alive], gap / (width * travel[alive]))
        travel[alive] += gap.clamp(0.006, 0.22)
        alive = alive[(share[alive] > -1) & (travel[alive] < 4.5)]
    share = share.clamp(min=-1)
    return 0.25 * (1 + share) ** 2 * (2 - share)


def openness(shapes: Sequence[Shape], points: Tensor, normal: Tensor) -> Tensor:
    """Ambient occlusion, 1 open … 0 enclosed: how soon the distance falls behind along the normal."""
    shapes = within(shapes, points, torch.zeros_like(points), 0.62)
    blocked = torch.zeros(points.shape[1])
    for i, height in enumerate((0.02, 0.07, 0.16, 0.32, 0.6)):
        gap = distance(shapes, points + normal * height)
        blocked += (height - gap).clamp(min=0) / height * (0.30, 0.26, 0.22, 0.16, 0.10)[i]
    return 0.1 + 0.9 * (1 - blocked).clamp(0, 1) ** 1.3


@dataclass(frozen=True)
class Surface:
    """What a bundle of N rays met: colours [3, N], the rest [N] or [3, N]."""

    points: Tensor
    normal: Tensor
    colour: Tensor
    roughness: Tensor
    metal: Tensor
    glow: Tensor


def object_surface(shapes: Sequence[Shape], points: Tensor) -> Surface:
    pick = torch.stack([s.distance(points) for s in shapes]).argmin(0)
    look = torch.tensor([[*m.colour, m.roughness, m.metal, m.glow] for m in (s.material for s in shapes)])[pick].T
    return Surface(points, normals(shapes, points), look[:3], look[3], look[4], look[5])


def floor_surface(place: Place, points: Tensor) -> Surface:
    colour, slope, roughness = place.floor(points[0], points[2])
    up = torch.stack([-slope[0], torch.ones_like(points[0]), -slope[1]])
    nothing = torch.zeros_like(points[0])
    rough = torch.full_like(nothing, roughness)
    return Surface(points, up / length(up), colour, rough, nothing, nothing)


def shade(scene: Scene, surface: Surface, directions: Tensor, bounce: bool) -> Tensor:
    """Linear light [3, N] that leaves the surface towards the eye."""
    place, normal = scene.place, surface.normal
    start = surface.points + normal * 0.004
    sun = place.key.direction
    facing = dot(normal, sun)
    shadow = torch.zeros_like(facing)
    lit = facing > -0.25
    shadow[lit] = soft_shadow(scene.shapes, start[:, lit], sun, place.key.width)
    open_share = openness(scene.shapes, start, normal)
    wrapped = ((facing + 0.2) / 1.2).clamp(min=0) * shadow
    light = place.key.colour * wrapped + ambient(place, normal) * open_share
    light = light + place.rim.colour * dot(normal, place.rim.direction).clamp(min=0) * open_share
    diffuse = surface.colour * (light * (1 - surface.metal) + surface.glow * 2)
    return diffuse + gloss(scene, surface, directions, shadow, open_share, bounce)


def ambient(place: Place, normal: Tensor) -> Tensor:
    return mix(place.ground, place.sky, normal[1] * 0.5 + 0.5)


def gloss(
    scene: Scene, surface: Surface, directions: Tensor, shadow: Tensor, open_share: Tensor, bounce: bool
) -> Tensor:
    """What the surface mirrors: the lights as soft panels, the place around, and on a floor the objects."""
    normal, rough, place = surface.normal, surface.roughness, scene.place
    cosine = -dot(normal, directions)
    mirrored = directions + 2 * cosine * normal
    fresnel = (0.04 + 0.5 * (1 - cosine.clamp(0, 1)) ** 5) * (1 - rough) ** 1.5
    tint = surface.colour * surface.metal + fresnel * (1 - surface.metal)
    around = mix(place.surroundings(mirrored), ambient(place, mirrored), rough.clamp(max=0.9)) * open_share
    if bounce:
        around = with_objects(scene, surface.points, mirrored, around)
    panels = torch.zeros_like(around)
    for lamp, seen in ((place.key, shadow), (place.rim, open_share)):
        towards = dot(mirrored, lamp.direction)
        edge = 0.05 + rough * 0.3
        panels += lamp.colour * seen * smoothstep(0.0, 1.0, ((towards - 0.93) / edge + 0.5).clamp(0, 1)) * (1 - rough)
    return tint * (around + 3.0 * panels)


def with_objects(scene: Scene, points: Tensor, mirrored: Tensor, around: Tensor) -> Tensor:
    """Objects seen in a polished floor; they fade with height, as in a polish that is not perfect."""
    near = (torch.hypot(points[0], points[2]) < NEAR_OBJECTS).nonzero()[:, 0]
    start, rays = points[:, near] + mirrored[:, near] * 0.01, mirrored[:, near]
    shapes = within(scene.shapes, start, rays, 0.01)
    travel, hit = march(shapes, start, rays, torch.full((len(near),), 4.0))
    if hit.any():
        places, rays = near[hit], rays[:, hit]
        surface = object_surface(shapes, start[:, hit] + rays * travel[hit])
        fade = torch.exp(-0.9 * surface.points[1].clamp(min=0))
        around[:, places] = mix(around[:, places], shade(scene, surface, rays, bounce=False), fade)
    return around


def radiance(scene: Scene, directions: Tensor) -> Tensor:
    """Linear light [3, N] that arrives at the eye from the given directions."""
    place, n = scene.place, directions.shape[1]
    origins = torch.tensor(scene.camera.eye)[:, None].expand(3, n)
    down = directions[1] < -1e-4
    floor_at = torch.where(down, -origins[1] / directions[1].clamp(max=-1e-4), FAR).clamp(max=FAR)
    shapes = within(scene.shapes, origins, directions, 0.01)
    travel, hit = march(shapes, origins, directions, floor_at)
    light = place.backdrop(directions)
    ground = (down & ~hit & (floor_at < FAR)).nonzero()[:, 0]
    if len(ground):
        surface = floor_surface(place, origins[:, ground] + directions[:, ground] * floor_at[ground])
        seen = shade(scene, surface, directions[:, ground], bounce=place.polished)
        light[:, ground] = mix(seen, light[:, ground], place.haze(surface.points))
    solid = hit.nonzero()[:, 0]
    if len(solid):
        surface = object_surface(shapes, origins[:, solid] + directions[:, solid] * travel[solid])
        light[:, solid] = shade(scene, surface, directions[:, solid], bounce=False)
    return light


def draw(scene: Scene, width: int, height: int, edge_rays: int = 4) -> Tensor:
    """The picture as display values [3, height, width] in [0, 1]."""
    picture = torch.empty(3, height, width)
    for x, y in tiles(width, height):
        picture[:, y, x] = sample(scene, x, y, width, height, 1)
    edges = rough_pixels(picture)
    for x, y in tiles(width, height):
        chosen = edges[y, x]
        if chosen.any():
            picture[:, y[chosen], x[chosen]] = sample(scene, x[chosen], y[chosen], width, height, edge_rays)
    return picture


def tiles(width: int, height: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The pixels' columns and rows, tile by tile."""
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            rows = torch.arange(top, min(top + TILE, height))
            columns = torch.arange(left, min(left + TILE, width))
            yield columns.repeat(len(rows)), rows.repeat_interleave(len(columns))


def sample(scene: Scene, x: Tensor, y: Tensor, width: int, height: int, rays: int) -> Tensor:
    """Display values [3, N] of the pixels, each the mean of rays × rays."""
    steps = (torch.arange(rays) + 0.5) / rays
    px = (x[:, None] + steps.repeat(rays)).flatten()
    py = (y[:, None] + steps.repeat_interleave(rays)).flatten()
    parts = scene.camera.directions(px, py, width, height).split(32768, dim=1)
    shown = torch.cat([filmic(radiance(scene, part)) for part in parts], dim=1)
    return shown.view(3, len(x), rays * rays).mean(2)


def rough_pixels(picture: Tensor) -> Tensor:
    """[height, width], true where a pixel differs visibly from one beside it."""
    lowest = -torch.nn.functional.max_pool2d(-picture[None], 3, 1, 1)
    highest = torch.nn.functional.max_pool2d(picture[None], 3, 1, 1)
    return (highest - lowest)[0].amax(0) > EDGE


def finish(picture: Tensor, vignette: float = 0.10) -> Tensor:
    """Bright parts bleed a little and the corners darken, as through a lens."""
    _, height, width = picture.shape
    size = max(3, max(width, height) // 64)
    bright = (picture - 0.82).clamp(min=0)[None]
    for _ in range(3):
        bright = torch.nn.functional.avg_pool2d(bright, 2 * size + 1, 1, size, count_include_pad=False)
    v, u = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    corners = 1 - vignette * smoothstep(0.45, 1.5, torch.hypot(u, v))
    return ((picture + 0.5 * bright[0] * (1 - picture)) * corners).clamp(0, 1)
