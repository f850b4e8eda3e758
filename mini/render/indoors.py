"""Indoor places: the colours of wall and floor."""

import torch

from mini.render.brushes import chance, disc, display, edge, mix, panel, repeat, smooth, waves
from mini.render.canvas import Canvas, Painted


def datacenter(canvas: Canvas) -> Painted:
    """Dark racks with a few large lights, large pale floor tiles."""
    here, phases = canvas.x, canvas.phases
    rack, across = repeat(canvas.u + 1.5 * phases[0], 1.5)
    shelf, up = repeat(canvas.v - 0.36, 0.62)
    grain = canvas.wall_grain
    face = panel(across, up, 0.62, 0.25, 0.06, grain)
    body = panel(across, 0 * up, 0.70, 1.0, 0.02, grain)
    wall = mix(display(here, 0.34, 0.38, 0.45), display(here, 0.15, 0.17, 0.22), body)
    wall = mix(wall, display(here, 0.22, 0.25, 0.32), face)
    glow = 0.0
    for place in (-0.3, 0.3):
        draw = chance(rack + 2.3 * place, shelf, phases[1])
        hue = mix(display(here, 0.10, 0.95, 0.55), display(here, 0.15, 0.62, 1.0), (draw > 0.45).float())
        away = torch.hypot(across - place, up)
        lamp = smooth(0.18, 0.08, away) * 1.4 + 0.2 * (1 - away / 0.30).clamp(min=0) ** 2
        glow = glow + hue * (lamp * (draw > 0.2))
    strip = (1 - (canvas.v - 3.1).abs() / 1.2).clamp(min=0)
    _, tile_x = repeat(here + 1.1 * phases[2], 1.1)
    _, tile_z = repeat(canvas.z, 1.1)
    seam = 1 - edge(0.52 - tile_x.abs(), canvas.grain + 0.02) * edge(0.52 - tile_z.abs(), canvas.depth_grain + 0.02)
    floor = mix(display(here, 0.66, 0.71, 0.78), display(here, 0.50, 0.56, 0.64), seam)
    shine = smooth(-1.2, -3.2, canvas.z) * 0.10
    return Painted(floor, wall, glow + display(here, 0.4, 0.6, 0.8) * 0.3 * strip, display(here, 0.2, 0.6, 0.9) * shine)


def desk(canvas: Canvas) -> Painted:
    """Wide wooden planks in front of a plain wall with a window."""
    here, phases = canvas.x, canvas.phases
    plank, across = repeat(canvas.z + 0.9 * phases[0], 0.9)
    shade = chance(plank, 0.0, phases[1])
    wood = mix(display(here, 0.74, 0.56, 0.39), display(here, 0.66, 0.48, 0.33), shade)
    wood = wood * (0.92 + 0.16 * waves(0.35 * here + plank, 1.3 * canvas.z, phases[2]))
    floor = wood * (1 - 0.35 * (1 - edge(0.43 - across.abs(), canvas.depth_grain + 0.03)))
    paint = mix(display(here, 0.88, 0.84, 0.76), display(here, 0.66, 0.74, 0.76), smooth(0.3, 0.7, phases[3]))
    paint = mix(paint, display(here, 0.82, 0.70, 0.66), smooth(0.7, 0.9, phases[4]))
    wall = paint * (0.72 + 0.28 * smooth(-0.2, 1.4, canvas.v))
    across, up = canvas.u - 3.2 * (phases[5] - 0.5), canvas.v - 1.9
    frame = panel(across, up, 0.98, 0.83, 0.06, canvas.wall_grain)
    glass = panel(across.abs() - 0.43, up, 0.37, 0.70, 0.04, canvas.wall_grain)
    wall = mix(wall, display(here, 0.95, 0.94, 0.91), frame) * (1 - glass)
    outside = mix(display(here, 0.80, 0.91, 0.98), display(here, 0.45, 0.70, 0.95), smooth(-0.7, 0.7, up))
    return Painted(floor, wall, outside * (1.3 * glass))


def studio(canvas: Canvas) -> Painted:
    """A seamless paper sweep in one colour, lit by a soft spot."""
    phases = canvas.phases
    hue = 6.2832 * phases[0]
    channels = [0.70 + (0.08 + 0.20 * phases[1]) * (hue + turn).sin() for turn in (0.0, 2.0944, 4.1888)]
    paper = torch.stack(channels) ** 2.2
    spot = torch.exp(-((canvas.u - 1.6 * (phases[2] - 0.5)) ** 2 + (canvas.v - 1.1) ** 2) / 5.0)
    bend = smooth(0.0, 1.6, canvas.v)
    wall = paper * (0.62 + 0.50 * spot * bend)
    return Painted(paper * (1 - 0.30 * smooth(-0.5, -3.2, canvas.z)), wall, 0.30 * wall)


def kitchen(canvas: Canvas) -> Painted:
    """Cupboards and a worktop below large wall tiles; a chequered floor."""
    here, phases, grain = canvas.x, canvas.phases, canvas.wall_grain
    tone = mix(display(here, 0.80, 0.90, 0.88), display(here, 0.93, 0.88, 0.76), smooth(0.35, 0.65, phases[0]))
    _, tile_u = repeat(canvas.u + 0.7 * phases[1], 0.7)
    _, tile_v = repeat(canvas.v - 1.75, 0.7)
    joint = 1 - panel(tile_u, tile_v, 0.325, 0.325, 0.05, grain + 0.01)
    wall = mix(tone, display(here, 0.97, 0.97, 0.96), 0.7 * joint)
    front = mix(display(here, 0.86, 0.68, 0.45), display(here, 0.45, 0.62, 0.66), smooth(0.4, 0.6, phases[2]))
    _, door_u = repeat(canvas.u + 1.3 * phases[3], 1.3)
    door = panel(door_u, canvas.v - 0.62, 0.60, 0.50, 0.05, grain)
    cupboard = mix(front * 0.62, front, door)
    cupboard = mix(cupboard, display(here, 0.93, 0.93, 0.93), disc(door_u - 0.42, canvas.v - 0.80, 0.09, grain))
    below = edge(1.22 - canvas.v, grain)
    wall = mix(wall, cupboard, below)
    wall = mix(wall, display(here, 0.42, 0.40, 0.40), edge(0.09 - (canvas.v - 1.29).abs(), grain))
    _, check_x = repeat(here + 2.0 * phases[4], 2.0)
    _, check_z = repeat(canvas.z, 2.0)
    dark_x = 2 * edge(0.5 - check_x.abs(), canvas.grain + 0.01) - 1
    dark_z = 2 * edge(0.5 - check_z.abs(), canvas.depth_grain + 0.01) - 1
    pale, dark = display(here, 0.90, 0.89, 0.86), display(here, 0.48, 0.56, 0.62)
    return Painted(mix(pale, dark, 0.5 - 0.5 * dark_x * dark_z), wall)
