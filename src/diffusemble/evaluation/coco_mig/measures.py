"""The published measures of COCO-MIG, from what detectors found: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diffusemble.evaluation.coco_mig.bench import Box, MigPrompt
from diffusemble.evaluation.coco_mig.colours import colour_share
from diffusemble.evaluation.scenes.boxes import iou

PLACED, COLOURED, OVERLAPPING = 0.5, 0.2, 0.8

Picture = NDArray[np.uint8]


class Detectors(Protocol):
    """What finds things in a picture, RGB ``[h w 3]``."""

    def find(self, image: Picture, thing: str) -> Sequence[tuple[Box, float]]:
        """Boxes of all things of a name, as shares of the picture, with how sure it is of each."""
        ...

    def segment(self, image: Picture, box: Box) -> NDArray[np.bool_]:
        """Mask ``[h w]`` of what stands in a box."""
        ...


@dataclass(frozen=True)
class Checked:
    """What became of one instance.

    Attributes:
        placed: a find overlaps its box by half.
        coloured: a fifth of what stands in its box has its colour; False where it is not placed.
        overlap: as the published mean counts it, see ``check``.
    """

    placed: bool
    coloured: bool
    overlap: float

    @property
    def right(self) -> bool:
        """The instance succeeds."""
        return self.placed and self.coloured


def check(found: Sequence[tuple[Box, float]], box: Box, share: Callable[[], float]) -> Checked:
    """Check one instance.

    The overlap has a quirk of the published evaluation: it is 0 for a thing that stands in its place in the wrong
    colour, but one that stands elsewhere keeps its overlap, whatever its colour.

    Args:
        found: boxes of all things of its kind, with how sure the detector is.
        box: that it was asked for.
        share: of what stands in that box, how much has its colour; only called for an instance in its place.
    """
    best = max((iou(one, box) for one in suppressed(found)), default=0.0)
    if best < PLACED:
        return Checked(False, False, best)
    coloured = share() >= COLOURED
    return Checked(True, coloured, best if coloured else 0.0)


def suppressed(found: Sequence[tuple[Box, float]], most: float = OVERLAPPING) -> list[Box]:
    """Boxes without those that overlap a surer one by more than ``most``, the surest first."""
    kept: list[Box] = []
    for box, _ in sorted(found, key=lambda one: one[1], reverse=True):
        if all(iou(box, other) <= most for other in kept):
            kept.append(box)
    return kept


def measures(image: Picture, prompt: MigPrompt, detectors: Detectors) -> dict[str, float]:
    """Measures of one picture, RGB ``[h w 3]``.

    Returns:
        ``instance``: share of things that succeed; ``miou``: mean overlap, as published; ``picture``: 1 where all
        things succeed; ``placed``: share of things in their place.
    """
    seen = [
        check(
            detectors.find(image, thing.thing),
            thing.box,
            lambda thing=thing: colour_share(image, detectors.segment(image, thing.box), thing.colour),  # type: ignore[misc]
        )
        for thing in prompt.instances
    ]
    return {
        "instance": float(np.mean([one.right for one in seen])),
        "miou": float(np.mean([one.overlap for one in seen])),
        "picture": float(all(one.right for one in seen)),
        "placed": float(np.mean([one.placed for one in seen])),
    }
