"""Draws an icon in shades of one colour, its light and dark kept, so that every style stays what it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]

# Dark, full and light: the shades of a colour at luminance 0, 0.5 and 1 of the ink, RGB in 0 to 1.
SHADES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "red": ((0.28, 0.02, 0.02), (0.88, 0.13, 0.13), (1.0, 0.72, 0.70)),
    "yellow": ((0.32, 0.24, 0.0), (0.96, 0.80, 0.10), (1.0, 0.96, 0.62)),
    "green": ((0.02, 0.22, 0.05), (0.16, 0.66, 0.22), (0.72, 0.95, 0.72)),
    "blue": ((0.03, 0.07, 0.30), (0.14, 0.40, 0.90), (0.70, 0.85, 1.0)),
    "purple": ((0.17, 0.03, 0.26), (0.56, 0.18, 0.74), (0.88, 0.74, 0.98)),
}
INK_ONLY = "high contrast"  # its ink is all black: drawn in the full colour, not in the dark one
WHITE = 0.97  # luminance from which a pixel inside the outline stays white: eyes, highlights
GAMMAS = (0.5, 3.0)


def luminance(pixels: Pixels) -> Pixels:
    """Luma (ITU-R BT.601) ``[h w]`` of RGB ``[h w 3]`` in 0 to 1."""
    return pixels @ np.array([0.299, 0.587, 0.114])


def recolour(pixels: Pixels, mask: NDArray[np.bool_], colour: str, style: str) -> Pixels:
    """RGB ``[h w 3]`` in 0 to 1, the masked part in shades of ``colour``.

    A power of the luminance brings the ink's median to the full colour, so that a lemon turns as blue as a whale.
    """
    dark, full, light = (np.array(shade) for shade in SHADES[colour])
    light_of = luminance(pixels)
    ink = mask & (light_of < WHITE)
    if style == INK_ONLY:
        shades = full + (1 - full) * light_of[..., None]
    else:
        middle = float(np.clip(np.median(light_of[ink]) if ink.any() else 0.5, 0.02, 0.98))
        level = light_of ** np.clip(np.log(0.5) / np.log(middle), *GAMMAS)
        low, high = np.clip(level * 2, 0, 1)[..., None], np.clip(level * 2 - 1, 0, 1)[..., None]
        shades = np.where(level[..., None] < 0.5, dark + (full - dark) * low, full + (light - full) * high)
    return np.where(ink[..., None], shades, pixels)
