"""Composites: images made from cut-outs of photographs, each a pure function of its recipe.

Before composition, concepts are known from photographs that show each alone (MuDI, 2404.04243; SVDiff's
Cut-Mix-Unmix, 2303.11305). A recipe names every file by its digest and every length in pixels, so that its own digest
tells everything that the pixels depend on.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageOps

from trainer.data.generated import Generated
from trainer.data.layout import arrange
from trainer.data.relations import Relation
from trainer.images.decode import Size
from trainer.images.inspection import Picture
from trainer.images.regions import regions

VERSION = "1"  # part of every digest: raise it when the same recipe would give other pixels
SOLID = 128  # a mask pixel this bright is inside the concept's box
FEATHER = 24  # how sharp a plain backdrop's horizon is
KEPT_CUTOUTS = 32
CELLS = 256  # of a mask's longer side, between which specks are told from the concept
SPECK = 0.005  # the share of a mask's solid pixels below which a part of it is a speck
NARROWEST = 16  # pixels of a concept's shorter side in the composite: one token of the transformer

Rgb = tuple[int, int, int]
Corners = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Plain:
    """A backdrop of two colours with a soft horizon between them.

    horizon: where it is, as a share of the height, 0 at the top.
    """

    above: Rgb
    below: Rgb
    horizon: float


@dataclass(frozen=True)
class Photograph:
    """A backdrop from an image file or from the base model, resized to cover the composite and cropped centrally."""

    picture: Picture | Generated


class MaskImage(Protocol):
    """A mask, from a file or from elsewhere. sha256: of all that it depends on. from_alpha: as in `Mask`."""

    @property
    def path(self) -> Path: ...
    @property
    def sha256(self) -> str: ...
    @property
    def from_alpha(self) -> bool: ...
    def read(self) -> Image.Image: ...


class MakesImage(Protocol):
    """A recipe, which makes a composite and its mask; the other parts are as in `Recipe`."""

    @property
    def size(self) -> Size: ...
    @property
    def sha256(self) -> str: ...
    @property
    def generated_images(self) -> tuple[Generated, ...]: ...
    def image(self) -> Image.Image: ...
    def mask(self) -> Image.Image: ...


@dataclass(frozen=True)
class Source:
    """A concept that is cut out of one photograph along its mask.

    corners: the box around the solid part of the mask, in the photograph's pixels. keeps_colors: whether transparent
    pixels keep their stored colours, because the alpha channel is the mask, instead of turning white.
    """

    picture: Picture | Generated
    mask: MaskImage
    corners: Corners
    keeps_colors: bool

    @property
    def size(self) -> Size:
        """Width and height of the cut-out in pixels."""
        left, top, right, bottom = self.corners
        return right - left, bottom - top

    def identity(self) -> tuple[object, ...]:
        """Everything that the cut-out's pixels depend on: digests of the files, and numbers. For `Recipe.sha256`."""
        picture = (self.picture.sha256, self.picture.converted, self.keeps_colors)
        return (*picture, self.mask.sha256, self.mask.from_alpha, self.corners)


@dataclass(frozen=True)
class Piece:
    """A cut-out placed in a composite. left, top, size: in the composite's pixels. flip: mirrored left to right."""

    source: Source
    left: int
    top: int
    size: Size
    flip: bool


class TooSmall(ValueError):
    """A piece of a composite would be too small. index: of its concept in the relation. size: in pixels."""

    def __init__(self, index: int, size: Size):
        self.index, self.size = index, size
        super().__init__(f"{size[0]}x{size[1]}")


def place_pieces(
    rng: Random, relation: Relation, sources: Sequence[Source], flips: Sequence[bool], size: Size
) -> tuple[Piece, ...]:
    """Place cut-outs as a relation says, in the order in which they are pasted. Raises `TooSmall`.

    sources: in the order of the caption ("A holding B"). flips: which of them may be mirrored. size: of the composite.
    Sizes and places vary with rng.
    """
    width, height = size
    boxes = arrange(rng, relation, [source.size[0] / source.size[1] for source in sources], width / height)
    pieces = []
    for index in sorted(range(len(boxes)), key=lambda each: boxes[each].layer):
        box = boxes[index]
        own = max(1, round(box.width * height)), max(1, round(box.height * height))
        if min(own) < NARROWEST:
            raise TooSmall(index, own)
        flip = flips[index] and rng.random() < 0.5
        pieces.append(Piece(sources[index], round(box.left * height), round(box.top * height), own, flip))
    return tuple(pieces)


def backdrop_identity(backdrop: Plain | Photograph) -> object:
    """Everything that a backdrop's pixels depend on, for a digest."""
    return backdrop if isinstance(backdrop, Plain) else (backdrop.picture.sha256, backdrop.picture.converted)


@dataclass(frozen=True)
class Recipe:
    """How to make a composite of `size` pixels. pieces: in the order in which they are pasted, the last on top."""

    size: Size
    backdrop: Plain | Photograph
    pieces: tuple[Piece, ...]

    @property
    def sha256(self) -> str:
        """A digest of everything that the pixels depend on."""
        behind = backdrop_identity(self.backdrop)
        pieces = [(piece.source.identity(), piece.left, piece.top, piece.size, piece.flip) for piece in self.pieces]
        return hashlib.sha256(repr((VERSION, self.size, behind, pieces)).encode()).hexdigest()

    @property
    def generated_images(self) -> tuple[Generated, ...]:
        """The images that it needs from the base model."""
        backdrop = self.backdrop.picture if isinstance(self.backdrop, Photograph) else None
        return (backdrop,) if isinstance(backdrop, Generated) else ()

    def image(self) -> Image.Image:
        """Make the composite, mode RGB. Raises `Problems` if one of its files has changed."""
        image = _backdrop(self.backdrop, self.size)
        for piece in self.pieces:
            pixels, mask = _resized(piece)
            image.paste(pixels, (piece.left, piece.top), mask)
        return image

    def mask(self) -> Image.Image:
        """Make the composite's mask: mode L, 255 where any of the concepts is, with soft edges."""
        union = Image.new("L", self.size, 0)
        for piece in self.pieces:
            _, mask = _resized(piece)
            union.paste(255, (piece.left, piece.top), mask)
        return union


@dataclass(frozen=True)
class Composite:
    """A composite that takes the place of an image file in a `Sample`. No file of it exists.

    path: not a file but a name for messages. sha256: the digest of the recipe. converted: False, as for an image in
    sRGB.
    """

    path: Path
    recipe: MakesImage
    sha256: str
    converted: bool = False

    @property
    def size(self) -> Size:
        """Width and height in pixels."""
        return self.recipe.size

    @property
    def width(self) -> int:
        return self.recipe.size[0]

    @property
    def height(self) -> int:
        return self.recipe.size[1]


@dataclass(frozen=True)
class CompositeMask:
    """The mask of a composite, which takes the place of a mask file. path: not a file but a name for messages."""

    path: Path
    recipe: MakesImage
    sha256: str
    from_alpha: bool = False

    def read(self) -> Image.Image:
        """The mask, mode L."""
        return self.recipe.mask()


def solid_corners(mask: Image.Image) -> Corners | None:
    """The box around the solid pixels of a mask, those of 128 or brighter; None if there are none. mask: mode L.

    Specks apart from the rest do not count, as a slip of the brush leaves them: one would make the concept as small in
    its box as if the photograph showed it from afar.
    """
    solid = np.asarray(mask) >= SOLID
    whole = mask.point(_solid).getbbox()
    if whole is None:
        return None
    cell = max(1, math.ceil(max(mask.size) / CELLS))
    rows, columns = (-(-side // cell) for side in solid.shape)
    padded = np.zeros((rows * cell, columns * cell), bool)
    padded[: solid.shape[0], : solid.shape[1]] = solid
    counts = padded.reshape(rows, cell, columns, cell).sum((1, 3))
    labels = regions(torch.from_numpy(counts > 0)).numpy()
    sizes = np.bincount(labels.ravel(), counts.ravel())
    kept = np.repeat(np.repeat((sizes >= SPECK * counts.sum())[labels], cell, 0), cell, 1)
    return Image.fromarray(padded & kept).getbbox() or whole


def has_specks(mask: Image.Image) -> bool:
    """Whether `solid_corners` leaves out specks outside of its box."""
    return solid_corners(mask) != mask.point(_solid).getbbox()


def touches(mask: Image.Image, share: float = 0.02) -> list[str]:
    """The edges ("left", "right", "top", "bottom") of a photograph at which its concept seems cut off.

    mask: the concept's, mode L. At such an edge, at least this share of the mask's pixels are 128 or brighter.
    """
    solid = np.asarray(mask) >= SOLID
    edges = {"left": solid[:, 0], "right": solid[:, -1], "top": solid[0], "bottom": solid[-1]}
    return [name for name, pixels in edges.items() if pixels.mean() >= share]


def _solid(value: int) -> int:
    return 255 if value >= SOLID else 0


def _resized(piece: Piece) -> tuple[Image.Image, Image.Image]:
    pixels, mask = _cut_out(piece.source)
    resized = [each.resize(piece.size, Image.Resampling.LANCZOS) for each in (pixels, mask)]
    turn: Callable[[Image.Image], Image.Image] = ImageOps.mirror if piece.flip else lambda image: image
    return turn(resized[0]), turn(resized[1])


@lru_cache(KEPT_CUTOUTS)
def _cut_out(source: Source) -> tuple[Image.Image, Image.Image]:
    image, mask = source.picture.read(flatten=not source.keeps_colors), source.mask.read()
    return image.crop(source.corners), mask.crop(source.corners)


def _backdrop(backdrop: Plain | Photograph, size: Size) -> Image.Image:
    if isinstance(backdrop, Photograph):
        return ImageOps.fit(backdrop.picture.read(), size, Image.Resampling.LANCZOS)
    width, height = size
    rows = np.linspace(0, 1, height)
    share_below = 1 / (1 + np.exp(-(rows - backdrop.horizon) * FEATHER))
    colors = np.outer(1 - share_below, backdrop.above) + np.outer(share_below, backdrop.below)
    return Image.fromarray(np.repeat(np.rint(colors).astype(np.uint8)[:, None], width, axis=1))
