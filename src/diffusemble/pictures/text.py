"""Words on pictures, in the font that comes with Pillow."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageDraw, ImageFont

INK, FAINT, PAPER, LINE = "#1b1f24", "#6b7280", "#ffffff", "#e2e5e9"

COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8c6d31", "#7f7f7f")
"""One per expert; the first seven can be told apart by colour-blind eyes (after Okabe and Ito 2008)."""


@lru_cache
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at ``size`` pixels."""
    return ImageFont.load_default(size)


def width_of(text: str, size: int) -> int:
    """Width of one line in pixels."""
    return round(font(size).getlength(text))


def wrap(text: str, width: int, size: int, lines: int) -> list[str]:
    """``text`` in at most ``lines`` lines of at most ``width`` pixels; what does not fit ends in an ellipsis."""
    done: list[str] = [""]
    for word in text.split():
        longer = f"{done[-1]} {word}".strip()
        if width_of(longer, size) <= width or not done[-1]:
            done[-1] = longer
        else:
            done.append(word)
    if len(done) > lines:
        done = [*done[: lines - 1], " ".join(done[lines - 1 :])]
    return [_cut(line, width, size) for line in done]


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], lines: list[str], size: int, fill: str = INK) -> None:
    """Left-aligned lines whose block is centred vertically at ``at``."""
    pitch = line_height(size)
    top = at[1] - pitch * (len(lines) - 1) / 2
    for number, line in enumerate(lines):
        draw.text((at[0], top + number * pitch), line, fill=fill, font=font(size), anchor="lm")


def line_height(size: int) -> int:
    """Distance of two lines."""
    return round(1.35 * size)


def _cut(line: str, width: int, size: int) -> str:
    if width_of(line, size) <= width:
        return line
    while line and width_of(line + "...", size) > width:
        line = line[:-1]
    return line.rstrip() + "..."
