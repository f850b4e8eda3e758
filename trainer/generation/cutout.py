"""Cuts a thing out of an image that shows it alone on a plain background, and says which cut-outs to keep.

The background is what continues the image's left and right border, row by row, as it is or in shadow. The thing is the
largest connected region of the rest. No trained model is needed, but the models of `trainer mask` are preferred where
they have been downloaded.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional

from trainer.images.regions import regions
from trainer.masking.create import Models, distinct
from trainer.masking.description import MASK_MODELS
from trainer.masking.load import GroundingDino, Sam2, model_problems

WORKING_SIDE = 256  # pixels of the longer side at which regions are found
BORDER = 0.03  # share of the width at each side that is taken for background
DIFFERENT = 30  # levels of 255 by which the thing differs from the background
DARKEST, LIGHTEST = 0.22, 1.25  # how bright the background is in shadow and in a highlight, relative to the border
SHARP = 9  # levels between neighbours above which there is an edge of the thing: shadows begin softly
SAME = 4  # levels from the background's colour in shadow, below which even a shadow with edges is one
NARROWEST_WAY = 1  # pixels at each side of a way that is free of edges
SAME_HUE, COLORED = 0.94, 12  # cosine between two colours without their grey; levels of one that is not grey
SMALLEST, LARGEST = 0.04, 0.6  # share of the image that a kept cut-out covers
HOLE = 0.008  # share of the image above which a hole stays one
IN_ONE_PIECE = 0.85  # of all that differs from the background is in the largest region
SOLID = 128
THRESHOLD = 0.3  # as of `trainer mask`


@dataclass(frozen=True)
class Cut:
    """The mask of a cut-out (mode L, the size of the image), and why it is not kept; "" if it is."""

    mask: Image.Image
    reason: str = ""


def cut_from_plain(image: Image.Image) -> Cut:
    """Cut a thing out of an RGB image with a plain background."""
    scale = WORKING_SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = torch.from_numpy(np.array(image.resize(size, Image.Resampling.BOX))).float()
    differs = _smoothed(_foreground(pixels))
    thing = _largest_region(differs)
    share = float(thing.sum() / differs.sum()) if differs.any() else 0.0
    mask = Image.fromarray((_filled(thing).numpy() * 255).astype(np.uint8)).resize(
        image.size, Image.Resampling.BILINEAR
    )
    if share < IN_ONE_PIECE:
        return Cut(mask, "it is not in one piece" if share else "nothing differs from the background")
    return judged(mask)


def load_mask_models(device: torch.device, folder: Path = Path("models")) -> Models | None:
    """The models of `trainer mask`; None unless both are in the folder, complete."""
    paths = [folder / model.folder for model in MASK_MODELS]
    if not all(path.is_dir() for path in paths) or model_problems(*paths):
        return None
    return Models(GroundingDino(paths[0], device), Sam2(paths[1], device), THRESHOLD)


def cut_by_models(image: Image.Image, thing: str, models: Models) -> Cut:
    """Cut a thing out of an RGB image with a detector and a segmenter. thing: what it is, such as "red ball"."""
    objects = distinct([found for found in models.detect(image, thing) if found.score >= models.threshold])
    if len(objects) != 1:
        return Cut(Image.new("L", image.size, 0), f"the detector finds {len(objects)} of it")
    return judged(models.segment(image, [objects[0].box]))


def judged(mask: Image.Image) -> Cut:
    """The cut-out of a mask, kept if it is of a good size and inside the image. mask: mode L."""
    solid = np.asarray(mask) >= SOLID
    share = float(solid.mean())
    if not SMALLEST <= share <= LARGEST:
        return Cut(mask, f"it covers {share:.0%} of the image")
    if any(edge.any() for edge in (solid[0], solid[-1], solid[:, 0], solid[:, -1])):
        return Cut(mask, "it touches the image's edge")
    return Cut(mask)


def _foreground(pixels: torch.Tensor) -> torch.Tensor:
    """What is not background: [H, W] bool. pixels: [H, W, 3] in 0 to 255."""
    width = pixels.shape[1]
    strip = max(1, round(width * BORDER))
    left, right = pixels[:, :strip].mean(1), pixels[:, -strip:].mean(1)
    across = torch.linspace(0, 1, width)[None, :, None]
    background = left[:, None] * (1 - across) + right[:, None] * across
    differs = (pixels - background).abs().amax(-1) > DIFFERENT
    brightness = (pixels * background).sum(-1) / background.square().sum(-1).clamp_min(1)
    unlike = (pixels - brightness[..., None] * background).abs().amax(-1)
    shaded = (
        (brightness > DARKEST)
        & (brightness < LIGHTEST)
        & ((unlike < DIFFERENT / 2) | _same_hue(pixels, background * brightness[..., None]))
    )
    return differs & ~(shaded & (unlike < SAME) & (brightness < 1)) & ~_reached(pixels, ~differs, shaded & differs)


def _reached(pixels: torch.Tensor, plain: torch.Tensor, shaded: torch.Tensor) -> torch.Tensor:
    """The shaded pixels that a way without sharp edges joins to the plain background; [H, W] bool.

    The other dark pixels are parts of the thing, such as wheels. pixels: [H, W, 3]. plain, shaded: [H, W] bool.
    """
    sharp = torch.zeros_like(plain)
    sharp[:-1] = (pixels[1:] - pixels[:-1]).abs().amax(-1) > SHARP
    sharp[:, :-1] |= (pixels[:, 1:] - pixels[:, :-1]).abs().amax(-1) > SHARP
    free = ~_grown(sharp | ~(plain | shaded), NARROWEST_WAY)
    numbers = regions(free)
    is_background = torch.zeros(int(numbers.max()) + 1, dtype=torch.bool)
    is_background[numbers[plain & free]] = True
    is_background[0] = False
    return _grown(is_background[numbers], NARROWEST_WAY + 1) & shaded


def _grown(mask: torch.Tensor, pixels: int) -> torch.Tensor:
    """The mask with all that is at most so many pixels away from it."""
    return functional.max_pool2d(mask[None, None].float(), 2 * pixels + 1, 1, pixels)[0, 0] > 0


def _same_hue(pixels: torch.Tensor, background: torch.Tensor) -> torch.Tensor:
    """Where the pixels are of the hue of a coloured background, and as deep or deeper: shadows are. [H, W] bool.

    background: as bright as the pixels.
    """
    own, behind = (each - each.mean(-1, keepdim=True) for each in (pixels, background))
    alike = functional.cosine_similarity(own, behind, dim=-1) > SAME_HUE
    return alike & (own.norm(dim=-1) > 0.8 * behind.norm(dim=-1).clamp_min(COLORED))


def _smoothed(mask: torch.Tensor) -> torch.Tensor:
    """The mask without specks and hairs: each pixel as most of its 5 x 5 neighbours."""
    return functional.avg_pool2d(mask[None, None].float(), 5, 1, 2)[0, 0] > 0.5


def _largest_region(mask: torch.Tensor) -> torch.Tensor:
    """The largest region of connected pixels."""
    labels = regions(mask)
    counts = torch.bincount(labels.flatten())
    counts[0] = 0
    return labels == counts.argmax() if counts.any() else torch.zeros_like(mask)


def _filled(mask: torch.Tensor) -> torch.Tensor:
    """The mask with its small holes; through large ones, such as a handle's, the background is seen."""
    holes = regions(functional.pad(~mask, (1, 1, 1, 1), value=True))  # padded: all that is outside is one region
    is_large = torch.bincount(holes.flatten()) > HOLE * mask.numel()
    is_large[0], is_large[holes[0, 0]] = False, True
    return ~is_large[holes][1:-1, 1:-1]
