"""What each expert contributed, where and when: the aggregator's maps over the picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from PIL import Image, ImageColor, ImageDraw
from torch import Tensor

from diffusemble.pictures.text import COLOURS, FAINT, INK, PAPER, font, line_height, width_of, wrap, write

CELL, THUMB, BAR = 132, 112, 8
GAP, MARGIN, HEAD = 10, 24, 30
LABEL_WIDTH = 136
TITLE, LABEL, SMALL = 19, 15, 13


@dataclass(frozen=True)
class PointMaps:
    """Maps of one aggregation point: ``[n h w]`` at each of ``steps`` (from 1), weights that sum to one over n."""

    name: str
    steps: Sequence[int]
    maps: Sequence[Tensor]


def attention_picture(
    image: Image.Image, experts: Sequence[str], points: Sequence[PointMaps], title: str
) -> Image.Image:
    """Draw maps over a picture: one row per point, one column per step, one colour per expert.

    A place takes the colour of the expert that weighs most there, the stronger the further its weight lies above an
    equal share. The bar under each picture gives the experts' mean weights.

    Args:
        image: what the ensemble drew; shown grey under the maps.
        experts: n names.
        points: maps to draw, all of the same steps.
        title: above everything, usually the prompt.

    Returns:
        An RGB picture.
    """
    steps, size = points[0].steps, fit(image.size, CELL)
    left, top = MARGIN + LABEL_WIDTH, MARGIN + THUMB + HEAD
    pitch = size[0] + GAP, size[1] + BAR + 3 + GAP
    width = left + max(len(steps) * pitch[0] - GAP, 4 * CELL) + MARGIN
    sheet = Image.new("RGB", (width, top + len(points) * pitch[1] - GAP + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(image.resize(fit(image.size, THUMB), Image.Resampling.LANCZOS), (MARGIN, MARGIN))
    _legend(draw, (left, width - MARGIN), title, experts)
    grey = _grey(image, size)
    for column, step in enumerate(steps):
        x = left + column * pitch[0] + size[0] / 2
        draw.text((x, top - HEAD / 2), f"step {step}", fill=FAINT, font=font(LABEL), anchor="mm")
    for row, point in enumerate(points):
        y = top + row * pitch[1]
        grid = "{} x {}".format(*point.maps[0].shape[1:])
        write(draw, (MARGIN, y + size[1] / 2 - 9), wrap(point.name, LABEL_WIDTH - GAP, LABEL, 1), LABEL)
        write(draw, (MARGIN, y + size[1] / 2 + 11), [grid], SMALL, FAINT)
        for column, maps in enumerate(point.maps):
            at = left + column * pitch[0], y
            sheet.paste(overlay(grey, maps), at)
            _bar(draw, (at[0], y + size[1] + 3), size[0], maps)
    return sheet


def overlay(grey: Image.Image, maps: Tensor) -> Image.Image:
    """Colour a picture by the strongest expert of ``maps [n h w]``, each map cell a sharp square."""
    n = len(maps)
    shown = torch.nn.functional.interpolate(maps[None].float(), size=(grey.height, grey.width), mode="nearest")[0]
    weight, winner = shown.max(dim=0)
    # 0 at an equal share, 1 where one expert decides alone; the root lifts faint differences into sight.
    strength = ((weight - 1 / n) / (1 - 1 / n)).clamp(0, 1).sqrt() if n > 1 else torch.ones_like(weight)
    palette = torch.tensor([ImageColor.getrgb(COLOURS[index % len(COLOURS)]) for index in range(n)]).float()
    base = torch.tensor(list(grey.convert("RGB").tobytes())).view(grey.height, grey.width, 3).float()
    # Multiplying keeps the drawing visible in the colour, as ink on paper.
    inked = palette[winner] * (0.35 + 0.65 * base / 255)
    mixed = base + 0.9 * strength[..., None] * (inked - base)
    return Image.fromarray(mixed.round().to(torch.uint8).numpy())


def fit(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """Width and height scaled to a longest side."""
    scale = longest / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _grey(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS)
    return grey.point(lambda level: 70 + level * 185 // 255).convert("RGB")


def _legend(draw: ImageDraw.ImageDraw, span: tuple[int, int], title: str, experts: Sequence[str]) -> None:
    """Title, then names with their colours, between two edges."""
    lines = wrap(title, span[1] - span[0], TITLE, 2)
    write(draw, (span[0], MARGIN + 14 + (len(lines) - 1) * line_height(TITLE) / 2), lines, TITLE)
    left, middle = span[0], MARGIN + 14 + len(lines) * line_height(TITLE) + 4
    for index, name in enumerate(experts):
        if left + 22 + width_of(name, LABEL) > span[1]:
            left, middle = span[0], middle + line_height(LABEL)
        draw.rectangle((left, middle - 7, left + 14, middle + 7), fill=COLOURS[index % len(COLOURS)])
        draw.text((left + 22, middle), name, fill=INK, font=font(LABEL), anchor="lm")
        left += 22 + width_of(name, LABEL) + 24
    note = wrap("The stronger the colour, the larger its share; grey: equal. Bars: means.", span[1] - span[0], SMALL, 1)
    write(draw, (span[0], middle + line_height(LABEL) + 6), note, SMALL, FAINT)


def _bar(draw: ImageDraw.ImageDraw, at: tuple[int, int], width: int, maps: Tensor) -> None:
    ends = [0.0, *maps.float().mean(dim=(1, 2)).cumsum(0).tolist()]
    for index, (start, end) in enumerate(pairwise(ends)):
        box = (at[0] + round(start * width), at[1], at[0] + round(end * width) - 1, at[1] + BAR - 1)
        if box[2] >= box[0]:
            draw.rectangle(box, fill=COLOURS[index % len(COLOURS)])
