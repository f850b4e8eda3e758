"""A contact sheet of one concept's images with their masks drawn over them, to check by eye."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from trainer.images.decode import decode, read_picture
from trainer.sampling.contact_sheet import Row, contact_sheet

SIDE = 256  # pixels of one place on the sheet
COLUMNS = 5
PER_SHEET = 100
TEXT_SIZE, LINE = 12, 15
OUTSIDE = 0.3  # how bright the image is outside of its mask
OUTLINE, PAPER, INK, WARNING = (255, 64, 64), (255, 255, 255), (24, 24, 27), (190, 24, 24)
LETTERS = 40  # of a line of text


@dataclass(frozen=True)
class Entry:
    """One cell of a contact sheet.

    name: the image's file name. picture: from `masked_thumbnail`, None if the image cannot be read. note: who made
    the mask, or what became of it. doubts: why the mask should be checked, printed in red.
    """

    name: str
    picture: Image.Image | None
    note: str = ""
    doubts: Sequence[str] = ()


def read_masked(image: Path, source: Path | None) -> tuple[Image.Image, Image.Image | None]:
    """Read an image (RGB) and its mask (mode L, None if there is none), both upright.

    source: the mask's file; the same path as `image` if its alpha channel is the mask; None for no mask. Raises
    `NotReadable` and OSError.
    """
    picture = read_picture(image, flatten=source != image)
    if source is None:
        return picture, None
    decoded = decode(source.read_bytes(), source.suffix)
    return picture, decoded.to_alpha() if source == image else decoded.to_mask()


def masked_thumbnail(image: Image.Image, mask: Image.Image | None, side: int = SIDE) -> Image.Image:
    """The image scaled to fit a white square of `side` pixels, darkened outside the mask, which is outlined in red.

    image: RGB. mask: mode L, the same size; None to show the image as it is.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.resize(size, Image.Resampling.LANCZOS)
    if mask is not None:
        inside = mask.resize(size, Image.Resampling.BOX).point([0] * 128 + [255] * 128)
        dark = Image.fromarray((np.asarray(small) * OUTSIDE).astype(np.uint8))
        small = Image.composite(small, dark, inside)
        edge = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(3)), inside)
        small.paste(OUTLINE, mask=edge)
    place = Image.new("RGB", (side, side), PAPER)
    place.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return place


def mask_sheets(entries: Sequence[Entry], title: str) -> list[Image.Image]:
    """Draw contact sheets of the entries: five to a row, at most a hundred to a sheet. Returns the sheets (RGB).

    The names of entries with doubts are red. title: the heading, numbered if there are several sheets.
    """
    parts = [entries[start : start + PER_SHEET] for start in range(0, len(entries), PER_SHEET)]
    return [
        _sheet(part, title if len(parts) == 1 else f"{title} ({number} of {len(parts)})")
        for number, part in enumerate(parts, 1)
    ]


def _sheet(entries: Sequence[Entry], title: str) -> Image.Image:
    captioned = [_captioned(entry) for entry in entries]
    columns = min(COLUMNS, len(captioned))
    rows = []
    for start in range(0, len(captioned), columns):
        pictures = captioned[start : start + columns]
        blank = [Image.new("RGB", (SIDE, SIDE), PAPER)] * (columns - len(pictures))
        rows.append(Row("", [*pictures, *blank]))
    doubtful = sum(bool(entry.doubts) for entry in entries)
    note = f"bright: inside the mask; {doubtful} of {len(entries)} to look at, named in red"
    return contact_sheet(rows, title=title, note=note, size=SIDE)


def _captioned(entry: Entry) -> Image.Image:
    """The picture with its name and notes on a white band at its lower edge, smaller where they need the room."""
    lines = [line for text in (entry.name, entry.note) for line in textwrap.wrap(text, LETTERS)[:1]]
    warnings = [line for text in entry.doubts for line in textwrap.wrap(text, LETTERS)]
    band = LINE * (len(lines) + len(warnings)) + 4
    room = max(SIDE - band, SIDE // 3)
    place = Image.new("RGB", (SIDE, SIDE), PAPER)
    if entry.picture is not None:
        place.paste(entry.picture.resize((room, room), Image.Resampling.LANCZOS), ((SIDE - room) // 2, 0))
    draw, font = ImageDraw.Draw(place), ImageFont.load_default(TEXT_SIZE)
    for index, line in enumerate([*lines, *warnings]):
        is_red = index >= len(lines) or (index == 0 and warnings)
        draw.text((4, room + 2 + index * LINE), line, WARNING if is_red else INK, font)
    return place
