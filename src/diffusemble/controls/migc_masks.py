"""Where MIGC's instances are: masks of boxes on a feature grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_ROUNDING = 1e-4  # pixels; 0.7 in float32 lies below 0.7, and would lose the pixel that it starts or ends at


@dataclass(frozen=True)
class Masks:
    """Masks of a picture, or of several after each other, on a grid of ``l = h · w`` places.

    Attributes:
        instances: ``[n l 1]``, 1 inside an instance's box, between 0 and 1 at its border.
        rest: ``[p l 1]``, 1 outside all boxes.
        grid: h and w.
    """

    instances: Tensor
    rest: Tensor
    grid: tuple[int, int]


def pixel_masks(boxes: Tensor, height: int, width: int) -> Tensor:
    """Masks ``[n height width]`` of boxes ``[n 4]``: 1 in rows ⌊h·y1⌋ to ⌊h·y2⌋ - 1, and columns alike."""
    masks = torch.zeros(len(boxes), height, width)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
        top, bottom = (int(height * share + _ROUNDING) for share in (y1, y2))
        left, right = (int(width * share + _ROUNDING) for share in (x1, x2))
        mask[top:bottom, left:right] = 1
    return masks


def picture_masks(boxes: Tensor, pixels: tuple[int, int], latents: tuple[int, int], grid: tuple[int, int]) -> Masks:
    """Masks of one picture: drawn in pixels, then resized to the latents and from there to the grid.

    Both times bilinearly without smoothing, as the published weights were trained.

    Args:
        boxes: ``[n 4]`` as x1, y1, x2, y2, shares of the picture.
        pixels: height and width of the picture.
        latents: height and width of its latents.
        grid: height and width of the features.
    """
    inside = pixel_masks(boxes.float().cpu(), *pixels)
    outside = 1 - inside.amax(dim=0, keepdim=True) if len(inside) else torch.ones(1, *pixels)
    parts = torch.cat((inside, outside)).unsqueeze(1)
    for size in (latents, grid):
        parts = interpolate(parts, size, mode="bilinear", align_corners=False)
    flat = parts.flatten(1).unsqueeze(-1)  # [n+1 l 1]
    return Masks(flat[:-1], flat[-1:], grid)


def together(masks: Masks) -> Tensor:
    """Whether two places of one picture share an instance, or both lie outside all: ``[1 1 l l]``."""
    seen = (torch.cat((masks.instances, masks.rest)).squeeze(-1) > 0).float()
    return (seen.T @ seen > 0)[None, None]


def grid_of(latents: tuple[int, int], places: int) -> tuple[int, int]:
    """Height and width of a U-Net's features that have so many places; every level halves and rounds up.

    Raises:
        ValueError: no level has so many.
    """
    height, width = latents
    while height * width > places:
        height, width = (height + 1) // 2, (width + 1) // 2
    if height * width != places:
        raise ValueError(
            f"Features of {places} places belong to no level of a U-Net with latents of {latents[0]} x {latents[1]}. "
            f"Attach MIGC to layers of a U-Net whose levels halve the resolution."
        )
    return height, width
