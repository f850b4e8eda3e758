"""Colour, noise and blur: the arithmetic that backdrops and floors are painted with.

Colours are linear light. A colour is a float32 tensor [3, 1] or, one per ray, [3, N].
"""

import math

import torch
from torch import Tensor


def rgb(code: str) -> tuple[float, float, float]:
    """Linear light of an sRGB colour written "#rrggbb" (IEC 61966-2-1)."""
    values = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values)
    return red, green, blue


def colour(code: str) -> Tensor:
    """[3, 1], ready to be mixed with one value per ray."""
    return torch.tensor(rgb(code))[:, None]


def mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """`a` where share [N] is 0, `b` where it is 1."""
    return a + (b - a) * share


def smoothstep(low: float, high: float, x: Tensor) -> Tensor:
    """0 below `low`, 1 above `high`, smooth between; falling when low > high."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def band(x: Tensor, low: float, high: float, blur: float) -> Tensor:
    """1 between low and high, with edges `blur` wide: a stripe out of focus."""
    return smoothstep(low - blur, low + blur, x) * smoothstep(high + blur, high - blur, x)


def lattice(x: Tensor, y: Tensor, seed: int) -> Tensor:
    """A number in [0, 1) for each pair of whole numbers; an integer hash, the same on every machine."""
    h = x.to(torch.int32) * 374761393 + y.to(torch.int32) * 668265263 + seed * 69069 % 2147483647
    h = (h ^ (h >> 13)) * 1274126177
    h = (h ^ (h >> 15)) * 1597334677
    return ((h >> 7) & 0xFFFF).to(torch.float32) / 65536


def noise(x: Tensor, y: Tensor, seed: int = 0) -> Tensor:
    """Value noise in [0, 1] with unit cells."""
    i, j = x.floor(), y.floor()
    u, v = smoothstep(0, 1, x - i), smoothstep(0, 1, y - j)
    low = torch.lerp(lattice(i, j, seed), lattice(i + 1, j, seed), u)
    high = torch.lerp(lattice(i, j + 1, seed), lattice(i + 1, j + 1, seed), u)
    return torch.lerp(low, high, v)


def fbm(x: Tensor, y: Tensor, octaves: int, seed: int = 0) -> Tensor:
    """Noise with detail: each octave is turned, twice as fine and half as strong; in [0, 1]."""
    total, weight = torch.zeros_like(x), 0.0
    for octave in range(octaves):
        share = 0.5**octave
        total, weight = total + share * noise(x, y, seed + octave), weight + share
        x, y = 1.6 * x + 1.2 * y + 3.7, 1.6 * y - 1.2 * x + 1.3
    return total / weight


def random_rows(count: int, columns: int, seed: int) -> list[list[float]]:
    """`count` rows of numbers in [0, 1): where to put things."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, columns, generator=generator).tolist()


def disc(x: Tensor, y: Tensor, at: tuple[float, float], radius: float) -> Tensor:
    """A light out of focus, as a lens draws it: even inside, a little brighter at its soft rim."""
    r = torch.sqrt((x - at[0]) ** 2 + (y - at[1]) ** 2) / radius
    return smoothstep(1.0, 0.86, r) * (0.75 + 0.35 * r.clamp(max=1) ** 3)


def lights(
    x: Tensor, y: Tensor, codes: list[str], count: int, box: tuple[float, float, float, float], size: float, seed: int
) -> Tensor:
    """Sum of `count` discs in box (left, right, bottom, top), in the given colours; [3, N]."""
    left, right, bottom, top = box
    total = torch.zeros(3, x.shape[0])
    for u, v, s, strength, pick in random_rows(count, 5, seed):
        at = (left + u * (right - left), bottom + v * (top - bottom))
        radius = size * (0.55 + 0.75 * s)
        near = (torch.abs(x - at[0]) < radius) & (torch.abs(y - at[1]) < radius)
        if near.any():
            glow = colour(codes[int(pick * len(codes))]) * (0.25 + 0.75 * strength)
            total[:, near] += glow * disc(x[near], y[near], at, radius)
    return total


EXPOSURE = 0.95


def filmic(light: Tensor) -> Tensor:
    """Linear light to display values in [0, 1]: Narkowicz's fit of the ACES curve, then the sRGB curve."""
    x = light.clamp(min=0) * EXPOSURE
    x = ((x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14)).clamp(0, 1)
    return torch.where(x <= 0.0031308, 12.92 * x, 1.055 * x.clamp(min=1e-6) ** (1 / 2.4) - 0.055)


def turn(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Tensor:
    """Rotation matrix [3, 3]; degrees; about z first, then x, then y."""
    (cx, sx), (cy, sy), (cz, sz) = ((math.cos(math.radians(a)), math.sin(math.radians(a))) for a in (x, y, z))
    about_x = torch.tensor([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = torch.tensor([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = torch.tensor([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_y @ about_x @ about_z
