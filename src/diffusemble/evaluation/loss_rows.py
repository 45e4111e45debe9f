"""Rows of the held-out loss, and who is asked for what."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusemble.evaluation.config import EvaluateConfig
from diffusemble.evaluation.grounds import kinds, owners
from diffusemble.evaluation.pictures import Row
from diffusemble.evaluation.rows import ORACLE, LossRow, score_of
from diffusemble.evaluation.statistics import Interval, paired_bootstrap
from diffusemble.evaluation.stored import Array, Scores


def loss_rows(scores: Scores, split: str, best: str, config: EvaluateConfig) -> tuple[LossRow, ...]:
    """A row for each system, and the oracle behind the experts where grounds tell whom to ask."""
    rows, found = scores.rows[split], dict(scores.losses[split])
    groups, label = [row.concept for row in rows], np.array(kinds(rows, scores.grounds))
    named = list(scores.systems)
    chosen = asked(scores, rows, best)
    if chosen:
        found[ORACLE] = np.stack([found[name][number] for number, name in enumerate(chosen)])
        named.insert(after_experts(scores), (ORACLE, "for each picture the expert made for it (oracle)", ORACLE))

    def row(system: tuple[str, str, str]) -> LossRow:
        own = found[system[0]]
        reference = None if system[0] == best else found[best].mean(axis=1)
        means = own.mean(axis=1)
        by_kind = {one: float(means[label == one].mean()) for one in sorted(set(label.tolist()))}
        return LossRow(
            *system, score_of(means, reference, groups, config, lower=True), floats(own.mean(axis=0)), by_kind
        )

    return tuple(row(system) for system in named)


def asked(scores: Scores, rows: Sequence[Row], best: str) -> list[str] | None:
    """Whom the oracle asks for each picture: the best expert where no ground covers it; None if there is no oracle."""
    found = owners(rows, scores.grounds)
    there = {name for name, _, kind in scores.systems if kind == "expert"}
    if found is None or not {one for one in found if one} <= there:
        return None
    return [one or best for one in found]


def after_experts(scores: Scores) -> int:
    """Place of a row behind the last expert."""
    return 1 + max(number for number, (_, _, kind) in enumerate(scores.systems) if kind == "expert")


def versus(scores: Scores, split: str, main: str | None, config: EvaluateConfig) -> dict[str, Interval]:
    """Difference of the main ensemble's loss to each of the others'."""
    means = {name: found.mean(axis=1) for name, found in scores.losses[split].items()}
    groups = [row.concept for row in scores.rows[split]]
    return {
        name: paired_bootstrap(means[main or ""] - means[name], groups, config.bootstrap, config.seed)
        for name in others(scores, main)
    }


def others(scores: Scores, main: str | None) -> list[str]:
    """Whom the main ensemble is compared with: all but itself and the experts inside the framework."""
    return [name for name, _, kind in scores.systems if main and name != main and kind != "inside"]


def floats(values: Array) -> tuple[float, ...]:
    """Plain numbers."""
    return tuple(float(value) for value in values)
