"""Outdoor places: a floor, and a painted backdrop of sky, hills and trees that emits its own light."""

import torch
from torch import Tensor

from mini.render.brushes import chance, clouds, disc, display, edge, mix, repeat, ridge, smooth, waves
from mini.render.canvas import Canvas, Painted


def beach(canvas: Canvas) -> Painted:
    """Sand, a soft line of foam, the sea and big clouds."""
    here, phases = canvas.x, canvas.phases
    sand = mix(display(here, 0.93, 0.83, 0.62), display(here, 0.87, 0.74, 0.52), waves(0.9 * here, canvas.z, phases[0]))
    out = -canvas.z - 2.1 - 0.8 * phases[1] - 0.30 * (1.1 * here + 6.28 * phases[2]).sin()
    wet = mix(sand, sand * 0.72, smooth(-0.7, 0.0, out))
    sea = mix(display(here, 0.20, 0.70, 0.74), display(here, 0.08, 0.47, 0.68), smooth(0.2, 4.0, out))
    swell = waves(0.5 * here, 1.6 * canvas.z, phases[3])
    floor = mix(wet, sea * (0.9 + 0.2 * swell), edge(out, canvas.depth_grain + 0.10))
    foam = smooth(0.42, 0.10, (out - 0.15).abs()) + 0.5 * smooth(0.25, 0.05, (out - 1.25 - 0.3 * swell).abs())
    floor = mix(floor, display(here, 0.97, 0.98, 0.98), foam.clamp(max=1))
    sky = _sky(canvas, (0.76, 0.90, 0.98), (0.30, 0.62, 0.93), 1.0)
    sea_far = mix(display(here, 0.10, 0.50, 0.70), display(here, 0.16, 0.56, 0.78), smooth(0, 1, canvas.v))
    return Painted(floor, 0.0, mix(sky, sea_far, edge(0.75 - canvas.v, canvas.wall_grain + 0.03)))


def snow(canvas: Canvas) -> Painted:
    """Soft white drifts, mountains with white tops and a few large fir trees."""
    here, phases = canvas.x, canvas.phases
    drift = waves(0.7 * here, 0.8 * canvas.z, phases[0])
    floor = mix(display(here, 0.97, 0.98, 1.0), display(here, 0.86, 0.91, 0.98), drift)
    sky = _sky(canvas, (0.90, 0.94, 0.98), (0.62, 0.77, 0.92), 0.5)
    top = 1.5 + 1.9 * ridge(canvas.u, phases[1], 4.5)
    rock = mix(display(here, 0.47, 0.56, 0.70), display(here, 0.60, 0.68, 0.80), smooth(0.2, 2.5, canvas.v))
    cap = smooth(0.95, 0.75, top - canvas.v + 0.22 * (2.6 * canvas.u).sin())
    rock = mix(rock, display(here, 0.97, 0.98, 1.0), cap)
    behind = mix(sky, rock, edge(top - canvas.v, canvas.wall_grain))
    tree, off = repeat(canvas.u + 2.4 * phases[2], 2.4)
    draw = chance(tree, 0.0, phases[3])
    height = 1.5 + 1.5 * draw
    slope = 0.36 * (height - canvas.v) - (off - 0.9 * (chance(tree, 1.0, phases[4]) - 0.5)).abs()
    fir = edge(slope * 0.94, canvas.wall_grain) * (draw > 0.35)
    green = mix(display(here, 0.17, 0.40, 0.36), display(here, 0.86, 0.92, 0.96), smooth(0.55, 0.2, height - canvas.v))
    behind = mix(behind, green, fir)
    return Painted(floor, 0.0, mix(behind, display(here, 0.92, 0.95, 0.99), smooth(0.5, -0.1, canvas.v)))


def forest(canvas: Canvas) -> Painted:
    """Large round trunks in front of green light; moss and brown earth."""
    here, phases = canvas.x, canvas.phases
    moss = mix(display(here, 0.30, 0.46, 0.18), display(here, 0.42, 0.58, 0.22), waves(1.1 * here, canvas.z, phases[0]))
    earth = smooth(0.60, 0.78, waves(0.7 * here + 2.0, 0.8 * canvas.z, phases[1]))
    floor = mix(moss, display(here, 0.47, 0.34, 0.20), 0.8 * earth)
    leaves = waves(0.5 * canvas.u, 0.6 * canvas.v, phases[2])
    light = mix(display(here, 0.24, 0.44, 0.22), display(here, 0.62, 0.76, 0.36), leaves)
    behind = mix(display(here, 0.16, 0.32, 0.16), light, smooth(-0.2, 3.0, canvas.v))
    for layer, (period, width, colour) in enumerate(((1.9, 0.24, (0.26, 0.30, 0.19)), (2.9, 0.42, (0.42, 0.29, 0.19)))):
        tree, off = repeat(canvas.u + period * phases[3 + layer], period)
        off = off - 0.5 * period * (chance(tree, layer, phases[5]) - 0.5) * 0.9
        half = width * (0.8 + 0.4 * chance(tree, 3.0, phases[6])) * (1 + 0.5 * smooth(0.7, 0.0, canvas.v))
        round_light = 0.65 + 0.55 * (1 - (off / half - 0.25) ** 2).clamp(min=0)
        behind = mix(behind, display(here, *colour) * round_light, edge(half - off.abs(), canvas.wall_grain))
    crown = 3.0 + 0.6 * (1.7 * canvas.u + 6.28 * phases[7]).sin()
    behind = mix(behind, light * 0.7, smooth(-0.15, 0.15, canvas.v - crown))
    return Painted(floor, 0.0, mix(behind, display(here, 0.22, 0.36, 0.16), smooth(0.4, -0.1, canvas.v)))


def meadow(canvas: Canvas) -> Painted:
    """Soft green grass with large flowers, rolling hills, a blue sky."""
    here, phases = canvas.x, canvas.phases
    grass = waves(0.8 * here, 0.9 * canvas.z, phases[0])
    floor = mix(display(here, 0.45, 0.68, 0.33), display(here, 0.56, 0.76, 0.40), grass)
    cell_x, off_x = repeat(here + 1.1 * phases[1], 1.1)
    cell_z, off_z = repeat(canvas.z, 1.1)
    draw = chance(cell_x, cell_z, phases[2])
    off_x = off_x - 0.5 * (chance(cell_x, cell_z, phases[3]) - 0.5)
    grain = canvas.depth_grain + 0.015
    hue = mix(display(here, 0.98, 0.96, 0.92), display(here, 0.98, 0.62, 0.74), (draw > 0.8).float())
    floor = mix(floor, hue, disc(off_x, off_z, 0.17, grain) * (draw > 0.6))
    floor = mix(floor, display(here, 0.98, 0.80, 0.20), disc(off_x, off_z, 0.07, grain) * (draw > 0.6))
    behind = _sky(canvas, (0.80, 0.92, 0.98), (0.38, 0.66, 0.95), 1.0)
    for layer, colour in enumerate(((0.56, 0.77, 0.55), (0.45, 0.70, 0.34))):
        top = 1.5 - 0.75 * layer + 0.9 * ridge(canvas.u, phases[4 + layer], 4.0)
        shade = 0.85 + 0.25 * smooth(1.5, 0.0, top - canvas.v)
        behind = mix(behind, display(here, *colour) * shade, edge(top - canvas.v, canvas.wall_grain))
    return Painted(floor, 0.0, behind)


def desert(canvas: Canvas) -> Painted:
    """Rippled orange sand, big dunes with a lit and a shaded side, a large cactus."""
    here, phases = canvas.x, canvas.phases
    bend = waves(0.5 * here, 0.5 * canvas.z, phases[0])
    ripple = 0.5 + 0.5 * (5.0 * canvas.z + 6.0 * bend).sin()
    ripple = mix(ripple, 0.5 * torch.ones_like(ripple), smooth(0.1, 0.4, canvas.depth_grain))
    floor = mix(display(here, 0.93, 0.68, 0.40), display(here, 0.85, 0.57, 0.31), ripple)
    behind = _sky(canvas, (0.98, 0.88, 0.70), (0.52, 0.74, 0.90), 0.0)
    sun = torch.hypot(canvas.u - 5 * (phases[1] - 0.5), canvas.v - 3.3)
    behind = mix(behind, display(here, 1.0, 0.96, 0.82) * 1.5, edge(0.45 - sun, canvas.wall_grain))
    for layer, (near, far) in enumerate(
        (((0.88, 0.62, 0.42), (0.76, 0.49, 0.33)), ((0.93, 0.66, 0.38), (0.80, 0.51, 0.28)))
    ):
        outline = ridge(canvas.u, phases[2 + layer], 5.0 - layer)
        top = 1.3 - 0.8 * layer + 1.3 * outline
        lee = smooth(
            -0.15, 0.15, (3.1 / (5.0 - layer) * canvas.u + 6.28 * phases[2 + layer] - 0.5 * (top - canvas.v)).cos()
        )
        dune = mix(display(here, *far), display(here, *near), lee)
        behind = mix(behind, dune, edge(top - canvas.v, canvas.wall_grain))
    return Painted(floor, 0.0, _cactus(canvas, behind))


def moon(canvas: Canvas) -> Painted:
    """Gray dust with wide craters, a black sky with a few large stars and the blue earth."""
    here, phases = canvas.x, canvas.phases
    dust = mix(display(here, 0.66, 0.66, 0.68), display(here, 0.54, 0.54, 0.57), waves(here, canvas.z, phases[0]))
    cell_x, off_x = repeat(here + 2.3 * phases[1], 2.3)
    cell_z, off_z = repeat(canvas.z, 2.3)
    radius = 0.45 + 0.45 * chance(cell_x, cell_z, phases[2])
    away = torch.hypot(off_x, off_z + 0.3 * (phases[3] - 0.5)) / radius
    dust = dust * (1 - 0.38 * smooth(1.0, 0.75, away) + 0.22 * smooth(0.22, 0.0, (away - 1.06).abs()))
    star_u, off_u = repeat(canvas.u, 1.3)
    star_v, off_v = repeat(canvas.v, 1.1)
    draw = chance(star_u, star_v, phases[4])
    star = disc(
        off_u - 0.5 * (draw - 0.5), off_v - 0.4 * (chance(star_v, star_u, phases[5]) - 0.5), 0.06, 3 * canvas.wall_grain
    )
    behind = mix(display(here, 0.03, 0.03, 0.07), display(here, 0.95, 0.95, 0.9), star * (draw > 0.45))
    behind = _earth(canvas, behind)
    top = 0.45 + 0.75 * ridge(canvas.u, phases[6], 4.0)
    hill = display(here, 0.50, 0.50, 0.53) * (0.65 + 0.5 * smooth(1.0, 0.0, top - canvas.v))
    return Painted(dust, 0.0, mix(behind, hill, edge(top - canvas.v, canvas.wall_grain)))


def _sky(canvas: Canvas, low: tuple[float, ...], high: tuple[float, ...], cloudy: float) -> Tensor:
    """A gradient with big soft clouds."""
    sky = mix(display(canvas.x, *low), display(canvas.x, *high), smooth(0.3, 5.0, canvas.v))
    cloud = clouds(canvas.u, canvas.v, canvas.phases[7]) * smooth(0.8, 2.0, canvas.v)
    return mix(sky, display(canvas.x, 0.99, 0.99, 1.0), cloudy * cloud)


def _cactus(canvas: Canvas, behind: Tensor) -> Tensor:
    """One large cactus with two arms."""
    u, v = canvas.u - 7 * (canvas.phases[4] - 0.5), canvas.v
    side = torch.where(canvas.phases[5] > 0.5, 1.0, -1.0)

    def limb(at: Tensor | float, low: float, high: float, half: float) -> Tensor:
        return half - torch.hypot(u - at, v - v.clamp(low, high))

    def elbow(at: Tensor, reach: Tensor, half: float) -> Tensor:
        start, end = torch.minimum(reach, 0 * reach), torch.maximum(reach, 0 * reach)
        return half - torch.hypot(u - torch.minimum(torch.maximum(u, start), end), v - at)

    left, right = -0.62 * side, 0.58 * side
    shape = torch.maximum(limb(0.0, 0.0, 2.1, 0.26), limb(left, 1.05, 1.65, 0.17))
    shape = torch.maximum(shape, torch.maximum(limb(right, 0.8, 1.3, 0.17), elbow(0 * right + 0.8, right, 0.17)))
    shape = torch.maximum(shape, elbow(0 * left + 1.05, left, 0.17))
    green = display(u, 0.36, 0.58, 0.32) * (0.85 + 0.5 * shape.clamp(0, 0.26) / 0.26)
    return mix(behind, green, edge(shape, canvas.wall_grain))


def _earth(canvas: Canvas, behind: Tensor) -> Tensor:
    """The earth, half lit, with broad land and clouds."""
    u, v = canvas.u - 4.5 * (canvas.phases[3] - 0.5), canvas.v - 2.2 - 0.5 * canvas.phases[2]
    land = smooth(0.52, 0.62, waves(1.6 * u, 1.6 * v, canvas.phases[5]))
    cloud = smooth(0.60, 0.75, waves(1.1 * u + 4.0, 2.6 * v, canvas.phases[6]))
    ball = mix(display(u, 0.16, 0.42, 0.88), display(u, 0.30, 0.62, 0.36), land)
    ball = mix(ball, display(u, 0.97, 0.98, 1.0), cloud) * (0.35 + 0.85 * smooth(-0.9, 0.4, u + 0.4 * v))
    return mix(behind, ball, disc(u, v, 0.95, canvas.wall_grain))
