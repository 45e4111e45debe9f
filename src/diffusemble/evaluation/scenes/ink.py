"""What is drawn on plain paper: foreground, its connected parts, and the colours of ink."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from diffusemble.evaluation.scenes.scene import Box

INK = 0.12  # least distance of ink from the paper, mean over RGB of 0 to 1
SATURATION, BRIGHTNESS = 0.25, 0.15  # least of a pixel that has a colour at all

# Hues of ink in degrees, from and to; red goes through 0. The gaps between them belong to no colour.
HUES: Mapping[str, tuple[float, float]] = {
    "red": (335.0, 22.0),
    "yellow": (32.0, 72.0),
    "green": (80.0, 170.0),
    "blue": (190.0, 248.0),
    "purple": (255.0, 320.0),
}


def paper_of(image: Tensor) -> Tensor:
    """Colour of the paper, RGB ``[3]``: the median of the border of an image ``[3 h w]``."""
    border = [image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]]
    return torch.cat(border, dim=1).median(dim=1).values


def foreground(image: Tensor, least: float = INK) -> Tensor:
    """Where an image ``[3 h w]`` in [0, 1] differs from its paper, bool ``[h w]``."""
    return (image - paper_of(image)[:, None, None]).abs().mean(dim=0) > least


def hue_saturation_value(image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees, saturation and value of RGB ``[3 h w]`` in [0, 1], each ``[h w]`` (hexcone of Smith 1978)."""
    value, low = image.amax(dim=0), image.amin(dim=0)
    chroma = value - low
    safe = chroma.clamp(min=1e-8)
    red, green, blue = image
    sector = torch.where(
        value == red,
        ((green - blue) / safe) % 6,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    return sector * 60, chroma / value.clamp(min=1e-8), value


def colour_masks(image: Tensor) -> dict[str, Tensor]:
    """Where an image ``[3 h w]`` in [0, 1] has each of ``HUES``, bool ``[h w]``."""
    hue, saturation, value = hue_saturation_value(image)
    vivid = (saturation >= SATURATION) & (value >= BRIGHTNESS)
    masks = {}
    for name, (start, end) in HUES.items():
        within = (hue >= start) & (hue < end) if start < end else (hue >= start) | (hue < end)
        masks[name] = within & vivid
    return masks


def parts(mask: Tensor, reach: int = 1, least: int = 20) -> list[Tensor]:
    """Connected parts of a mask ``[h w]``, each bool ``[h w]``, the largest first.

    Args:
        mask: bool.
        reach: pixels by which the mask is widened before what touches is joined; gaps up to twice that are bridged.
        least: pixels of a part; smaller ones are specks and left out.
    """
    wide = F.max_pool2d(mask[None, None].float(), 2 * reach + 1, 1, reach)[0, 0] > 0
    numbers = torch.arange(1.0, mask.numel() + 1).view(mask.shape)
    labels = torch.where(wide, numbers, 0)
    while True:
        grown = torch.where(wide, F.max_pool2d(labels[None, None], 3, 1, 1)[0, 0], 0)
        if torch.equal(grown, labels):
            break
        labels = grown
    labels = torch.where(mask, labels, 0)
    found, counts = labels[labels > 0].unique(return_counts=True)
    kept = sorted(((int(n), float(label)) for label, n in zip(found, counts, strict=True) if n >= least), reverse=True)
    return [labels == label for _, label in kept]


def box_of(mask: Tensor) -> Box:
    """The box around a mask ``[h w]`` that is not empty, 0 to 1.

    Raises:
        ValueError: the mask is empty.
    """
    if not bool(mask.any()):
        raise ValueError("An empty mask has no box; drop parts without pixels first.")
    height, width = mask.shape
    rows, columns = mask.any(dim=1).nonzero().flatten(), mask.any(dim=0).nonzero().flatten()
    return (
        float(columns[0]) / width,
        float(rows[0]) / height,
        float(columns[-1] + 1) / width,
        float(rows[-1] + 1) / height,
    )
