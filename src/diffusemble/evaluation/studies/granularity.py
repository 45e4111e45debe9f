"""How often to aggregate: at all points, once per level, at a few, at the last; loss against cost."""

from __future__ import annotations

from diffusemble.description import describe
from diffusemble.evaluation.studies.clock import seconds_of
from diffusemble.evaluation.studies.compare import comparison, loss_gaps
from diffusemble.evaluation.studies.config import TrainedConfig
from diffusemble.evaluation.studies.findings import Findings, in_words, joined
from diffusemble.evaluation.studies.lab import Lab
from diffusemble.evaluation.studies.plots import scatter
from diffusemble.evaluation.studies.trained import Variant, as_systems, train_variants
from diffusemble.evaluation.tables import Cell

ALL = "all"


def run(config: TrainedConfig, lab: Lab) -> Findings:
    """Loss, scores, parameters, operations and seconds of a step for each."""
    variants = variants_of(len(lab.ensemble.points))
    ensembles = train_variants(variants, lab, needed=ALL)
    measured = lab.measure(as_systems(ensembles, variants), span=(0.8, 0.95))
    described = {name: describe(ensemble) for name, ensemble in ensembles.items()}
    lab.tell(0.95, "timing")
    seconds = seconds_of(ensembles)
    more: dict[str, dict[str, Cell]] = {
        "points": {name: len(ensembles[name].aggregator.points) for name in measured},
        "parameters, M": {name: described[name].aggregator_parameters / 1e6 for name in measured},
        "GFLOP of a step": {name: described[name].ensemble_flops / 1e9 for name in measured},
        "× one expert": {name: described[name].ratio for name in measured},
        "ms of a step": {name: 1000 * seconds[name] for name in measured},
    }
    gaps = loss_gaps(measured, measured[ALL], lab)
    told = [f"{measured[name].title} {in_words(gap)} at {described[name].ratio:.2f} ×" for name, gap in gaps.items()]
    dots = {one.title: (described[name].ratio, one.loss) for name, one in measured.items()}
    return Findings(
        f"Aggregating at all points costs {described[ALL].ratio:.2f} × one expert. Differences of the held-out loss "
        f"×1000 to it: {joined(told)}.",
        (comparison(measured, measured[ALL], lab, more),),
        {"granularity.png": scatter(dots, ("operations of a step, × one expert", "held-out loss ×1000"))},
        {"held-out pictures": len(lab.rows), "captions drawn": len(lab.jobs)},
    )


def variants_of(points: int) -> dict[str, Variant]:
    """The choices, for denoisers with this number of points."""
    few = sorted({round(part * (points - 1) / 4) for part in range(1, 5)})
    return {
        ALL: Variant("all points"),
        "levels": Variant("one per level", {"aggregator.options.points": "levels"}),
        "few": Variant(f"{len(few)} points", {"aggregator.options.points": few}),
        "last": Variant("the last point", {"aggregator.options.points": "last"}),
    }
