"""Boxes as controls know them: corners x1, y1, x2, y2 as shares of width and height."""

from __future__ import annotations

import torch
from torch import Tensor

from diffusemble.scene.boxes import check_box

__all__ = ["FEATURES", "between", "check_box", "fourier"]

FREQUENCIES = 8
FEATURES = 8 * FREQUENCIES  # of a box: sine and cosine of four numbers at every frequency


def fourier(boxes: Tensor) -> Tensor:
    """Fourier features of boxes, as in GLIGEN (arXiv 2301.07093, equation 5).

    For every frequency 100^(j/8), j = 0 to 7: the sines of the four numbers times the frequency, then the cosines.

    Args:
        boxes: ``[.. 4]``; MIGC takes its numbers in the order x1, x2, y1, y2.

    Returns:
        ``[.. 64]``.
    """
    exponents = torch.arange(FREQUENCIES, device=boxes.device) / FREQUENCIES
    angles = boxes.unsqueeze(-2) * (100**exponents).to(boxes.dtype).unsqueeze(-1)
    return torch.stack((angles.sin(), angles.cos()), dim=-2).flatten(-3)


def between(subjects: Tensor, objects: Tensor) -> Tensor:
    """The boxes where actions are: from the second to the third of the sorted edges (arXiv 2312.05849, section 3.2).

    Boxes that overlap meet in their intersection; others in what lies between them. Equal boxes stay as they are.

    Args:
        subjects, objects: ``[.. 4]`` as x1, y1, x2, y2.

    Returns:
        ``[.. 4]``.
    """
    by_corner = torch.stack((subjects, objects), dim=-1).unflatten(-2, (2, 2))  # [.. corner, axis, thing]
    edges = by_corner.transpose(-3, -2).flatten(-2)  # [.. axis, edge]
    return edges.sort(dim=-1).values[..., 1:3].transpose(-2, -1).flatten(-2)
