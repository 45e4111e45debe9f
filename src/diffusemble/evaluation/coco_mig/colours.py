"""Which pixels have a colour, by hue, saturation and value as OpenCV counts them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Bounds = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

RANGES: Mapping[str, Sequence[Bounds]] = {
    "red": (((0, 6), (43, 255), (35, 255)), ((156, 180), (43, 255), (35, 255))),
    "yellow": (((20, 34), (43, 255), (35, 255)),),
    "green": (((35, 77), (43, 255), (35, 255)),),
    "blue": (((78, 124), (43, 255), (35, 255)),),
    "brown": (((6, 25), (43, 255), (35, 255)),),
    "black": (((0, 180), (0, 255), (0, 35)),),
    "white": (((0, 180), (0, 43), (221, 255)),),
}
"""Hue (0 to 180), saturation and value (0 to 255), both ends included, as the published evaluation has them. Brown
overlaps red and yellow; hues 125 to 155 belong to no colour."""


def to_hsv(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Hue (half degrees, 0 to 179), saturation and value (0 to 255) of RGB ``[h w 3]``, rounded as OpenCV rounds."""
    pixels = image.astype(np.float64)
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    value, chroma = pixels.max(axis=-1), np.ptp(pixels, axis=-1)
    safe = np.where(chroma > 0, chroma, 1)
    hue = np.where(
        value == red,
        (green - blue) / safe,
        np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    saturation = np.where(value > 0, 255 * chroma / np.where(value > 0, value, 1), 0)
    half = np.round(30 * np.where(chroma > 0, hue, 0)) % 180
    return np.stack([half, np.round(saturation), value], axis=-1).astype(np.uint8)


def colour_share(image: NDArray[np.uint8], mask: NDArray[np.bool_], colour: str) -> float:
    """Share of a mask's pixels that have a colour; 0 for an empty mask.

    Args:
        image: RGB ``[h w 3]``.
        mask: ``[h w]``.
        colour: a key of ``RANGES``.

    Raises:
        ValueError: unknown colour.
    """
    if colour not in RANGES:
        raise ValueError(f"Unknown colour {colour!r}. Choose one of: {', '.join(RANGES)}.")
    if not mask.any():
        return 0.0
    pixels = to_hsv(image)[mask].astype(int)
    within = np.zeros(len(pixels), dtype=bool)
    for bounds in RANGES[colour]:
        low, high = np.array(bounds).T
        within |= ((pixels >= low) & (pixels <= high)).all(axis=1)
    return float(within.mean())
