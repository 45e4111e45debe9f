"""Coordinate-wise search over the shares of experts in slots: one coordinate at a time, kept only where it helps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

FIRST = ("BASE", "T5", "M00")  # what belongs to no path through the denoiser comes first

Shares = Mapping[str, tuple[float, ...]]
"""For every slot, one share per expert; they sum to one."""
Measure = Callable[[float], float]
"""Score with a coordinate at a value from 0 to 1; higher is better."""
Line = Callable[[Measure, int], None]


@dataclass(frozen=True)
class Axis:
    """One coordinate: the share of an expert (by index) in one slot, or in neighbours at once."""

    slots: tuple[str, ...]
    expert: int


@dataclass(frozen=True)
class Step:
    """Where a trial stands in the search; the start is pass 0 without an axis."""

    number: int = 0
    axis: Axis | None = None
    value: float | None = None


Evaluate = Callable[[Shares, Step], float]
"""Score of shares, at a step of the search; higher is better."""


def axes(slots: Sequence[str], experts: int, pairs: bool = False) -> tuple[Axis, ...]:
    """All coordinates in the order of the search: text encoders and middle first, then slot by slot.

    Args:
        slots: of the family, in order.
        experts: how many; of two experts, the share of the second says everything.
        pairs: two neighbours of one path at a time.
    """
    groups: list[tuple[str, ...]] = [(slot,) for slot in slots if slot in FIRST]
    rest = [slot for slot in slots if slot not in FIRST]
    width = 2 if pairs else 1
    for _, path in itertools.groupby(rest, lambda slot: re.sub(r"\d", "", slot)):
        own = list(path)
        groups += [tuple(own[start : start + width]) for start in range(0, len(own), width)]
    searched = (1,) if experts == 2 else range(experts)
    return tuple(Axis(group, expert) for group in groups for expert in searched)


def moved(shares: Shares, axis: Axis, value: float) -> dict[str, tuple[float, ...]]:
    """Shares after the axis went to ``value``; what is left goes to the other experts in their old proportions.

    Where the others had nothing, they share equally.
    """
    return {slot: _moved(own, axis.expert, value) if slot in axis.slots else tuple(own) for slot, own in shares.items()}


def _moved(own: Sequence[float], expert: int, value: float) -> tuple[float, ...]:
    rest = sum(share for index, share in enumerate(own) if index != expert)
    portions = [share / rest if rest > 0 else 1 / (len(own) - 1) for share in own]
    return tuple(value if index == expert else (1 - value) * portion for index, portion in enumerate(portions))


# -- searches along one axis -------------------------------------------------------------------------------------------


def grid(measure: Measure, rounds: int) -> None:
    """Try 0.0, 0.1, ... 1.0."""
    for tenth in range(11):
        measure(tenth / 10)


def bisect(measure: Measure, rounds: int) -> None:
    """Compare both ends, keep the half at the better one, ``rounds`` times; equal ends give no direction: stop."""
    low, high = 0.0, 1.0
    for _ in range(rounds):
        below, above = measure(low), measure(high)
        if below == above:
            return
        middle = (low + high) / 2
        low, high = (middle, high) if above > below else (low, middle)


def bisect_midpoint(measure: Measure, rounds: int) -> None:
    """Compare both ends and the middle, keep the lower half, the middle half or the upper half, ``rounds`` times.

    The middle wins ties with one end; three equal scores, or two equal ends above the middle, give no direction: stop.
    """
    low, high = 0.0, 1.0
    for _ in range(rounds):
        middle = (low + high) / 2
        below, between, above = measure(low), measure(middle), measure(high)
        if below == above >= between:
            return
        if between >= max(below, above):
            low, high = (low + middle) / 2, (middle + high) / 2
        else:
            low, high = (low, middle) if below > above else (middle, high)


LINES: Mapping[str, Line] = {"grid": grid, "bisect": bisect, "bisect-midpoint": bisect_midpoint}


# -- the search --------------------------------------------------------------------------------------------------------


def climb(
    start: Shares, order: Sequence[Axis], line: Callable[[Measure], None], evaluate: Evaluate, passes: int
) -> tuple[Shares, float]:
    """Go through all axes, ``passes`` times, and take over each value that scores higher than everything before.

    A value that scores the same is not taken over, and a pass that changes nothing is the last: the search ends.

    Args:
        start: shares to start from.
        order: the axes.
        line: what to try along one axis.
        evaluate: score of shares, for a step of the search.
        passes: through all axes.

    Returns:
        The best shares, and their score.
    """
    shares, best = dict(start), evaluate(start, Step())
    for number in range(1, passes + 1):
        before = best
        for axis in order:
            value, score = _best(line, shares, axis, evaluate, number)
            if score > best:
                shares, best = moved(shares, axis, value), score
        if best == before:
            break
    return shares, best


def _best(
    line: Callable[[Measure], None], shares: Shares, axis: Axis, evaluate: Evaluate, number: int
) -> tuple[float, float]:
    tried: dict[float, float] = {}

    def measure(value: float) -> float:
        if value not in tried:
            tried[value] = evaluate(moved(shares, axis, value), Step(number, axis, value))
        return tried[value]

    line(measure)
    value = max(tried, key=lambda one: tried[one])  # the first of equals
    return value, tried[value]


def most_trials(search: str, rounds: int, order: Sequence[Axis], passes: int) -> int:
    """An upper bound of the number of trials, for telling how far the search is."""
    along = {"grid": 11, "bisect": rounds + 1, "bisect-midpoint": 2 * rounds + 1}[search]
    return 1 + along * len(order) * passes


def by_expert(shares: Shares) -> Iterator[dict[str, float]]:
    """The same as block weights: one mapping from slot to share for every expert."""
    experts = len(next(iter(shares.values())))
    return ({slot: own[expert] for slot, own in shares.items()} for expert in range(experts))
