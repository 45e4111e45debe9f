"""Geometry of boxes ``(left, top, right, bottom)``: overlap, and whether two stand in a relation."""

from __future__ import annotations

from diffusemble.evaluation.scenes.scene import RELATIONS, Box

TOUCH = 0.06  # of the picture's side: how far a thing may be from what it stands on, or sink into it
OVERLAP = 0.35  # of the object's area inside the subject's box, from which it counts as held
ASIDE = 0.35  # of the smaller extent: how much things beside or above each other may overlap in that direction


def area(box: Box) -> float:
    """Area of a box; 0 if it is turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def shared(first: Box, second: Box) -> float:
    """Area that two boxes have in common."""
    corners = (max(first[0], second[0]), max(first[1], second[1]), min(first[2], second[2]), min(first[3], second[3]))
    return area(corners)


def iou(first: Box, second: Box) -> float:
    """Intersection over union of two boxes."""
    common = shared(first, second)
    whole = area(first) + area(second) - common
    return common / whole if whole > 0 else 0.0


def stands(relation: str, subject: Box, other: Box) -> bool:
    """Whether a subject's box is in a relation to an object's box.

    ``left of``, ``right of``, ``above`` and ``below``: the centres lie mainly in that direction, and the boxes overlap
    in it by a third of the smaller one at most. ``on``: above, touching, and over its width. ``holding``: a smaller
    object, a good part of it inside the subject's box.

    Raises:
        ValueError: unknown relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"Unknown relation {relation!r}. Choose one of: {', '.join(RELATIONS)}.")
    if relation == "holding":
        return area(other) < area(subject) and shared(subject, other) >= OVERLAP * area(other)
    if relation in ("right of", "below"):
        return stands({"right of": "left of", "below": "above"}[relation], other, subject)
    if relation == "on":
        near = abs(other[1] - subject[3]) <= TOUCH
        over = min(subject[2], other[2]) - max(subject[0], other[0])
        return near and over > 0 and _before(subject, other, axis=1)
    return _before(subject, other, axis=0 if relation == "left of" else 1)


def _before(first: Box, second: Box, axis: int) -> bool:
    """Whether one box comes before another along an axis, and mainly along it."""
    steps = [(second[a] + second[a + 2] - first[a] - first[a + 2]) / 2 for a in (0, 1)]
    overlap = first[axis + 2] - second[axis]
    smaller = min(first[axis + 2] - first[axis], second[axis + 2] - second[axis])
    return steps[axis] > 0 and steps[axis] >= abs(steps[1 - axis]) and overlap <= ASIDE * smaller
