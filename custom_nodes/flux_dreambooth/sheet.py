"""Images side by side on one labelled sheet, with Pillow alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, QUIET, EMPTY = (255, 255, 255), (24, 24, 27), (113, 113, 122), (244, 244, 245)
SCALE = 320  # pixels: the side of a cell that the sizes below are meant for
MARGIN, GUTTER, LABEL, TITLE_SIZE, HEAD_SIZE, LABEL_SIZE = 32, 12, 200, 28, 21, 18
LINE_HEIGHT = 1.35


@dataclass(frozen=True)
class Sheet:
    """The labels of a sheet.

    cell: width and height of each image on it, in pixels. feet: what is written below each column, or nothing at all;
    marked: the recommended column, by its number, which is named and framed.
    """

    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[str]
    cell: tuple[int, int]
    feet: Sequence[str] = ()
    marked: int | None = None

    def draw(self, pictures: dict[tuple[int, int], Image.Image]) -> Image.Image:
        """The sheet. pictures: by row and column; a cell that has no image yet stays grey."""
        width, height = self.cell
        gutter, margin, label = self._scaled(GUTTER), self._scaled(MARGIN), self._scaled(LABEL)
        left = margin + label + gutter
        full = left + len(self.columns) * (width + gutter) - gutter + margin
        title, note = self._wrap(self.title, TITLE_SIZE, full - 2 * margin), self._wrap(self.note, LABEL_SIZE, full)
        heads = [self._wrap(head, HEAD_SIZE, width) for head in self.columns]
        if self.marked is not None:
            heads[self.marked] += self._wrap("recommended", HEAD_SIZE, width)
        above = margin + self._height(title, TITLE_SIZE) + self._height(note, LABEL_SIZE) + gutter
        top = above + max(self._height(head, HEAD_SIZE) for head in heads) + gutter // 2
        bottom = top + len(self.rows) * (height + gutter) - gutter
        feet = [self._wrap(foot, LABEL_SIZE, width) for foot in self.feet]
        below = max((self._height(foot, LABEL_SIZE) + gutter for foot in feet if foot), default=0)
        sheet = Image.new("RGB", (full, bottom + below + margin), PAPER)
        pen = ImageDraw.Draw(sheet)
        self._write(pen, margin, margin, title, TITLE_SIZE, INK)
        self._write(pen, margin, margin + self._height(title, TITLE_SIZE), note, LABEL_SIZE, QUIET)
        for column, head in enumerate(heads):
            self._write(pen, left + column * (width + gutter), above, head, HEAD_SIZE, INK)
        for row, text in enumerate(self.rows):
            y = top + row * (height + gutter)
            self._write(pen, margin, y, self._wrap(text, LABEL_SIZE, label, height), LABEL_SIZE, INK)
            for column in range(len(self.columns)):
                x = left + column * (width + gutter)
                picture = pictures.get((row, column))
                if picture is None:
                    pen.rectangle((x, y, x + width - 1, y + height - 1), EMPTY)
                else:
                    sheet.paste(picture.resize(self.cell, Image.Resampling.LANCZOS), (x, y))
        for column, foot in enumerate(feet):
            self._write(pen, left + column * (width + gutter), bottom + gutter, foot, LABEL_SIZE, INK)
        if self.marked is not None:
            x, gap = left + self.marked * (width + gutter), gutter // 2
            frame = (x - gap, above - gap, x + width + gap - 1, bottom + below + gap - 1)
            pen.rectangle(frame, None, INK, max(1, gap // 2))
        return sheet

    def _scaled(self, length: float) -> int:
        return max(1, round(length * min(max(self.cell), 1024) / SCALE))

    def _font(self, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(max(9, self._scaled(size)))

    def _line(self, size: int) -> int:
        return round(max(9, self._scaled(size)) * LINE_HEIGHT)

    def _height(self, lines: Sequence[str], size: int) -> int:
        return len(lines) * self._line(size)

    def _write(self, pen: ImageDraw.ImageDraw, x: int, y: int, lines: Sequence[str], size: int, ink: tuple) -> None:
        for index, line in enumerate(lines):
            pen.text((x, y + index * self._line(size)), line, ink, self._font(size))

    def _wrap(self, text: str, size: int, width: int, height: int | None = None) -> list[str]:
        """The text in lines no wider than `width`; if they do not fit into `height`, the first ones and an ellipsis."""
        font, lines = self._font(size), []
        for paragraph in text.splitlines():
            line = ""
            for word in paragraph.split():
                longer = f"{line} {word}".strip()
                if line and font.getlength(longer) > width:
                    lines.append(line)
                    line = word
                else:
                    line = longer
            lines.append(line)
        most = len(lines) if height is None else max(1, height // self._line(size))
        return lines if len(lines) <= most else [*lines[: most - 1], "…"]
