"""A labelled contact sheet: one row per prompt, one column per way to draw it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from diffusemble.pictures.text import FAINT, INK, LINE, PAPER, font, line_height, width_of, wrap, write

TITLE, LABEL, SMALL = 19, 17, 14
GAP, MARGIN, HEAD = 12, 24, 34
LABEL_WIDTH = 170
TARGET = 224  # smallest side that small pictures are enlarged to, by whole factors


@dataclass(frozen=True)
class Column:
    """One column: its title, its colour, and a picture per row. A ``framed`` column is the one to look at."""

    title: str
    colour: str
    pictures: Sequence[Image.Image]
    framed: bool = False


def enlarge(image: Image.Image) -> Image.Image:
    """Small pictures by a whole factor with a sharp filter; large ones as they are."""
    factor = max(1, TARGET // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)


def contact_sheet(labels: Sequence[str], columns: Sequence[Column], footer: str = "") -> Image.Image:
    """Draw the sheet.

    Args:
        labels: text left of each row.
        columns: all with as many pictures as there are labels; every picture is enlarged alike.
        footer: one line under the pictures.

    Returns:
        An RGB picture; ``cell`` says where each picture lies on it.
    """
    pictures = [[enlarge(picture) for picture in column.pictures] for column in columns]
    width, height = pictures[0][0].size
    right, bottom = cell(len(labels) - 1, len(columns) - 1, (width, height))
    foot = line_height(SMALL) + GAP if footer else 0
    sheet = Image.new("RGB", (right + width + MARGIN, bottom + height + MARGIN + foot), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number, column in enumerate(columns):
        _head(draw, column, cell(0, number, (width, height)), width)
        for row, picture in enumerate(pictures[number]):
            sheet.paste(picture, cell(row, number, (width, height)))
            _outline(draw, cell(row, number, (width, height)), (width, height), column)
    for row, label in enumerate(labels):
        left, top = MARGIN, cell(row, 0, (width, height))[1]
        write(
            draw, (left, top + height / 2), wrap(label, LABEL_WIDTH - GAP, LABEL, height // line_height(LABEL)), LABEL
        )
    if footer:
        line = wrap(footer, sheet.width - 2 * MARGIN, SMALL, 1)
        write(draw, (MARGIN, sheet.height - MARGIN), line, SMALL, FAINT)
    return sheet


def cell(row: int, column: int, size: tuple[int, int]) -> tuple[int, int]:
    """Left and top of a picture on the sheet; ``size`` is that of the enlarged pictures."""
    return MARGIN + LABEL_WIDTH + column * (size[0] + GAP), MARGIN + HEAD + row * (size[1] + GAP)


def _head(draw: ImageDraw.ImageDraw, column: Column, at: tuple[int, int], width: int) -> None:
    title = wrap(column.title, width - 24, TITLE, 1)[0]
    left = at[0] + (width - width_of(title, TITLE) - 22) / 2
    middle = at[1] - HEAD / 2 - 4
    draw.ellipse((left, middle - 7, left + 14, middle + 7), fill=column.colour)
    draw.text((left + 22, middle), title, fill=INK, font=font(TITLE), anchor="lm")


def _outline(draw: ImageDraw.ImageDraw, at: tuple[int, int], size: tuple[int, int], column: Column) -> None:
    # Around the picture, so that its pixels stay as they are.
    reach, colour = (3, column.colour) if column.framed else (1, LINE)
    box = (at[0] - reach, at[1] - reach, at[0] + size[0] + reach - 1, at[1] + size[1] + reach - 1)
    draw.rectangle(box, outline=colour, width=reach)
