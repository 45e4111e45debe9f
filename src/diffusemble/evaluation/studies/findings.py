"""What a study hands over to its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.tables import Table


@dataclass(frozen=True)
class Findings:
    """The result of a study.

    Attributes:
        sentence: the plain reading, computed from the numbers.
        tables: in the order of the page.
        figures: by file name: matplotlib figures or PIL pictures.
        notes: what was measured on, such as numbers of pictures.
    """

    sentence: str
    tables: Sequence[Table]
    figures: Mapping[str, Any] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)


def scaled(interval: Interval, factor: float) -> Interval:
    """The same in another unit."""
    return Interval(factor * interval.value, factor * interval.low, factor * interval.high)


def verdict(gap: Interval, lower_is_better: bool) -> str:
    """``better``, ``worse`` or ``not clearly different``."""
    if not gap.clear:
        return "not clearly different"
    return "better" if (gap.value < 0) is lower_is_better else "worse"


def signed(number: float, digits: int = 2) -> str:
    """A number with its sign."""
    return f"{number:+.{digits}f}".replace("-", "−")


def in_words(gap: Interval, digits: int = 2) -> str:
    """A difference with its interval, for sentences."""
    return f"{signed(gap.value, digits)} [{signed(gap.low, digits)}, {signed(gap.high, digits)}]"


def joined(parts: Sequence[str]) -> str:
    """``a, b and c``."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else "none"
