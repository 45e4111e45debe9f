"""Tables of the protocols of drawn pictures: scores, spreads, and paired intervals, by metric."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from diffusemble.evaluation.config import PicturesConfig
from diffusemble.evaluation.picture_scores import PictureScores
from diffusemble.evaluation.rows import Score, score_of
from diffusemble.evaluation.statistics import Interval, kernel_gap, paired_bootstrap
from diffusemble.evaluation.stored import REFERENCE, Array
from diffusemble.evaluation.systems import LEARNED

REPEATS_FOR_INTERVAL = 5
Gap = Callable[[str, str], Interval | None]


@dataclass(frozen=True)
class MetricResults:
    """One metric over all systems.

    Attributes:
        metric: its name.
        best: the single expert that is best by this metric; every gap is to it.
        scores: by system; of a metric of sets, smallest and largest are over repeats.
        versus: difference of the main ensemble to each other system; None where the metric gives no interval.
        categories: mean by category and system; empty without categories.
    """

    metric: str
    best: str
    scores: Mapping[str, Score]
    versus: Mapping[str, Interval | None]
    categories: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class PictureResults:
    """Everything on the page.

    Attributes:
        systems: name, title and kind of each, in order.
        main: the ensemble that is compared with each of the others; None if there is none.
        metrics: results by metric, in order.
        prompts: their number.
        pictures: number that each system drew.
        higher_is_better: by metric.
    """

    systems: tuple[tuple[str, str, str], ...]
    main: str | None
    metrics: tuple[MetricResults, ...]
    prompts: int
    pictures: int
    higher_is_better: Mapping[str, bool]


def summarise_pictures(scores: PictureScores, config: PicturesConfig) -> PictureResults:
    """All tables; intervals draw whole prompts, or repeats where a metric only knows sets."""
    metrics = [
        _of_images(scores, config, name) if name in scores.images else _of_sets(scores, config, name)
        for name in config.metrics
    ]
    return PictureResults(
        scores.systems, _main(scores), tuple(metrics), len(scores.prompts), len(scores.jobs), scores.higher_is_better
    )


def _of_images(scores: PictureScores, config: PicturesConfig, metric: str) -> MetricResults:
    found, lower = scores.images[metric], not scores.higher_is_better[metric]
    groups = [str(job.prompt) for job in scores.jobs]
    best = _best(scores, found, lower)
    rows = {
        name: score_of(own, None if name == best else found[best], groups, config, lower) for name, own in found.items()
    }
    labels = np.array([scores.prompts[job.prompt].category for job in scores.jobs])
    categories = {
        label: {name: float(own[labels == label].mean()) for name, own in found.items()}
        for label in sorted(set(labels.tolist()) - {""})
    }

    def gap(one: str, other: str) -> Interval:
        return paired_bootstrap(found[one] - found[other], groups, config.bootstrap, config.seed)

    return MetricResults(metric, best, rows, _versus(scores, gap), categories)


def _of_sets(scores: PictureScores, config: PicturesConfig, metric: str) -> MetricResults:
    found, lower = scores.sets[metric], not scores.higher_is_better[metric]
    best = _best(scores, found, lower)
    features, groups = scores.features.get(metric), [str(job.prompt) for job in scores.jobs]

    def gap(one: str, other: str) -> Interval | None:
        if features is not None:
            return kernel_gap(features[one], features[other], features[REFERENCE], groups)
        if config.repeats < REPEATS_FOR_INTERVAL:
            return None
        return paired_bootstrap(found[one] - found[other], None, config.bootstrap, config.seed)

    rows = {}
    for name, own in found.items():
        wins = float(np.mean(own < found[best] if lower else own > found[best]))
        difference = None if name == best else gap(name, best)
        rows[name] = Score(float(own.mean()), float(own.min()), float(own.max()), difference, wins)
    return MetricResults(metric, best, rows, _versus(scores, gap), {})


def _best(scores: PictureScores, found: Mapping[str, Array], lower: bool) -> str:
    singles = [name for name, _, kind in scores.systems if kind == "expert"] or list(found)
    return (min if lower else max)(singles, key=lambda name: float(found[name].mean()))


def _main(scores: PictureScores) -> str | None:
    ensembles: Sequence[str] = [name for name, _, kind in scores.systems if kind == "ensemble"]
    return LEARNED if LEARNED in ensembles else next(iter(ensembles), None)


def _versus(scores: PictureScores, gap: Gap) -> dict[str, Interval | None]:
    main = _main(scores)
    if main is None:
        return {}
    return {name: gap(main, name) for name, _, kind in scores.systems if name != main and kind != "inside"}
