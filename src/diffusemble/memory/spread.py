"""Which blocks stay if not all of them can, as far apart as possible those that pass; and what a step copies then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

STEPS = 100
"""Into how many steps a denoiser is divided, from one that stays to one that passes."""

Sizes = Sequence[Sequence[int]]
"""Of every block of every denoiser, ``[n][k]``."""

Turn = tuple[int, int]
"""Which denoiser runs, and which of its blocks."""


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
    turns = running_order(sizes, range(n), lockstep)
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


def running_order(sizes: Sizes, order: Sequence[int], lockstep: bool) -> list[Turn]:
    """Who runs when in a step; ``order`` has the denoiser of every expert, one perhaps several times."""
    turns = [(denoiser, block) for denoiser in order for block in range(len(sizes[denoiser]))]
    return sorted(turns, key=lambda turn: turn[1]) if lockstep else turns


def copied(way: Spread, sizes: Sizes, turns: Sequence[Turn], room: int, afresh: bool) -> int:
    """Bytes that a step copies: every block that passes, unless it is one of the last that were there.

    Args:
        way: which blocks stay.
        sizes: bytes of every block.
        turns: the running order of a step (``running_order``).
        room: how many blocks that pass are there at once.
        afresh: nothing that the step before brought is there any more.
    """
    coming = [turn for turn in turns if not way.stays[turn[0]][turn[1]] and sizes[turn[0]][turn[1]]]
    there: list[Turn] = []
    total = 0
    for _ in range(1 if afresh else 2):  # the second step finds what the first one leaves
        total = sum(sizes[one][block] for one, block in _brought(coming, there, room))
    return total


def _brought(coming: Sequence[Turn], there: list[Turn], room: int) -> list[Turn]:
    brought = []
    for turn in coming:
        if turn in there:
            there.remove(turn)
        else:
            brought.append(turn)
        there.append(turn)
        del there[:-room]
    return brought
