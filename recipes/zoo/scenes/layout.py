"""Boxes that say what a relation says, and do not cover each other where they need not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Size = tuple[int, int]  # width, height in px
Place = tuple[int, int, int, int]  # left, top, right, bottom in px

MARGIN, GAP, LEAN, TRIES = 2, 2, 10, 200
TOUCH = 3  # px that a thing sinks into the one it stands on


def placed(left: float, top: float, size: Size) -> Place:
    """A box from its corner and size."""
    x, y = round(left), round(top)
    return x, y, x + size[0], y + size[1]


def apart(first: Place, second: Place, gap: int = GAP) -> bool:
    """Whether two boxes have `gap` pixels between them."""
    return (
        first[2] + gap <= second[0]
        or second[2] + gap <= first[0]
        or first[3] + gap <= second[1]
        or second[3] + gap <= first[1]
    )


def inside(box: Place, side: int) -> bool:
    """Whether a box keeps the page's margin."""
    return min(box[:2]) >= MARGIN and max(box[2:]) <= side - MARGIN


def pair(relation: str, subject: Size, other: Size, side: int, rng: random.Random) -> tuple[Place, Place]:
    """Boxes of subject and object in relation; perhaps not on the page."""
    if relation in ("right of", "below"):
        second, first = pair({"right of": "left of", "below": "above"}[relation], other, subject, side, rng)
        return first, second
    if relation == "holding":
        whole = placed(rng.uniform(MARGIN, side - subject[0]), rng.uniform(MARGIN, side - subject[1]), subject)
        low = whole[3] - other[1] + rng.randint(-6, 4)
        at = whole[0] - rng.randint(2, 9) if rng.random() < 0.5 else whole[2] - other[0] + rng.randint(2, 9)
        return whole, placed(at, low, other)
    flat = relation == "left of"
    along, across = (0, 1) if flat else (1, 0)
    gap = -TOUCH if relation == "on" else rng.randint(GAP, 16)
    start = rng.uniform(MARGIN, max(MARGIN, side - subject[along] - gap - other[along] - MARGIN))
    centre = rng.uniform(0.35, 0.65) * side
    offsets = [centre + rng.uniform(-LEAN, LEAN) - size[across] / 2 for size in (subject, other)]
    starts = [start, start + subject[along] + gap]
    corners = [(s, o) if flat else (o, s) for s, o in zip(starts, offsets, strict=True)]
    return placed(*corners[0], subject), placed(*corners[1], other)


def arrange(relation: str, sizes: Sequence[Size], side: int, rng: random.Random) -> list[Place] | None:
    """Boxes for a scene's things, the first two in relation; None where no room was found."""
    for _ in range(TRIES):
        boxes = list(pair(relation, sizes[0], sizes[1], side, rng))
        if not all(inside(box, side) for box in boxes):
            continue
        for width, height in sizes[2:]:
            spots = (
                placed(rng.uniform(MARGIN, side - width), rng.uniform(MARGIN, side - height), (width, height))
                for _ in range(30)
            )
            free = (s for s in spots if inside(s, side) and all(apart(s, box) for box in boxes))
            found = next(free, None)
            if found is None:
                break
            boxes.append(found)
        if len(boxes) == len(sizes):
            return boxes
    return None


def longest_sides(relation: str, count: int, options: dict[str, Any], rng: random.Random) -> list[int]:
    """Longer sides in px of a scene's things."""
    sides = [rng.randint(*options["longest"][count]) for _ in range(count)]
    if relation == "holding":
        sides[0], sides[1] = (rng.randint(*options["holding"][role]) for role in ("subject", "object"))
        sides[2:] = [min(length, 32) for length in sides[2:]]
    return sides
