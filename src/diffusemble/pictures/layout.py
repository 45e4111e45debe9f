"""What a picture was asked to show, drawn over it: boxes with phrases, and arrows for what they do to each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from diffusemble.pictures.sheet import enlarge
from diffusemble.pictures.text import COLOURS, INK, PAPER, font, line_height, width_of

SMALL, LINE, HEAD = 12, 2, 8
Point = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """A phrase in its box, x1, y1, x2, y2 as shares of the picture."""

    text: str
    box: Sequence[float]


@dataclass(frozen=True)
class Arrow:
    """From one frame to another, by their numbers, with a word at its middle."""

    text: str
    start: int
    end: int


def layout_picture(image: Image.Image, frames: Sequence[Frame], arrows: Sequence[Arrow] = ()) -> Image.Image:
    """Draw a layout over a copy of a picture, which is enlarged as on a sheet, one colour for each frame.

    An arrow from a frame to itself is not drawn.
    """
    shown = enlarge(image.convert("RGB"))
    draw = ImageDraw.Draw(shown)
    boxes = [_pixels(frame.box, shown.size) for frame in frames]
    for number, box in enumerate(boxes):
        draw.rectangle(box, outline=colour_of(number), width=LINE)
    for arrow in arrows:
        if arrow.start != arrow.end:
            _arrow(draw, _middle(boxes[arrow.start]), _middle(boxes[arrow.end]))
    for number, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
        _label(draw, frame.text, (box[0], box[1]), shown.size, colour_of(number))
    for arrow in arrows:
        if arrow.start != arrow.end:
            (x1, y1), (x2, y2) = _middle(boxes[arrow.start]), _middle(boxes[arrow.end])
            at = (x1 + x2 - width_of(arrow.text, SMALL)) / 2, (y1 + y2 - line_height(SMALL)) / 2
            _label(draw, arrow.text, at, shown.size, INK)
    return shown


def colour_of(number: int) -> str:
    """Colour of a frame."""
    return COLOURS[number % len(COLOURS)]


def _pixels(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = box
    last = size[0] - 1, size[1] - 1
    return round(x1 * last[0]), round(y1 * last[1]), round(x2 * last[0]), round(y2 * last[1])


def _middle(box: Sequence[float]) -> Point:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def _arrow(draw: ImageDraw.ImageDraw, start: Point, end: Point) -> None:
    across, down = end[0] - start[0], end[1] - start[1]
    length = (across**2 + down**2) ** 0.5
    if length < 1:
        return
    ahead = across / length, down / length
    # White under ink, so that it is seen on any picture.
    for colour, width in ((PAPER, LINE + 2), (INK, LINE)):
        draw.line((*start, *end), fill=colour, width=width)
    foot = end[0] - HEAD * ahead[0], end[1] - HEAD * ahead[1]
    side = HEAD / 2 * ahead[1], -HEAD / 2 * ahead[0]
    tips = [end, (foot[0] + side[0], foot[1] + side[1]), (foot[0] - side[0], foot[1] - side[1])]
    draw.polygon(tips, fill=INK, outline=PAPER)


def _label(draw: ImageDraw.ImageDraw, text: str, at: Point, size: tuple[int, int], colour: str) -> None:
    width, height = width_of(text, SMALL) + 6, line_height(SMALL)
    left, top = max(0, min(at[0], size[0] - width)), max(0, min(at[1], size[1] - height))
    draw.rectangle((left, top, left + width, top + height), fill=PAPER, outline=colour)
    draw.text((left + 3, top + height / 2), text, fill=INK, font=font(SMALL), anchor="lm")
