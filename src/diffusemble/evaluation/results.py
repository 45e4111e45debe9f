"""From scores of single pictures to everything that the page of the zoo's protocol shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.drawn_rows import drawn_rows, drawn_versus
from diffusemble.evaluation.grounds import kinds
from diffusemble.evaluation.loss_rows import floats, loss_rows, versus
from diffusemble.evaluation.rows import DrawnRow, LossRow
from diffusemble.evaluation.statistics import Interval
from diffusemble.evaluation.stored import Scores
from diffusemble.evaluation.systems import LEARNED


@dataclass(frozen=True)
class Results:
    """Everything in the report.

    Attributes:
        best: name of the single expert with the lowest loss on held-out pairs; the reference of all differences.
        main: name of the ensemble that is compared with each of the others; None if there is none.
        losses: rows by split.
        versus: by split, difference of the main ensemble's loss to each other system's.
        drawn_versus: by score, difference of the main ensemble's to each other system's; kernel distances are there
            under the name of their net.
        counts: pictures of each split.
        drawn: rows; the first are the held-out pictures themselves, and the same through the autoencoder.
        weights: the ensemble's mean weight of each expert for each kind of picture.
        weights_by_time: the same at each timestep.
        experts: their names.
        candidates: texts a picture's own caption is ranked among.
        references: pictures that the features are compared with.
    """

    best: str
    main: str | None
    losses: Mapping[str, tuple[LossRow, ...]]
    versus: Mapping[str, Mapping[str, Interval]]
    drawn_versus: Mapping[str, Mapping[str, Interval]]
    counts: Mapping[str, int]
    drawn: tuple[DrawnRow, ...]
    weights: Mapping[str, tuple[float, ...]]
    weights_by_time: tuple[tuple[float, ...], ...]
    experts: tuple[str, ...]
    candidates: int
    references: int


def summarise(scores: Scores, config: EvaluateConfig, best: str | None = None) -> Results:
    """All tables of the scores.

    Args:
        scores: of at least one system.
        config: gives the samples and the seed of the intervals.
        best: the system that all are compared with; the best single expert by default.
    """
    best = best or _best(scores)
    main = _main(scores)
    label = np.array(kinds(scores.rows["pair"], scores.grounds))
    weights = scores.weights
    by_kind: dict[str, tuple[float, ...]] = {}
    by_time: tuple[tuple[float, ...], ...] = ()
    if weights is not None:
        by_kind = {one: floats(weights[label == one].mean(axis=(0, 1, 2))) for one in sorted(set(label.tolist()))}
        by_time = tuple(floats(row) for row in weights.mean(axis=(0, 2)))
    return Results(
        best=best,
        main=main,
        losses={split: loss_rows(scores, split, best, config) for split in scores.losses},
        versus={split: versus(scores, split, main, config) for split in scores.losses},
        drawn_versus=drawn_versus(scores, main, config),
        counts={split: len(rows) for split, rows in scores.rows.items()},
        drawn=drawn_rows(scores, best, config),
        weights=by_kind,
        weights_by_time=by_time,
        experts=scores.experts,
        candidates=scores.candidates,
        references=len(next(iter(scores.reference.values()))),
    )


def _best(scores: Scores) -> str:
    means = {name: float(found.mean()) for name, found in scores.losses["pair"].items()}
    singles = [name for name, _, kind in scores.systems if kind == "expert"] or list(means)
    return min(singles, key=lambda name: means[name])


def _main(scores: Scores) -> str | None:
    ensembles = [name for name, _, kind in scores.systems if kind == "ensemble"]
    return LEARNED if LEARNED in ensembles else next(iter(ensembles), None)
