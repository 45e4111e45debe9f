"""From scores of single pictures to tables: means, and paired intervals against the best single expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.pictures import Row
from diffusemble.evaluation.scores import DECODED, REAL, Array, Scores
from diffusemble.evaluation.statistics import (
    Interval,
    Moments,
    frechet_distance_to,
    kernel_distance,
    kernel_gap,
    paired_bootstrap,
    win_rate,
)

ORACLE = "oracle"


@dataclass(frozen=True)
class LossRow:
    """Held-out loss of one system on one split.

    Attributes:
        name, title, kind: of the system; ``oracle`` is the best expert for each topic.
        mean: over pictures and timesteps.
        gap: mean difference to the best single expert; None for itself.
        wins: share of pictures on which it is below the best single expert.
        by_time: mean at each timestep.
        by_topic: mean for each topic.
    """

    name: str
    title: str
    kind: str
    mean: float
    gap: Interval | None
    wins: float
    by_time: tuple[float, ...]
    by_topic: Mapping[str, float]


@dataclass(frozen=True)
class DrawnRow:
    """What the pictures of one system score; gaps are to the best single expert's, None for itself."""

    name: str
    title: str
    kind: str
    match: float
    match_gap: Interval | None
    top_1: float
    top_1_gap: Interval | None
    frechet: Mapping[str, float]
    kernel: Mapping[str, float]
    kernel_gap: Mapping[str, Interval | None]


@dataclass(frozen=True)
class Results:
    """All tables.

    Attributes:
        best: name of the single expert with the lowest held-out loss on the pairs; every gap is to it.
        losses: rows by split.
        versus: difference of the ensemble's loss to every other system's, by split and name.
        counts: held-out pictures by split.
        drawn: rows, the held-out pictures themselves and their decoded latents first.
        weights: mean weight of every expert by topic, in the order of ``experts``.
        weights_by_time: the same by timestep, over all topics.
        experts: names.
        candidates: number of concepts the right one is found among.
        references: number of training pictures the distances are to.
    """

    best: str
    losses: Mapping[str, tuple[LossRow, ...]]
    versus: Mapping[str, Mapping[str, Interval]]
    counts: Mapping[str, int]
    drawn: tuple[DrawnRow, ...]
    weights: Mapping[str, tuple[float, ...]]
    weights_by_time: tuple[tuple[float, ...], ...]
    experts: tuple[str, ...]
    candidates: int
    references: int


def summarise(scores: Scores, config: EvaluateConfig, candidates: int) -> Results:
    """All tables of the scores."""
    means = {name: float(found.mean()) for name, found in scores.losses["pair"].items()}
    singles = [name for name, _, kind in scores.systems if kind == "expert"] or list(means)
    best = min(singles, key=lambda name: means[name])
    experts = [name for name, _, kind in scores.systems if kind == "expert"]
    topics = [row.topic for row in scores.rows["pair"]]
    specialists = (
        {topic: _specialist(scores, experts, topics, topic) for topic in sorted(set(topics))} if experts else {}
    )
    losses = {split: _loss_rows(scores, split, best, specialists, config) for split in scores.losses}
    weights = scores.weights
    by_topic: dict[str, tuple[float, ...]] = {}
    by_time: tuple[tuple[float, ...], ...] = ()
    if weights is not None:
        by_topic = {t: _floats(weights[np.array(topics) == t].mean(axis=(0, 1, 2))) for t in sorted(set(topics))}
        by_time = tuple(_floats(row) for row in weights.mean(axis=(0, 2)))
    return Results(
        best=best,
        losses=losses,
        versus={split: _versus(scores, split, config) for split in scores.losses},
        counts={split: len(rows) for split, rows in scores.rows.items()},
        drawn=_drawn_rows(scores, best, config),
        weights=by_topic,
        weights_by_time=by_time,
        experts=scores.experts,
        candidates=candidates,
        references=len(next(iter(scores.reference.values()))),
    )


def _specialist(scores: Scores, experts: Sequence[str], topics: Sequence[str], topic: str) -> str:
    own = np.array(topics) == topic
    return min(experts, key=lambda name: float(scores.losses["pair"][name][own].mean()))


def _loss_rows(
    scores: Scores, split: str, best: str, specialists: Mapping[str, str], config: EvaluateConfig
) -> tuple[LossRow, ...]:
    rows, found = scores.rows[split], dict(scores.losses[split])
    named = list(scores.systems)
    if specialists and all(row.topic in specialists for row in rows):
        found[ORACLE] = np.stack([found[specialists[row.topic]][number] for number, row in enumerate(rows)])
        after = 1 + max(number for number, (_, _, kind) in enumerate(named) if kind == "expert")
        named.insert(after, (ORACLE, "best expert for each topic (oracle)", ORACLE))
    return tuple(_loss_row(system, found, best, rows, config) for system in named)


def _loss_row(
    system: tuple[str, str, str], found: Mapping[str, Array], best: str, rows: Sequence[Row], config: EvaluateConfig
) -> LossRow:
    own, reference = found[system[0]].mean(axis=1), found[best].mean(axis=1)
    groups = [row.concept for row in rows]
    topics = np.array([row.topic for row in rows])
    return LossRow(
        *system,
        mean=float(own.mean()),
        gap=None if system[0] == best else paired_bootstrap(own - reference, groups, config.bootstrap, config.seed),
        wins=win_rate(own, reference),
        by_time=_floats(found[system[0]].mean(axis=0)),
        by_topic={topic: float(own[topics == topic].mean()) for topic in sorted(set(topics.tolist()))},
    )


def _versus(scores: Scores, split: str, config: EvaluateConfig) -> dict[str, Interval]:
    own = next((name for name, _, kind in scores.systems if kind == "ensemble"), None)
    if own is None:
        return {}
    means = {name: found.mean(axis=1) for name, found in scores.losses[split].items()}
    groups = [row.concept for row in scores.rows[split]]
    return {
        name: paired_bootstrap(means[own] - means[name], groups, config.bootstrap, config.seed)
        for name, _, kind in scores.systems
        if kind not in ("ensemble", "inside")
    }


def _drawn_rows(scores: Scores, best: str, config: EvaluateConfig) -> tuple[DrawnRow, ...]:
    reference = scores.drawn[best]
    groups = [job.concept for job in scores.jobs]
    moments = {net: Moments.of(features) for net, features in scores.reference.items()}

    def row(system: tuple[str, str, str]) -> DrawnRow:
        own, other = scores.drawn[system[0]], system[0] != best

        def gap(a: Array, b: Array) -> Interval | None:
            differences = a.astype(float) - b.astype(float)
            return paired_bootstrap(differences, groups, config.bootstrap, config.seed) if other else None

        return DrawnRow(
            *system,
            match=float(own.match.mean()),
            match_gap=gap(own.match, reference.match),
            top_1=float((own.rank == 0).mean()),
            top_1_gap=gap(own.rank == 0, reference.rank == 0),
            frechet={net: frechet_distance_to(moments[net], own.features[net]) for net in moments},
            kernel={net: kernel_distance(own.features[net], scores.reference[net]) for net in moments},
            kernel_gap={
                net: kernel_gap(own.features[net], reference.features[net], scores.reference[net]) if other else None
                for net in moments
            },
        )

    real = ((REAL, "held-out pictures themselves", REAL), (DECODED, "the same through the autoencoder", REAL))
    return tuple(row(system) for system in (*real, *scores.systems))


def _floats(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
