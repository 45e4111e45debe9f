"""Proposals for the things of a picture, from its ink alone: parts of the foreground, and parts of one colour."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.scenes.boxes import iou
from diffusemble.evaluation.scenes.ink import box_of, colour_masks, foreground, parts
from diffusemble.evaluation.scenes.scene import Box

SAME = 0.85  # overlap from which two proposals are one
LEAST = 60  # px of ink in a proposal
CROP = 64  # px of a crop's side
ROOM = 0.08  # paper around a crop, of its side


@dataclass(frozen=True)
class Find:
    """A part of a picture that may be a thing.

    Attributes:
        box: around it, 0 to 1.
        crop: it alone on its paper, ``[3 64 64]`` in [0, 1].
        shares: share of its ink in each colour of ``HUES``.
    """

    box: Box
    crop: Tensor
    shares: dict[str, float]

    @property
    def colour(self) -> str | None:
        """The colour with the largest share, if that is a fifth of the ink (the measure of COCO-MIG) or more."""
        name = max(self.shares, key=lambda key: self.shares[key])
        return name if self.shares[name] >= 0.2 else None


def finds(image: Tensor) -> list[Find]:
    """Proposals in an image ``[3 h w]`` in [0, 1].

    Things that touch are one part of the foreground, but mostly not of one colour; a thing of several colours is one
    part of the foreground, but not of one colour. So both kinds of parts are proposed.
    """
    ink = foreground(image)
    colours = {name: mask & ink for name, mask in colour_masks(image).items()}
    found = [_find(image, part, part, colours) for part in parts(ink, reach=1, least=LEAST)]
    for name, mask in colours.items():
        others = torch.stack([m for other, m in colours.items() if other != name]).any(dim=0)
        for part in parts(mask, reach=2, least=LEAST):
            find = _find(image, part, ink & ~others, colours)
            if all(iou(find.box, earlier.box) < SAME for earlier in found):
                found.append(find)
    return found


def _find(image: Tensor, part: Tensor, shown: Tensor, colours: dict[str, Tensor]) -> Find:
    box = box_of(part)
    size = part.sum()
    shares = {name: float((mask & part).sum() / size) for name, mask in colours.items()}
    height, width = part.shape
    rows = slice(round(box[1] * height), round(box[3] * height))
    columns = slice(round(box[0] * width), round(box[2] * width))
    return Find(box, crop(torch.where(shown, image, torch.ones(()))[:, rows, columns]), shares)


def crop(piece: Tensor) -> Tensor:
    """A piece ``[3 h w]`` in the middle of a white square with a little room, ``[3 64 64]``."""
    height, width = piece.shape[1:]
    side = round(max(height, width) * (1 + 2 * ROOM))
    left, top = (side - width) // 2, (side - height) // 2
    square = F.pad(piece, (left, side - width - left, top, side - height - top), value=1.0)
    sized = F.interpolate(square[None], (CROP, CROP), mode="bicubic", antialias=True, align_corners=False)
    return sized[0].clamp(0, 1)
