"""One row of a table for each system: its scores, their spread, and paired intervals against the best single expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusemble.evaluation.config import BenchConfig
from diffusemble.evaluation.statistics import Interval, paired_bootstrap, win_rate
from diffusemble.evaluation.stored import Array

ORACLE = "oracle"


@dataclass(frozen=True)
class Score:
    """One score of one system over its pictures.

    Attributes:
        mean, least, most: over pictures.
        gap: mean difference to the best single expert; None for itself.
        wins: share of pictures on which it is better than the best single expert.
    """

    mean: float
    least: float
    most: float
    gap: Interval | None
    wins: float


@dataclass(frozen=True)
class LossRow:
    """Held-out loss of one system on one split.

    Attributes:
        name, title, kind: of the system; ``oracle`` is for each picture the expert on whose ground it is.
        score: mean over timesteps, of each picture.
        by_time: mean at each timestep.
        by_kind: mean for each kind of picture: by the experts' grounds, or by topic.
    """

    name: str
    title: str
    kind: str
    score: Score
    by_time: tuple[float, ...]
    by_kind: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Over pictures and timesteps."""
        return self.score.mean

    @property
    def gap(self) -> Interval | None:
        """Mean difference to the best single expert."""
        return self.score.gap

    @property
    def wins(self) -> float:
        """Share of pictures with a lower loss than the best single expert's."""
        return self.score.wins


@dataclass(frozen=True)
class DrawnRow:
    """What the pictures of one system score; gaps are to the best single expert's, None for itself.

    Attributes:
        scores: of single pictures, higher is better.
        frechet, kernel, kernel_gap: of the set, by feature net, lower is better.
    """

    name: str
    title: str
    kind: str
    scores: Mapping[str, Score]
    frechet: Mapping[str, float]
    kernel: Mapping[str, float]
    kernel_gap: Mapping[str, Interval | None]


def score_of(
    own: Array, reference: Array | None, groups: Sequence[str], config: BenchConfig, lower: bool = False
) -> Score:
    """A score ``[n]`` beside that of the best expert ``[n]``; ``reference`` is None for that expert itself."""
    gap, wins = None, 0.5
    if reference is not None:
        gap = paired_bootstrap(own - reference, groups, config.bootstrap, config.seed)
        wins = win_rate(own, reference, np.less if lower else np.greater)
    return Score(float(own.mean()), float(own.min()), float(own.max()), gap, wins)
