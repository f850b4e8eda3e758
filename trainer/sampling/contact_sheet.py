"""Images side by side on a labelled sheet: a row for each prompt, a column for each model."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, QUIET, LINE = (255, 255, 255), (24, 24, 27), (113, 113, 122), (228, 228, 231)
SCALE = 256  # the side of an image in pixels to which the lengths below refer
MARGIN, GUTTER, LABEL = 28, 14, 190
TITLE_SIZE, HEAD_SIZE, LABEL_SIZE = 30, 20, 17
LINE_HEIGHT = 1.35


@dataclass(frozen=True)
class Row:
    """A row. label: the text to its left; pictures: its images, None for an empty cell."""

    label: str
    pictures: Sequence[Image.Image | None]


def contact_sheet(
    rows: Sequence[Row], columns: Sequence[str] = (), title: str = "", note: str = "", size: int = 256
) -> Image.Image:
    """Arrange images in rows and columns on one RGB image.

    rows: all with the same number of images; size: width and height of every image in pixels, to which those of another
    size are resized; columns: a heading for each column, or none; title, note: text above everything, in large and
    small letters.
    """
    count = max(len(row.pictures) for row in rows)
    assert all(len(row.pictures) == count for row in rows) and len(columns) in (0, count), "columns of unequal length"
    page = _Page(size, labelled=any(row.label for row in rows))
    title_lines = _wrapped(title, page.font(TITLE_SIZE), page.width(count) - 2 * page.margin)
    note_lines = _wrapped(note, page.font(LABEL_SIZE), page.width(count) - 2 * page.margin)
    heads = [_wrapped(head, page.font(HEAD_SIZE), size) for head in columns]
    top = page.margin + page.height(title_lines, TITLE_SIZE) + page.height(note_lines, LABEL_SIZE)
    top += page.gutter if title_lines or note_lines else 0
    tallest = max((page.height(head, HEAD_SIZE) for head in heads), default=0)
    below = top + tallest + (page.gutter // 2 if heads else 0)
    height = below + len(rows) * (size + page.gutter) - page.gutter + page.margin
    sheet = Image.new("RGB", (page.width(count), height), PAPER)
    draw = ImageDraw.Draw(sheet)
    after = page.write(draw, page.margin, page.margin, title_lines, TITLE_SIZE, INK)
    page.write(draw, page.margin, after, note_lines, LABEL_SIZE, QUIET)
    for index, head in enumerate(heads):
        page.write(draw, page.left(index), top + tallest - page.height(head, HEAD_SIZE), head, HEAD_SIZE, INK)
    for index, row in enumerate(rows):
        _draw_row(sheet, draw, page, row, below + index * (size + page.gutter))
    return sheet


class _Page:
    """Lengths in pixels for one size of image, and text of that scale."""

    def __init__(self, size: int, labelled: bool):
        self.size = size
        self.margin, self.gutter = self.scaled(MARGIN), self.scaled(GUTTER)
        self.label = self.scaled(LABEL) if labelled else 0
        self.first = self.margin + (self.label + self.gutter if labelled else 0)

    def scaled(self, length: float) -> int:
        return max(1, round(length * self.size / SCALE))

    def left(self, column: int) -> int:
        return self.first + column * (self.size + self.gutter)

    def width(self, columns: int) -> int:
        return self.left(columns) - self.gutter + self.margin

    def font(self, size: int) -> ImageFont.FreeTypeFont:
        font = ImageFont.load_default(max(8, self.scaled(size)))
        assert isinstance(font, ImageFont.FreeTypeFont), "Pillow without FreeType"
        return font

    def line(self, size: int) -> int:
        return round(self.font(size).size * LINE_HEIGHT)

    def height(self, lines: Sequence[str], size: int) -> int:
        return len(lines) * self.line(size)

    def write(self, draw: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], size: int, ink: tuple) -> int:
        """Write lines from (x, y) downwards; returns the y of the next line."""
        for line in lines:
            draw.text((x, y), line, ink, self.font(size))
            y += self.line(size)
        return y


def _draw_row(sheet: Image.Image, draw: ImageDraw.ImageDraw, page: _Page, row: Row, top: int) -> None:
    lines = _wrapped(row.label, page.font(LABEL_SIZE), page.label)
    middle = top + (page.size - page.height(lines, LABEL_SIZE)) // 2
    page.write(draw, page.margin, max(top, middle), lines, LABEL_SIZE, INK)
    for index, picture in enumerate(row.pictures):
        place = (page.left(index), top)
        if picture is None:
            draw.rectangle((*place, place[0] + page.size - 1, top + page.size - 1), outline=LINE)
        elif picture.size == (page.size, page.size):
            sheet.paste(picture, place)
        else:
            sheet.paste(picture.resize((page.size, page.size), Image.Resampling.LANCZOS), place)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """Break text into lines of at most this width, between words; a wider word is broken within."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines += _pieces(word, font, width)
    return lines


def _pieces(word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces
