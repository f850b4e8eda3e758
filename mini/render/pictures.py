"""Render scenes as images."""

import torch
from torch import Tensor

from mini.render.backgrounds import paint
from mini.render.geometry import Geometry, Surface, geometry_of
from mini.render.march import march
from mini.render.shade import light_of, shade_planes, shade_solids, tone
from mini.world.scene import SceneBatch


def render(batch: SceneBatch, size: int = 256, supersampling: int = 2, device: torch.device | str = "cpu") -> Tensor:
    """Render a batch as uint8 sRGB images [B, 3, size, size] on `device`; a pure function of the batch.

    For solids and shadows, a pixel is the mean of supersampling x supersampling rays; backgrounds are antialiased
    analytically. On CUDA one fused kernel marches the rays, with the same result up to rounding.
    """
    return render_with_masks(batch, size, supersampling, device)[0]


@torch.no_grad()
def render_with_masks(
    batch: SceneBatch, size: int = 256, supersampling: int = 2, device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """As `render`, and exact masks: the share of each pixel that solids cover, uint8 [B, size, size] on `device`.

    Shadows are not part of a mask.
    """
    parts, settings, phases = (
        torch.as_tensor(array, dtype=torch.float32).to(device) for array in (batch.parts, batch.light, batch.phases)
    )
    geometry = geometry_of(batch, device)
    surface = _march(geometry, size * supersampling)
    light = light_of(batch.place, settings)
    backdrop = paint(batch.place, geometry, phases, size)
    linear = shade_planes(backdrop.albedo, backdrop.glow, surface, geometry, light)
    linear += shade_solids(parts, surface, geometry, light, size * size)
    picture = (tone(linear) * 255 + 0.5).to(torch.uint8)
    solid = (surface.part >= 0).float().unflatten(1, (size, supersampling, size, supersampling))
    masks = (solid.mean((2, 4)) * 255 + 0.5).to(torch.uint8)
    return picture.movedim(0, 1).unflatten(2, (size, size)).contiguous(), masks


def _march(geometry: Geometry, side: int) -> Surface:
    if geometry.solids.is_cuda:
        from mini.render.fused import march_fused  # needs Triton, which comes with CUDA

        return march_fused(geometry, side)
    return march(geometry, side)
