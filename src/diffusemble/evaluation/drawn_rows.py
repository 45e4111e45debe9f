"""Rows of the scores of drawn pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.loss_rows import after_experts, asked, others
from diffusemble.evaluation.rows import ORACLE, DrawnRow, score_of
from diffusemble.evaluation.statistics import (
    Interval,
    Moments,
    frechet_distance_to,
    kernel_distance,
    kernel_gap,
    paired_bootstrap,
)
from diffusemble.evaluation.stored import DECODED, MATCH, REAL, RIGHT, Array, Drawn, Scores


def measures(scores: Scores) -> tuple[str, ...]:
    """What every set of drawn pictures is scored by."""
    first, *rest = scores.drawn.values()
    shared = [name for name in first.scores if all(name in other.scores for other in rest)]
    return (MATCH, RIGHT, *(name for name in shared if name not in (MATCH, RIGHT)))


def drawn_rows(scores: Scores, best: str, config: EvaluateConfig) -> tuple[DrawnRow, ...]:
    """A row for each system, after two for the real pictures; with an oracle where grounds tell whom to ask."""
    moments = {net: Moments.of(features) for net, features in scores.reference.items()}
    groups = [job.concept for job in scores.jobs]
    drawn, named = dict(scores.drawn), list(scores.systems)
    chosen = asked(scores, scores.jobs, best)
    if chosen:
        drawn[ORACLE] = _picked(scores, chosen)
        named.insert(after_experts(scores), (ORACLE, "for each picture the expert made for it (oracle)", ORACLE))

    def row(system: tuple[str, str, str]) -> DrawnRow:
        own, other = drawn[system[0]], None if system[0] == best else drawn[best]
        return DrawnRow(
            *system,
            scores={
                name: score_of(own.scores[name], other.scores[name] if other else None, groups, config)
                for name in measures(scores)
            },
            frechet={net: frechet_distance_to(moments[net], own.features[net]) for net in moments},
            kernel={net: kernel_distance(own.features[net], scores.reference[net]) for net in moments},
            kernel_gap={
                net: kernel_gap(own.features[net], other.features[net], features, groups) if other else None
                for net, features in scores.reference.items()
            },
        )

    real = ((REAL, "held-out pictures themselves", REAL), (DECODED, "the same through the autoencoder", REAL))
    return tuple(row(system) for system in (*real, *named))


def _picked(scores: Scores, names: Sequence[str]) -> Drawn:
    """Picture i as system ``names[i]`` drew it."""

    def pick(arrays: Mapping[str, Array]) -> Array:
        return np.stack([arrays[name][number] for number, name in enumerate(names)])

    own = {name: scores.drawn[name] for name in set(names)}
    return Drawn(
        pick({name: one.images for name, one in own.items()}),
        {net: pick({name: one.features[net] for name, one in own.items()}) for net in scores.reference},
        {score: pick({name: one.scores[score] for name, one in own.items()}) for score in measures(scores)},
    )


def drawn_versus(scores: Scores, main: str | None, config: EvaluateConfig) -> dict[str, dict[str, Interval]]:
    """Difference of the main ensemble to each of the others, by score and by feature net."""
    groups = [job.concept for job in scores.jobs]
    rest = others(scores, main)
    if not rest or main is None:
        return {}
    own = scores.drawn[main]
    found = {
        score: {
            name: paired_bootstrap(
                own.scores[score] - scores.drawn[name].scores[score], groups, config.bootstrap, config.seed
            )
            for name in rest
        }
        for score in measures(scores)
    }
    for net, reference in scores.reference.items():
        found[net] = {
            name: kernel_gap(own.features[net], scores.drawn[name].features[net], reference, groups) for name in rest
        }
    return found
