"""Places under the sky: beach, snow and forest."""

import torch
from torch import Tensor

from concept_art.paint import colour, fbm, lights, mix, noise, random_rows, smoothstep
from concept_art.places import Lamp, Place, angles, distance_haze, slope_of, unit


def beach(seed: int) -> Place:
    """Rippled sand, a line of foam, sea and summer clouds."""
    return Place(
        key=Lamp(unit(-52, 46), torch.tensor([[1.0], [0.91], [0.76]]) * 1.45, 0.05),
        rim=Lamp(unit(120, 20), torch.tensor([[0.7], [0.85], [1.0]]) * 0.35, 0.2),
        sky=torch.tensor([[0.46], [0.58], [0.74]]),
        ground=torch.tensor([[0.42], [0.34], [0.22]]),
        backdrop=lambda directions: summer_sky(*angles(directions), seed),
        floor=lambda x, z: shore(x, z, seed),
        haze=lambda points: smoothstep(16, 58, -points[2]) * 0.75,
    )


def summer_sky(azimuth: Tensor, elevation: Tensor, seed: int) -> Tensor:
    sky = mix(colour("#a9d8f5"), colour("#2378d0"), smoothstep(0.0, 0.30, elevation) ** 0.8)
    puffs = (
        fbm(azimuth * 9 + seed, elevation * 20, 5, seed) * 0.75 + fbm(azimuth * 2.2, elevation * 4, 2, seed + 8) * 0.5
    )
    cloud = smoothstep(0.64, 0.86, puffs) * smoothstep(0.01, 0.07, elevation)
    sky = mix(sky, mix(colour("#dbe6f2"), colour("#ffffff") * 1.15, smoothstep(0.68, 0.9, puffs)), cloud * 0.9)
    hill = 0.018 + 0.042 * smoothstep(0.10, 0.42, azimuth) * (0.6 + 0.6 * noise(azimuth * 16, azimuth * 0, seed))
    head = smoothstep(0.006, -0.006, elevation - hill) * smoothstep(0.06, 0.16, azimuth)
    return mix(sky, mix(colour("#6f9e86"), colour("#9cc1d8"), smoothstep(0.06, 0.0, elevation)), head)


def shore(x: Tensor, z: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    """Sand towards the eye, wet near the water, then sea that deepens."""
    out = -z - 3.1 + 0.35 * torch.sin(x * 0.9 + seed) + 0.25 * noise(x * 1.7, z * 0.4, seed)
    near = torch.exp(-torch.hypot(x, z - 1) / 4)
    grains = noise(x * 70, z * 70, seed) * 0.6 + noise(x * 150, z * 150, seed + 1) * 0.4
    sand = mix(colour("#e2c48c"), colour("#f3deb0"), fbm(x * 1.6, z * 2.2, 3, seed))
    sand = sand * (1 + (grains - 0.5) * 0.34 * near)
    sand = mix(sand, colour("#b28d58"), smoothstep(-0.8, -0.05, out) * 0.8)
    waves = noise(x * 0.8 + 2, z * 4.5, seed + 2) * 0.6 + noise(x * 2.1, z * 11, seed + 3) * 0.4
    sea = mix(colour("#57cfc6"), colour("#1273a8"), smoothstep(0.2, 9, out)) * (0.82 + 0.4 * waves)
    land = mix(sand, sea, smoothstep(0.0, 0.25, out))
    lace = noise(x * 5, z * 7, seed + 4) * 0.6
    foam = smoothstep(0.42, 0.10, (out - 0.18).abs() + 0.3 * lace) + 0.7 * smoothstep(
        0.30, 0.05, (out - 1.5).abs() + 0.5 * lace
    )
    dry = smoothstep(0.0, -0.5, out)
    return mix(land, colour("#fbfdff") * 1.05, foam.clamp(0, 1)), slope_of(ripples, x, z, 3.5) * dry, 0.9


def ripples(x: Tensor, z: Tensor) -> Tensor:
    bend = fbm(x * 0.9, z * 0.9, 2, 11)
    return 0.020 * torch.sin(z * 11 + 7 * bend + x * 1.2) * (0.4 + bend) + 0.05 * fbm(x * 2.5, z * 2.5, 3, 5)


def snow(seed: int) -> Place:
    """Fresh snow before firs and peaks in the morning."""
    return Place(
        key=Lamp(unit(-58, 34), torch.tensor([[1.0], [0.90], [0.76]]) * 1.35, 0.06),
        rim=Lamp(unit(130, 25), torch.tensor([[0.55], [0.75], [1.0]]) * 0.6, 0.2),
        sky=torch.tensor([[0.36], [0.48], [0.74]]),
        ground=torch.tensor([[0.44], [0.50], [0.62]]),
        backdrop=lambda directions: peaks(*angles(directions), seed),
        floor=lambda x, z: fresh_snow(x, z, seed),
        haze=distance_haze(5.0, 26.0),
    )


def peaks(azimuth: Tensor, elevation: Tensor, seed: int) -> Tensor:
    sky = mix(colour("#f2cdb4"), colour("#3f82cc"), smoothstep(0.02, 0.20, elevation))
    for base, height, detail, shade, soft in (
        (0.02, 0.235, 4.0, "#6f8fbc", 0.005),
        (0.0, 0.165, 6.5, "#5878a6", 0.006),
    ):
        ridge = base + height * fbm(azimuth * detail + seed, azimuth * 0, 5, seed) ** 1.6
        light = noise(azimuth * 34 + elevation * 30, elevation * 46, seed + 2)
        rock = mix(colour(shade), colour("#e6eefa"), smoothstep(0.40, 0.70, elevation / ridge + light * 0.35 - 0.2))
        sky = mix(sky, rock, smoothstep(soft, -soft, elevation - ridge))
        seed += 3
    for width, tall, shade, soft in ((0.044, 0.085, "#47708a", 0.006), (0.075, 0.13, "#1f4a50", 0.008)):
        sky = mix(sky, colour(shade), firs(azimuth, elevation, width, tall, soft, seed))
        seed += 3
    flakes = lights(azimuth, elevation, ["#ffffff"], 60, (-0.5, 0.5, -0.2, 0.4), 0.007, seed)
    return sky + flakes * 0.35


def firs(azimuth: Tensor, elevation: Tensor, width: float, tall: float, soft: float, seed: int) -> Tensor:
    """A row of blurred fir trees that leaves the middle free; [N] share covered."""
    cover = torch.zeros_like(azimuth)
    count = int(1.2 / width)
    for i, (shift, size) in enumerate(random_rows(count, 2, seed)):
        middle = -0.6 + (i + shift) * width
        height = tall * (0.55 + 0.6 * size) * (0.45 + 1.6 * min(abs(middle), 0.35))
        up = (elevation / height).clamp(0, 1)
        tiers = 0.86 + 0.14 * torch.cos(up * 8 * torch.pi + 0.6)
        half = height * 0.26 * (1 - up) * tiers
        tree = smoothstep(soft, -soft, (azimuth - middle).abs() - half) * smoothstep(height, height * 0.9, elevation)
        cover = torch.maximum(cover, tree)
    return cover


def fresh_snow(x: Tensor, z: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    white = mix(colour("#e9f0fb"), colour("#fdfdff"), fbm(x * 1.4, z * 1.4, 3, seed))
    near = torch.exp(-torch.hypot(x, z - 1.5) / 3)
    sparkle = smoothstep(0.93, 0.99, noise(x * 55, z * 55, seed) * 0.5 + noise(x * 83 + 9, z * 83, seed + 1) * 0.5)
    return white * (0.86 + 0.5 * sparkle * near), slope_of(drifts, x, z, 4.0), 0.8


def drifts(x: Tensor, z: Tensor) -> Tensor:
    return 0.26 * fbm(x * 1.3, z * 1.6, 4, 21) + 0.006 * noise(x * 28, z * 28, 4)


def forest(seed: int) -> Place:
    """A clearing: moss and leaves, trunks and sun through the leaves, out of focus."""
    return Place(
        key=Lamp(unit(-48, 52), torch.tensor([[1.0], [0.93], [0.70]]) * 1.55, 0.10),
        rim=Lamp(unit(140, 34), torch.tensor([[0.85], [1.0], [0.5]]) * 0.8, 0.2),
        sky=torch.tensor([[0.36], [0.44], [0.30]]),
        ground=torch.tensor([[0.12], [0.15], [0.06]]),
        backdrop=lambda directions: woods(*angles(directions), seed),
        floor=lambda x, z: moss(x, z, seed),
        haze=distance_haze(2.2, 9.0),
    )


def woods(azimuth: Tensor, elevation: Tensor, seed: int) -> Tensor:
    green = mix(colour("#5d8a3a"), colour("#a8cf62"), smoothstep(-0.1, 0.32, elevation))
    green = mix(green, colour("#20482a"), smoothstep(0.35, 0.65, fbm(azimuth * 5, elevation * 5, 3, seed)) * 0.75)
    green = green + colour("#f7ffb8") * 0.8 * torch.exp(-((azimuth + 0.16) ** 2 + (elevation - 0.26) ** 2) / 0.022)
    for row, (width, shade, soft) in enumerate(
        ((0.010, "#5a6a3e", 0.010), (0.020, "#4a4028", 0.012), (0.034, "#33291d", 0.014))
    ):
        for i, (shift, size, lean) in enumerate(random_rows(9 - 2 * row, 3, seed + row)):
            middle = -0.62 + (i + 0.2 + 0.6 * shift) * 1.24 / (9 - 2 * row) + (lean - 0.5) * 0.12 * elevation
            trunk = smoothstep(soft, -soft, (azimuth - middle).abs() - width * (0.6 + 0.7 * size))
            lit = mix(colour(shade), colour(shade) * 1.9, smoothstep(0.01, -0.02, azimuth - middle))
            green = mix(green, lit, trunk * 0.92)
    box = (-0.6, 0.6, 0.0, 0.42)
    leaves = lights(azimuth, elevation, ["#d8f07a", "#9fd45a", "#fff4b0", "#7dbb4a"], 70, box, 0.026, seed + 9)
    return green + leaves * 0.30


def moss(x: Tensor, z: Tensor, seed: int) -> tuple[Tensor, Tensor, float]:
    near = torch.exp(-torch.hypot(x, z - 1.5) / 3.5)
    soft = fbm(x * 2.2, z * 2.6, 4, seed)
    green = mix(colour("#2f5a1e"), colour("#7aa63c"), smoothstep(0.25, 0.75, soft))
    fibres = noise(x * 46, z * 46, seed + 1) * 0.6 + noise(x * 95, z * 95, seed + 2) * 0.4
    green = green * (1 + (fibres - 0.5) * 0.9 * near)
    earth = mix(colour("#5b3f22"), colour("#7c5a30"), noise(x * 20, z * 20, seed + 3))
    ground = mix(green, earth, smoothstep(0.56, 0.70, fbm(x * 1.1 + 5, z * 1.3, 3, seed + 4)) * 0.7)
    return ground, slope_of(tufts, x, z, 3.0), 0.95


def tufts(x: Tensor, z: Tensor) -> Tensor:
    return 0.10 * fbm(x * 3.2, z * 3.2, 3, 31) + 0.012 * noise(x * 24, z * 24, 7)
