"""Shading and tone mapping. Colours are linear RGB, [3, ...], until the tone curve is applied."""

from dataclasses import dataclass

import torch
from torch import Tensor

from mini.render.brushes import display, mix, smooth
from mini.render.geometry import Geometry, Surface, ray_directions
from mini.world.parts import COLOUR, GLOSS, METAL


@dataclass(frozen=True)
class Mood:
    """The light of a place, in display RGB: sun or lamp, light from above, and light reflected by the ground."""

    sun: tuple[float, float, float]
    sky: tuple[float, float, float]
    ground: tuple[float, float, float]


MOODS = {
    "datacenter": Mood((0.94, 0.98, 1.0), (0.66, 0.73, 0.84), (0.42, 0.47, 0.55)),
    "desk": Mood((1.0, 0.96, 0.88), (0.72, 0.71, 0.69), (0.62, 0.47, 0.34)),
    "beach": Mood((1.0, 0.97, 0.88), (0.66, 0.76, 0.86), (0.72, 0.64, 0.48)),
    "snow": Mood((1.0, 0.97, 0.92), (0.68, 0.75, 0.86), (0.70, 0.74, 0.82)),
    "forest": Mood((1.0, 0.96, 0.82), (0.60, 0.70, 0.60), (0.40, 0.44, 0.27)),
    "studio": Mood((1.0, 0.98, 0.95), (0.74, 0.74, 0.76), (0.62, 0.61, 0.61)),
    "meadow": Mood((1.0, 0.98, 0.88), (0.66, 0.75, 0.84), (0.46, 0.58, 0.32)),
    "desert": Mood((1.0, 0.95, 0.84), (0.70, 0.72, 0.78), (0.75, 0.57, 0.38)),
    "kitchen": Mood((1.0, 0.98, 0.94), (0.74, 0.75, 0.77), (0.62, 0.62, 0.62)),
    "moon": Mood((1.0, 1.0, 1.0), (0.44, 0.46, 0.53), (0.42, 0.42, 0.44)),
}
SUN, SKY, GLOW = 1.9, 1.2, 1.75  # exposures of the sun, of light from above, and of emitted light


@dataclass(frozen=True)
class Light:
    """A batch's light: sun, sky and ground colours, each [3, B, 1]."""

    sun: Tensor
    sky: Tensor
    ground: Tensor


def light_of(place: str, settings: Tensor) -> Light:
    """The light of a place, with each scene's strength and warmth. settings: [B, 4], see `Scene.light`."""
    mood = MOODS[place]
    strength, warmth = settings[:, 2:3], settings[:, 3:4]
    tint = mix(display(settings, 0.93, 0.98, 1.0), display(settings, 1.0, 0.96, 0.87), warmth)
    sun = display(settings, *mood.sun) * tint * (SUN * (0.8 + 0.35 * strength))
    softness = SKY * (1.1 - 0.2 * strength)
    return Light(sun, display(settings, *mood.sky) * softness, display(settings, *mood.ground) * softness)


def shade_planes(albedo: Tensor, glow: Tensor, surface: Surface, geometry: Geometry, light: Light) -> Tensor:
    """Linear light [3, B, pixels] from floor, wall and backdrop, where no solid hides them.

    albedo, glow: [3, B, pixels], see `Backdrop`. Light is averaged over a pixel's rays before the albedo is applied.
    """
    pixels = albedo.shape[-1]
    visible = (surface.part < 0).float()
    towards = (surface.normal * geometry.light[:, :, None]).sum(1).clamp(min=0)
    sunny = pool(visible * towards * surface.sunlight, pixels)
    openness = pool(visible * surface.openness, pixels)
    return albedo * (light.sun * sunny + light.sky * openness) + glow * (GLOW * pool(visible, pixels))


def shade_solids(parts: Tensor, surface: Surface, geometry: Geometry, light: Light, pixels: int) -> Tensor:
    """Linear light [3, B, pixels] from the solids, black elsewhere. parts: [B, P, FIELDS]."""
    rays = surface.part.shape[1]
    (hit,) = (surface.part.flatten() >= 0).nonzero(as_tuple=True)
    scene, ray = hit // rays, hit % rays
    row = parts[scene, surface.part.flatten()[hit].long()]
    normal = surface.normal.movedim(1, 0).flatten(1)[:, hit]
    direction = ray_directions(geometry.frame[scene], ray, round(rays**0.5))
    sunlight, openness = surface.sunlight.flatten()[hit], surface.openness.flatten()[hit]
    here = Light(*(colour[:, :, 0][:, scene] for colour in (light.sun, light.sky, light.ground)))
    seen = _solid_colour(row, normal, direction, geometry.light[scene].T, sunlight, openness, here)
    picture = torch.zeros(3, surface.part.numel(), device=hit.device)
    picture[:, hit] = seen
    return pool(picture.view(3, -1, rays), pixels)


def _solid_colour(
    row: Tensor, normal: Tensor, direction: Tensor, towards: Tensor, sunlight: Tensor, openness: Tensor, light: Light
) -> Tensor:
    """Lambert and hemispheric ambient light, a broad and a sharp highlight, rim light, and reflected surroundings."""
    colour, gloss, metal = row[:, COLOUR].T, row[:, GLOSS], row[:, METAL]
    lit = (normal * towards).sum(0).clamp(min=0) * sunlight
    ambient = mix(light.ground, light.sky, 0.5 + 0.5 * normal[1]) * openness
    matt = colour * (light.sun * lit + ambient)
    facing = (normal * direction).sum(0)
    mirrored = direction - 2 * facing * normal
    around = mix(light.ground * 0.5, light.sky * 1.5, smooth(-0.15, 0.25, mirrored[1])) * (0.4 + 0.6 * openness)
    half = towards - direction
    aligned = ((normal * half).sum(0) / (half * half).sum(0).sqrt()).clamp(0, 1)
    highlight = light.sun * (sunlight * (gloss + 0.5 * metal) * (0.10 * aligned**14 + 0.55 * aligned**90))
    rim = light.sky * ((1 + facing.clamp(max=0)) ** 3 * (0.10 + 0.25 * gloss) * openness)
    return mix(matt, (0.15 + 0.85 * colour) * (around + 0.35 * light.sun * lit), metal) + highlight + rim


def pool(values: Tensor, pixels: int) -> Tensor:
    """Average over each pixel's rays: [..., rays] to [..., pixels], both row by row in square images."""
    size = round(pixels**0.5)
    per_side = round((values.shape[-1] // pixels) ** 0.5)
    if per_side == 1:
        return values
    return values.unflatten(-1, (size, per_side, size, per_side)).mean((-3, -1)).flatten(-2)


def tone(linear: Tensor) -> Tensor:
    """Linear light to display values in [0, 1]: a filmic shoulder (K. Narkowicz's fit of ACES), then gamma 2.2."""
    exposed = 0.58 * linear
    film = exposed * (2.51 * exposed + 0.03) / (exposed * (2.43 * exposed + 0.59) + 0.14)
    return film.clamp(0, 1) ** (1 / 2.2)
