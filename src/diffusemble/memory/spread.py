"""Which blocks stay if not all of them can: those that pass lie as far apart as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 100
"""Into how many steps a denoiser is divided, from one that stays to one that passes."""

Sizes = Sequence[Sequence[int]]
"""Of every block of every denoiser, ``[n][k]``."""


@dataclass(frozen=True)
class Spread:
    """A choice of blocks that stay.

    Attributes:
        stays: of every block of every denoiser, ``[n][k]``, whether it stays.
        resident: as how many denoisers that is, by their bytes; by their number, if they are one block each.
        passing: bytes of the others.
        largest: bytes of the largest of them.
    """

    stays: tuple[tuple[bool, ...], ...]
    resident: float
    passing: int
    largest: int


def spread(sizes: Sizes, lockstep: bool, resident: float) -> Spread:
    """The blocks that stay if at least ``resident`` of n denoisers should.

    Only what is computed between two blocks that pass hides the copy of the second one. So, along the running order, a
    block passes as soon as the bytes that should have passed by then cover it. Of n equal denoisers in lockstep a whole
    number stays whole, counted from the first.

    Args:
        sizes: bytes of every block.
        lockstep: all denoisers run a block before anybody runs the next one; else one denoiser runs after the other.
        resident: from 0 to n; more is n.
    """
    n, due = len(sizes), 0.0
    counted = [(1,)] * n if all(len(blocks) == 1 for blocks in sizes) else sizes
    turns = [(expert, block) for expert, blocks in enumerate(sizes) for block in range(len(blocks))]
    if lockstep:
        turns.sort(key=lambda turn: turn[1])
    stays = [[True] * len(blocks) for blocks in sizes]
    staying, away = 0, [0]
    for expert, block in turns:
        size = counted[expert][block]
        due += (n - resident) * size
        if due >= n * size > 0:
            due -= n * size
            stays[expert][block] = False
            away.append(sizes[expert][block])
        else:
            staying += size
    total = sum(map(sum, counted))
    return Spread(tuple(map(tuple, stays)), n * staying / total, sum(away), max(away))


def spreads(sizes: Sizes, lockstep: bool) -> list[Spread]:
    """All different choices, from everything to nothing in hundredths of a denoiser."""
    found = [spread(sizes, lockstep, step / STEPS) for step in range(STEPS * len(sizes), -1, -1)]
    return list(dict.fromkeys(found))
