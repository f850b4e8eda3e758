"""Places with a roof: studio, desk, datacenter, and a city at night seen from a wet terrace."""

import torch
from torch import Tensor

from concept_art.paint import band, colour, fbm, lattice, lights, mix, noise, smoothstep
from concept_art.places import Lamp, Place, angles, distance_haze, flat, unit


def studio(paper: str, glow: str, shade: str) -> Place:
    """A paper sweep with a pool of light behind the subject."""

    def backdrop(directions: Tensor) -> Tensor:
        azimuth, elevation = angles(directions)
        r = torch.hypot(azimuth * 0.8, elevation - 0.06)
        wall = mix(colour(glow), colour(paper), smoothstep(0.02, 0.34, r))
        return mix(wall, colour(shade), smoothstep(0.28, 0.75, r))

    def floor(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, float]:
        return colour(paper) * torch.ones_like(x) * 0.9, flat(z), 0.35

    return Place(
        key=Lamp(unit(-38, 48), torch.tensor([[1.0], [0.96], [0.9]]) * 1.05, 0.15),
        rim=Lamp(unit(140, 30), torch.tensor([[0.8], [0.86], [1.0]]) * 0.5, 0.2),
        sky=torch.tensor([[0.62], [0.63], [0.66]]),
        ground=colour(paper) * 0.45,
        backdrop=backdrop,
        floor=floor,
        haze=distance_haze(0.6, 3.4),
        polished=True,
    )


def desk(seed: int) -> Place:
    """A wooden table before a warm room: window, shelf, lamp and plant, all out of focus."""
    return Place(
        key=Lamp(unit(-62, 42), torch.tensor([[1.0], [0.93], [0.82]]) * 1.25, 0.16),
        rim=Lamp(unit(125, 32), torch.tensor([[1.0], [0.72], [0.42]]) * 0.55, 0.2),
        sky=torch.tensor([[0.50], [0.48], [0.46]]),
        ground=torch.tensor([[0.24], [0.15], [0.09]]),
        backdrop=lambda directions: room(*angles(directions), seed),
        floor=lambda x, z: (planks(x, z, seed), flat(x), 0.42),
        haze=lambda points: smoothstep(-2.35, -2.6, points[2]),
        polished=True,
    )


def room(azimuth: Tensor, elevation: Tensor, seed: int) -> Tensor:
    wall = mix(colour("#5f7f84") * 0.7, colour("#9fb6b0"), smoothstep(0.35, -0.45, azimuth))
    wall = mix(colour("#3d4a4c") * 0.6, wall, smoothstep(-0.26, 0.02, elevation))
    window = band(azimuth, -0.33, -0.09, 0.014) * band(elevation, -0.035, 0.30, 0.014)
    bars = band(azimuth, -0.216, -0.204, 0.009) + band(elevation, 0.075, 0.087, 0.009)
    outside = mix(colour("#8fc46a"), colour("#cfe8ff") * 1.4, smoothstep(-0.02, 0.09, elevation))
    wall = mix(wall, outside, window * (1 - 0.75 * bars.clamp(0, 1)))
    wall = books(wall, azimuth, elevation, seed)
    spots = lights(azimuth, elevation, ["#ffd08a", "#ffb054"], 16, (-0.06, 0.42, 0.02, 0.16), 0.016, seed + 5)
    return wall + spots * 0.8


def books(wall: Tensor, azimuth: Tensor, elevation: Tensor, seed: int) -> Tensor:
    """Two shelves of blurred backs at the right."""
    u = (azimuth - 0.10) / 0.036
    cell = u.floor()
    covers = torch.stack([0.10 + 0.5 * lattice(cell, cell * 0, seed + k) ** 1.5 for k in range(3)])
    covers = covers * torch.tensor([[1.0], [0.72], [0.55]])
    for base, row in ((-0.045, 0), (0.095, 7)):
        top = base + 0.075 + 0.035 * lattice(cell, cell * 0 + row, seed + 9)
        seen = smoothstep(-0.012, 0.012, elevation - base) * smoothstep(0.012, -0.012, elevation - top)
        seen = seen * band(azimuth, 0.10, 0.60, 0.02) * (0.55 + 0.45 * band(u - cell, 0.12, 0.88, 0.12))
        wall = mix(wall, covers, seen)
        board = band(elevation, base - 0.020, base - 0.006, 0.007) * band(azimuth, 0.08, 0.62, 0.02)
        wall = mix(wall, colour("#6b4526"), board)
    return wall


def planks(x: Tensor, z: Tensor, seed: int) -> Tensor:
    """Oak: boards along x, each with a tone and a grain of its own."""
    row = (z / 0.62 + 0.35).floor()
    tone = lattice(row, row * 0, seed)
    grain = fbm(x * 1.1 + 17 * tone, z * 16 + 3 * noise(x * 0.8, z * 2, seed), 4, seed)
    fine = noise(x * 5 + 31 * tone, z * 120, seed + 3)
    wood = mix(colour("#8a5428"), colour("#c98d52"), smoothstep(0.25, 0.75, grain)) * (0.86 + 0.22 * tone)
    wood = wood * (0.93 + 0.12 * fine)
    gap = (z / 0.62 + 0.35 - row).minimum(1 - (z / 0.62 + 0.35 - row))
    return wood * (0.35 + 0.65 * smoothstep(0.004, 0.016, gap))


def datacenter(seed: int) -> Place:
    """An aisle of server racks; their lights are points, the floor tiles are polished."""
    return Place(
        key=Lamp(unit(-30, 58), torch.tensor([[0.86], [0.93], [1.0]]) * 1.0, 0.24),
        rim=Lamp(unit(150, 26), torch.tensor([[0.35], [0.62], [1.0]]) * 0.9, 0.2),
        sky=torch.tensor([[0.38], [0.43], [0.54]]),
        ground=torch.tensor([[0.12], [0.15], [0.20]]),
        backdrop=lambda directions: aisle(directions, seed),
        floor=tiles,
        haze=distance_haze(3.0, 11.0),
        polished=True,
    )


def tiles(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, float]:
    u, v = x / 1.1 + 0.5, z / 1.1 + 0.3
    edge = torch.stack([u - u.floor(), u.ceil() - u, v - v.floor(), v.ceil() - v]).amin(0)
    tone = 0.9 + 0.1 * lattice(u.floor(), v.floor(), 3)
    return colour("#4c5563") * (0.45 + 0.55 * smoothstep(0.006, 0.02, edge)) * tone, flat(x), 0.16


def aisle(directions: Tensor, seed: int) -> Tensor:
    """Racks on both sides as seen from the camera's usual stand, with a bright end."""
    side = 2.3
    along = (side / directions[0].abs().clamp(min=1e-3)).clamp(max=80)
    y, depth = 1.15 + directions[1] * along, -directions[2] * along
    cell, slot = (depth / 0.9).floor(), (y / 0.13).floor()
    u, v = depth / 0.9 - cell, y / 0.13 - slot
    wall = colour("#1a2230") * (0.7 + 0.5 * band(v, 0.14, 0.86, 0.10)) * (0.35 + 0.65 * band(u, 0.06, 0.94, 0.03))
    wall = wall + leds(cell, slot, u, v, torch.sign(directions[0]), seed)
    ceiling = mix(
        colour("#2c3a4e"), colour("#b9d6ff"), band(directions[0] / directions[1].clamp(min=1e-3), -0.30, 0.30, 0.10)
    )
    wall = mix(wall, ceiling, smoothstep(2.5, 2.6, y))
    azimuth, elevation = angles(directions)
    glow = torch.exp(-((azimuth / 0.13) ** 2) - ((elevation - 0.05) / 0.16) ** 2)
    haze = smoothstep(6, 30, along) * (directions[2] < 0)
    return mix(wall, colour("#3f69a8"), haze * 0.30) + colour("#a9d0ff") * glow * 0.55


def leds(cell: Tensor, slot: Tensor, u: Tensor, v: Tensor, side: Tensor, seed: int) -> Tensor:
    """Green, blue and a few amber points, six to a slot."""
    column = (u * 6).floor()
    dice = lattice(cell * 6 + column + side * 999, slot, seed)
    spot = torch.hypot((u * 6 - column - 0.5) * 1.2, v - 0.5)
    shine = smoothstep(0.34, 0.08, spot) * (dice > 0.45) + 0.25 * smoothstep(0.6, 0.0, spot) * (dice > 0.45)
    tint = torch.where(dice > 0.80, colour("#3cff9a"), torch.where(dice > 0.52, colour("#2f9dff"), colour("#ffb03a")))
    return tint * shine * 1.9


def city(seed: int) -> Place:
    """Bokeh over a dark, wet terrace."""
    neon = ["#ffb347", "#ff5fa2", "#ffd9a0", "#4fd8ff", "#b06bff", "#ff7a3c", "#fff0cc"]

    def backdrop(directions: Tensor) -> Tensor:
        azimuth, elevation = angles(directions)
        sky = mix(colour("#3a2a5e"), colour("#0d1030"), smoothstep(-0.05, 0.38, elevation))
        towers = 0.05 + 0.20 * lattice((azimuth / 0.11).floor(), azimuth * 0, seed)
        sky = mix(sky, colour("#120f26"), smoothstep(0.02, -0.02, elevation - towers) * 0.8)
        far = lights(azimuth, elevation, neon, 120, (-0.7, 0.7, -0.02, 0.26), 0.013, seed)
        near = lights(azimuth, elevation, neon, 46, (-0.7, 0.7, -0.02, 0.34), 0.034, seed + 1)
        return sky + far * 0.8 + near * 0.55

    def floor(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, float]:
        damp = fbm(x * 1.3, z * 1.3, 4, seed)
        return (
            mix(colour("#242233"), colour("#34313f"), damp) * (0.9 + 0.2 * noise(x * 60, z * 60)),
            wet_slope(x, z),
            0.10,
        )

    return Place(
        key=Lamp(unit(-45, 40), torch.tensor([[1.0], [0.84], [0.66]]) * 1.15, 0.2),
        rim=Lamp(unit(135, 24), torch.tensor([[0.75], [0.35], [1.0]]) * 1.2, 0.2),
        sky=torch.tensor([[0.26], [0.25], [0.40]]),
        ground=torch.tensor([[0.12], [0.10], [0.16]]),
        backdrop=backdrop,
        floor=floor,
        haze=distance_haze(3.5, 12.0),
        polished=True,
    )


def wet_slope(x: Tensor, z: Tensor) -> Tensor:
    return torch.stack([noise(x * 9, z * 9, 5) - 0.5, noise(x * 9, z * 9, 6) - 0.5]) * 0.05
