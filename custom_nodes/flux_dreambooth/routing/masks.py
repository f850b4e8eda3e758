"""From attention maps to masks, and masks as a picture for a person. Uses torch."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLOURS = ((228, 87, 46), (46, 134, 222), (46, 164, 79), (200, 80, 192), (230, 180, 40), (60, 190, 190))


@dataclass(frozen=True)
class MaskSettings:
    """How a map of attention becomes a mask.

    threshold: of the map, scaled to 0..1 for each image, above which a token belongs to the concept; softness: the
    width of the ramp around the threshold on which the mask goes from 0 to 1, 0 for a hard edge; smooth, grow: the
    radius in tokens by which the map is blurred before, and the mask extended after the cut.
    """

    threshold: float = 0.35
    softness: float = 0.0
    smooth: int = 0
    grow: int = 1


USUAL = MaskSettings()


def masks_from_maps(maps: Tensor, rows: int, columns: int, called: Tensor, settings: MaskSettings = USUAL) -> Tensor:
    """Masks of the image tokens, [B, groups, I] in 0..1, from maps [B, groups, I] of the same meaning.

    rows, columns: of the image's tokens, I in all; called: [B, groups] bool, False for groups that the prompt does not
    name: their masks are 0. No token belongs to two groups: it goes to the one whose scaled map is larger there.
    """
    shape = (*maps.shape[:2], rows, columns)
    scaled = _scaled(_blurred(maps.view(shape), settings.smooth)).where(called[..., None, None], -1.0)
    half = settings.softness / 2
    inside = (scaled > settings.threshold).float()
    if half:
        inside = ((scaled - settings.threshold + half) / settings.softness).clamp(0, 1)
    owner = scaled == scaled.amax(1, keepdim=True)
    core = inside * owner
    taken = core.sum(1, keepdim=True) - core  # by the other groups
    masks = _grown(core, settings.grow) * (1 - taken).clamp(0, 1)
    contested = masks.sum(1, keepdim=True) > 1  # grown into the same free token from two sides
    return torch.where(contested, masks * owner, masks).flatten(2)


def _blurred(maps: Tensor, radius: int) -> Tensor:
    if not radius:
        return maps
    padded = F.pad(maps, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


def _scaled(maps: Tensor) -> Tensor:
    low, high = maps.amin((2, 3), keepdim=True), maps.amax((2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp_min(1e-9)


def _grown(masks: Tensor, radius: int) -> Tensor:
    return F.max_pool2d(masks, 2 * radius + 1, stride=1, padding=radius) if radius else masks


def mask_pixels(masks: Tensor, rows: int, columns: int, height: int, width: int) -> Tensor:
    """One image that shows all masks, uint8 [height, width, 3] on the CPU: each in its colour of COLOURS, on grey.

    masks: [groups, I] of one image.
    """
    grid = masks.float().cpu().view(1, len(masks), rows, columns)
    large = F.interpolate(grid, (height, width), mode="nearest")[0]
    colours = torch.tensor([COLOURS[index % len(COLOURS)] for index in range(len(masks))], dtype=torch.float32)
    picture = torch.full((height, width, 3), 40.0)
    for mask, colour in zip(large, colours, strict=True):
        picture = torch.lerp(picture, colour.expand_as(picture), mask[..., None])
    return picture.round().to(torch.uint8)
