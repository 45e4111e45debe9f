"""Systems against one of them: the table and the figure most studies need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffusemble.evaluation.statistics import Interval, win_rate
from diffusemble.evaluation.studies.findings import in_words, scaled, verdict
from diffusemble.evaluation.studies.lab import Lab, Measured
from diffusemble.evaluation.studies.plots import whiskers
from diffusemble.evaluation.tables import Cell, Table
from diffusemble.registry import METRICS


def best_expert(measured: Mapping[str, Measured]) -> Measured:
    """The single expert with the lowest held-out loss.

    Raises:
        ValueError: none of the systems is an expert whose loss was measured.
    """
    experts = [one for one in measured.values() if one.kind == "expert" and one.losses.size]
    if not experts:
        raise ValueError(f"There is no expert among {', '.join(measured)}. Measure the experts' held-out losses, too.")
    return min(experts, key=lambda one: one.loss)


def loss_gaps(measured: Mapping[str, Measured], reference: Measured, lab: Lab) -> dict[str, Interval]:
    """Difference of each held-out loss ×1000 to the reference's; below zero it is better."""
    return {
        name: scaled(lab.gap(one.losses, reference.losses, lab.rows), 1000)
        for name, one in measured.items()
        if name != reference.name
    }


def score_gaps(measured: Mapping[str, Measured], reference: Measured, lab: Lab, metric: str) -> dict[str, Interval]:
    """Difference of each mean score to the reference's."""
    return {
        name: lab.gap(one.scores[metric], reference.scores[metric], lab.jobs)
        for name, one in measured.items()
        if name != reference.name
    }


def comparison(
    measured: Mapping[str, Measured],
    reference: Measured,
    lab: Lab,
    more: Mapping[str, Mapping[str, Cell]] | None = None,
) -> Table:
    """One row per system: loss and scores, each with its paired difference to the reference.

    ``more`` has further columns: by title, then by the system's name.
    """
    more = more or {}
    rows: list[list[Cell]] = [
        [one.title, *(column.get(name) for column in more.values())] for name, one in measured.items()
    ]
    head = ["system", *more]
    if reference.losses.size:
        gaps = loss_gaps(measured, reference, lab)
        head += ["loss ×1000", "difference in loss", "pictures won"]
        for row, (name, one) in zip(rows, measured.items(), strict=True):
            share = 100 * win_rate(one.losses.mean(axis=1), reference.losses.mean(axis=1))
            row += [one.loss, gaps.get(name), None if one is reference else f"{share:.0f} %"]
    for metric in reference.scores:
        gaps = score_gaps(measured, reference, lab, metric)
        head += [title_of(metric), f"difference in {metric}"]
        for row, (name, one) in zip(rows, measured.items(), strict=True):
            row += [float(one.scores[metric].mean()), gaps.get(name)]
    caption = f"Differences are paired, to {reference.title}. Losses are better when lower, scores when higher."
    return Table("comparison", caption, head, rows)


def score_head(metrics: Sequence[str], references: Sequence[str]) -> list[str]:
    """Titles of ``score_cells``."""
    parts = [(title_of(metric), *(f"{metric}, to {name}" for name in references)) for metric in metrics]
    return [title for part in parts for title in part]


def score_cells(own: Measured, references: Sequence[Measured], lab: Lab) -> list[Cell]:
    """For every metric the mean score, and its paired difference to each reference but itself."""
    cells: list[Cell] = []
    for metric, scores in own.scores.items():
        cells.append(float(scores.mean()))
        cells += [None if own is one else lab.gap(scores, one.scores[metric], lab.jobs) for one in references]
    return cells


def title_of(metric: str) -> str:
    """Of a column."""
    return METRICS[metric].title


def gap_figure(measured: Mapping[str, Measured], gaps: Mapping[str, Interval], title: str) -> Any:
    """Every difference with its interval."""
    return whiskers({measured[name].title: (gap.value, gap.low, gap.high) for name, gap in gaps.items()}, title)


def said(one: Measured, reference: Measured, lab: Lab) -> str:
    """One sentence about a held-out loss."""
    gap = scaled(lab.gap(one.losses, reference.losses, lab.rows), 1000)
    return (
        f"{one.title} has a held-out loss of {one.loss:.2f} against {reference.loss:.2f} of {reference.title}: "
        f"{verdict(gap, lower_is_better=True)} ({in_words(gap)})."
    )


def tally(gaps: Mapping[str, Interval], lower_is_better: bool) -> str:
    """How many are better, worse, and neither."""
    outcomes = np.array([verdict(gap, lower_is_better) for gap in gaps.values()])
    counts = [int((outcomes == what).sum()) for what in ("better", "worse", "not clearly different")]
    return "{} clearly better, {} clearly worse, {} not clearly different".format(*counts)
