"""From attention maps to masks, and masks as a picture for a person. Uses torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import SMALLEST_SHARE
from .words import RoutedPrompt

ROUNDS = 20  # of k-means at most
# By how much more, as a logarithm, another thing must be attended to where the concepts are than elsewhere, so that it
# can have some of these tokens: a thing, and what is named as a place.
THING_MARGIN, PLACE_MARGIN = 0.1, 0.2
COLOURS = ((228, 87, 46), (46, 134, 222), (46, 164, 79), (200, 80, 192), (230, 180, 40), (60, 190, 190))


@dataclass(frozen=True)
class MaskSettings:
    """How maps of attention become masks.

    threshold: of the called concepts' maps, each scaled to 0..1, above whose mean a token belongs to one of them;
    softness: the width of the ramp around the threshold on which a mask goes from 0 to 1, 0 for a hard edge; smooth,
    grow: how far neighbours have a say in whose a token is, and how far a mask reaches beyond the threshold, both as
    shares of the image's shorter side.
    """

    threshold: float = 0.45
    softness: float = 0.0
    smooth: float = 1 / 8
    grow: float = 1 / 16


USUAL = MaskSettings()


def masks_from_maps(
    maps: Tensor,
    log_maps: Tensor,
    rows: int,
    columns: int,
    prompts: Sequence[RoutedPrompt],
    settings: MaskSettings = USUAL,
) -> Tensor:
    """Masks of the image tokens, [B, adapters, I] in 0..1: where the things are, and which of them each is.

    maps, log_maps: `AttentionMaps.mean()` and `log_mean()` of the prompts' `groups`, [B, groups, I]; rows, columns: of
    the image's tokens, I in all; prompts: of each image, all with the same adapters. The mask of an adapter that its
    prompt does not call is 0, no token belongs to two adapters, and none to an adapter where another thing is.
    """
    adapters, side = len(prompts[0].nouns), min(rows, columns)
    smooth, grow = (max(round(share * side), 1) if share else 0 for share in (settings.smooth, settings.grow))
    maps, log_maps = (each.unflatten(2, (rows, columns)) for each in (maps, log_maps))
    called = torch.tensor([[bool(spans) for spans in prompt.nouns] for prompt in prompts], device=maps.device)
    inside = _inside(maps[:, :adapters], called, settings)
    rivals = torch.stack([_rivals(*each, adapters) for each in zip(maps, inside > 0, prompts, strict=True)])
    log_maps, named = _blurred(log_maps, smooth), torch.cat([called, rivals], dim=1)
    owners = torch.stack([_owners(*each) for each in zip(log_maps, inside > 0, named, strict=True)])
    votes = _blurred(owners, max(smooth, grow))  # also of the tokens around
    owners = (votes == votes.amax(1, keepdim=True)) & (votes > 0)
    owners = (owners & (owners.cumsum(1) == 1))[:, :adapters]  # the first of equal votes
    for image, prompt in enumerate(prompts):
        if prompt.is_in_one_place:
            (index,) = prompt.called
            inside[image] *= _most_attended(maps[image, index], owners[image, index] & (inside[image] > 0))
    return (_grown(inside[:, None], grow) * owners).flatten(2)


def _rivals(maps: Tensor, inside: Tensor, prompt: RoutedPrompt, adapters: int) -> Tensor:
    """Which of the other things are where the concepts are, and not all around them: bool, one for each map after
    those of the adapters. maps: [groups, rows, columns]; inside: [rows, columns]."""
    margins = [PLACE_MARGIN if other.is_place else THING_MARGIN for other in prompt.others]
    drawn = maps[adapters:].clamp_min(SMALLEST_SHARE).log()
    apart = [(each[inside].mean() - each[~inside].mean()).item() for each in drawn]
    there = [difference > margin for difference, margin in zip(apart, margins, strict=False)]
    return torch.tensor(there + [False] * (len(drawn) - len(there)), dtype=torch.bool, device=maps.device)


def _most_attended(attention: Tensor, tokens: Tensor) -> Tensor:
    """Of the connected parts of `tokens` the one with the most attention on average, bool [rows, columns].

    Parts smaller than a quarter of the largest are not considered. attention, tokens (bool): [rows, columns].
    """
    labels = tokens * torch.arange(1, tokens.numel() + 1, device=tokens.device).view_as(tokens)
    while True:
        spread = labels.float()[None, None]
        spread = torch.maximum(F.max_pool2d(spread, (3, 1), 1, (1, 0)), F.max_pool2d(spread, (1, 3), 1, (0, 1)))
        spread = spread[0, 0].long() * tokens
        if torch.equal(spread, labels):
            break
        labels = spread
    parts = [labels == label for label in labels.unique().tolist() if label]
    if not parts:
        return tokens
    largest = max(int(part.sum()) for part in parts)
    return max(
        (part for part in parts if 4 * int(part.sum()) >= largest), key=lambda part: attention[part].mean().item()
    )


def _inside(maps: Tensor, called: Tensor, settings: MaskSettings) -> Tensor:
    """How far each token belongs to any called concept, [B, rows, columns]; maps: [B, groups, rows, columns]."""
    scaled = _scaled((_scaled(maps) * called[..., None, None]).sum(1, keepdim=True))[:, 0]
    if not settings.softness:
        return (scaled > settings.threshold).float()
    return ((scaled - settings.threshold) / settings.softness + 0.5).clamp(0, 1)


def _owners(log_maps: Tensor, inside: Tensor, called: Tensor) -> Tensor:
    """Whose each token inside is: one-hot, [groups, rows, columns], of one image.

    Attention to a word is not zero where another thing is, and one word may draw more of it everywhere. So the tokens
    are split by k-means, which finds the gap between the things, on how much more than usual each word draws; the first
    split gives each token to the word that draws most more. log_maps: [groups, rows, columns]; inside: [rows, columns];
    called: [groups].
    """
    owners = torch.zeros_like(log_maps)
    groups = called.nonzero()[:, 0]
    points = log_maps[groups][:, inside].T  # [tokens, called groups]
    if not points.numel():
        return owners
    points = points - points.mean(1, keepdim=True)
    deviations = points - points.mean(0)
    nearest = deviations.argmax(1)
    for _ in range(ROUNDS):
        centres = [_centre(points, deviations, nearest == index, index) for index in range(len(groups))]
        before, nearest = nearest, torch.cdist(points, torch.stack(centres)).argmin(1)
        if torch.equal(before, nearest):
            break
    some = owners[:, inside]
    some[groups[nearest], torch.arange(len(nearest), device=some.device)] = 1
    owners[:, inside] = some
    return owners


def _centre(points: Tensor, deviations: Tensor, members: Tensor, index: int) -> Tensor:
    """The mean of a group's tokens; without any, the token to which the group's word is most peculiar."""
    return points[members].mean(0) if members.any() else points[deviations[:, index].argmax()]


def _blurred(maps: Tensor, radius: int) -> Tensor:
    """The mean over (2 radius + 1)² tokens; maps: [B, groups, rows, columns]."""
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
