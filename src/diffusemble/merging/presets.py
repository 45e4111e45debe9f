"""Block weights by name: the shapes that block-weighted merging is used with, as formulas.

The denoiser's slots lie evenly on 0 ≤ u ≤ 1, from the first to the last; r = |2u - 1| is 0 in the middle and 1 at both
ends. Numbers in names count the 25 slots of SD 1.x; other families get the same share of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

OUTSIDE = ("BASE", "T5")  # slots that are no part of the denoiser
ROUNDING = 1e-9


def _flat(weight: float) -> Callable[[float], float]:
    return lambda u: weight


def _between(low: float, high: float) -> Callable[[float], float]:
    """1 where low ≤ r ≤ high, counted in slots of SD 1.x from the middle."""
    return lambda u: float(low / 12 - ROUNDING <= abs(2 * u - 1) <= high / 12 + ROUNDING)


PRESETS: Mapping[str, Callable[[float], float]] = {
    "ALL_A": _flat(0.0),
    "ALL_B": _flat(1.0),
    "FLAT_25": _flat(0.25),
    "FLAT_50": _flat(0.5),
    "FLAT_75": _flat(0.75),
    "GRAD_UP": lambda u: u,
    "GRAD_DOWN": lambda u: 1 - u,
    "GRAD_V": lambda u: abs(2 * u - 1),
    "GRAD_A": lambda u: 1 - abs(2 * u - 1),
    "COSINE": lambda u: (1 + math.cos(math.pi * u)) / 2,
    "REVERSE_COSINE": lambda u: (1 - math.cos(math.pi * u)) / 2,
    "SMOOTHSTEP": lambda u: u * u * (3 - 2 * u),
    "REVERSE_SMOOTHSTEP": lambda u: 1 - u * u * (3 - 2 * u),
    "WRAP08": _between(5, 12),
    "WRAP04": _between(9, 12),
    "MID12": _between(0, 6),
    "RING08": _between(4, 7),
    "IN12": lambda u: float(u < 0.5 - ROUNDING),
    "OUT12": lambda u: float(u > 0.5 + ROUNDING),
    "OUT07": lambda u: float(0.5 + ROUNDING < u <= 19 / 24 + ROUNDING),
}
"""How much of the second model a slot takes, by where the slot lies. ``BASE`` is 0 but for the flat ones."""

_FLAT = ("ALL_A", "ALL_B", "FLAT_25", "FLAT_50", "FLAT_75")


def preset(name: str, slots: Sequence[str]) -> dict[str, float]:
    """Weights of a preset for every slot.

    Args:
        name: one of ``PRESETS``, in any case.
        slots: of a family (``blockwise.slots``).

    Raises:
        ValueError: unknown name.
    """
    shape = PRESETS.get(name.strip().upper())
    if shape is None:
        raise ValueError(f"There is no preset {name!r} of block weights. Choose one of: {', '.join(PRESETS)}.")
    outside = shape(0.0) if name.strip().upper() in _FLAT else 0.0
    denoiser = [slot for slot in slots if slot not in OUTSIDE]
    places = {slot: shape(place / (len(denoiser) - 1)) for place, slot in enumerate(denoiser)}
    return {slot: places.get(slot, outside) for slot in slots}
